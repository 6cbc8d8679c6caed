# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ends of the gate's measurement: a listener that answers who knows the token, and TCP streams to it.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

A conversation is JSON, one object to a line. The listener speaks first, with a nonce; the caller proves by an HMAC over
it that it knows the token, so that the token never travels. Then comes one request and its answer.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ._roce import Reader

PROTOCOL = "sparkfleet-gate/1"
STREAMS = 4
BUFFER = 1 << 20
RAMP_S = 0.3
"""How long streams run before they are counted: TCP starts slowly, and a shaper lets a burst through."""

_PATIENCE_S = 5.0
_MAX_LINE = 4096
_MAX_CALLERS = 64

Handler = Callable[[Mapping[str, Any], Callable[[Mapping[str, Any]], None]], Mapping[str, Any]]
"""Answers a request; its second argument sends an answer ahead of the one that is returned."""


class Lack(NamedTuple):
    """What is missing on a host, and what to do about it."""

    what: str
    remedy: str


class Trouble(Exception):
    """Why a measurement was not possible, in words for the owner."""


class Line:
    """One JSON object per line over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one object; raises OSError."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Return the next object; raises OSError, and ValueError for what is none."""
        text = bytearray()
        # Byte by byte: what follows a request on the connection of a stream is data, and stays in the socket.
        while not text.endswith(b"\n"):
            byte = self.connection.recv(1)
            if not byte or len(text) >= _MAX_LINE:
                raise ValueError("the connection ended" if not byte else "a line is too long")
            text += byte
        message = json.loads(text)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        return message


def _proof(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), nonce.encode(), hashlib.sha256).hexdigest()


# --- the far end ----------------------------------------------------------------------------------


def listen(addresses: Sequence[str], port: int, patience_s: float) -> tuple[list[socket.socket], list[str]]:
    """Listen on a port of each address.

    Args:
        addresses: addresses of this host.
        port: the port.
        patience_s: how long to wait for an address that is not there yet.

    Returns:
        The listening sockets, and what is wrong with the other addresses.
    """
    deadline = time.monotonic() + patience_s
    sockets: list[socket.socket] = []
    problems: list[str] = []
    for address in addresses:
        while True:
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((address, port))
                one.listen(_MAX_CALLERS)
            except OSError as error:
                one.close()
                if error.errno == errno.EADDRNOTAVAIL and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                problems.append(_why_not_bound(error, address, port))
            else:
                sockets.append(one)
            break
    return sockets, list(dict.fromkeys(problems))


def _why_not_bound(error: OSError, address: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; set fabric_gate_port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is on no interface; plug the cable in, or set the address again"
    return f"cannot listen on {address}:{port} ({error.strerror}); set fabric_gate_port"


class Listener:
    """Answers callers that know the token, each in a thread of its own, until it is told to stop.

    Args:
        sockets: listening sockets, which it closes in the end.
        token: what callers must know.
        handlers: what can be asked besides streams.
    """

    def __init__(self, sockets: Sequence[socket.socket], token: str, handlers: Mapping[str, Handler]) -> None:
        self._sockets = list(sockets)
        self._token = token
        self._handlers: dict[str, Handler] = {"count": self._count, **handlers}
        self._woken, self._waker = socket.socketpair()
        self._counters: dict[str, list[int]] = {}
        self._lock = threading.Lock()
        self._callers = threading.BoundedSemaphore(_MAX_CALLERS)
        self.refused = 0

    def stop(self) -> None:
        """End `run`; may be called from a signal handler or another thread."""
        self._waker.send(b"x")

    def run(self, seconds: float) -> None:
        """Answer for so many seconds at most."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for one in self._sockets:
                selector.register(one, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                for key, _events in selector.select(left):
                    if key.fileobj is self._woken:
                        return
                    self._accept(key.fileobj)

    def close(self) -> None:
        """Stop listening."""
        for one in (*self._sockets, self._woken, self._waker):
            one.close()

    def _accept(self, listening: Any) -> None:
        try:
            connection, _address = listening.accept()
        except OSError:
            return
        if not self._callers.acquire(blocking=False):
            connection.close()
            return
        # Daemons: a caller that hangs does not keep the process alive.
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_PATIENCE_S)
                self._converse(Line(connection))
        except (OSError, ValueError):
            pass  # a caller that went away or talked nonsense; its own end reports
        finally:
            self._callers.release()

    def _converse(self, line: Line) -> None:
        nonce = secrets.token_hex(16)
        line.send({"protocol": PROTOCOL, "nonce": nonce})
        request = line.receive()
        if not hmac.compare_digest(str(request.get("proof")).encode(), _proof(self._token, nonce).encode()):
            self.refused += 1
            line.send({"error": "the token is wrong; is another run going on?"})
            return
        wanted = str(request.get("do"))
        if wanted == "data":
            self._swallow(line.connection, str(request.get("id")))
            return
        handler = self._handlers.get(wanted)
        try:
            answer = handler(request, line.send) if handler else {"error": f"nobody here knows how to {wanted}"}
        except Trouble as trouble:
            answer = {"error": str(trouble)}
        line.send(answer)

    def _swallow(self, connection: socket.socket, name: str) -> None:
        counter = self._counters.get(name)
        if counter is None:
            return
        with self._lock:
            place = len(counter)
            counter.append(0)
        buffer = memoryview(bytearray(BUFFER))
        while received := connection.recv_into(buffer):
            counter[place] += received

    def _count(self, request: Mapping[str, Any], ahead: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Count what arrives on the streams of one measurement, after they have come up to speed."""
        name = str(request.get("id"))
        seconds = min(max(float(request.get("seconds") or 0), 0.1), 30.0)
        self._counters[name] = []
        ahead({"ready": True})
        deadline = time.monotonic() + _PATIENCE_S
        while not sum(self._counters[name]) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(RAMP_S)
        before, began = sum(self._counters[name]), time.monotonic()
        time.sleep(seconds)
        after, ended = sum(self._counters[name]), time.monotonic()
        del self._counters[name]
        return {"bytes": after - before, "seconds": ended - began}


# --- verbs ----------------------------------------------------------------------------------------


def no_verbs(hca: str | None, gid_index: int | None, program: str | None, reader: Reader, dev: str) -> Lack | None:
    """Say why `ib_write_bw` cannot be used with an RDMA device of this host, None if it can.

    Args:
        hca: the RDMA device.
        gid_index: the index of its GID that is RoCE v2 over IPv4.
        program: where ib_write_bw is.
        reader: access to sysfs.
        dev: where device nodes are.
    """
    if not hca:
        return Lack("the interface has no RDMA device", "use a ConnectX port")
    if gid_index is None:
        return Lack(f"{hca} has no RoCE v2 GID with an IPv4 address", "give its interface an address")
    if not program:
        return Lack("ib_write_bw is missing", "apt-get install perftest")
    for name in reader.entries("class/infiniband_verbs"):
        if reader.text(f"class/infiniband_verbs/{name}/ibdev") != hca:
            continue
        path = f"{dev}/infiniband/{name}"
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return Lack(f"{path} cannot be opened ({error.strerror})", "modprobe ib_uverbs, or reboot")
        return None
    return Lack(f"{hca} has no device in {dev}/infiniband", "modprobe ib_uverbs, or reboot")


# --- the near end ---------------------------------------------------------------------------------


class Caller:
    """Reaches the listener at the other end of a link.

    Args:
        address: the own address, in the network of the listener's.
        peer_address: the listener's address.
        port: the listener's port.
        token: what the listener wants to be known.
        patience_s: how long to try to reach it.
    """

    def __init__(self, address: str, peer_address: str, port: int, token: str, patience_s: float) -> None:
        self.address, self.peer_address, self.port = address, peer_address, port
        self.token, self.patience_s = token, patience_s

    def open(self, request: Mapping[str, Any]) -> Line:
        """Connect, prove the token and send the request; raises Trouble."""
        deadline = time.monotonic() + self.patience_s
        where = f"{self.peer_address}:{self.port}"
        while True:
            try:
                connection = self._connect()
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise Trouble(
                        f"nobody listens at {where} ({error.strerror or error}); "
                        "let the firewall pass fabric_gate_port on the fabric, and run again"
                    ) from error
                # The listener may still be starting.
                time.sleep(0.3)
                continue
            line = Line(connection)
            try:
                greeting = line.receive()
                if greeting.get("protocol") != PROTOCOL:
                    raise ValueError(f"protocol {greeting.get('protocol')}")
            except (OSError, ValueError) as error:
                connection.close()
                raise Trouble(f"what answers at {where} is not the gate's listener; set fabric_gate_port") from error
            try:
                line.send({**request, "proof": _proof(self.token, str(greeting["nonce"]))})
            except OSError as error:
                connection.close()
                raise Trouble(self._lost(error)) from error
            return line

    def ask(self, request: Mapping[str, Any], timeout_s: float = _PATIENCE_S) -> dict[str, Any]:
        """Return the answer to a request; raises Trouble."""
        line = self.open(request)
        with line.connection:
            return self.answer(line, timeout_s)

    def answer(self, line: Line, timeout_s: float) -> dict[str, Any]:
        """Return the next answer; raises Trouble, also where the answer is an error."""
        try:
            line.connection.settimeout(timeout_s)
            answer = line.receive()
        except (OSError, ValueError) as error:
            raise Trouble(self._lost(error)) from error
        if answer.get("error"):
            raise Trouble(str(answer["error"]))
        return answer

    def tcp_gbps(self, seconds: float, streams: int = STREAMS) -> float:
        """Return what several streams carry to the other end, as counted there, in Gb/s; raises Trouble."""
        name = secrets.token_hex(8)
        control = self.open({"do": "count", "id": name, "seconds": seconds})
        over = threading.Event()
        senders: list[threading.Thread] = []
        with control.connection:
            try:
                self.answer(control, _PATIENCE_S)
                for _number in range(streams):
                    line = self.open({"do": "data", "id": name})
                    senders.append(threading.Thread(target=_pump, args=(line.connection, over), daemon=True))
                    senders[-1].start()
                counted = self.answer(control, seconds + RAMP_S + 2 * _PATIENCE_S)
            finally:
                over.set()
                for sender in senders:
                    sender.join(_PATIENCE_S + 1)
        try:
            return round(int(counted["bytes"]) * 8 / float(counted["seconds"]) / 1e9, 3)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise Trouble(f"the far end at {self.peer_address} answered in an unknown form; run again") from error

    def _connect(self) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            one.settimeout(_PATIENCE_S)
            # To the address, not to the device: twins hear each other's ARP, so that answers may come in by the other
            # one, where a socket that is bound to a device does not see them.
            one.bind((self.address, 0))
            one.connect((self.peer_address, self.port))
        except OSError:
            one.close()
            raise
        return one

    def _lost(self, error: Exception) -> str:
        silent = isinstance(error, TimeoutError)
        return (
            f"the connection to {self.peer_address} {'went silent' if silent else 'broke'} while measuring "
            f"({error}); check the cable and run again"
        )


def _pump(connection: socket.socket, over: threading.Event) -> None:
    """Send until it is over or the connection is."""
    data = memoryview(bytes(BUFFER))
    with connection:
        try:
            while not over.is_set():
                connection.send(data)
        except OSError:
            pass  # the one who counts notices
