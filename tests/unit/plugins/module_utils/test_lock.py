# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a node, with real files and real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _lock
from ansible_collections.sparkfleet.vllm.plugins.module_utils._lock import (
    Holder,
    acquire,
    conflict,
    is_dead,
    process_start,
    release,
    this_run,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(name="lock")
def fixture_lock(tmp_path: Path) -> str:
    return str(tmp_path / "sparkfleet" / "run.lock")


@pytest.fixture(name="other")
def fixture_other() -> subprocess.Popen[bytes]:
    """A process that lives until the test ends it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        if process.poll() is None:
            process.kill()


def run_of(pid: int, user: str = "alice") -> Holder:
    return this_run(pid, "laptop", user)


def test_a_free_lock_is_taken_and_given_back(lock: str) -> None:
    run = run_of(os.getpid())
    assert acquire(lock, run).held
    assert Holder.from_json(Path(lock).read_text()) == run
    assert stat.S_IMODE(os.stat(lock).st_mode) & 0o022 == 0
    assert release(lock, run)
    assert not os.path.exists(lock)
    assert not release(lock, run)


def test_the_same_run_may_ask_again(lock: str) -> None:
    first = run_of(os.getpid())
    acquire(lock, first)
    assert acquire(lock, replace(first, started=first.started + 60)).held
    assert Holder.from_json(Path(lock).read_text()) == first


def test_another_run_is_in_the_way_and_stays_there(lock: str, other: subprocess.Popen[bytes]) -> None:
    theirs, mine = run_of(other.pid), run_of(os.getpid(), "bob")
    acquire(lock, theirs)
    outcome = acquire(lock, mine)
    assert not outcome.held
    assert outcome.other == theirs.to_json()
    assert not release(lock, mine)
    assert Path(lock).read_text() == theirs.to_json()


def test_a_run_that_ended_is_seen_to_be_dead_and_taken_over(lock: str, other: subprocess.Popen[bytes]) -> None:
    theirs, mine = run_of(other.pid), run_of(os.getpid(), "bob")
    acquire(lock, theirs)
    assert not is_dead(theirs, mine)
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(theirs, mine), "a zombie is dead"
    other.wait()
    assert is_dead(theirs, mine)
    content = acquire(lock, mine).other
    assert acquire(lock, mine, replace=content).held
    assert Holder.from_json(Path(lock).read_text()) == mine


def test_a_lock_that_changed_hands_meanwhile_is_not_taken_over(lock: str, other: subprocess.Popen[bytes]) -> None:
    gone = replace(run_of(other.pid), pid=1, pid_start=1)
    acquire(lock, run_of(other.pid))
    assert not acquire(lock, run_of(os.getpid()), replace=gone.to_json()).held


def test_a_process_number_used_again_does_not_keep_a_lock_alive() -> None:
    mine = run_of(os.getpid())
    assert is_dead(replace(mine, pid_start=mine.pid_start - 1), mine)


@pytest.mark.parametrize(
    "elsewhere", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}, {"pid_start": 0}, {"boot_id": ""}]
)
def test_what_cannot_be_seen_from_here_may_be_alive(elsewhere: dict[str, str | int]) -> None:
    mine = run_of(os.getpid())
    gone = replace(mine, pid=2**22 + 1)
    assert is_dead(gone, mine)
    assert not is_dead(replace(gone, **elsewhere), mine)  # type: ignore[arg-type]
    assert not is_dead(gone, replace(mine, boot_id=""))


def test_force_takes_whatever_is_there(lock: str) -> None:
    os.makedirs(os.path.dirname(lock))
    Path(lock).write_text("what is this")
    mine = run_of(os.getpid())
    assert acquire(lock, mine).other == "what is this"
    assert acquire(lock, mine, force=True).held
    assert Holder.from_json(Path(lock).read_text()) == mine


def test_looking_changes_nothing_but_sees_the_other(lock: str, other: subprocess.Popen[bytes]) -> None:
    mine = run_of(os.getpid())
    assert acquire(lock, mine, look_only=True).held
    assert not os.path.exists(os.path.dirname(lock))
    theirs = run_of(other.pid)  # once: it says when it began
    acquire(lock, theirs)
    assert not acquire(lock, mine, look_only=True).held
    assert acquire(lock, mine, force=True, look_only=True).held
    assert release(lock, theirs, look_only=True)
    assert Path(lock).read_text() == theirs.to_json()


def test_of_many_that_ask_at_once_one_gets_it(lock: str) -> None:
    runs = [replace(run_of(os.getpid()), pid=number) for number in range(1, 41)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda run: acquire(lock, run), runs))
    assert sum(outcome.held for outcome in outcomes) == 1
    winner = runs[[outcome.held for outcome in outcomes].index(True)]
    assert Holder.from_json(Path(lock).read_text()) == winner
    assert os.listdir(os.path.dirname(lock)) == ["run.lock"]


def test_a_request_waits_for_one_that_is_being_served(
    lock: str, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = run_of(other.pid), run_of(os.getpid(), "bob")
    waiting = threading.Event()
    flock = fcntl.flock

    def tell_and_wait(descriptor: int, operation: int) -> None:
        waiting.set()
        flock(descriptor, operation)

    os.makedirs(os.path.dirname(lock))
    directory = os.open(os.path.dirname(lock), os.O_RDONLY)
    flock(directory, fcntl.LOCK_EX)
    monkeypatch.setattr(_lock.fcntl, "flock", tell_and_wait)
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(acquire, lock, mine)
        assert waiting.wait(30)
        Path(lock).write_text(theirs.to_json())
        os.close(directory)
    assert not outcome.result().held


def test_the_start_of_a_process_with_an_odd_name(tmp_path: Path) -> None:
    directory = tmp_path / "7"
    directory.mkdir()
    fields = ["S", *map(str, range(1, 19)), "4242", "0"]
    (directory / "stat").write_text(f"7 (a) b) ( {' '.join(fields)}\n".replace("( S", ") S"))
    assert process_start(7, str(tmp_path)) == 4242
    assert process_start(8, str(tmp_path)) is None


def test_the_line_names_who_since_when_and_what_to_do() -> None:
    holder = Holder("laptop", "alice", 42, 1, "b", "n", 0)
    assert conflict(holder, "/run/x") == (
        "another run by alice@laptop (pid 42, since 1970-01-01 00:00:00 UTC) is changing this node; "
        "wait for it, or remove the lock with -e host_lock_break=true if it is gone"
    )
    assert conflict(None, "/run/x").startswith("/run/x is held by something unknown; remove it with -e host_lock_break")


@given(st.text())
def test_no_content_of_a_file_is_an_error(text: str) -> None:
    Holder.from_json(text)


@pytest.mark.parametrize("text", ["[]", "1", "null", "{}", '{"pid": "x"}', ""])
def test_other_json_is_no_holder(text: str) -> None:
    assert Holder.from_json(text) is None
