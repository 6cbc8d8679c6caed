# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's socket, and the port on loopback that leads to another machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils._engine import Engine, EngineError, Forwarder, split_name


class Docker:
    """An engine that answers every connection with the same, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[bytes] = []
        self.answer = (200, b"")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def says(self, status: int, *lines: Any) -> None:
        """Set the answer."""
        self.answer = (status, b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def _serve(self) -> None:
        while True:
            connection, _peer = self._server.accept()
            with connection:
                asked = b""
                while b"\r\n\r\n" not in asked or (b"chunked" in asked and not asked.endswith(b"0\r\n\r\n")):
                    asked += connection.recv(65536)
                self.asked.append(asked)
                status, body = self.answer
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    """Return an engine."""
    return Docker(tmp_path / "docker.sock")


@pytest.fixture
def engine(docker: Docker) -> Engine:
    """Return a client of it."""
    return Engine(docker.path)


def test_an_image_is_inspected(docker: Docker, engine: Engine) -> None:
    docker.says(200, {"Id": "sha256:1"})
    assert engine.inspect("vllm:1") == {"Id": "sha256:1"}
    docker.says(404, {"message": "No such image: vllm:1"})
    assert engine.inspect("vllm:1") is None
    docker.says(500, {"message": "store\nis broken"})
    with pytest.raises(EngineError, match="store is broken"):
        engine.inspect("vllm:1")


def test_an_engine_that_is_away_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Docker does not answer on .*none \(No such file"):
        Engine(str(tmp_path / "none")).json("/info")


def test_a_pull_shows_its_progress_and_fails_with_its_reason(docker: Docker, engine: Engine) -> None:
    seen: list[Any] = []
    docker.says(
        200, {"id": "a", "status": "Downloading"}, {"errorDetail": {"message": "no\nspace left"}, "error": "no"}
    )
    with pytest.raises(EngineError, match="no space left"):
        engine.pull("127.0.0.1:1/x", "sha256:1", seen.append)
    assert [event["status"] for event in seen] == ["Downloading"]
    assert b"fromImage=127.0.0.1%3A1%2Fx&tag=sha256%3A1" in docker.asked[-1]


def test_a_pull_that_breaks_off_is_one_line(docker: Docker, engine: Engine) -> None:
    docker.answer = (200, b'{"status"')
    with pytest.raises(EngineError, match="Docker broke off"):
        engine.pull("x", "1", lambda _event: None)


def test_a_push_that_fails_is_one_line(docker: Docker, engine: Engine) -> None:
    docker.says(200, {"status": "Pushing"})
    engine.push("127.0.0.1:1/x", "t")
    assert b"/images/127.0.0.1:1/x/push?tag=t" in docker.asked[-1]
    docker.says(200, {"status": "Pushing"}, {"error": "no\nroom"})
    with pytest.raises(EngineError, match="no room"):
        engine.push("127.0.0.1:1/x", "t")


def test_an_archive_is_loaded_while_it_is_made(docker: Docker, engine: Engine) -> None:
    docker.says(200, {"stream": "Loaded"})
    engine.load(iter([b"first", b"second"]))
    assert b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n" in docker.asked[-1]


def test_names_are_given_and_taken(docker: Docker, engine: Engine) -> None:
    docker.says(201)
    engine.tag("sha256:1", "host:1/x")
    assert b"repo=host%3A1%2Fx&tag=latest" in docker.asked[-1]
    docker.says(404, {"message": "No such image"})
    engine.forget("gone:1")
    docker.says(409, {"message": "in use"})
    with pytest.raises(EngineError, match="in use"):
        engine.forget("used:1")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a", ("a", "latest")), ("a:1", ("a", "1")), ("h:1/a", ("h:1/a", "latest")), ("h:1/a:2", ("h:1/a", "2"))],
)
def test_a_name_is_split_at_its_tag(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.fixture
def far() -> Iterator[tuple[str, int]]:
    """Return the address of a server that sends back what it gets, in capitals."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _peer = server.accept()
            with connection:
                while data := connection.recv(100):
                    connection.sendall(data.upper())

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()


def test_a_forwarder_leads_to_the_other_machine_and_counts(far: tuple[str, int]) -> None:
    with Forwarder(*far) as forwarder, socket.create_connection(("127.0.0.1", forwarder.port)) as near:
        near.sendall(b"hello")
        assert near.recv(100) == b"HELLO"
        near.shutdown(socket.SHUT_WR)
        assert near.recv(100) == b""
        assert forwarder.received == 5


def test_a_forwarder_to_nowhere_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Forwarder("127.0.0.1", port) as forwarder, socket.create_connection(("127.0.0.1", forwarder.port)) as near:
        assert near.recv(100) == b""
