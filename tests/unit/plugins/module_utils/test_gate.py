# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _gate
from hypothesis import given
from hypothesis import strategies as st

NODES = ["s1", "s2", "s3", "s4"]
DATE = "2026-11-23T00:00:00Z"


def end(subnet: int, number: int, interface: str = "enp1s0f0np0", **changed: Any) -> _gate.RailEnd:
    base = _gate.RailEnd(
        interface=interface,
        address=f"192.168.{subnet}.{number}/24",
        mtu=9000,
        hca="rocep1s0f0",
        gid_index=3,
        mac=f"4c:bb:47:00:{number:02x}:{subnet % 256:02x}",
        rate_gbps=200.0,
        pcie="32.0 GT/s x4",
        firmware="28.45.4028",
    )
    return base | changed  # type: ignore[return-value]


def rails(hosts: int) -> dict[str, list[_gate.RailEnd]]:
    """Hosts with two rails on a switch."""
    return {
        host: [end(177, 11 + number), end(178, 11 + number, "enP2p1s0f0np0")]
        for number, host in enumerate(NODES[:hosts])
    }


def found(link: _gate.Link, **changed: Any) -> _gate.Measurement:
    base = _gate.Measurement(
        link=link,
        mtu_ok=True,
        small_ok=None,
        carrier=None,
        mtu=9000,
        ping_error="",
        wrong_mac="",
        gbps=95.0 if link["measure"] else None,
        tool="ib_write_bw" if link["measure"] else "",
        why_tcp="",
        error="",
    )
    return base | changed  # type: ignore[return-value]


def measured(hosts: int = 2, **changed: Any) -> dict[str, list[_gate.Measurement]]:
    """All links carry, but s1's first one is as given."""
    every = _gate.links(NODES[:hosts], rails(hosts))
    results = {host: [found(link) for link in own] for host, own in every.items()}
    results["s1"][0].update(changed)  # type: ignore[typeddict-item]
    return results


def lines(results: dict[str, list[_gate.Measurement]], **how: Any) -> list[str]:
    how = {"mode": "bandwidth", "min_gbps": 90.0, "wanted": "f", "date": DATE, "listeners": {}} | how
    listeners = how.pop("listeners")
    verdict = _gate.judge(how.pop("nodes", NODES[:2]), results, listeners, **how)
    assert verdict["passed"] == (not verdict["lines"]) == verdict["record"]["passed"]
    json.dumps(verdict["record"])
    return verdict["lines"]


# --- links ----------------------------------------------------------------------------------------


def test_a_pair_sends_both_ways_on_both_rails() -> None:
    result = _gate.links(NODES[:2], rails(2))
    assert [(link["interface"], link["peer"], link["measure"]) for link in result["s1"]] == [
        ("enp1s0f0np0", "s2", True),
        ("enP2p1s0f0np0", "s2", True),
    ]
    assert [(link["address"], link["peer_address"]) for link in result["s2"]] == [
        ("192.168.177.12", "192.168.177.11"),
        ("192.168.178.12", "192.168.178.11"),
    ]


def test_on_a_switch_everyone_is_pinged_and_the_next_one_is_loaded() -> None:
    result = _gate.links(NODES, rails(4))
    for number, host in enumerate(NODES):
        assert {link["peer"] for link in result[host]} == set(NODES) - {host}
        assert {link["peer"] for link in result[host] if link["measure"]} == {NODES[(number + 1) % 4]}
        assert sum(link["measure"] for link in result[host]) == 2


def test_in_a_ring_each_cable_is_a_pair() -> None:
    ends = {
        "s1": [end(177, 11), end(179, 11, "enp1s0f1np1")],
        "s2": [end(177, 12, "enp1s0f1np1"), end(178, 12)],
        "s3": [end(178, 13, "enp1s0f1np1"), end(179, 13)],
    }
    result = _gate.links(NODES[:3], ends)
    assert {(host, link["peer"]) for host, own in result.items() for link in own if link["measure"]} == {
        (one, other) for one in NODES[:3] for other in NODES[:3] if one != other
    }


def test_a_host_does_not_reach_for_itself_and_missing_ones_for_nothing() -> None:
    result = _gate.links(NODES[:3], {"s1": [end(177, 11), end(177, 21, "enP2p1s0f0np0")], "s2": [end(177, 12)]})
    assert [(link["peer"], link["measure"]) for link in result["s1"]] == [("s2", True), ("s2", True)]
    assert len(result["s2"]) == 2 and [link["measure"] for link in result["s2"]] == [True, False]
    assert result["s3"] == []


@given(st.integers(1, 12), st.integers(1, 3))
def test_every_end_sends_and_receives_once(hosts: int, subnets: int) -> None:
    names = [f"h{number}" for number in range(hosts)]
    ends = {
        name: [end(177 + subnet, 11 + number, f"if{subnet}") for subnet in range(subnets)]
        for number, name in enumerate(names)
    }
    result = _gate.links(names, ends)
    loaded = [(name, link["interface"], link["peer"]) for name in names for link in result[name] if link["measure"]]
    expected = hosts * subnets if hosts > 1 else 0
    assert len({(name, interface) for name, interface, _peer in loaded}) == len(loaded) == expected
    assert len({(peer, interface) for _name, interface, peer in loaded}) == expected


# --- when -----------------------------------------------------------------------------------------


def test_the_fingerprint_knows_what_matters_and_nothing_else() -> None:
    before = _gate.fingerprint(rails(2), "bandwidth", 90)
    assert before == _gate.fingerprint(dict(reversed(rails(2).items())), "bandwidth", 90.0)
    drifted = rails(2)
    drifted["s2"][0]["gid_index"] = 5
    assert before == _gate.fingerprint(drifted, "bandwidth", 90)
    for change in (
        {"interface": "x"},
        {"address": "192.168.177.99/24"},
        {"mtu": 1500},
        {"mac": "x"},
        {"hca": None},
        {"rate_gbps": 100.0},
        {"pcie": "16.0 GT/s x4"},
        {"firmware": "29"},
    ):
        changed = rails(2)
        changed["s2"][0].update(change)  # type: ignore[typeddict-item]
        assert _gate.fingerprint(changed, "bandwidth", 90) != before, change
    assert _gate.fingerprint(rails(2), "ping", 90) != before
    assert _gate.fingerprint(rails(2), "bandwidth", 80) != before
    assert _gate.fingerprint(rails(3), "bandwidth", 90) != before


@pytest.mark.parametrize("record", [None, "x", [], {}, {"version": 0, "passed": True, "fingerprint": "f"}])
def test_without_a_usable_record_the_gate_is_due(record: object) -> None:
    assert _gate.due(record, "f", "bandwidth")
    assert not _gate.due(record, "f", "off")


def test_a_passed_gate_is_due_with_another_fingerprint_only() -> None:
    record = {"version": _gate.VERSION, "passed": True, "fingerprint": "f"}
    assert not _gate.due(record, "f", "bandwidth")
    assert _gate.due(record, "g", "bandwidth")
    assert _gate.due({**record, "passed": False}, "f", "bandwidth")
    assert _gate.due({**record, "passed": "yes"}, "f", "bandwidth")


# --- ib_write_bw ----------------------------------------------------------------------------------

HEADER = """
---------------------------------------------------------------------------------------
                    RDMA_Write BW Test
 Dual-port       : OFF\t\tDevice         : rocep1s0f0
 Number of qps   : 4\t\tTransport type : IB
 Mtu             : 4096[B]
---------------------------------------------------------------------------------------
 local address: LID 0000 QPN 0x0108 PSN 0x63ad7d RKey 0x17eedf VAddr 0x007f760c947000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:192:168:177:11
---------------------------------------------------------------------------------------
"""
TABLE = " #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]\n"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (f"{TABLE} 65536      529718           0.00               92.57  \t\t   0.176561\n", 92.57),
        (f"{TABLE}Conflicting CPU frequency values detected: 1\n 65536  5  0.00  97.28  0.18\n----\n", 97.28),
        (TABLE.replace("Gb/", "MB/") + " 65536  5  0.00  11728.47  0.18\n", 93.83),
        (TABLE.replace("Gb/", "MiB/") + " 65536  5  0.00  1000  0.18\n", 8.39),
        (f"{TABLE} 65536  5  0.00  -nan  0.18\n", None),
        (f"{TABLE} 65536  5  0.00  nan  0.18\n", None),
        (f"{TABLE} 65536  5  0.00  inf  0.18\n", None),
        (f"{TABLE} 65536  5\n", None),
        (" 65536  5  0.00  92.57  0.18\n", None),
        (TABLE, None),
        ("", None),
    ],
)
def test_the_table_is_read(table: str, expected: float | None) -> None:
    assert _gate.parse_write_bw(HEADER + table) == expected


@given(st.text())
def test_any_output_is_survived(text: str) -> None:
    _gate.parse_write_bw(text)
    _gate.parse_write_bw(TABLE + text)
    assert _gate.write_bw_failure(text)
    assert _gate.parse_rank(text) is None


def test_the_telling_line_is_found() -> None:
    twelve = " Completion with error at client\n Failed status 12: wr_id 0 syndrom 0x81\nscnt=128, ccnt=0\n"
    assert _gate.write_bw_failure(HEADER + twelve) == "Failed status 12: wr_id 0 syndrom 0x81"
    gone = "Couldn't connect to 192.168.177.12:18516\nUnable to open file descriptor for socket connection\n"
    assert _gate.write_bw_failure(gone).startswith("Unable to open")
    assert _gate.write_bw_failure(HEADER) == "it said nothing"


# --- the verdict ----------------------------------------------------------------------------------


def test_what_carries_passes_and_is_kept() -> None:
    assert lines(measured()) == []
    record = _gate.judge(NODES[:2], measured(), {}, mode="bandwidth", min_gbps=90, wanted="f", date=DATE)["record"]
    assert record["fingerprint"] == "f" and record["date"] == DATE and record["thresholds"] == {"min_gbps": 90.0}
    assert record["links"][0] == {
        "host": "s1",
        "interface": "enp1s0f0np0",
        "address": "192.168.177.11",
        "peer": "s2",
        "peer_interface": "enp1s0f0np0",
        "peer_address": "192.168.177.12",
        "mtu": 9000,
        "mtu_ok": True,
        "gbps": 95.0,
        "tool": "ib_write_bw",
    }
    assert len(record["links"]) == 4
    assert not _gate.due(record, "f", "bandwidth")


RAIL = "s1: enp1s0f0np0 to s2's enp1s0f0np0: "


@pytest.mark.parametrize(
    ("gbps", "signature"),
    [
        (13.2, "a degraded card shows 13 Gb/s: shut both nodes down"),
        (24.1, "about 3 GB/s is what TCP or a single poor rail gives"),
        (52.0, "half of a rail is what PCIe at x2 or Gen4 gives"),
        (80.0, "check the cable, the link's rate and PCIe width"),
        (0.0, "nothing arrives although pings do"),
    ],
)
def test_a_figure_comes_with_threshold_and_signature(gbps: float, signature: str) -> None:
    [line] = lines(measured(gbps=gbps))
    assert line.startswith(f"{RAIL}{gbps:.4g} Gb/s by ib_write_bw, below 90 (fabric_gate_min_gbps); {signature}")


def test_the_threshold_itself_is_enough() -> None:
    assert lines(measured(gbps=90.0)) == []
    assert lines(measured(gbps=13.0), min_gbps=10) == []
    assert lines(measured(gbps=13.0), mode="ping") == []


def test_a_signature_is_not_claimed_for_a_slow_network() -> None:
    [line] = lines(measured(gbps=13.0), min_gbps=15)
    assert "degraded" not in line


def test_tcp_is_said_with_the_reason() -> None:
    why = "ib_write_bw is missing on s2: apt-get install perftest there"
    [line] = lines(measured(gbps=24.0, tool="tcp", why_tcp=why))
    assert line == (
        f"{RAIL}24 Gb/s by TCP, below 90 (fabric_gate_min_gbps); "
        f"measured over TCP, as {why}, or set fabric_gate_min_gbps"
    )


def test_an_mtu_problem_names_both_ends() -> None:
    results = measured(mtu_ok=False, small_ok=True, gbps=None)
    results["s2"][0]["mtu"] = 1500
    [line] = lines(results)
    assert line == (
        f"{RAIL}packets of 9000 bytes do not arrive, small ones do: MTU is 9000 here and 1500 there; "
        "set it to 9000 at both ends (fabric_configure: auto does)"
    )
    [line] = lines(measured(mtu_ok=False, small_ok=True, gbps=None))
    assert line.endswith("raise the MTU of the switch between them to 9216")


def test_a_dead_cable_is_said_once_by_the_end_that_sees_it() -> None:
    results = measured(mtu_ok=False, small_ok=False, carrier=True, ping_error="100% packet loss", gbps=None)
    [line] = lines(results)
    assert line.startswith(f"{RAIL}no answer from 192.168.177.12 (100% packet loss); check the cable, and that s2 has")
    results["s2"][0].update(mtu_ok=False, small_ok=False, carrier=False, gbps=None)
    [line] = lines(results)
    assert line == ("s2: enp1s0f0np0 to s1's enp1s0f0np0: enp1s0f0np0 has no carrier; plug its cable in at both ends")


def test_an_address_that_is_gone_is_not_blamed_on_the_peer() -> None:
    gone = "bind: Cannot assign requested address"
    for changed in (
        {"mtu_ok": False, "small_ok": False, "carrier": True, "ping_error": gone, "gbps": None},
        {"gbps": None, "error": f"nobody listens at 192.168.177.12:18515 ({gone})"},
    ):
        [line] = lines(measured(**changed))
        assert line.startswith(f"{RAIL}enp1s0f0np0 has lost its address 192.168.177.11; its cable was pulled")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("ib_write_bw: Failed status 12: wr_id 0 syndrom 0x81", "; error 12 means that the ends' MTU differ"),
        ("ib_write_bw: Failed to modify QP 1 to RTR, errno 61", "; errno 61 means a wrong GID index"),
        ("nobody listens at 192.168.177.12:18515 (refused); do it", "refused); do it"),
        ("the far end burnt", "; check the cable and run again"),
        ("", "the bandwidth was not measured; check the cable"),
    ],
)
def test_no_figure_is_explained(error: str, advice: str) -> None:
    [line] = lines(measured(gbps=None, error=error, tool="ib_write_bw"))
    assert line.startswith(f"{RAIL}{error}") and advice in line


def test_rdma_to_the_wrong_twin_is_told() -> None:
    [line] = lines(measured(gbps=None, error="Failed status 12", tool="ib_write_bw", wrong_mac="4c:bb:47:00:02:04"))
    assert "192.168.177.12 is answered for by 4c:bb:47:00:02:04, another interface of s2" in line


def test_a_listener_speaks_for_the_callers_that_found_nobody() -> None:
    problem = "port 18515 is taken; set fabric_gate_port"
    assert lines(measured(gbps=None, error="is not the gate's"), listeners={"s2": [problem]}) == [f"s2: {problem}"]


def test_an_address_that_went_with_the_carrier_is_not_told_twice() -> None:
    results = measured(mtu_ok=False, small_ok=False, carrier=False, gbps=None)
    listeners = {
        "s1": ["192.168.177.11 is on no interface; plug it in", "192.168.178.11 is on no interface; plug it in"]
    }
    found_lines = lines(results, listeners=listeners)
    assert [line[:20] for line in found_lines] == ["s1: 192.168.178.11 i", "s1: enp1s0f0np0 to s"]


def test_a_node_that_did_not_measure_keeps_the_gate_shut() -> None:
    results = measured()
    del results["s2"]
    [line] = lines(results)
    assert line.startswith("s2: its links could not be measured")


# --- the collective -------------------------------------------------------------------------------


def rank(number: int, **changed: Any) -> str:
    result = {"rank": str(number), "world": "2", "backend": "nccl", "correct": True, "busbw": 23.7, **changed}
    return f"noise\n{json.dumps(result)}\n"


def collective(*outputs: str, **how: Any) -> list[str]:
    how = {"key": "k", "min_busbw": 0.0, "topology": "pair", "gpu": True, "date": DATE} | how
    verdict = _gate.judge_collective(NODES[:2], dict(zip(NODES, outputs, strict=False)), **how)
    assert verdict["passed"] == (not verdict["lines"]) == verdict["record"]["passed"]
    json.dumps(verdict["record"])
    return verdict["lines"]


def test_the_slowest_rank_counts_against_the_mark_of_the_topology() -> None:
    assert collective(rank(0), rank(1)) == []
    [line] = collective(rank(0), rank(1, busbw=21.0))
    assert line.startswith("s1: all_gather reaches 21 GB/s, below 21.875 (NVIDIA's mark); ")
    assert collective(rank(0), rank(1, busbw=11.0), topology="ring") == []
    [line] = collective(rank(0), rank(1), min_busbw=25)
    assert "below 25 (fabric_gate_min_busbw)" in line
    [line] = collective(rank(0), rank(1, busbw=3.0))
    assert "about 3 GB/s means one rail or TCP" in line
    [line] = collective(rank(0), rank(1, busbw=1.6))
    assert "a degraded card shows 13 Gb/s" in line


def test_ranks_that_fail_are_named() -> None:
    assert collective(rank(0), rank(1, correct=False)) == [
        "s2: all_gather gave wrong values; do not serve on this fabric, power-cycle the nodes"
    ]
    [line] = collective(rank(0), "Traceback\nOSError: boom\n")
    assert line == "s2: all_gather gave no result (it said last: OSError: boom); see its output above"
    [line] = collective(rank(0))
    assert line.startswith("s2: all_gather gave no result;")
    [line] = collective(rank(0), rank(1, error="no result after 300 s"))
    assert line.startswith("s2: all_gather: no result after 300 s (it said last: noise); set fabric_nccl_debug")
    assert len(collective(rank(0, busbw=None), rank(1, busbw="x"))) == 2


def test_gloo_on_a_gpu_image_is_wrong_and_right_on_another() -> None:
    outputs = [rank(number, backend="gloo", busbw=0.3) for number in (0, 1)]
    found = collective(*outputs, min_busbw=0.1)
    assert [line.split(";")[0] for line in found] == [
        f"{host}: all_gather ran over gloo, since no GPU was seen in the container" for host in ("s1", "s2")
    ]
    assert collective(*outputs, min_busbw=0.1, gpu=False) == []


def test_the_collectives_key_knows_gate_image_and_threshold() -> None:
    keys = {_gate.collective_key(*what) for what in (("f", "i", 0), ("g", "i", 0), ("f", "j", 0), ("f", "i", 1))}
    assert len(keys) == 4
    assert _gate.collective_key("f", "i", 0) == _gate.collective_key("f", "i", 0.0)
