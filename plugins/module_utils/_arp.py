# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of a cable, asked by ARP probes (RFC 5227).

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

A probe has the sender address 0.0.0.0, so the asking interface needs no address. Linux answers it for any address
that the host has, on whatever interface it comes in (unless arp_ignore is set), so the answering interface needs
none either; and its MAC address, which the answer carries, says which one it is. Nothing has to run at the other end.
"""

from __future__ import annotations

import errno
import ipaddress
import select
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

ETHERTYPE = 0x0806
ETHERNET = 1  # ARPHRD_ETHER, in ARP as in sysfs
_IPV4, _REQUEST, _REPLY = 0x0800, 1, 2
_HEADER = struct.Struct("!6s6sH")
_BODY = struct.Struct("!HHBBH6s4s6s4s")
_MIN_FRAME = 60  # the shortest Ethernet frame without its check sum
_MAX_FRAME = 2048
_BROADCAST = b"\xff" * 6
_NOBODY = b"\0" * 6
# Answers are read after so many questions, so that no socket's buffer runs over, however many targets there are.
_BATCH = 32
# What is still read when the time is over: more than the answers to a batch, and not all of a flood.
_MAX_LATE = 2000


class Reply(NamedTuple):
    """An interface that has answered."""

    mac: str
    address: str


class Link(Protocol):
    """What is used of a packet socket that is bound to an interface, and does not block."""

    def fileno(self) -> int: ...

    def send(self, data: bytes, /) -> int: ...

    def recv(self, bufsize: int, /) -> bytes: ...

    def close(self) -> None: ...


def mac_bytes(text: str) -> bytes | None:
    """Return a MAC address as bytes, None for what is no address of one Ethernet interface."""
    try:
        mac = bytes.fromhex(text.strip().replace(":", ""))
    except ValueError:
        return None
    return mac if len(mac) == 6 and mac != _NOBODY and not mac[0] & 1 else None


def request(mac: bytes, target: str) -> bytes:
    """Return the frame that asks from ``mac`` who has the IPv4 address ``target``.

    Raises:
        ValueError: One of the two is no address.
    """
    if len(mac) != 6:
        raise ValueError(f"{mac!r} is no MAC address")
    wanted = ipaddress.IPv4Address(target).packed
    body = _BODY.pack(ETHERNET, _IPV4, 6, 4, _REQUEST, mac, b"\0" * 4, _NOBODY, wanted)
    return (_HEADER.pack(_BROADCAST, mac, ETHERTYPE) + body).ljust(_MIN_FRAME, b"\0")


def parse_reply(frame: bytes) -> Reply | None:
    """Return who answers in a frame, None where it is anything else than an ARP reply for IPv4 over Ethernet."""
    if len(frame) < _HEADER.size + _BODY.size:
        return None
    ethertype = _HEADER.unpack_from(frame)[2]
    hardware, protocol, hardware_size, protocol_size, operation, mac, address = _BODY.unpack_from(frame, _HEADER.size)[
        :7
    ]
    if (ethertype, operation) != (ETHERTYPE, _REPLY):
        return None
    if (hardware, protocol, hardware_size, protocol_size) != (ETHERNET, _IPV4, 6, 4):
        return None
    text = mac.hex(":")
    if mac_bytes(text) is None:
        return None
    return Reply(text, str(ipaddress.IPv4Address(address)))


def probe(
    interfaces: Mapping[str, str],
    targets: Iterable[str],
    link: Callable[[str], Link],
    rounds: int = 3,
    timeout: float = 0.5,
) -> dict[str, list[str]]:
    """Ask on every interface for every target and return who answered.

    The whole time is always spent: nobody can know that nothing more will come.

    Args:
        interfaces: Name and MAC address of each interface.
        targets: IPv4 addresses, of any interface of the other hosts.
        link: Opens a socket on an interface. An OSError other than a missing permission is an interface that is
            down, has vanished or is no Ethernet: nobody answers there.
        rounds: How often to ask: a frame can get lost, and a host that is busy answers late.
        timeout: How many seconds to listen in all.

    Returns:
        For each interface the MAC addresses that answered, sorted.

    Raises:
        PermissionError: Packet sockets are not allowed.
    """
    wanted = {str(ipaddress.IPv4Address(target)) for target in targets}
    seen: dict[str, set[str]] = {name: set() for name in interfaces}
    links: dict[int, tuple[str, bytes, Link]] = {}
    try:
        for name, text in interfaces.items():
            mac = mac_bytes(text)
            if mac is None:
                continue
            try:
                opened = link(name)
            except PermissionError:
                raise
            except OSError:
                continue
            links[opened.fileno()] = (name, mac, opened)
        if links and wanted:
            _talk(links, sorted(wanted), seen, rounds, timeout)
    finally:
        for _name, _mac, opened in links.values():
            opened.close()
    return {name: sorted(macs) for name, macs in seen.items()}


def _talk(
    links: dict[int, tuple[str, bytes, Link]],
    targets: Sequence[str],
    seen: Mapping[str, set[str]],
    rounds: int,
    timeout: float,
) -> None:
    """Ask ``rounds`` times, evenly spread over the first half of the time, and listen all the while."""
    begin = time.monotonic()
    for number in range(rounds):
        for _name, mac, opened in list(links.values()):
            for index, target in enumerate(targets):
                if not _send(opened, request(mac, target)):
                    break
                if index % _BATCH == _BATCH - 1:
                    _listen(links, targets, seen, 0)
        _listen(links, targets, seen, begin + timeout * (number + 1) / (2 * rounds) - time.monotonic())
    _listen(links, targets, seen, begin + timeout - time.monotonic())


def _send(opened: Link, frame: bytes) -> bool:
    """Send a frame; False where the interface takes none any more in this round."""
    try:
        opened.send(frame)
    except OSError as error:
        # A full queue loses this frame only, and the next round repeats it.
        return error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.EINTR)
    return True


def _listen(
    links: dict[int, tuple[str, bytes, Link]], targets: Sequence[str], seen: Mapping[str, set[str]], seconds: float
) -> None:
    """Read answers for so many seconds, and at least what is there already."""
    asked = set(targets)
    end = time.monotonic() + max(0.0, seconds)
    late = 0
    while True:
        remaining = max(0.0, end - time.monotonic())
        ready = select.select(list(links), [], [], remaining)[0] if links else []
        for number in ready:
            name, _mac, opened = links[number]
            try:
                reply = parse_reply(opened.recv(_MAX_FRAME))
            except BlockingIOError:
                continue
            except OSError as error:
                # ENETDOWN is said once when the interface goes down, and it may come up again. After anything else
                # the socket is of no use, and would be ready for ever.
                if error.errno != errno.ENETDOWN:
                    del links[number]
                    opened.close()
                continue
            if reply is not None and reply.address in asked:
                seen[name].add(reply.mac)
        if not ready and remaining == 0:
            return
        late += remaining == 0
        if late > _MAX_LATE:
            return
        if not links:
            time.sleep(remaining)
            return
