# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fabric tells ip and tc, and what it makes of their answers; no namespace is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator import fabric
from simulator.fabric import Fabric
from simulator.plan import Cable, End

CABLE = Cable("c1", "c1", (End(1, 0), End(2, 1)), "1gbit")
PORTS = ("n1p0", "n1p2p0", "n2p1", "n2p2p1")


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, object]]:
    """Links of the fabric's namespace, as ``ip -j link`` shows them."""
    found: dict[str, dict[str, object]] = {port: {"ifname": port, "flags": ["UP"], "master": "c1"} for port in PORTS}
    found["c1"] = {"ifname": "c1", "flags": ["UP"]}
    (tmp_path / "sim-fabric-t").touch()
    monkeypatch.setattr(fabric, "NETNS", tmp_path)
    # for `type bridge` iproute2 prints an empty object for every other link
    monkeypatch.setattr(fabric, "run", lambda *_command, stdin="": json.dumps([{}, *found.values()]))
    return found


def test_cable_that_is_all_there_misses_nothing(links: dict[str, dict[str, object]]) -> None:
    assert Fabric("t").missing([CABLE]) == []


def test_missing_port_and_bridge_are_named(links: dict[str, dict[str, object]]) -> None:
    del links["n2p2p1"]
    assert Fabric("t").missing([CABLE]) == ["c1: n2p2p1 missing"]
    del links["c1"]
    assert "c1: c1 missing" in Fabric("t").missing([CABLE])


def test_port_at_another_cable_is_named(links: dict[str, dict[str, object]]) -> None:
    links["n1p0"]["master"] = "c2"
    del links["n2p1"]["master"]
    assert Fabric("t").missing([CABLE]) == ["c1: n1p0 is not at c1", "c1: n2p1 is not at c1"]


def test_without_the_namespace_everything_is_missing(links: dict[str, dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "sim-fabric-t").unlink()
    assert len(Fabric("t").missing([CABLE])) == 1 + len(PORTS)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ({"a": "1gbit"}, ["qdisc replace dev a root tbf rate 1gbit burst 256kb latency 50ms"]),
        ({"a": ""}, ["qdisc del dev a root"]),
        ({"b": ""}, []),
        ({"a": "", "b": "1gbit"}, ["qdisc del dev a root", fabric.limit("b", "1gbit")]),
    ],
)
def test_limits_are_set_and_only_our_own_are_lifted(
    monkeypatch: pytest.MonkeyPatch, rates: dict[str, str], told: list[str]
) -> None:
    qdiscs = [{"kind": "tbf", "dev": "a"}, {"kind": "noqueue", "dev": "b"}]
    lines: list[str] = []

    def answer(*command: str, stdin: str = "") -> str:
        lines.extend(stdin.splitlines())
        return json.dumps(qdiscs) if "show" in command else ""

    monkeypatch.setattr(fabric, "run", answer)
    fabric.set_rates(("nsenter",), rates)
    assert lines == told
