# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's answers, and its deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from files.host.sparkfleet_host import memory
from files.host.sparkfleet_host.container import (
    Child,
    ContainerState,
    Docker,
    DockerError,
    GoneError,
    child_environment,
    explain,
    parse_state,
    parse_stopped,
)
from files.host.sparkfleet_host.waiting import DeadlineError, cancel, in_thread, within
from tests.unit.host_nodes import ROOT, Nodes, nodes_of

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "container ended with 0"),
        (1, "container ended with 1"),
        (125, "docker run failed (125)"),
        (137, "container ended with 137 (SIGKILL)"),
        (143, "container ended with 143 (SIGTERM)"),
        (255, "container ended with 255"),
        (-9, "docker run was ended by SIGKILL"),
    ],
)
def test_how_it_ended(code: int, text: str) -> None:
    assert explain(code) == text


def test_state() -> None:
    assert parse_state("abc true false\n") == ContainerState("abc", True, False)
    for text in ("", "abc true", "abc yes no", "<no value> true false x"):
        with pytest.raises(DockerError):
            parse_state(text)


def test_stopped_processes() -> None:
    text = """  PID TT       STAT COMMAND
   11 ?        Ss   tini
   12 ?        Tl   raylet
   13 pts/0    T    vi
   14 ?        tl   debugged
   15 ?        T    a name
"""
    assert parse_stopped(text) == {"12": "raylet", "15": "a name"}
    assert parse_stopped("") == {}


def test_a_child_does_not_hear_of_systemd() -> None:
    environment = {"PATH": "/bin", "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2"}
    assert child_environment(environment) == {"PATH": "/bin"}


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for one in nodes_of(tmp_path):
        monkeypatch.setenv("FAKE_DOCKER", str(one.make("a").home))
        yield one


def docker(nodes: Nodes, deadline: float = 30.0) -> Docker:
    return Docker(str(nodes.all[0].docker), deadline)


def test_a_container_that_is_not_there(nodes: Nodes) -> None:
    with pytest.raises(GoneError):
        run(docker(nodes).state("c"))
    assert run(docker(nodes).remove("c")) is False
    run(docker(nodes).stop("c", 1))


def test_a_container_that_is_there(nodes: Nodes) -> None:
    async def life() -> tuple[ContainerState, bool, str]:
        node, output = nodes.all[0], list[bytes]()
        child = await Child.start(node.arguments()[-8:], output.append)
        while True:
            try:
                state = await docker(nodes).state("c")
                break
            except GoneError:
                await asyncio.sleep(0.01)
        removed = await docker(nodes).remove("c")
        return state, removed, await child.wait()

    state, removed, end = run(life())
    assert state.running and removed and end == "container ended with 137 (SIGKILL)"


def test_a_daemon_that_does_not_answer(nodes: Nodes) -> None:
    (nodes.all[0].home / "hang").write_text("inspect rm")
    with pytest.raises(DockerError, match=r"docker inspect did not end within 0\.1 s"):
        run(docker(nodes, 0.1).state("c"))
    (nodes.all[0].home / "down").touch()
    with pytest.raises(DockerError, match="Cannot connect to the Docker daemon"):
        run(docker(nodes).remove("c"))


def test_a_docker_that_is_not_installed() -> None:
    with pytest.raises(DockerError, match="/no/docker cannot be run"):
        run(Docker("/no/docker", 1.0).state("c"))
    with pytest.raises(DockerError, match="/no/docker cannot be run"):
        run(Child.start(["/no/docker"], lambda data: None))


def test_a_child_that_ignores_its_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("files.host.sparkfleet_host.container.FAREWELL_S", 0.1)

    async def life() -> str:
        child = await Child.start(
            [sys.executable, "-c", "import time; print('ValueError: x'); time.sleep(9999)"], print
        )
        await child.bury()
        return await child.wait()

    assert run(life()).startswith("docker run was ended by SIGKILL")


def test_waiting_has_a_deadline_and_can_be_cancelled() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    async def stubborn() -> None:
        # As something that swallows a cancellation, once.
        for _turn in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()

    async def life() -> None:
        with pytest.raises(DeadlineError):
            await within(0.01, forever())
        assert await within(30, in_thread(lambda: 7)) == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        for work in (stubborn(), within(60, forever())):
            task = asyncio.get_running_loop().create_task(work)
            await asyncio.sleep(0)
            await cancel(task)
            assert task.done()

    run(life())


def test_available_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemAvailable:    70 kB\n")
    assert memory.available_bytes(str(tmp_path)) == 70 * 1024
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\n")
    with pytest.raises(OSError):
        memory.available_bytes(str(tmp_path))


def test_the_largest_processes(tmp_path: Path) -> None:
    for pid, pages, name in (("1", 10, "init"), ("7", 2**20, "python3"), ("8", 2**19, "raylet"), ("9", 0, "kthread")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "statm").write_text(f"99 {pages} 0\n")
        (tmp_path / pid / "comm").write_text(f"{name}\n")
    (tmp_path / "10").mkdir()
    found = memory.largest_processes(2, str(tmp_path))
    assert [one.split(" ")[:2] for one in found] == [["python3", "(7)"], ["raylet", "(8)"]]
    assert memory.lacking(2 * memory.GIB, memory.GIB, 60, ["python3 (7) 4.0 GiB"]) == (
        "needs 2.0 GiB of memory and 1.0 GiB are available after 60 s; the largest processes are python3 (7) 4.0 GiB"
    )


def test_a_supervisor_that_holds_its_memory_can_go_on() -> None:
    text = (
        "import sys, threading; from files.host.sparkfleet_host.memory import hold_own; held = hold_own()\n"
        "threads = [threading.Thread(target=bytearray, args=(10**7,)) for _turn in range(20)]\n"
        "[one.start() for one in threads]; [one.join() for one in threads]\n"
        "locked = int(open('/proc/self/status').read().partition('VmLck:')[2].split()[0])\n"
        "sys.exit(held != (locked > 0))"
    )
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=False).returncode == 0


def test_the_page_cache_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sync", lambda: None)
    memory.drop_page_cache(str(tmp_path / "drop_caches"))
    assert (tmp_path / "drop_caches").read_text() == "1"
    with pytest.raises(OSError):
        memory.drop_page_cache(str(tmp_path / "no" / "drop_caches"))
