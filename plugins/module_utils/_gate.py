# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate: which links of a cluster must carry, whether that is to be measured again, and what the figures mean.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

All of it is pure. Measuring itself is in `_streams` and in the modules fabric_listen and fabric_measure.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

VERSION = 1
HEADERS = 28
"""What IPv4 and ICMP add to a ping's payload."""

BUSBW_MARK = 21.875
BUSBW_MARK_RING = 10.0
"""NVIDIA's marks for all_gather between two and more Sparks, in GB/s."""

_DEGRADED_GBPS = (10.0, 16.0)
_ONE_RAIL_GBPS = (19.0, 30.0)
_HALF_WIDTH_GBPS = (40.0, 60.0)
_ONE_RAIL_GBYTES = (2.2, 4.0)

_UNIT = re.compile(r"BW average\[(Gb|MB|MiB)/sec\]")
_GBPS = {"Gb": 1.0, "MB": 8 / 1000, "MiB": 8 * 1.048576 / 1000}
_NOISE = re.compile(
    r"^[-*\s]*$|Waiting for client|^\s*#bytes|Conflicting CPU frequency|CPU Frequency is not max|BW peak won't"
    r"|^\s*(?:local|remote) address:|^\s*GID:|^\s*[A-Z][\w* /.-]*(?:\t| )*:\s|\bBW Test\s*$"
)
_ADDRESS_GONE = "Cannot assign requested address"  # EADDRNOTAVAIL, as ping and Python say it
_ERROR_61 = re.compile(r"errno:? ?61\b|No data available", re.IGNORECASE)
_ERROR_12 = re.compile(r"Failed status 12\b|status:? 12\b|error:? 12\b|transport retry counter exceeded", re.IGNORECASE)


class RailEnd(TypedDict):
    """One end of a rail: an interface of a host with its address ("address/prefix") and what limits its speed."""

    interface: str
    address: str
    mtu: int
    hca: str | None
    gid_index: int | None
    mac: str | None
    rate_gbps: float | None
    pcie: str
    firmware: str | None


class Link(TypedDict):
    """What one host has to reach over one of its interfaces. Addresses are without prefix length.

    `measure` says whether this host sends the load over it, `peer_mac` is the MAC address of the other interface.
    """

    interface: str
    address: str
    peer: str
    peer_interface: str
    peer_address: str
    mtu: int
    hca: str | None
    peer_hca: str | None
    gid_index: int | None
    peer_gid_index: int | None
    peer_mac: str | None
    measure: bool


class Measurement(TypedDict):
    """What a host found on one link. `small_ok`, `carrier` and `mtu` are looked at only if the ping failed.

    Attributes:
        mtu_ok: whether packets as large as the MTU arrive unfragmented.
        small_ok: whether small packets arrive.
        carrier: whether the interface has carrier.
        mtu: the interface's MTU.
        ping_error: what ping said.
        wrong_mac: the MAC address that answers for the peer's address, if it is not the peer's interface's.
        gbps: the bandwidth, None if it was not measured.
        tool: "ib_write_bw", "tcp", or "" if it was not measured.
        why_tcp: why it was not ib_write_bw, with what to do.
        error: why there is no bandwidth although there should be.
    """

    link: Link
    mtu_ok: bool
    small_ok: bool | None
    carrier: bool | None
    mtu: int | None
    ping_error: str
    wrong_mac: str
    gbps: float | None
    tool: str
    why_tcp: str
    error: str


class Verdict(TypedDict):
    """Whether the links carry: `lines` are the reasons why not, `record` is what is kept on the nodes."""

    passed: bool
    lines: list[str]
    record: dict[str, Any]


# --- what is to be measured -----------------------------------------------------------------------


def links(nodes: Sequence[str], rails: Mapping[str, Sequence[RailEnd]]) -> dict[str, list[Link]]:
    """Return what every host has to reach: each end of another host in the network of one of its own ends.

    Each host sends the load to one host of each network, the next in `nodes`, so that every end sends and receives
    once.

    Args:
        nodes: the cluster's hosts, head first.
        rails: each host's ends. A host may be missing; then nobody reaches for it.
    """
    networks: dict[str, list[tuple[str, RailEnd]]] = {}
    for host in nodes:
        for end in rails.get(host, ()):
            networks.setdefault(str(ipaddress.ip_interface(end["address"]).network), []).append((host, end))
    found: dict[str, list[Link]] = {host: [] for host in nodes}
    for members in networks.values():
        hosts = list(dict.fromkeys(host for host, _end in members))
        following = dict(zip(hosts, hosts[1:] + hosts[:1], strict=True))
        for host, end in members:
            sent = False
            for peer, other in members:
                if peer == host:
                    continue
                measure = not sent and peer == following[host]
                sent = sent or measure
                found[host].append(_link(end, peer, other, measure))
    return found


def _link(end: RailEnd, peer: str, other: RailEnd, measure: bool) -> Link:
    return Link(
        interface=end["interface"],
        address=_bare(end["address"]),
        peer=peer,
        peer_interface=other["interface"],
        peer_address=_bare(other["address"]),
        mtu=end["mtu"],
        hca=end["hca"],
        peer_hca=other["hca"],
        gid_index=end["gid_index"],
        peer_gid_index=other["gid_index"],
        peer_mac=other["mac"],
        measure=measure,
    )


def _bare(address: str) -> str:
    return address.split("/")[0]


def fingerprint(rails: Mapping[str, Sequence[RailEnd]], mode: str, min_gbps: float) -> str:
    """Return what changes when a link may carry less than it did, or when more is demanded of it.

    GID indices are left out, since they drift by themselves and mean nothing for the bandwidth.

    Args:
        rails: the ends of all hosts of the cluster.
        mode: "bandwidth" or "ping".
        min_gbps: the threshold.
    """
    ends = {
        host: sorted(
            ({key: value for key, value in end.items() if key != "gid_index"} for end in own),
            key=lambda end: str(end["interface"]),
        )
        for host, own in rails.items()
    }
    what = {"version": VERSION, "rails": ends, "mode": mode, "min_gbps": float(min_gbps)}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def fits(record: object, field: str, wanted: str, warn: bool) -> bool:
    """Say whether what a node kept of the last time spares measuring again.

    Args:
        record: what was kept, whatever it is; None if there is nothing.
        field: where the record has its fingerprint.
        wanted: the fingerprint as it is now.
        warn: whether the owner only wants to be warned; who does is not measured again for having failed.
    """
    if not isinstance(record, Mapping) or record.get("version") != VERSION or record.get(field) != wanted:
        return False
    return warn or record.get("passed") is True


def due(record: object, wanted: str, mode: str, warn: bool = False) -> bool:
    """Say whether the gate is to be passed (again).

    Args:
        record: what a node kept of the last time, whatever it is; None if there is nothing.
        wanted: the fingerprint as it is now.
        mode: "bandwidth", "ping", or "off".
        warn: see `fits`.
    """
    return mode != "off" and not fits(record, "fingerprint", wanted, warn)


def collective_key(wanted: str, image: str, min_busbw: float) -> str:
    """Return what changes when the collective is to be run again.

    Args:
        wanted: the gate's fingerprint.
        image: the image that it runs in.
        min_busbw: the owner's threshold in GB/s, 0 for NVIDIA's mark.
    """
    return hashlib.sha256(json.dumps([VERSION, wanted, image, float(min_busbw)]).encode()).hexdigest()


# --- what ib_write_bw says ------------------------------------------------------------------------


def write_bw_command(hca: str, gid_index: int, port: int, seconds: int, peer: str = "") -> list[str]:
    """Return the command line of `ib_write_bw`, of the server if there is no `peer`."""
    command = ["ib_write_bw", "-d", hca, "-x", str(gid_index), "-q", "4", "-F", "--report_gbits"]
    return [*command, "-D", str(seconds), "-p", str(port), *([peer] if peer else [])]


def parse_write_bw(output: str) -> float | None:
    """Return the average in Gb/s from the table that `ib_write_bw` prints, None if there is no usable one."""
    factor = None
    for line in output.splitlines():
        unit = _UNIT.search(line)
        if unit:
            factor = _GBPS[unit.group(1)]
            continue
        columns = line.split()
        if factor is None or len(columns) < 4 or not columns[0].isdecimal() or not columns[1].isdecimal():
            continue
        try:
            gbps = float(columns[3]) * factor
        except ValueError:
            continue
        if math.isfinite(gbps) and gbps >= 0:
            return round(gbps, 2)
    return None


def write_bw_failure(output: str) -> str:
    """Return in one line what `ib_write_bw` said went wrong, from all that it printed."""
    lines = [line for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if _ERROR_12.search(line) or _ERROR_61.search(line)]
    rest = [line for line in lines if not _NOISE.search(line)]
    return " ".join((telling or rest[-1:] or ["it said nothing"])[0].split())[:200]


# --- the verdict ----------------------------------------------------------------------------------


def judge(
    nodes: Sequence[str],
    measured: Mapping[str, Sequence[Measurement]],
    listeners: Mapping[str, Sequence[str]],
    *,
    mode: str,
    min_gbps: float,
    wanted: str,
    date: str,
) -> Verdict:
    """Judge what all nodes of a cluster measured.

    Args:
        nodes: the cluster's hosts that had to measure, head first.
        measured: what each of them found; one that is missing could not measure.
        listeners: what kept a node from being the far end, as "what; what to do".
        mode: "bandwidth" or "ping".
        min_gbps: what each rail must carry.
        wanted: the fingerprint to keep.
        date: when, for the record.
    """
    # An interface without carrier loses its address: that is said by the link and not by the listener as well.
    dead = {m["link"]["address"] for own in measured.values() for m in own if not m["mtu_ok"]}
    lines = [
        f"{host}: {problem}"
        for host in nodes
        for problem in listeners.get(host, ())
        if problem.split(" ")[0] not in dead
    ]
    lines += [
        f"{host}: its links could not be measured; see its failure above, mend it and run again"
        for host in nodes
        if host not in measured
    ]
    # A broken cable is seen from both of its ends: it is said once.
    said: dict[tuple[str, frozenset[tuple[str, str]]], int] = {}
    for host in nodes:
        for measurement in measured.get(host, ()):
            link = measurement["link"]
            kind, line = _trouble(host, measurement, measured, listeners, mode, min_gbps)
            if not line:
                continue
            ends = frozenset({(host, link["interface"]), (link["peer"], link["peer_interface"])})
            first = said.get((kind, ends))
            if kind in ("slow", "error") or first is None:
                said[kind, ends] = len(lines)
                lines.append(line)
            elif measurement["carrier"] is False:
                lines[first] = line  # the end that sees the cause speaks
    passed = not lines
    record = {
        "version": VERSION,
        "fingerprint": wanted,
        "passed": passed,
        "mode": mode,
        "thresholds": {"min_gbps": float(min_gbps)},
        "date": date,
        "links": [_kept(host, m) for host in nodes for m in measured.get(host, ())],
        "problems": lines,
    }
    return Verdict(passed=passed, lines=lines, record=record)


def _kept(host: str, measurement: Measurement) -> dict[str, Any]:
    link = measurement["link"]
    return {
        "host": host,
        "interface": link["interface"],
        "address": link["address"],
        "peer": link["peer"],
        "peer_interface": link["peer_interface"],
        "peer_address": link["peer_address"],
        "mtu": link["mtu"],
        "mtu_ok": measurement["mtu_ok"],
        "gbps": measurement["gbps"],
        "tool": measurement["tool"],
    }


def _trouble(
    host: str,
    measurement: Measurement,
    measured: Mapping[str, Sequence[Measurement]],
    listeners: Mapping[str, Sequence[str]],
    mode: str,
    min_gbps: float,
) -> tuple[str, str]:
    """Return what kind of trouble a link has and the line about it; the line is empty for none."""
    link = measurement["link"]
    rail = f"{host}: {link['interface']} to {link['peer']}'s {link['peer_interface']}"
    if not measurement["mtu_ok"]:
        if measurement["small_ok"]:
            return "mtu", f"{rail}: {_mtu(measurement, measured)}"
        return "silent", f"{rail}: {_silence(host, measurement)}"
    if mode != "bandwidth" or not link["measure"]:
        return "", ""
    if measurement["gbps"] is None:
        # The far end said itself why nobody could measure with it.
        if listeners.get(link["peer"]):
            return "", ""
        return "error", f"{rail}: {_failure(measurement)}"
    if measurement["gbps"] >= min_gbps:
        return "", ""
    tool = "ib_write_bw" if measurement["tool"] == "ib_write_bw" else "TCP"
    figure = f"{measurement['gbps']:.4g} Gb/s by {tool}, below {min_gbps:g} (fabric_gate_min_gbps)"
    return "slow", f"{rail}: {figure}; {_signature(measurement, min_gbps)}"


def _mtu(measurement: Measurement, measured: Mapping[str, Sequence[Measurement]]) -> str:
    link = measurement["link"]
    own = measurement["mtu"] or link["mtu"]
    theirs = None
    for other in measured.get(link["peer"], ()):
        if other["link"]["interface"] == link["peer_interface"]:
            theirs = other["mtu"] or other["link"]["mtu"]
    there = theirs or "unknown"
    what = f"packets of {link['mtu']} bytes do not arrive, small ones do: MTU is {own} here and {there} there"
    if own == theirs == link["mtu"]:
        return f"{what}; raise the MTU of the switch between them to 9216"
    return f"{what}; set it to {max(link['mtu'], own, theirs or 0)} at both ends (fabric_configure: auto does)"


def _silence(host: str, measurement: Measurement) -> str:
    link = measurement["link"]
    said = f" ({measurement['ping_error']})" if measurement["ping_error"] else ""
    if measurement["carrier"] is False:
        return f"{link['interface']} has no carrier; plug its cable in at both ends"
    if _ADDRESS_GONE in said:
        return _own_address_gone(link)
    return (
        f"no answer from {link['peer_address']}{said}; check the cable, and that {link['peer']} has this address "
        f"on {link['peer_interface']} and {host} has {link['address']}"
    )


def _own_address_gone(link: Link) -> str:
    return (
        f"{link['interface']} has lost its address {link['address']}; its cable was pulled, or something else than "
        "netplan took it away: see that the cable is in, and run again"
    )


def _failure(measurement: Measurement) -> str:
    error, link = measurement["error"] or "the bandwidth was not measured", measurement["link"]
    if _ADDRESS_GONE in error:
        return _own_address_gone(link)
    if measurement["tool"] == "ib_write_bw" and measurement["wrong_mac"]:
        return (
            f"{error}; {link['peer_address']} is answered for by {measurement['wrong_mac']}, another interface of "
            f"{link['peer']}, and RDMA goes there: set net.ipv4.conf.all.arp_ignore=1 and arp_announce=2 there"
        )
    if _ERROR_61.search(error):
        return f"{error}; errno 61 means a wrong GID index: compare with show_gids on both nodes, then run again"
    if _ERROR_12.search(error):
        return f"{error}; error 12 means that the ends' MTU differ or that a GID is wrong: set MTU 9000 at both ends"
    return error if "; " in error else f"{error}; check the cable and run again"


def _signature(measurement: Measurement, min_gbps: float) -> str:
    """Say which known trouble a bandwidth looks like, and what to do."""
    gbps = measurement["gbps"] or 0.0
    if measurement["why_tcp"]:
        return f"measured over TCP, as {measurement['why_tcp']}, or set fabric_gate_min_gbps"
    if not gbps:
        return "nothing arrives although pings do; check the MTU of both ends and of a switch between them"
    if _within(gbps, _DEGRADED_GBPS) and min_gbps > _DEGRADED_GBPS[1]:
        return "a degraded card shows 13 Gb/s: shut both nodes down, take them off power for a minute, and start them"
    if _within(gbps, _ONE_RAIL_GBPS) and min_gbps > _ONE_RAIL_GBPS[1]:
        return "about 3 GB/s is what TCP or a single poor rail gives: see that both twins are up and RDMA is used"
    if _within(gbps, _HALF_WIDTH_GBPS) and min_gbps > _HALF_WIDTH_GBPS[1]:
        return "half of a rail is what PCIe at x2 or Gen4 gives: see roce_facts' pcie_width, power-cycle the node"
    return "check the cable, the link's rate and PCIe width (roce_facts says both), or set fabric_gate_min_gbps"


def _within(figure: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= figure <= bounds[1]


# --- the collective -------------------------------------------------------------------------------


def busbw_mark(min_busbw: float, topology: str) -> float:
    """Return the bus bandwidth in GB/s to reach: the owner's, or NVIDIA's mark if that is 0."""
    if min_busbw:
        return float(min_busbw)
    return BUSBW_MARK_RING if topology == "ring" else BUSBW_MARK


def parse_rank(output: str) -> dict[str, Any] | None:
    """Return the last line of a rank's output that is its result, None if there is none."""
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "rank" in found:
            return found
    return None


def judge_collective(
    nodes: Sequence[str],
    outputs: Mapping[str, str],
    *,
    key: str,
    min_busbw: float,
    topology: str,
    gpu: bool,
    date: str,
) -> Verdict:
    """Judge what the ranks of an all_gather printed.

    Args:
        nodes: the cluster's hosts, in the order of their ranks.
        outputs: what each rank printed, both streams.
        key: from `collective_key`, to be kept.
        min_busbw: the owner's threshold in GB/s, 0 for NVIDIA's mark.
        topology: "pair", "ring" or "switch".
        gpu: whether the image is one for GPUs.
        date: when, for the record.
    """
    mark = busbw_mark(min_busbw, topology)
    lines: list[str] = []
    ranks: dict[str, dict[str, Any]] = {}
    for host in nodes:
        found = parse_rank(outputs.get(host, ""))
        if found is None:
            lines.append(f"{host}: all_gather gave no result{_last_words(outputs.get(host, ''))}; see its output above")
        elif found.get("error"):
            lines.append(f"{host}: all_gather: {found['error']}{_last_words(outputs.get(host, ''))}; {_advice(found)}")
        elif not found.get("correct"):
            lines.append(f"{host}: all_gather gave wrong values; do not serve on this fabric, power-cycle the nodes")
        elif not isinstance(found.get("busbw"), (int, float)):
            lines.append(f"{host}: all_gather gave no figure; run it again")
        else:
            ranks[host] = found
    if gpu and not lines:
        lines += [
            f"{host}: all_gather ran over {found.get('backend')}, since no GPU was seen in the container; "
            "check nvidia-smi and the NVIDIA container toolkit"
            for host, found in ranks.items()
            if found.get("backend") != "nccl"
        ]
    # The slowest rank is the cluster's figure: the others wait for it.
    busbw = min((float(found["busbw"]) for found in ranks.values()), default=None)
    if busbw is not None and not lines and busbw < mark:
        name = "fabric_gate_min_busbw" if min_busbw else "NVIDIA's mark"
        figure = f"all_gather reaches {busbw:.4g} GB/s, below {mark:g} ({name})"
        lines.append(f"{nodes[0]}: {figure}; {_busbw_signature(busbw, mark)}")
    record = {
        "version": VERSION,
        "key": key,
        "passed": not lines,
        "thresholds": {"min_busbw": mark},
        "date": date,
        "busbw": busbw,
        "ranks": [{"host": host, **{k: v for k, v in found.items() if k != "rank"}} for host, found in ranks.items()],
        "problems": lines,
    }
    return Verdict(passed=not lines, lines=lines, record=record)


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.lstrip().startswith("{")]
    return f" (it said last: {lines[-1][:200]})" if lines else ""


def _advice(found: Mapping[str, Any]) -> str:
    if found.get("backend") == "nccl":
        return "set fabric_nccl_debug: INFO and run again to see NCCL's reason"
    return "see that fabric_collective_port is open between the nodes"


def _busbw_signature(busbw: float, mark: float) -> str:
    if _within(busbw, _ONE_RAIL_GBYTES) and mark > _ONE_RAIL_GBYTES[1]:
        return "about 3 GB/s means one rail or TCP: see that NCCL_IB_HCA lists both twins (fabric_nccl_debug: INFO)"
    if _within(busbw * 8, _DEGRADED_GBPS) and mark > _ONE_RAIL_GBYTES[1]:
        return "a degraded card shows 13 Gb/s: shut the nodes down, take them off power for a minute, and start them"
    return "set fabric_nccl_debug: INFO and run again to see which devices NCCL uses, or set fabric_gate_min_busbw"
