# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes to the journal: the supervisor's own lines and the container's output; and what systemd is told."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

LONGEST = 300  # characters of a reason
KEPT_LINES = 200  # of the container's output, to find the telling one
KEPT_LINE = 1000  # characters of each
PIECE = 65536

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]")
# What vLLM and Ray put in front of a line: the process, then level, date and place.
_PREFIX = re.compile(r"^(?:\([^()]*pid=\d+[^()]*\)\s*)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*)?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b\s*:")
_TROUBLE = re.compile(r"\b(?:error|fatal|panic|killed|out of memory|segmentation fault|bus error|failed)\b", re.I)
# They say that something else went wrong.
_VAGUE = re.compile(r"see root cause above|see stack trace|EngineDeadError|initialization failed|leaked \w+ objects")
_SECRETS = (
    re.compile(r"(?i)(?<=bearer )\S+"),
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"(?i)(?:(?<=key)|(?<=token)|(?<=password))(?:\s*=\s*['\"]?[^\s'\",]{6,}|['\"]:\s*['\"][^'\"]{6,})"),
)


def clean(text: str, longest: int = LONGEST) -> str:
    """Return ``text`` as one printable line of at most ``longest`` characters."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def conceal(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` without ``secrets`` and without what looks like one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    for pattern in _SECRETS:
        text = pattern.sub("***", text)
    return text


def telling(lines: Sequence[str], killed: bool = False) -> str:
    """Return the line of a program's last output that says most about its end, or an empty string.

    What was ``killed`` had no last word: only an exception counts then.
    """
    plain = [_PREFIX.sub("", clean(line, KEPT_LINE)).strip() for line in lines]
    plain = [line for line in plain if line]
    exceptions = [line for line in plain if _EXCEPTION.match(line)]
    troubles = [line for line in plain if _TROUBLE.search(line)]
    for candidates in (exceptions, [] if killed else troubles):
        plainer = [line for line in candidates if not _VAGUE.search(line)]
        if plainer:
            return plainer[-1]
    return "" if killed else (exceptions or troubles or plain or [""])[-1]


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``; a journal that is gone is no reason to stop."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError:
            return


class Journal:
    """The two streams to the journal, in whole lines.

    A journal that does not read blocks who writes to it. So the supervisor's lines are written by a thread of their
    own: its heartbeats go on meanwhile.
    """

    def __init__(self, name: str, out: int = 1, err: int = 2) -> None:
        self._prefix, self._out, self._err = f"sparkfleet: {name}: ", out, err
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._one_at_a_time = threading.Lock()
        self._writer = threading.Thread(target=self._work, name="journal", daemon=True)
        self._writer.start()

    def say(self, text: str) -> None:
        """Add one line of the supervisor's own."""
        self._lines.put(f"{self._prefix}{clean(text, 1000)}\n")

    def forward(self, data: bytes) -> None:
        """Pass on output of the container; called from the thread that reads it."""
        with self._one_at_a_time:
            write_all(self._out, data)

    def close(self, timeout: float = 2.0) -> None:
        """Write what is left, for at most ``timeout`` seconds."""
        self._lines.put(None)
        self._writer.join(timeout)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            with self._one_at_a_time:
                write_all(self._err, line.encode("utf-8", "replace"))


class Pump:
    """Reads the container's output to its end, passes it on in whole lines and keeps the last ones.

    It is read by a thread that does nothing else, so the container never waits for the supervisor. It does wait for
    the journal, as it would if it wrote there itself: the other choice is to lose lines.
    """

    def __init__(self, source: int, forward: Callable[[bytes], None], done: Callable[[], None]) -> None:
        """Read from ``source`` and close it in the end, then call ``done``, both in the thread."""
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._source, self._forward, self._done = source, forward, done
        threading.Thread(target=self._work, name="output", daemon=True).start()

    def _work(self) -> None:
        rest = b""
        try:
            while data := os.read(self._source, PIECE):
                rest += data
                end = rest.rfind(b"\n") + 1
                if not end and len(rest) < PIECE:
                    continue  # the journal shows whole lines only, too
                end = end or len(rest)
                self._pass_on(rest[:end])
                rest = rest[end:]
        finally:
            with contextlib.suppress(OSError):
                os.close(self._source)
            if rest:
                self._pass_on(rest + b"\n")
            self._done()

    def _pass_on(self, data: bytes) -> None:
        # A progress bar is many lines to a terminal and one to us: the last.
        for line in data[-PIECE:].decode("utf-8", "replace").split("\n"):
            if shown := line.rstrip("\r").rpartition("\r")[2].strip():
                self.lines.append(shown[:KEPT_LINE])
        self._forward(data)


class Notifier:
    """systemd's notification socket; does nothing where there is none."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        self.watchdog = 0.0  # seconds within which systemd wants to hear of us; 0: it does not
        usec = environment.get("WATCHDOG_USEC", "")
        if usec.isascii() and usec.isdigit() and environment.get("WATCHDOG_PID", str(pid)) == str(pid):
            self.watchdog = int(usec) / 1e6

    def tell(self, *lines: str) -> None:
        """Send for example ``READY=1``; never blocks."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)
            notify.sendto("\n".join(lines).encode("utf-8", "replace"), address)

    def status(self, text: str) -> None:
        """Send the line that ``systemctl status`` shows."""
        if text != self._status:
            self._status = text
            self.tell(f"STATUS={clean(text)}")
