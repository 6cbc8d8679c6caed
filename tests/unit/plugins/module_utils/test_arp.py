# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ARP probes: what is sent, what counts as an answer, and what may go wrong with an interface."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _arp
from hypothesis import example, given, settings
from hypothesis import strategies as st

MAC, PEER = "4c:bb:47:00:01:00", "4c:bb:47:00:02:00"


def reply(mac: str = PEER, address: str = "10.0.0.12", operation: int = 2) -> bytes:
    """What Linux answers to a probe."""
    body = f"000108000604{operation:04x}" + mac.replace(":", "") + socket.inet_aton(address).hex()
    frame = MAC.replace(":", "") + mac.replace(":", "") + "0806" + body + MAC.replace(":", "") + "00000000"
    return bytes.fromhex(frame).ljust(60, b"\0")


def test_a_request_has_no_sender_address() -> None:
    frame = _arp.request(bytes.fromhex("4cbb47000100"), "10.0.0.12")
    assert len(frame) == 60
    ethernet, types, operation = "ffffffffffff4cbb470001000806", "000108000604", "0001"
    assert frame[:42].hex() == f"{ethernet}{types}{operation}4cbb47000100000000000000000000000a00000c"


@pytest.mark.parametrize(("mac", "target"), [(b"\1\2", "10.0.0.1"), (b"\0" * 6, "fe80::1"), (b"\0" * 6, "")])
def test_a_request_for_nonsense_is_an_error(mac: bytes, target: str) -> None:
    with pytest.raises(ValueError):
        _arp.request(mac, target)


def test_a_reply_says_who_answered() -> None:
    assert _arp.parse_reply(reply()) == (PEER, "10.0.0.12")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        reply()[:41],
        reply(operation=1),  # somebody else's question
        reply()[:12] + b"\x08\x00" + reply()[14:],  # IPv4
        reply()[:14] + b"\0\x06" + reply()[16:],  # other hardware
        reply()[:18] + b"\x08" + reply()[19:],
        reply(mac="00:00:00:00:00:00"),
        reply(mac="ff:ff:ff:ff:ff:ff"),
        reply(mac="01:00:5e:00:00:01"),
    ],
)
def test_anything_else_is_no_reply(frame: bytes) -> None:
    assert _arp.parse_reply(frame) is None


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: reply()[:20] + tail)))
@example(reply())
@settings(max_examples=400)
def test_no_frame_upsets_the_parser(frame: bytes) -> None:
    found = _arp.parse_reply(frame)
    assert found is None or (_arp.mac_bytes(found.mac) and socket.inet_aton(found.address))


@given(st.text(max_size=30))
def test_no_text_upsets_mac_bytes(text: str) -> None:
    found = _arp.mac_bytes(text)
    assert found is None or len(found) == 6


class Wire:
    """A cable: answers what is asked on one end as the host at the other end would."""

    def __init__(self, answer: Callable[[bytes, int], list[bytes]]) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.asked: list[bytes] = []
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        """Answer until the asking end is closed."""
        while frame := self.far.recv(2048):
            self.asked.append(frame)
            for answer in self.answer(frame, len(self.asked)):
                try:
                    self.far.send(answer)
                except OSError:
                    return

    def close(self) -> None:
        """Wait for the end of it."""
        self.near.close()
        self.thread.join()
        self.far.close()


@pytest.fixture(name="wire")
def fixture_wire() -> Iterator[Callable[[Callable[[bytes, int], list[bytes]]], Wire]]:
    wires: list[Wire] = []

    def make(answer: Callable[[bytes, int], list[bytes]]) -> Wire:
        wires.append(Wire(answer))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()


def test_who_answers_is_found_on_each_interface(wire: Callable[..., Wire]) -> None:
    wires = {
        "a": wire(lambda frame, count: [reply()] if frame[38:42] == socket.inet_aton("10.0.0.12") else []),
        "b": wire(lambda frame, count: [reply(mac="4c:bb:47:00:02:04"), reply(mac="4c:bb:47:00:01:04"), b"junk"]),
        "c": wire(lambda frame, count: []),
    }
    found = _arp.probe(
        dict.fromkeys(wires, MAC), ["10.0.0.12", "10.0.0.13"], lambda name: wires[name].near, timeout=0.2
    )
    assert found == {"a": [PEER], "b": ["4c:bb:47:00:01:04", "4c:bb:47:00:02:04"], "c": []}


def test_a_lost_frame_is_asked_again(wire: Callable[..., Wire]) -> None:
    cable = wire(lambda frame, count: [reply()] if count == 3 else [])
    assert _arp.probe({"a": MAC}, ["10.0.0.12"], lambda name: cable.near, timeout=0.2) == {"a": [PEER]}


def test_an_answer_for_somebody_else_does_not_count(wire: Callable[..., Wire]) -> None:
    cable = wire(lambda frame, count: [reply(address="10.9.9.9")])
    assert _arp.probe({"a": MAC}, ["10.0.0.12"], lambda name: cable.near, timeout=0.1) == {"a": []}


class Prompt:
    """A socket whose peers answer at once, twice each; what its queue does not take is lost."""

    def __init__(self, targets: list[str]) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.recv, self.fileno = self.near.recv, self.near.fileno
        self.targets = targets
        self.lost = 0

    def send(self, data: bytes) -> int:
        """Ask."""
        index = self.targets.index(socket.inet_ntoa(data[38:42]))
        answer = reply(mac=f"4c:bb:47:01:{index // 256:02x}:{index % 256:02x}", address=self.targets[index])
        for _time in range(2):
            try:
                self.far.send(answer)
            except BlockingIOError:
                self.lost += 1
        return len(data)

    def close(self) -> None:
        """Close both ends."""
        self.near.close()
        self.far.close()


def test_hundreds_of_targets_overflow_nothing() -> None:
    targets = [f"10.0.{n // 200}.{n % 200 + 1}" for n in range(300)]
    links = {name: Prompt(targets) for name in "abcd"}
    found = _arp.probe(dict.fromkeys(links, MAC), targets, links.__getitem__, timeout=0.1)
    assert {name: len(macs) for name, macs in found.items()} == dict.fromkeys(links, 300)
    assert not sum(link.lost for link in links.values())


class Broken:
    """A socket whose interface is in trouble."""

    def __init__(self, on_send: int, on_recv: int) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.send(b"ready to read")
        self.on_send, self.on_recv = on_send, on_recv
        self.closed = 0

    def fileno(self) -> int:
        """As a socket's."""
        return self.near.fileno()

    def send(self, data: bytes) -> int:
        """Fail."""
        raise OSError(self.on_send, "send")

    def recv(self, size: int) -> bytes:
        """Fail."""
        raise OSError(self.on_recv, "recv")

    def close(self) -> None:
        """As a socket's."""
        self.closed += 1
        self.near.close()
        self.far.close()


@pytest.mark.parametrize("on_send", [errno.ENETDOWN, errno.ENODEV, errno.ENOBUFS, errno.ENXIO])
@pytest.mark.parametrize("on_recv", [errno.ENODEV, errno.EAGAIN, errno.EBADF])
def test_an_interface_that_goes_away_disturbs_no_other(wire: Callable[..., Wire], on_send: int, on_recv: int) -> None:
    cable, broken = wire(lambda frame, count: [reply()]), Broken(on_send, on_recv)
    links = {"gone": broken, "a": cable.near}
    found = _arp.probe(dict.fromkeys(links, MAC), ["10.0.0.12"], lambda name: links[name], timeout=0.1)
    assert found == {"gone": [], "a": [PEER]}
    assert broken.closed == 1


def test_what_is_no_ethernet_or_cannot_be_opened_gets_no_answers() -> None:
    def link(name: str) -> socket.socket:
        raise OSError(errno.ENODEV, "no such device")

    assert _arp.probe({"ib0": "80:00:02:08:fe:80", "vanished": MAC, "lo": ""}, ["10.0.0.1"], link) == {
        "ib0": [],
        "vanished": [],
        "lo": [],
    }


def test_a_missing_permission_is_said() -> None:
    def link(name: str) -> socket.socket:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with pytest.raises(PermissionError):
        _arp.probe({"a": MAC}, ["10.0.0.1"], link)


@pytest.mark.parametrize(("interfaces", "targets"), [({}, ["10.0.0.1"]), ({"a": MAC}, [])])
def test_nothing_to_ask_is_not_waited_for(
    interfaces: dict[str, str], targets: list[str], wire: Callable[..., Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    cable = wire(lambda frame, count: [])
    monkeypatch.setattr(_arp, "_listen", lambda *_given: pytest.fail("it waits"))
    assert _arp.probe(interfaces, targets, lambda name: cable.near) == {name: [] for name in interfaces}
