# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to plan the fabric of 1,000 hosts: find the wires, judge the cablings, assign the addresses.

``make bench`` prints it: the number of hosts, seconds of this machine's processor, and as a ratio to the time that the
same facts take through JSON and back, which every run of Ansible does many times. It is no test.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.sparkfleet.vllm.plugins.module_utils._addressing import (  # noqa: E402
    Addressing,
    assign,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._topology import (  # noqa: E402
    Host,
    find_cablings,
    find_wires,
)
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils.fabric_hosts import (  # noqa: E402
    applied,
    cable,
    clusters_of,
    names,
    pair,
    ring,
    switch,
)

HOSTS = 1000
REPEATS = 3


def fleets() -> dict[str, tuple[dict[str, list[str]], list[list[str]]]]:
    """Return fleets of 1,000 hosts: their clusters, and what is cabled."""
    everybody = range(1, HOSTS + 1)
    fours = [everybody[i : i + 4] for i in range(0, HOSTS, 4)]
    twos = [everybody[i : i + 2] for i in range(0, HOSTS, 2)]
    return {
        "one switch, one cluster": ({"all": names(*everybody)}, switch(*everybody)),
        "one switch, 500 clusters": ({f"c{t[0]}": names(*t) for t in twos}, switch(*everybody)),
        "250 rings of 4": ({f"c{f[0]}": names(*f) for f in fours}, [c for f in fours for c in ring(*f)]),
        "500 pairs, two cables each": (
            {f"c{t[0]}": names(*t) for t in twos},
            [c for t in twos for c in pair(t[0], t[1], cables=2)],
        ),
        "one ring": ({"all": names(*everybody)}, ring(*everybody)),
    }


def plan(hosts: Mapping[str, Host], order: Sequence[str]) -> Addressing:
    """Plan a fleet from nothing but its facts."""
    wires = find_wires(hosts)
    return assign(
        hosts, wires, find_cablings(hosts, wires, clusters_of(hosts)), order, ["10.10.0.0/16", "10.64.0.0/12"]
    )


def fastest(seconds: list[float]) -> float:
    """Return the time that other work on the machine disturbed least."""
    return min(seconds)


def measure(hosts: Mapping[str, Host]) -> tuple[Addressing, float, float]:
    """Return a fleet's plan, the seconds that it took, and those of its facts through JSON and back."""
    planning, copying = [], []
    for _repeat in range(REPEATS):
        began = time.process_time()
        json.loads(json.dumps(hosts))
        copying.append(time.process_time() - began)
        began = time.process_time()
        result = plan(hosts, list(hosts))
        planning.append(time.process_time() - began)
    return result, fastest(planning), fastest(copying)


def main() -> None:
    """Print the figures."""
    print(
        f"planning the fabric of {HOSTS} hosts (processor time, best of {REPEATS}; "
        "ratio to the same facts through JSON and back)"
    )
    for name, (clusters, groups) in fleets().items():
        hosts = json.loads(json.dumps(cable(clusters, groups)))  # nothing shared, as facts arrive
        result, new, copying = measure(hosts)
        if result["problems"]:
            sys.exit(f"{name}: {result['problems']}")
        settled, again, _copying = measure(applied(hosts, result))
        settings = [setting for own in settled["settings"].values() for setting in own]
        if not all(setting["kept"] for setting in settings):
            sys.exit(f"{name}: the second plan differs from the first")
        print(
            f"  {name}: {len(settings)} addresses; new {new:.2f} s ({new / copying:.1f} x), "
            f"converged {again:.2f} s ({again / copying:.1f} x)"
        )


if __name__ == "__main__":
    main()
