# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fabric_measure and fabric_listen against each other over loopback, with stand-ins for ping and ib_write_bw."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _streams
from ansible_collections.sparkfleet.vllm.plugins.module_utils._gate import Link, judge
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import SysfsReader
from ansible_collections.sparkfleet.vllm.plugins.modules import fabric_listen, fabric_measure
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import ROOT, program, run_module

OWN, PEER = "127.0.0.1", "127.0.0.2"
TOKEN = "a-token-of-the-test"
PATIENCE_S = 20
TABLE = """ #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
 65536      529718           0.00               92.57              0.176561"""


def link(**changed: Any) -> Link:
    base = Link(
        interface="enp1s0f0np0",
        address=OWN,
        peer="spark-02",
        peer_interface="enp1s0f0np0",
        peer_address=PEER,
        mtu=9000,
        hca="rocep1s0f0",
        peer_hca="rocep1s0f0",
        gid_index=3,
        peer_gid_index=5,
        peer_mac="4c:bb:47:00:02:00",
        measure=True,
    )
    return base | changed  # type: ignore[return-value]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that is free on both addresses, and so is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind((PEER, 0))
            try:
                two.bind((PEER, one.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            return int(one.getsockname()[1])


@pytest.fixture(name="programs")
def fixture_programs(tmp_path: Path) -> Path:
    """A directory for stand-ins; ping answers."""
    directory = tmp_path / "bin"
    program(directory, "ping", "echo 3 packets transmitted")
    program(directory, "ip", "echo '[]'")
    return directory


@pytest.fixture(name="run")
def fixture_run(programs: Path) -> Callable[[list[str]], tuple[int, str, str]]:
    def run(command: list[str]) -> tuple[int, str, str]:
        path = f"{programs}:{os.environ['PATH']}"
        done = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": path}, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


@contextmanager
def serving(handlers: dict[str, Any], port: int, token: str = TOKEN) -> Iterator[_streams.Listener]:
    sockets, problems = _streams.listen([PEER], port, 0)
    assert problems == []
    listener = _streams.Listener(sockets, token, handlers)
    thread = threading.Thread(target=listener.run, args=(PATIENCE_S * 3,))
    thread.start()
    try:
        yield listener
    finally:
        listener.stop()
        thread.join()
        listener.close()


def verbs_tree(directory: Path) -> Path:
    """Sysfs and /dev of a host whose RDMA device can be opened."""
    (directory / "class/infiniband_verbs/uverbs7").mkdir(parents=True)
    (directory / "class/infiniband_verbs/uverbs7/ibdev").write_text("rocep1s0f0\n")
    (directory / "infiniband").mkdir()
    (directory / "infiniband/uverbs7").touch()
    for name, text in (("mtu", "9000"), ("carrier", "1")):
        (directory / "class/net/enp1s0f0np0").mkdir(parents=True, exist_ok=True)
        (directory / "class/net/enp1s0f0np0" / name).write_text(f"{text}\n")
    return directory


def measurer(run: Any, port: int, tree: Path, write_bw: str | None = None, **params: Any) -> fabric_measure.Measurer:
    given = {"host": "spark-01", "mode": "bandwidth", "token": TOKEN, "port": port, "seconds": 1, "patience": 0}
    return fabric_measure.Measurer({**given, **params}, run, write_bw, SysfsReader(str(tree)), str(tree))


# --- ping -----------------------------------------------------------------------------------------


def test_ping_is_as_large_as_the_mtu_allows_and_small_after_a_failure(run: Any, programs: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program(
        programs, "ping", f'echo "$@" >> {log}; [ "$4" = 56 ] || {{ echo "ping: local error: too long" >&2; exit 1; }}'
    )
    [found] = measurer(run, 1, verbs_tree(tmp_path)).all([link()])
    assert (found["mtu_ok"], found["small_ok"], found["carrier"], found["mtu"]) == (False, True, True, 9000)
    assert found["ping_error"] == "local error: too long" and found["gbps"] is None and found["error"] == ""
    assert log.read_text().splitlines() == [f"-M do -s {size} -I {OWN} -c 3 -i 0.2 -W 1 {PEER}" for size in (8972, 56)]


def test_ping_is_tried_again_until_the_link_is_up(run: Any, programs: Path, tmp_path: Path) -> None:
    program(
        programs,
        "ping",
        f"cd {tmp_path}; [ -e third ] && exit 0; [ -e second ] && touch third; touch second; exit 1",
    )
    [found] = measurer(run, 1, tmp_path, mode="ping", patience=PATIENCE_S).all([link()])
    assert found["mtu_ok"] and found["ping_error"] == "" and found["gbps"] is None


def test_without_carrier_that_is_said(run: Any, programs: Path, tmp_path: Path) -> None:
    program(programs, "ping", "echo 'From 192.168.177.11 icmp_seq=1 Destination Host Unreachable'; exit 1")
    tree = verbs_tree(tmp_path)
    (tree / "class/net/enp1s0f0np0/carrier").write_text("0\n")
    [found] = measurer(run, 1, tree).all([link()])
    assert (found["small_ok"], found["carrier"]) == (False, False)
    assert found["ping_error"].endswith("Destination Host Unreachable")


@pytest.mark.parametrize(("lladdr", "wrong"), [("4C:BB:47:00:02:00", ""), ("4c:bb:47:00:02:04", "4c:bb:47:00:02:04")])
def test_who_answers_arp_is_looked_at(run: Any, programs: Path, tmp_path: Path, lladdr: str, wrong: str) -> None:
    program(programs, "ip", f"""echo '[{{"dst":"{PEER}","lladdr":"{lladdr}"}}]'""")
    [found] = measurer(run, 1, tmp_path, mode="ping").all([link()])
    assert found["wrong_mac"] == wrong
    program(programs, "ip", "echo garbage; exit 1")
    assert measurer(run, 1, tmp_path, mode="ping").all([link()])[0]["wrong_mac"] == ""


# --- TCP ------------------------------------------------------------------------------------------


def test_without_ib_write_bw_streams_are_counted_where_they_arrive(run: Any, tmp_path: Path) -> None:
    port = free_port()
    with serving({}, port):
        [found] = measurer(run, port, verbs_tree(tmp_path)).all([link()])
    assert found["tool"] == "tcp" and found["error"] == ""
    assert found["gbps"] is not None and found["gbps"] > 0.1
    assert found["why_tcp"] == "ib_write_bw is missing on spark-01: apt-get install perftest there"


def test_a_wrong_token_is_refused(run: Any, tmp_path: Path) -> None:
    port = free_port()
    with serving({}, port, "another") as listener:
        [found] = measurer(run, port, tmp_path).all([link()])
        assert listener.refused == 1
    assert found["gbps"] is None and "the token is wrong" in found["error"]


def test_nobody_there_is_said(run: Any, tmp_path: Path) -> None:
    port = free_port()
    [found] = measurer(run, port, tmp_path).all([link()])
    assert found["error"].startswith(f"nobody listens at {PEER}:{port} (Connection refused); let the firewall pass")


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n", b"x" * 5000, b"[]\n", b'{"protocol": "other"}\n'])
def test_another_program_at_the_port_is_told_from_the_listener(run: Any, tmp_path: Path, greeting: bytes) -> None:
    with socket.create_server((PEER, 0)) as server:

        def answer() -> None:
            connection, _address = server.accept()
            with connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        [found] = measurer(run, port, tmp_path).all([link()])
        thread.join()
    assert found["error"] == f"what answers at {PEER}:{port} is not the gate's listener; set fabric_gate_port"


def test_a_far_end_that_goes_silent_is_a_line_and_not_a_hang(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_streams, "_PATIENCE_S", 0.5)
    port, over = free_port(), threading.Event()

    def silent(request: Any, ahead: Any) -> dict[str, Any]:
        ahead({"ready": True})
        over.wait(PATIENCE_S)
        return {}

    with serving({"count": silent}, port):
        [found] = measurer(run, port, tmp_path).all([link()])
        over.set()
    assert found["gbps"] is None
    assert found["error"].startswith(f"the connection to {PEER} went silent while measuring")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_nonsense_does_not_end_the_listener(tmp_path: Path) -> None:
    port = free_port()
    with serving({}, port):
        for nonsense in (b"\n", b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"proof": 1, "do": []}\n', b"x" * 9000):
            with socket.create_connection((PEER, port), PATIENCE_S) as one:
                assert one.recv(1)
                one.sendall(nonsense)
        caller = _streams.Caller(OWN, PEER, port, TOKEN, 0)
        with pytest.raises(_streams.Trouble, match="nobody here knows how to dance"):
            caller.ask({"do": "dance"})


def test_an_address_that_is_not_there_is_said_and_the_others_are_served() -> None:
    port = free_port()
    sockets, problems = _streams.listen([PEER, "203.0.113.1"], port, 0)
    assert len(sockets) == 1
    assert problems == ["203.0.113.1 is on no interface; plug the cable in, or set the address again"]
    assert _streams.listen([PEER], port, 0) == ([], [f"port {port} is taken; set fabric_gate_port"])
    sockets[0].close()


# --- ib_write_bw ----------------------------------------------------------------------------------


def far_end(run: Any, port: int, lack: list[str] | None = None) -> dict[str, Any]:
    module: Any = SimpleNamespace(params={"port": port}, run_command=lambda command, errors: run(command))
    return {
        "verbs": lambda request, ahead: {"lack": lack or []},
        "ib_write_bw": lambda request, ahead: fabric_listen.serve_write_bw(module, request, ahead),
    }


def test_ib_write_bw_is_used_where_both_ends_can(run: Any, programs: Path, tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    # A client gets no further than its server.
    served = f'case "$*" in *{PEER}) until [ -s {log} ]; do sleep 0.02; done;; esac'
    program(programs, "ib_write_bw", f'{served}; echo "$@" >> {log}; echo "{TABLE}"')
    with serving(far_end(run, port), port):
        [found] = measurer(run, port, verbs_tree(tmp_path), "ib_write_bw").all([link()])
    assert (found["gbps"], found["tool"], found["why_tcp"], found["error"]) == (92.57, "ib_write_bw", "", "")
    common = f"-q 4 -F --report_gbits -D 3 -p {port + 1}"
    assert sorted(log.read_text().splitlines()) == [
        f"-d rocep1s0f0 -x 3 {common} {PEER}",
        f"-d rocep1s0f0 -x 5 {common}",
    ]


def test_the_client_waits_for_the_server_to_start(run: Any, programs: Path, tmp_path: Path) -> None:
    port, mark = free_port(), tmp_path / "tried"
    slow = (
        f'case "$*" in *{PEER}) [ -e {mark} ] || {{ touch {mark}; echo "Couldn\'t connect to {PEER}"; exit 1; }};; esac'
    )
    program(programs, "ib_write_bw", f'{slow}; echo "{TABLE}"')
    with serving(far_end(run, port), port):
        [found] = measurer(run, port, verbs_tree(tmp_path), "ib_write_bw").all([link()])
    assert found["gbps"] == 92.57 and mark.exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("echo ' Failed status 12: wr_id 0 syndrom 0x81'; exit 1", "ib_write_bw: Failed status 12: wr_id 0"),
        ("echo 'garbage'", "ib_write_bw: garbage"),
        ("exit 124", "ib_write_bw: no end within its time"),
    ],
)
def test_a_failing_ib_write_bw_is_quoted(run: Any, programs: Path, tmp_path: Path, text: str, error: str) -> None:
    port = free_port()
    program(programs, "ib_write_bw", text)
    with serving(far_end(run, port), port):
        [found] = measurer(run, port, verbs_tree(tmp_path), "ib_write_bw").all([link()])
    assert found["gbps"] is None and found["error"].startswith(error)


@pytest.mark.parametrize(
    ("changed", "broken", "why"),
    [
        ({"hca": None}, "", "the interface has no RDMA device on spark-01"),
        ({"gid_index": None}, "", "rocep1s0f0 has no RoCE v2 GID with an IPv4 address on spark-01"),
        ({"hca": "mlx5_1"}, "", "mlx5_1 has no device in"),
        ({}, "infiniband/uverbs7", "uverbs7 cannot be opened (No such file or directory) on spark-01"),
    ],
)
def test_why_verbs_do_not_work_is_said(
    run: Any, tmp_path: Path, changed: dict[str, Any], broken: str, why: str
) -> None:
    port, tree = free_port(), verbs_tree(tmp_path)
    if broken:
        (tree / broken).unlink()
    with serving({}, port):
        [found] = measurer(run, port, tree, "ib_write_bw").all([link(**changed)])
    assert found["tool"] == "tcp" and why in found["why_tcp"]


def test_the_far_ends_lack_is_named_with_its_host(run: Any, tmp_path: Path) -> None:
    port = free_port()
    lack = ["ib_write_bw is missing", "apt-get install perftest"]
    with serving(far_end(run, port, lack), port):
        [found] = measurer(run, port, verbs_tree(tmp_path), "ib_write_bw").all([link()])
    assert found["tool"] == "tcp" and found["gbps"]
    assert found["why_tcp"] == "ib_write_bw is missing on spark-02: apt-get install perftest there"


# --- the modules themselves -----------------------------------------------------------------------


@pytest.fixture(name="listening")
def fixture_listening(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start fabric_listen as Ansible's async wrapper does: a process that nobody waits for."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int, token: str = TOKEN, seconds: int = PATIENCE_S * 3) -> subprocess.Popen[str]:
        arguments = {
            "token": token,
            "addresses": [PEER],
            "port": port,
            "seconds": seconds,
            "path": str(tmp_path / "run" / "marker.json"),
            "_ansible_remote_tmp": str(tmp_path),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "ansible_collections.sparkfleet.vllm.plugins.modules.fabric_listen"],
            env={**os.environ, "PYTHONPATH": str(ROOT / ".collections")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        process.stdin.close()
        process.stdin = None
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def reachable(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((PEER, port)) == 0


def absent(tmp_path: Path, token: str = TOKEN) -> dict[str, Any]:
    marker = str(tmp_path / "run" / "marker.json")
    return run_module("fabric_listen", {"state": "absent", "token": token, "path": marker}, tmp_path)


def test_measure_listen_and_end(listening: Any, programs: Path, tmp_path: Path) -> None:
    port = free_port()
    process = listening(port)
    # Not waited for: whoever measures tries until the listener is there.
    arguments = {"host": "spark-01", "links": [link()], "token": TOKEN, "port": port, "seconds": 1, "patience": 20}
    answer = run_module("fabric_measure", arguments, tmp_path, path=f"{programs}:{os.environ['PATH']}")
    [found] = answer["measured"]
    assert found["tool"] == "tcp" and found["gbps"] > 0.1, found
    assert judge(["spark-01"], {"spark-01": [found]}, {}, mode="bandwidth", min_gbps=0.1, wanted="", date="")["passed"]
    ended = absent(tmp_path)
    assert ended["problems"] == [] and ended["changed"] is False
    said, _nothing = process.communicate(timeout=PATIENCE_S)
    assert json.loads(said)["refused"] == 0
    assert TOKEN not in said.replace("VALUE_SPECIFIED_IN_NO_LOG_PARAMETER", "")
    assert not reachable(port) and not (tmp_path / "run" / "marker.json").exists()


def test_the_listener_ends_by_itself(listening: Any, tmp_path: Path) -> None:
    process = listening(free_port(), seconds=0)
    said, _nothing = process.communicate(timeout=PATIENCE_S)
    assert json.loads(said)["problems"] == []
    assert absent(tmp_path)["problems"] == []


def test_a_taken_port_is_told_by_the_one_who_ends_the_listener(listening: Any, tmp_path: Path) -> None:
    with socket.create_server((PEER, 0)) as squatter:
        port = squatter.getsockname()[1]
        process = listening(port)
        said, _nothing = process.communicate(timeout=PATIENCE_S)
        expected = f"port {port} is taken; set fabric_gate_port"
        assert json.loads(said)["msg"] == expected
        assert absent(tmp_path)["problems"] == [expected]


def test_an_earlier_listener_makes_room(listening: Any, tmp_path: Path) -> None:
    port = free_port()
    first = listening(port, "of an interrupted run")
    until(lambda: reachable(port), "the first listener")
    second = listening(port)
    first.communicate(timeout=PATIENCE_S)
    until(lambda: reachable(port), "the second listener")
    assert second.poll() is None
    assert absent(tmp_path)["problems"] == []
    second.communicate(timeout=PATIENCE_S)


def test_a_listener_that_is_still_starting_is_not_left_behind(listening: Any, tmp_path: Path) -> None:
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(absent, tmp_path)
        until((tmp_path / "run" / "marker.json").exists, "the one who ends it, who comes first")
        process = listening(port)
        assert ended.result(PATIENCE_S)["problems"] == []
    process.communicate(timeout=PATIENCE_S)
    assert not reachable(port)


def test_a_listener_that_never_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = absent(tmp_path)
    assert answer["problems"] == ["the listener did not start; run again with -vvv"]


def test_check_mode_listens_to_nobody(tmp_path: Path) -> None:
    arguments = {"token": TOKEN, "addresses": [PEER], "port": free_port(), "path": str(tmp_path / "run" / "x")}
    assert run_module("fabric_listen", arguments, tmp_path, check=True)["changed"] is False
    assert not (tmp_path / "run").exists()
