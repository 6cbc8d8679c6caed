# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor as a process: groups on one machine, with a docker command of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.host_nodes import PROGRAM, SECRET, Nodes, Server, nodes_of, wait_for


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    yield from nodes_of(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.end()


def test_a_group_starts_together_and_stops_in_order(nodes: Nodes) -> None:
    leader, second, third = nodes.group(2)
    leader.start()
    leader.says("waits for spark-02, spark-03")
    second.start()
    leader.says("spark-02: connected")
    wait_for("the leader to wait for the third", lambda: leader.state()["waiting_for"] == ["spark-03"])
    assert not leader.pid() and not second.pid()
    third.start()
    for node in (leader, second, third):
        node.becomes("running")
        assert node.pid()
    state = leader.state()
    assert (state["name"], state["role"], state["round"], state["failures"]) == ("tiny", "leader", 1, [])
    file = leader.home / "state" / "tiny.json"
    assert file.stat().st_mode & 0o777 == 0o644 and file.parent.stat().st_mode & 0o777 == 0o755

    assert third.stop() == 0
    assert not third.pid() and third.state()["state"] == "stopped"
    leader.says("spark-03: was stopped there, in order; the group stops")
    assert leader.becomes("waiting")["waiting_for"] == ["spark-03"]
    assert leader.state()["failures"] == [] and not leader.pid() and not second.pid()
    third.start()
    leader.becomes("running", 2)

    assert leader.stop() == 0
    assert not leader.pid() and leader.state()["state"] == "stopped"
    second.says("the leader was stopped; nothing runs here without the leader")
    wait_for("members without containers", lambda: not second.pid() and not third.pid())
    assert second.becomes("waiting")["waiting_for"] == [f"leader 127.0.0.1:{nodes.port}"]
    for node in (leader, second, third):
        assert SECRET not in node.text()


def test_a_container_that_dies_takes_the_group_along(nodes: Nodes) -> None:
    leader, second, third = nodes.group(2)
    third.command = ("sh", "-c", "echo RuntimeError: the worker has no memory; exec sleep 3600")
    for node in (leader, second, third):
        node.start()
    leader.becomes("running")
    before = [node.pid() for node in (leader, second, third)]
    third.says("RuntimeError: the worker has no memory")
    third.kill_container()
    state = leader.becomes("running", 2)
    assert [one["why"] for one in state["failures"]] == [
        "spark-03: container ended with 137 (SIGKILL): RuntimeError: the worker has no memory"
    ]
    assert state["recovered"][0]["why"] == state["failures"][0]["why"]
    after = [node.pid() for node in (leader, second, third)]
    assert all(after) and not set(before) & set(after)


def test_members_stop_when_the_leader_is_killed(nodes: Nodes) -> None:
    leader, second = nodes.group(1)
    leader.start()
    second.start()
    leader.becomes("running")
    orphan, theirs = leader.pid(), second.pid()
    leader.send(signal.SIGKILL)
    leader.wait()
    second.says("the connection to the leader is lost; nothing runs")
    wait_for("the member's container to stop", lambda: second.pid() != theirs)
    assert leader.pid() == orphan
    leader.start()
    leader.says("removed a leftover container c")
    state = leader.becomes("running", 2)
    assert [one["why"] for one in state["failures"]] == ["spark-01: the supervisor ended without being asked to"]
    assert leader.pid() not in (0, orphan) and second.pid() not in (0, theirs)


def test_both_supervisors_are_killed_at_once(nodes: Nodes) -> None:
    leader, second = nodes.group(1)
    for node in (leader, second):
        node.start()
    leader.becomes("running")
    before = {leader.pid(), second.pid()}
    for node in (leader, second):
        node.send(signal.SIGKILL)
    for node in (leader, second):
        node.wait()
        node.start()
    leader.becomes("running", 2)
    assert leader.pid() and second.pid() and not before & {leader.pid(), second.pid()}


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_supervisor_that_is_frozen_is_noticed(nodes: Nodes, frozen: int) -> None:
    group = nodes.group(1, "--heartbeat-timeout=3")
    for node in group:
        node.start()
    group[0].becomes("running")
    group[frozen].send(signal.SIGSTOP)
    other = group[1 - frozen]
    other.says("silent for 3 s")
    wait_for("the other's container to stop", lambda: not other.pid())
    group[frozen].send(signal.SIGCONT)
    state = group[0].becomes("running", 2)
    assert state["failures"][0]["why"].startswith("spark-02: ")


def test_the_restart_limit_is_the_end(nodes: Nodes) -> None:
    node = nodes.single("--restart-limit=2", command=("sh", "-c", "echo ValueError: no such model; exit 3"))
    node.start()
    assert node.wait() == 78
    last = "last: spark-01: container ended with 3: ValueError: no such model"
    node.says(f"sparkfleet: tiny: gives up after 2 restarts in 30 min; {last}; nothing runs until site.yml or `")
    state = node.state()
    assert state["state"] == "down" and len(state["failures"]) == 3 and state["round"] == 3
    assert state["why"] == f"gave up after 2 restarts in 30 min; {last}"
    node.command = ("sleep", "3600")
    node.start()
    assert node.becomes("running")["failures"] == []


def test_the_limit_survives_a_supervisor_that_is_killed(nodes: Nodes) -> None:
    node = nodes.single("--restart-limit=1").start()
    node.becomes("running")
    node.kill_container()
    node.becomes("running", 2)
    node.send(signal.SIGKILL)
    node.wait()
    node.start()
    assert node.wait() == 78
    assert not node.pid() and len(node.state()["failures"]) == 2


def test_members_know_that_the_leader_gave_up(nodes: Nodes) -> None:
    leader, second = nodes.group(1, "--restart-limit=0")
    leader.start()
    second.start()
    leader.becomes("running")
    second.kill_container()
    assert leader.wait() == 78
    second.says("the group is down: gave up after 0 restarts in 30 min; last: spark-02: container ended with 137")
    state = second.becomes("waiting")
    assert "gave up after 0 restarts" in state["why"] and not second.pid() and not leader.pid()


def test_an_order_to_stop_waits_and_a_second_one_does_not(nodes: Nodes) -> None:
    drains = "trap 'echo draining' TERM; echo up; while :; do sleep 0.05; done"
    node = nodes.single("--stop-timeout=3000", command=("sh", "-c", drains)).start()
    node.becomes("running")
    node.says("up")
    node.send(signal.SIGTERM)
    node.says("draining")
    assert node.pid() and node.state()["state"] == "stopping"
    node.send(signal.SIGTERM)
    assert node.wait() == 0
    assert not node.pid() and node.state()["state"] == "stopped"


def test_a_container_that_is_frozen_is_stopped_too(nodes: Nodes) -> None:
    node = nodes.single("--stop-timeout=0.1").start()
    node.becomes("running")
    node.kill_container(signal.SIGSTOP)
    assert node.stop() == 0
    assert not node.pid()


def test_frozen_and_paused_containers_end_the_round(nodes: Nodes) -> None:
    node = nodes.single("--watch-interval=0.1", "--fault-stop-timeout=0.1").start()
    node.becomes("running")
    pid = node.pid()
    node.kill_container(signal.SIGSTOP)
    node.says(f"spark-01: process engine ({pid}) in the container is stopped (SIGSTOP)")
    node.becomes("running", 2)
    paused = node.home / "c.container.paused"
    paused.touch()
    node.says("spark-01: container is paused")
    paused.unlink()
    node.becomes("running", 3)


def test_an_engine_that_is_stuck_is_restarted(nodes: Nodes, server: Server) -> None:
    key = nodes.directory / "api-key"
    key.write_text("sk-of-the-test\n")
    node = nodes.single(
        f"--probe-url={server.url}",
        "--probe-model=tiny",
        f"--probe-key-file={key}",
        "--probe-interval=0.1",
        "--probe-timeout=0.5",
    ).start()
    state = node.becomes("running")
    assert state["answered"] and server.keys == {"Bearer sk-of-the-test"}

    server.mode = "busy"
    node.says("the model gives no completion (no answer within 0.5 s); it is busy")
    posts = server.posts
    wait_for("more probes of a busy engine", lambda: server.posts > posts + 3)
    server.mode = "refuses"
    node.says("the API key is refused (401)")
    posts = server.posts
    wait_for("more refused probes", lambda: server.posts > posts + 3)
    assert node.state()["round"] == 1

    server.mode = "hangs"
    node.says("spark-01: the engine is stuck: 2 completions in a row failed (no answer within 0.5 s)")
    server.mode = "answers"
    state = node.becomes("running", 2)
    assert len(state["failures"]) == 1 and len(state["recovered"]) == 1
    assert "sk-of-the-test" not in node.text()


def test_a_model_that_never_answers_is_a_failure(nodes: Nodes) -> None:
    node = nodes.single("--probe-url=http://127.0.0.1:9", "--probe-model=tiny", "--start-timeout=0.5").start()
    node.says("the model does not answer 0.5 s after the start: Connection refused")
    assert node.state()["answered"] is None


def test_strangers_change_nothing(nodes: Nodes) -> None:
    leader, second = nodes.group(1, "--handshake-timeout=3")
    leader.start()
    second.start()
    leader.becomes("running")
    before = leader.pid(), second.pid()
    silent = [socket.create_connection(("127.0.0.1", nodes.port)) for _turn in range(20)]
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(range(256)) * 64, b"[" * 7000 + b"\n", b"{}\n"):
        with socket.create_connection(("127.0.0.1", nodes.port)) as one:
            one.sendall(text)
    with socket.create_connection(("127.0.0.1", nodes.port)) as one:
        hello = {"type": "hello", "version": 1, "group": "tiny", "member": "spark-02", "nonce": "0" * 32, "proof": "x"}
        one.sendall(json.dumps(hello).encode() + b"\n" + b'{"type":"leaves"}\n')
    challenged = 0
    for one in silent:
        one.settimeout(30)
        while data := one.recv(4096):
            challenged += b"challenge" in data
        one.close()
    assert challenged <= 8
    leader.says("a connection from 127.0.0.1 ")
    assert leader.state()["round"] == 1 and (leader.pid(), second.pid()) == before
    assert leader.text().count("a connection from") == 1


def test_a_wrong_key_is_said_and_healed(nodes: Nodes) -> None:
    leader, second = nodes.group(1)
    second.key.write_text("another\n")
    leader.start()
    second.start()
    second.says(f"has another key than {second.key} here; run site.yml")
    leader.says("a connection from 127.0.0.1 has another key")
    second.key.unlink()
    second.says(f"key file {second.key} cannot be read (No such file or directory); run site.yml")
    second.key.write_text(SECRET)
    leader.becomes("running")


def test_a_second_connection_of_a_member_replaces_the_first(nodes: Nodes) -> None:
    leader, second = nodes.group(1)
    leader.start()
    second.start()
    leader.becomes("running")
    theirs = second.pid()
    twin = nodes.make("twin", *second.options)
    second.send(signal.SIGSTOP)
    twin.start()
    leader.says("spark-02: connected anew")
    leader.becomes("running", 2)
    assert twin.pid()
    second.send(signal.SIGCONT)
    wait_for("the first one's container to stop", lambda: second.pid() != theirs)


def test_memory_that_is_missing_is_a_failure(nodes: Nodes) -> None:
    leader, second = nodes.group(1, "--restart-limit=0")
    second.options = (*second.options, f"--min-available-bytes={10**15}")
    leader.start()
    second.start()
    assert leader.wait() == 78
    leader.says("spark-02: needs 931322.6 GiB of memory and ")
    assert not any(call.startswith("run") for call in leader.calls() + second.calls())


def test_a_container_waits_for_the_one_that_it_lives_in(nodes: Nodes) -> None:
    node = nodes.single("--after-container=ray").start()
    node.says("waits for spark-01: container ray; nothing runs until then")
    ray = node.by_hand("run", "--rm", "--name", "ray", "image", "sleep", "3600")
    node.becomes("running")
    os.kill(node.pid("ray"), signal.SIGKILL)
    ray.wait()
    node.kill_container()
    node.says("waits for spark-01: container ray", 2)
    assert node.state()["failures"] == []
    again = node.by_hand("run", "--rm", "--name", "ray", "image", "sleep", "3600")
    node.becomes("running", 2)
    os.kill(node.pid("ray"), signal.SIGKILL)
    again.wait()


def test_docker_that_is_away_is_waited_for(nodes: Nodes) -> None:
    node = nodes.single("--restart-limit=1").start()
    node.becomes("running")
    down = node.home / "down"
    down.touch()
    node.kill_container()
    node.says("waits for spark-01: Docker (Cannot connect to the Docker daemon")
    down.unlink()
    assert len(node.becomes("running", 2)["failures"]) == 1


def test_docker_that_hangs_has_a_deadline(nodes: Nodes) -> None:
    node = nodes.single("--docker-timeout=0.5", "--run-timeout=0.5", "--fault-stop-timeout=0", "--restart-limit=99")
    (node.home / "hang").write_text("inspect stop")
    node.start()
    node.says("spark-01: container does not run 0.5 s after docker run (docker inspect did not end within 0.5 s)")
    node.says("cannot stop the container by Docker (docker stop did not end within 0.5 s); removes it")
    (node.home / "hang").write_text("inspect stop rm")
    node.says("waits for spark-01: Docker (docker rm did not end within 0.5 s)")
    (node.home / "hang").unlink()
    node.becomes("running", 2)
    assert node.stop() == 0
    assert not node.pid()


def test_a_docker_run_that_was_killed_leaves_no_container(nodes: Nodes) -> None:
    node = nodes.single("--restart-limit=0").start()
    node.becomes("running")
    orphan = node.pid()
    children = Path(f"/proc/{orphan}/stat").read_text().rpartition(") ")[2].split()
    os.kill(int(children[1]), signal.SIGKILL)
    assert node.wait() == 78
    node.says("spark-01: docker run was ended by SIGKILL")
    # Gone, or waiting for whoever is process 1 here to take notice.
    with contextlib.suppress(FileNotFoundError):
        assert Path(f"/proc/{orphan}/stat").read_text().rpartition(") ")[2][0] in "ZX"


def test_a_docker_run_that_is_on_its_way_leaves_no_container(nodes: Nodes) -> None:
    node = nodes.single()
    (node.home / "hang").write_text("run")
    node.start()
    wait_for("docker run", lambda: any(call.startswith("run ") for call in node.calls()))
    assert node.stop() == 0
    assert node.calls()[-1].startswith("rm ") and not node.pid()


def test_reasons_hold_no_secret(nodes: Nodes) -> None:
    text = f"sleep 0.1; echo ValueError: bad key {SECRET} here; exit 1"
    node = nodes.single("--restart-limit=0", command=("sh", "-c", text)).start()
    assert node.wait() == 78
    assert node.state()["failures"][0]["why"] == "spark-01: container ended with 1: ValueError: bad key *** here"


def test_the_output_is_passed_on_whole(nodes: Nodes) -> None:
    text = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; printf 'no end'; exec sleep 3600"
    node = nodes.single(command=("sh", "-c", text)).start()
    node.says("line 4999\n")
    assert node.stop() == 0
    lines = node.text().splitlines()
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(5000)]
    assert "no end" in lines
    assert all(line.startswith(("line ", "no end", "sparkfleet: tiny: ")) for line in lines)


def test_a_port_that_is_taken_is_waited_for(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", nodes.port)):
        leader, second = nodes.group(1)
        leader.start()
        second.start()
        leader.says(f"waits for address 127.0.0.1:{nodes.port} (")
    leader.becomes("running")


def test_systemd_is_told(nodes: Nodes) -> None:
    node = nodes.single()
    path = nodes.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(30)
        os.environ.update(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="300000")
        try:
            node.start()
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
        told = []
        while not {"READY=1", "STATUS=running", "WATCHDOG=1"} <= set(told):
            told.append(notify.recv(4096).decode())
        assert node.stop() == 0
        while "STOPPING=1" not in told:
            told.append(notify.recv(4096).decode())


def test_a_state_directory_that_cannot_be_written_is_no_reason_to_stop(nodes: Nodes) -> None:
    (nodes.directory / "file").write_text("")
    node = nodes.single(f"--state-dir={nodes.directory}/file/state").start()
    node.says("cannot write")
    node.says("round 1: runs")
    assert node.stop() == 0


def test_a_wrong_command_line_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-B", PROGRAM, "--name", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("sparkfleet: ")
