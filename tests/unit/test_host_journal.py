# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of the journal, the container's output, systemd's socket."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from files.host.sparkfleet_host.journal import Journal, Notifier, Pump, clean, conceal, telling

VAGUE = "RuntimeError: Engine core initialization failed. See root cause above."


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        (["", "  ", "one", "two", ""], "two"),
        (
            ["Traceback (most recent call last):", "ValueError: no memory for the cache", "bye"],
            "ValueError: no memory for the cache",
        ),
        (
            [
                "(Worker_TP1 pid=88) ERROR 11-22 10:00:00 [worker.py:5] torch.OutOfMemoryError: CUDA out of memory.",
                f"(EngineCore pid=7) ERROR 11-22 10:00:01 [core.py:9] {VAGUE}",
                "nanobind: leaked 2 instances!",
            ],
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            [VAGUE, "bye"],
            VAGUE,
        ),
        (
            ["INFO 11-22 10:00:00 [x.py:1] ready", "Fatal: no route to host", "INFO 11-22 10:00:00 [x.py:1] bye"],
            "Fatal: no route to host",
        ),
        (["\x1b[31mValueError: red\x1b[0m"], "ValueError: red"),
    ],
)
def test_the_line_that_tells(lines: list[str], expected: str) -> None:
    assert telling(lines) == expected


def test_what_was_killed_had_no_last_word() -> None:
    assert telling(["logs are saved to /tmp/exit.log"], killed=True) == ""
    assert telling(["[W1123 utils.cpp:65] Warning: numa_set_membind failed. errno: 1"], killed=True) == ""
    assert telling(["MemoryError: 2 GiB", "bye"], killed=True) == "MemoryError: 2 GiB"


def test_a_line_is_one_line_and_not_long() -> None:
    assert clean("a\nb\tc\x00d  \x1b[1me") == "a b c d e"
    assert clean("x" * 400) == "x" * 299 + "…"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer sk-12345678",
        "api_key='sk-12345678'",
        "VLLM_API_KEY=sk-12345678 x",
        "{'api_key': 'sk-12345678'}",
        "the key sk-12345678 is known",
        "hf_sk12345678".replace("sk", "AbC"),
    ],
)
def test_secrets_are_not_shown(text: str) -> None:
    shown = conceal(text, ["sk-12345678", ""])
    assert "12345678" not in shown and "***" in shown


def test_what_is_no_secret_is_shown() -> None:
    for text in ("KeyError: 'model.layers.0.weight'", "max_tokens=4096 is too much", "unexpected token: something"):
        assert conceal(text, ["sk-12345678"]) == text


def pumped(data: list[bytes]) -> tuple[bytes, list[str]]:
    out, done = list[bytes](), threading.Event()
    source, sink = os.pipe()
    pump = Pump(source, out.append, done.set)
    for piece in data:
        os.write(sink, piece)
    os.close(sink)
    assert done.wait(30)
    return b"".join(out), list(pump.lines)


def test_output_is_passed_on_and_remembered() -> None:
    assert pumped([b"a\nb", b"c\n", b"\n\xff", b" end"]) == (b"a\nbc\n\n\xff end\n", ["a", "bc", "\ufffd end"])
    assert pumped([b"10%\r20%\r100%\r\n"])[1] == ["100%"]
    assert pumped([]) == (b"", [])


def test_a_line_without_end_does_not_grow() -> None:
    out, lines = pumped([b"x" * 30000] * 5)
    assert out == b"x" * 150000 + b"\n" and all(len(line) <= 1000 for line in lines)


def test_a_journal_that_does_not_read_does_not_block() -> None:
    source, sink = os.pipe()
    journal = Journal("tiny", sink, sink)
    for number in range(3000):
        journal.say(f"line {number} " + "x" * 100)
    journal.close(0.01)
    read = b""
    while read.count(b"\n") < 3000:
        read += os.read(source, 65536)
    assert read.startswith(b"sparkfleet: tiny: line 0 x")
    os.close(source)
    os.close(sink)


def test_systemd_is_told_and_may_be_absent(tmp_path: Path) -> None:
    Notifier({}, 1).tell("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nowhere")}, 1).tell("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0sparkfleet-{os.getpid()}")
        one = Notifier({"NOTIFY_SOCKET": f"@sparkfleet-{os.getpid()}"}, 1)
        one.tell("READY=1", "X=2")
        one.status("a\nb")
        one.status("a\nb")
        one.tell("WATCHDOG=1")
        assert [notify.recv(100) for _turn in range(3)] == [b"READY=1\nX=2", b"STATUS=a b", b"WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_whether_systemd_watches(environment: dict[str, str], seconds: float) -> None:
    assert Notifier(environment, 7).watchdog == seconds
