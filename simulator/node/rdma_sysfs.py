# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of a DGX Spark's sysfs that a machine without a ConnectX-7 lacks.

``mount``: before systemd starts, lay the tree and mount it over /sys.
``follow``: keep port state, rate and GIDs in step with the netdevs' carrier and addresses.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import struct
import subprocess
import sys
from typing import Any

from simulator.hardware import FUNCTIONS, Function, card_guid, default_gid

RUN = "/run/sparksim"
TREE = f"{RUN}/sysfs"
EMPTY_GID = ":".join(["0000"] * 8)
GID_SLOTS = 256
MAPPED_IPV4 = bytes(10) + b"\xff\xff"
RESYNC_S = 30
"""Seconds after which the tree is refreshed even if no event was seen."""

PCI = {
    "vendor": "0x15b3",
    "device": "0x1021",
    "subsystem_vendor": "0x15b3",
    "subsystem_device": "0x00a4",
    "class": "0x020000",
    "revision": "0x00",
    "numa_node": "-1",
    "local_cpulist": "0-19",
    "current_link_speed": "32.0 GT/s PCIe",
    "current_link_width": "4",
    "max_link_speed": "32.0 GT/s PCIe",
    "max_link_width": "4",
    "enable": "1",
    "irq": "0",
    "modalias": "pci:v000015B3d00001021sv000015B3sd000000A4bc02sc00i00",
}
HCA = {
    "node_type": "1: CA",
    "fw_ver": "28.45.4028",
    "hw_rev": "0",
    "hca_type": "MT4129",
    "board_id": "NVD0000000087",
}
PORT = {
    "link_layer": "Ethernet",
    "lid": "0x0",
    "sm_lid": "0x0",
    "lid_mask_count": "0",
    "sm_sl": "0",
    "cap_mask": "0x00010000",
    "pkeys/0": "0xffff",
}
COUNTERS = (
    "counters/port_xmit_data",
    "counters/port_rcv_data",
    "counters/port_xmit_packets",
    "counters/port_rcv_packets",
    "counters/port_xmit_discards",
    "counters/port_xmit_wait",
    "counters/port_rcv_errors",
    "counters/link_downed",
    "counters/symbol_error",
    "hw_counters/out_of_sequence",
    "hw_counters/packet_seq_err",
    "hw_counters/rx_write_requests",
    "hw_counters/local_ack_timeout_err",
    "hw_counters/np_cnp_sent",
    "hw_counters/rp_cnp_handled",
    "hw_counters/rnr_nak_retry_err",
)


def write(path: str, text: str | bytes) -> None:
    """Replace a file in one step, and only if it differs: a reader never sees half a value."""
    data = text if isinstance(text, bytes) else f"{text}\n".encode()
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return
    except FileNotFoundError:
        pass
    temporary = f"{directory}/.#{name}"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def link(path: str, target: str) -> None:
    """Make a symbolic link with its directories."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.islink(path):
        os.symlink(target, path)


def run(*command: str) -> None:
    """Run a command, and say on stderr when it fails: the node should boot all the same."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"sparksim: {' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)


def guid(number: int) -> str:
    """A GUID as sysfs prints it."""
    return ":".join(f"{number:016x}"[at : at + 4] for at in range(0, 16, 4))


def pci_path(function: Function) -> str:
    """Path of a function below /sys/devices."""
    domain = function.pci[:4]
    return f"pci{domain}:00/{domain}:00:00.0/{function.pci}"


def port_path(function: Function) -> str:
    """Path of a function's only RDMA port in the tree that we lay."""
    return f"{TREE}/devices/{pci_path(function)}/infiniband/{function.hca}/ports/1"


def lay_pci(index: int, function: Function) -> None:
    """The PCI device: what ``lspci`` and ``/sys/class/net/<if>/device`` show."""
    base = f"{TREE}/devices/{pci_path(function)}"
    window = 0x600000000000 + index * 0x2000000
    for name, text in PCI.items():
        write(f"{base}/{name}", text)
    write(f"{base}/resource", f"0x{window:016x} 0x{window + 0x1FFFFFF:016x} 0x000000000014220c")
    write(
        f"{base}/uevent",
        f"DRIVER=mlx5_core\nPCI_CLASS=20000\nPCI_ID=15B3:1021\nPCI_SUBSYS_ID=15B3:00A4\nPCI_SLOT_NAME={function.pci}",
    )
    header = struct.pack("<HHHHBBBBBBBB", 0x15B3, 0x1021, 0x0406, 0x0010, 0, 0, 0, 2, 8, 0, 0x80, 0)
    write(f"{base}/config", (header.ljust(44, b"\0") + struct.pack("<HH", 0x15B3, 0xA4)).ljust(256, b"\0"))
    link(f"{base}/subsystem", "../../../../bus/pci")
    link(f"{base}/driver", "../../../../bus/pci/drivers/mlx5_core")
    link(f"{base}/net/{function.netdev}", f"/sys/devices/virtual/net/{function.netdev}")
    link(f"{TREE}/pci-devices/{function.pci}", f"../../../devices/{pci_path(function)}")


def lay_rdma(index: int, function: Function, card: int) -> None:
    """The RDMA device with its port, its counters and its uverbs device."""
    pci = pci_path(function)
    hca = f"{TREE}/devices/{pci}/infiniband/{function.hca}"
    for name, text in HCA.items():
        write(f"{hca}/{name}", text)
    write(f"{hca}/node_guid", guid(card + function.offset))
    write(f"{hca}/sys_image_guid", guid(card))
    write(f"{hca}/node_desc", f"{os.uname().nodename} {function.hca}")
    link(f"{hca}/device", f"../../../{function.pci}")
    link(f"{hca}/subsystem", "../../../../../../class/infiniband")
    port = port_path(function)
    for name, text in PORT.items():
        write(f"{port}/{name}", text)
    for name in COUNTERS:
        write(f"{port}/{name}", "0")
    for slot in range(GID_SLOTS):
        write(f"{port}/gids/{slot}", EMPTY_GID)
    for kind in ("ndevs", "types"):
        os.makedirs(f"{port}/gid_attrs/{kind}", exist_ok=True)

    verbs = f"{TREE}/devices/{pci}/infiniband_verbs/uverbs{index}"
    write(f"{verbs}/ibdev", function.hca)
    write(f"{verbs}/abi_version", "1")
    write(f"{verbs}/dev", f"231:{192 + index}")
    link(f"{verbs}/device", f"../../../{function.pci}")
    link(f"{TREE}/class/infiniband/{function.hca}", f"../../devices/{pci}/infiniband/{function.hca}")
    link(f"{TREE}/class/infiniband_verbs/uverbs{index}", f"../../devices/{pci}/infiniband_verbs/uverbs{index}")
    write(f"{TREE}/class/infiniband_verbs/abi_version", "6")


def lay_netdev(function: Function, card: int) -> None:
    """What a ConnectX netdev's directory has and a veth's lacks."""
    extra = f"{RUN}/netdev/{function.netdev}"
    write(f"{extra}/speed", "-1")
    write(f"{extra}/duplex", "full")
    write(f"{extra}/phys_port_name", f"p{function.port}")
    write(f"{extra}/phys_switch_id", card.to_bytes(8, "little").hex())
    link(f"{extra}/device", f"../../../{pci_path(function)}")


def add_children(top: str, extra: dict[str, str]) -> None:
    """Cover a sysfs directory with a tmpfs that has all its real children bound back, and ours.

    sysfs itself takes no new directories, and an overlay over all of it would freeze what it shows.
    """
    name = top.strip("/").replace("/", "-")
    old, new = f"{RUN}/old/{name}", f"{RUN}/new/{name}"
    os.makedirs(old, exist_ok=True)
    os.makedirs(new, exist_ok=True)
    run("mount", "--rbind", top, old)
    run("mount", "-t", "tmpfs", "-o", "mode=755,size=1m", "sparksim", new)
    for child in sorted(os.listdir(old)):
        source, target = f"{old}/{child}", f"{new}/{child}"
        if child in extra:
            continue
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            os.mkdir(target)
            run("mount", "--rbind", source, target)
    for child, source in extra.items():
        os.mkdir(f"{new}/{child}")
        run("mount", "--bind", source, f"{new}/{child}")
    run("mount", "--rbind", new, top)


def overlay_netdev(function: Function) -> None:
    """Add our files to a netdev's directory while mtu, carrier and the like stay live."""
    directory = f"/sys/devices/virtual/net/{function.netdev}"
    real = f"{RUN}/real/{function.netdev}"
    os.makedirs(real, exist_ok=True)
    run("mount", "--bind", directory, real)
    layers = f"lowerdir={RUN}/netdev/{function.netdev}:{real}"
    run("mount", "-t", "overlay", "sparksim", "-o", layers, directory)
    # udev writes to uevent, which an overlay without an upper layer refuses
    run("mount", "--bind", f"{real}/uevent", f"{directory}/uevent")


def mount() -> None:
    """Lay the whole tree and mount it over /sys; make the character devices."""
    with open(f"/sys/class/net/{FUNCTIONS[0].netdev}/address") as file:
        card = card_guid(file.read().strip())
    for index, function in enumerate(FUNCTIONS):
        lay_pci(index, function)
        lay_rdma(index, function, card)
        lay_netdev(function, card)
    add_children("/sys/devices", {name: f"{TREE}/devices/{name}" for name in os.listdir(f"{TREE}/devices")})
    add_children("/sys/class", {name: f"{TREE}/class/{name}" for name in os.listdir(f"{TREE}/class")})
    if os.path.isdir("/sys/bus/pci/devices"):
        run("mount", "--bind", f"{TREE}/pci-devices", "/sys/bus/pci/devices")
    for function in FUNCTIONS:
        overlay_netdev(function)
    os.makedirs("/dev/infiniband", exist_ok=True)
    for index in range(len(FUNCTIONS)):
        run("mknod", "-m", "666", f"/dev/infiniband/uverbs{index}", "c", "231", str(192 + index))
    run("mknod", "-m", "666", "/dev/infiniband/rdma_cm", "c", "10", "121")


def gids(interface: dict[str, Any]) -> list[str]:
    """The GIDs that a port has: its default one (also with the link down), then one per address.

    :param interface: one entry of ``ip -j addr``.
    """
    wanted = [default_gid(interface["address"])]
    for entry in interface["addr_info"]:
        packed = ipaddress.ip_address(entry["local"]).packed
        # not IPv6Address.exploded: newer Pythons print a mapped IPv4 address in dotted form
        digits = (packed if len(packed) == 16 else MAPPED_IPV4 + packed).hex()
        gid = ":".join(digits[at : at + 4] for at in range(0, 32, 4))
        if gid not in wanted:
            wanted.append(gid)
    return wanted


def assign(slots: dict[str, int], wanted: list[str]) -> dict[str, int]:
    """Give every GID a pair of slots (its first is even) and keep those that have one: indices drift as on a card."""
    kept = {gid: slot for gid, slot in slots.items() if gid in wanted}
    for gid in wanted:
        if gid not in kept:
            kept[gid] = next(slot for slot in range(0, GID_SLOTS, 2) if slot not in kept.values())
    return kept


def has_carrier(interface: dict[str, Any]) -> bool:
    """Whether the link is up at both ends."""
    return "LOWER_UP" in interface["flags"] and "NO-CARRIER" not in interface["flags"]


def show(function: Function, up: bool, before: dict[str, int], after: dict[str, int]) -> None:
    """Write one port's state and those GID slots that changed."""
    port = port_path(function)
    write(f"{port}/state", "4: ACTIVE" if up else "1: DOWN")
    write(f"{port}/phys_state", "5: LinkUp" if up else "3: Disabled")
    write(f"{port}/rate", "200 Gb/sec (2X NDR)" if up else "40 Gb/sec (4X QDR)")
    # in place: the overlay above keeps looking at the file that was there when it was mounted
    with open(f"{RUN}/netdev/{function.netdev}/speed", "r+") as file:
        file.write("200000\n" if up else "-1\n")
        file.truncate()
    holders = {slot: gid for gid, slot in after.items()}
    for slot in sorted({*before.values(), *after.values()}):
        for at, kind in ((slot, "IB/RoCE v1"), (slot + 1, "RoCE v2")):
            write(f"{port}/gids/{at}", holders.get(slot, EMPTY_GID))
            for name, text in (("ndevs", function.netdev), ("types", kind)):
                path = f"{port}/gid_attrs/{name}/{at}"
                if slot in holders:
                    write(path, text)
                elif os.path.exists(path):
                    os.unlink(path)


def refresh(slots: dict[str, dict[str, int]]) -> None:
    """Read the netdevs once and show what they say.

    :param slots: GID to slot for each netdev, kept from one call to the next.
    """
    listing = subprocess.run(["ip", "-j", "addr"], check=True, capture_output=True, text=True).stdout
    interfaces = {entry["ifname"]: entry for entry in json.loads(listing)}
    for function in FUNCTIONS:
        interface = interfaces.get(function.netdev)
        before = slots.get(function.netdev, {})
        after = assign(before, gids(interface) if interface else [])
        show(function, bool(interface) and has_carrier(interface or {}), before, after)
        slots[function.netdev] = after


def follow() -> None:
    """Refresh at every link or address event; end when the monitor does, systemd starts us again."""
    slots: dict[str, dict[str, int]] = {}
    with subprocess.Popen(["ip", "-o", "monitor", "link", "address"], stdout=subprocess.PIPE) as monitor:
        events = monitor.stdout
        if events is None:
            raise SystemExit("ip monitor has no output")
        while True:
            refresh(slots)
            if select.select([events], [], [], RESYNC_S)[0] and not os.read(events.fileno(), 65536):
                raise SystemExit("ip monitor ended")


if __name__ == "__main__":
    {"mount": mount, "follow": follow}[sys.argv[1]]()
