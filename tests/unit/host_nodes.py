# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes for tests of the host program: each has a supervisor as a real process and a Docker of its own."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.unit.host_docker import SCRIPT

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "files" / "host" / "sparkfleet_host"
# Another Python for the supervisors: nodes may have an older or a newer one than the checkout.
PYTHON = os.environ.get("SPARKFLEET_HOST_PYTHON", sys.executable)
DEADLINE_S = 40.0
FOREVER = ("sleep", "3600")
SECRET = "the-secret-of-this-group"


def wait_for(what: str, condition: Callable[[], Any], hopeless: Callable[[], bool] = lambda: False) -> Any:
    """Return the condition's value as soon as it is true; fail with ``what`` after a long time, or without hope."""
    end = time.monotonic() + DEADLINE_S
    while True:
        late = hopeless() or time.monotonic() > end
        if value := condition():
            return value
        if late:
            raise AssertionError(f"waited in vain for: {what}")
        time.sleep(0.02)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


class Node:
    """One node of a group."""

    def __init__(self, directory: Path, name: str, *options: str, command: tuple[str, ...] = FOREVER) -> None:
        self.name, self.home = name, directory / name
        self.home.mkdir(parents=True)
        self.log = self.home / "log"
        self.key = self.home / "key"
        self.key.write_text(f"{SECRET}\n")
        self.docker = self.home / "docker"
        self.docker.write_text(SCRIPT)
        self.docker.chmod(0o755)
        self.options, self.command = options, command
        self.container = "c"
        self.process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> list[str]:
        settings = {
            "name": "tiny",
            "container": self.container,
            "node": self.name,
            "key-file": self.key,
            "state-dir": self.home / "state",
            "docker": self.docker,
            "docker-timeout": 10,
            "stop-timeout": 2,
            "fault-stop-timeout": 2,
            "heartbeat": 0.2,
            "heartbeat-timeout": 20,
            "retry": 0.1,
            "backoff": 0.1,
            "backoff-max": 0.2,
            "memory-wait": 0,
            "watch-interval": 0,
        }
        line = [f"--{key}={value}" for key, value in settings.items()]
        # Of an option that is given twice, the last counts.
        run = [str(self.docker), "run", "--rm", "--name", self.container, "image", *self.command]
        return [*line, *self.options, "--", *run]

    def start(self) -> Node:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-B", str(PROGRAM), *self.arguments()],
                env={**os.environ, "FAKE_DOCKER": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process
        return self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.home / "state" / "tiny.json").read_text())
        except FileNotFoundError:
            return {"state": "none"}
        return found

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def becomes(self, state: str, least_round: int = 0) -> dict[str, Any]:
        """Wait for a state, and return it."""

        def condition() -> dict[str, Any] | None:
            now = self.state()
            return now if now["state"] == state and now["round"] >= least_round else None

        return dict(self._wait_for(f"{state}, round {least_round}", condition))

    def says(self, text: str, count: int = 1) -> None:
        self._wait_for(f"to say {text!r}", lambda: self.text().count(text) >= count)

    def _wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        try:
            return wait_for(what, condition, lambda: not self.process or self.process.poll() is not None)
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}; {self.state()}\n{self.text()}") from None

    def pid(self, container: str = "") -> int:
        """Return the process of a container, 0 if none runs."""
        with contextlib.suppress(OSError):
            pid = (self.home / f"{container or self.container}.container").read_text().split()[1]
            stat = Path(f"/proc/{pid}/stat").read_text()
            return 0 if stat.rpartition(") ")[2][0] in "ZX" else int(pid)
        return 0

    def kill_container(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(), number)

    def calls(self) -> list[str]:
        file = self.home / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def by_hand(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run the fake docker as someone else would."""
        return subprocess.Popen(
            [str(self.docker), *arguments], env={**os.environ, "FAKE_DOCKER": str(self.home)}, stdout=subprocess.DEVNULL
        )

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for file in self.home.glob("*.container"):
            with contextlib.suppress(OSError):
                os.killpg(int(file.read_text().split()[1]), signal.SIGKILL)


class Nodes:
    """The nodes of a test."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port, self.all = directory, free_port(), list[Node]()

    def make(self, name: str, *options: str, command: tuple[str, ...] = FOREVER) -> Node:
        node = Node(self.directory, name, *options, command=command)
        self.all.append(node)
        return node

    def single(self, *options: str, command: tuple[str, ...] = FOREVER) -> Node:
        return self.make("spark-01", *options, command=command)

    def group(self, members: int, *options: str) -> list[Node]:
        """Return a leader and its members, not started."""
        names = [f"spark-{number:02}" for number in range(2, members + 2)]
        leader = self.make("spark-01", f"--listen=127.0.0.1:{self.port}", f"--members={','.join(names)}", *options)
        others = [self.make(one, f"--leader=127.0.0.1:{self.port}", f"--member={one}", *options) for one in names]
        return [leader, *others]

    def end(self) -> None:
        for node in self.all:
            node.end()


class Server:
    """A vLLM that answers as the test says.

    ``mode``: ``answers``; ``hangs`` until it changes; ``busy``: the same while the counters move; ``refuses``: 401.
    """

    def __init__(self) -> None:
        self.mode, self.tokens, self.posts, self.keys = "answers", 100, 0, set[str]()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def answer(self, status: int, text: str) -> None:
                body = text.encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def do_GET(self) -> None:
                outer.tokens += 7 if outer.mode == "busy" else 0
                labels = 'engine="0",model_name="tiny"'
                self.answer(
                    200,
                    "# TYPE vllm:generation_tokens counter\n"
                    f"vllm:generation_tokens_total{{{labels}}} {outer.tokens}.0\n"
                    f"vllm:prompt_tokens_total{{{labels}}} 5.0\nvllm:kv_cache_usage_perc{{{labels}}} 0.25\n",
                )

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.posts += 1
                outer.keys.add(self.headers.get("Authorization", ""))
                mode = outer.mode
                if mode == "refuses":
                    self.answer(401, "{}")
                    return
                while outer.mode == mode and mode in ("hangs", "busy"):
                    time.sleep(0.02)
                outer.tokens += 1
                self.answer(200, json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}))

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def end(self) -> None:
        self.mode = "answers"
        self._server.shutdown()
        self._server.server_close()


def nodes_of(directory: Path) -> Iterator[Nodes]:
    """The body of a fixture."""
    nodes = Nodes(directory)
    try:
        yield nodes
    finally:
        nodes.end()
