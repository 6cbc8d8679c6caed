# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happens to a pair that serves: it answers again by itself, and no request hangs meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fault_lab import HEAD, MODEL, REQUEST_TIMEOUT_S, WORKER, Clients, Cluster

from tests.scenario import api_key, ask, on_node, simulator, until

AWAY_S = 60.0
UNIT = "spark-vllm@tiny"
GENERATED = (
    "curl -s http://127.0.0.1:8888/metrics | awk '/^vllm:generation_tokens_total/ {sum += $2} END {print int(sum)}'"
)
NO_SPACE = r"""#!/bin/sh
if [ "$1" = run ]; then
    echo "docker: Error response from daemon: mkdir /var/lib/docker/overlay2/0: no space left on device." >&2
    exit 125
fi
exec /usr/bin/docker.real "$@"
"""


def kill_container(cluster: Cluster, node: str) -> None:
    on_node(node, f"docker kill {cluster.ranks}")


def reboot(*nodes: str) -> None:
    """Reboot nodes; a connection may end before the command's answer is back."""
    for node in nodes:
        with contextlib.suppress(AssertionError):
            on_node(node, "systemctl --no-block reboot")


def away(begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Let a state last AWAY_S."""
    began = time.monotonic()
    begin()
    until(lambda: time.monotonic() - began >= AWAY_S, "the time that it lasts")
    end()


def fill_disk(cluster: Cluster) -> None:
    """Make the engine refuse new containers, as it does on a full disk, and end one; then make room.

    All nodes are on one disk of this machine, which must not be full: the engine's answer is played.
    """
    on_node(HEAD, "touch /usr/bin/docker.real && mount --bind /usr/bin/docker /usr/bin/docker.real")
    on_node(HEAD, "cat >/run/docker.full && chmod 755 /run/docker.full", stdin=NO_SPACE)
    on_node(HEAD, "mount --bind /run/docker.full /usr/bin/docker")
    kill_container(cluster, HEAD)

    def refused() -> bool:
        return "no space left" in json.dumps(cluster.state(HEAD, cluster.ranks).get("failures", []))

    until(refused, "the supervisor says that the disk is full")
    on_node(HEAD, "umount /usr/bin/docker && umount /usr/bin/docker.real && rm /usr/bin/docker.real /run/docker.full")


FAULTS: dict[str, Callable[[Cluster], object]] = {
    "worker's container killed": lambda cluster: kill_container(cluster, WORKER),
    "worker off for 60 s": lambda cluster: away(lambda: simulator("off", WORKER), lambda: simulator("on", WORKER)),
    "head's container killed": lambda cluster: kill_container(cluster, HEAD),
    "head rebooted": lambda cluster: reboot(HEAD),
    "both rebooted": lambda cluster: reboot(WORKER, HEAD),
    "cable out for 60 s": lambda cluster: away(lambda: simulator("unplug", "c1"), lambda: simulator("plug", "c1")),
    "disk full": fill_disk,
    "engine frozen": lambda cluster: on_node(HEAD, "pkill -STOP -f VLLM::[E]ngineCore"),
}


# A start takes half a minute here: each way in which a fault is found, by one of the executors. All faults by both take
# half an hour: SPARKFLEET_FAULTS=all.
ALL = os.environ.get("SPARKFLEET_FAULTS") == "all"
SHORT = [
    ("ray", "worker's container killed"),
    ("ray", "both rebooted"),
    ("ray", "engine frozen"),
    ("mp", "cable out for 60 s"),
]
MATRIX = list(itertools.product(("ray", "mp"), FAULTS)) if ALL else SHORT


@pytest.mark.parametrize(("cluster", "fault"), MATRIX, ids=[", ".join(case) for case in MATRIX], indirect=["cluster"])
def test_it_answers_again_by_itself(
    cluster: Cluster,
    fault: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    until(cluster.whole, "the cluster is whole before")
    with Clients() as clients:
        until(lambda: clients.answered_since(0), "it answers before")
        before = cluster.state()
        moment = time.monotonic()
        FAULTS[fault](cluster)
        # Not what was still on its way: the group has begun anew, and a request that was sent to it comes back.
        until(lambda: cluster.state().get("since", 0) > before["since"] and cluster.whole(), "the group runs anew")
        again = time.monotonic()
        until(lambda: clients.answered_since(again), "it answers again")
    with capsys.disabled():
        print(f"\n{request.node.callspec.id}: {_summary(clients, moment, cluster.state())}")
    assert clients.longest <= REQUEST_TIMEOUT_S + 15


def _summary(clients: Clients, moment: float, state: dict[str, Any]) -> str:
    why = (state.get("recovered") or [{"why": "it was stopped in order"}])[-1]["why"]
    return (
        f"answers again {clients.gap(moment):.0f} s after the fault began; {len(clients.requests)} requests, "
        f"{clients.lost} with an error, the longest {clients.longest:.0f} s; the supervisor: {why}"
    )


@pytest.mark.parametrize("cluster", ["ray", "mp"] if ALL else ["ray"], indirect=True)
def test_a_stop_in_order_loses_no_request(cluster: Cluster) -> None:
    until(cluster.whole, "the cluster is whole before")
    generated = int(on_node(HEAD, GENERATED))
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(ask, HEAD, api_key(), tokens=100) for _request in range(6)]
        until(lambda: int(on_node(HEAD, GENERATED)) > generated, "they run")
        on_node(HEAD, f"systemctl restart {UNIT}")
        assert [one.result() for one in running] == [100] * 6
    until(cluster.whole, "it is whole again")


@pytest.mark.parametrize("cluster", ["ray"], indirect=True)
def test_at_the_limit_it_stays_down_and_says_why(cluster: Cluster) -> None:
    cluster.site(serve_restart_limit=1)
    for _time in range(2):
        until(lambda: cluster.state().get("state") == "running", "it runs")
        on_node(HEAD, f"docker kill {MODEL}")
        until(lambda: cluster.state().get("state") != "running", "its end was seen")
    until(lambda: cluster.state().get("state") == "down", "it gives up")
    assert "SIGKILL" in cluster.state()["why"]
    said = on_node(HEAD, f"journalctl --unit {UNIT} --grep '^sparkfleet: .*gives up' --output cat --lines 1")
    assert "gives up" in said
    assert on_node(HEAD, f"systemctl is-active {UNIT} || true").strip() == "failed"
    assert MODEL not in on_node(HEAD, "docker ps --all --format '{{.Names}}'")
    assert on_node(HEAD, "systemctl is-active ssh docker").split() == ["active", "active"], "the host is well"
    # site.yml brings it back: it does so for the next executor, whose first test waits for that.
