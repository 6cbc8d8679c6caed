# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ray_nodes and completion against small HTTP servers that answer as Ray and vLLM do."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import program, run_module
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Answer = Callable[[str, str, dict[str, str]], tuple[int, Any]]
HEAD, WORKER = "192.168.177.11", "192.168.177.12"


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Give a function that serves ``answer(method, path, headers) -> (status, json)`` and returns the URL.

    With a file that holds a certificate and its key, it speaks HTTPS.
    """
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer, certificate: Path | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, body = answer(self.command, self.path, dict(self.headers))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = reply

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"result": {"result": list(rows)}}}


def node(address: str, node_id: str, state: str = "ALIVE") -> dict[str, Any]:
    total = {"GPU": 1.0, "CPU": 2.0}
    return {"node_ip": address, "node_id": node_id, "state": state, "is_head_node": False, "resources_total": total}


class Ray:
    """A dashboard that wants a token; its worker joins with the second look."""

    def __init__(self, joins_at: int = 2) -> None:
        self.looks, self.joins_at = 0, joins_at

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        if headers.get("Authorization") != "Bearer secret":
            return 403, {}
        if path.startswith("/api/v0/actors"):
            return 200, table({"name": "vllm_Worker_1_TP0", "node_id": "a", "state": "ALIVE"})
        self.looks += 1
        joined = self.looks >= self.joins_at
        return 200, table(node(HEAD, "a"), node(WORKER, "b" if joined else "c", "ALIVE" if joined else "DEAD"))


@pytest.fixture
def token(tmp_path: Path) -> str:
    (tmp_path / "token").write_text("secret\n")
    return str(tmp_path / "token")


def test_ray_nodes_waits_for_the_last_node(serve, tmp_path: Path, token: str) -> None:
    arguments = {"url": serve(Ray()), "token_path": token, "expected": [HEAD, WORKER], "gpus": 1, "timeout": 60}
    answer = run_module("ray_nodes", arguments, tmp_path)
    assert [n["address"] for n in answer["nodes"]] == [HEAD, WORKER]
    assert answer["ranks"] == [{"actor": "vllm_Worker_1_TP0", "tp": 0, "address": HEAD}]
    assert (answer["missing"], answer["reachable"], answer["changed"]) == ({}, True, False)
    assert set(answer["raw"]) == {"nodes", "actors"}


def test_ray_nodes_names_the_missing_node(serve, tmp_path: Path, token: str) -> None:
    arguments = {"url": serve(Ray(99)), "token_path": token, "expected": [HEAD, WORKER], "gpus": 1, "timeout": 0}
    answer = run_module("ray_nodes", arguments, tmp_path)
    assert answer["failed"] is True
    assert f"{WORKER} has not joined" in answer["msg"]
    assert answer["missing"] == {WORKER: "has not joined"}


def test_ray_nodes_says_that_its_token_is_refused(serve, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("another\n")
    arguments = {"url": serve(Ray()), "token_path": str(tmp_path / "token"), "expected": [HEAD], "timeout": 0}
    answer = run_module("ray_nodes", arguments, tmp_path)
    assert "refuses the token" in answer["msg"]
    assert "another" not in json.dumps(answer)


@pytest.mark.parametrize(("check", "wait"), [(True, True), (False, False)])
def test_ray_nodes_does_not_fail_when_it_only_looks(tmp_path: Path, check: bool, wait: bool) -> None:
    arguments = {"url": "http://127.0.0.1:1", "expected": [HEAD], "wait": wait}
    answer = run_module("ray_nodes", arguments, tmp_path, check=check)
    assert (answer.get("failed", False), answer["reachable"], answer["nodes"]) == (False, False, [])
    assert answer["missing"] == {HEAD: "has not joined"}


class Vllm:
    """A server that is ready with the second request and answers only to the key."""

    def __init__(self, ready_at: int = 2, closed: bool = True, tokens: int = 16) -> None:
        self.requests, self.ready_at, self.closed, self.tokens = 0, ready_at, closed, tokens

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        if self.closed and headers.get("Authorization") != "Bearer sk-1":
            return 401, {"error": "Unauthorized"}
        if path == "/v1/models":
            return 200, {}
        self.requests += 1
        if self.requests < self.ready_at:
            return 503, {}
        usage = {"prompt_tokens": 19, "completion_tokens": self.tokens, "total_tokens": 19 + self.tokens}
        choice = {"message": {"content": "hi"}, "finish_reason": "length"}
        return 200, {"id": "chatcmpl-1", "model": "tiny", "choices": [choice], "usage": usage}


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "key").write_text("sk-1\n")
    return str(tmp_path / "key")


def test_completion_waits_for_tokens(serve, tmp_path: Path, key: str) -> None:
    arguments = {"url": serve(Vllm()), "model": "tiny", "api_key_path": key, "expect_unauthorized": True, "timeout": 60}
    answer = run_module("completion", arguments, tmp_path)
    assert (answer["ready"], answer["id"], answer["text"]) == (True, "chatcmpl-1", "hi")
    assert answer["usage"]["completion_tokens"] == 16


def test_completion_without_tokens_is_none(serve, tmp_path: Path, key: str) -> None:
    arguments = {"url": serve(Vllm(1, tokens=0)), "model": "tiny", "api_key_path": key, "timeout": 0}
    assert "no completion tokens" in run_module("completion", arguments, tmp_path)["msg"]


def test_completion_does_not_wait_on_a_wrong_key(serve, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-wrong\n")
    arguments = {"url": serve(Vllm(1)), "model": "tiny", "api_key_path": str(tmp_path / "key"), "timeout": 600}
    answer = run_module("completion", arguments, tmp_path)
    assert "answers 401" in answer["msg"]
    assert "sk-wrong" not in json.dumps(answer)


def test_completion_refuses_an_open_door(serve, tmp_path: Path, key: str) -> None:
    arguments = {"url": serve(Vllm(1, closed=False)), "model": "tiny", "api_key_path": key}
    assert run_module("completion", arguments, tmp_path)["ready"] is True
    answer = run_module("completion", {**arguments, "expect_unauthorized": True}, tmp_path)
    assert answer["failed"] is True
    assert "lets a request with no key in" in answer["msg"]


def unit_programs(tmp_path: Path, show: str) -> str:
    program(tmp_path / "bin", "systemctl", f"{show}; echo LoadState=loaded")
    program(tmp_path / "bin", "journalctl", "echo starting; echo 'ValueError: no such model'; echo '  File x'")
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def test_completion_stops_when_the_unit_has_failed(tmp_path: Path) -> None:
    path = unit_programs(tmp_path, "echo ActiveState=failed; echo SubState=failed; echo Result=exit-code")
    arguments = {"url": "http://127.0.0.1:1", "model": "tiny", "unit": "spark-vllm@tiny.service", "timeout": 600}
    answer = run_module("completion", arguments, tmp_path, path=path)
    assert "spark-vllm@tiny.service has failed (exit-code)" in answer["msg"]
    assert 'the log says "ValueError: no such model"' in answer["msg"]
    assert "\n" not in answer["msg"]


def test_completion_stops_when_the_unit_keeps_dying(tmp_path: Path) -> None:
    count = tmp_path / "count"
    show = f"echo x >> {count}; echo ActiveState=activating; echo NRestarts=$(wc -l < {count})"
    arguments = {"url": "http://127.0.0.1:1", "model": "tiny", "unit": "u", "timeout": 600, "max_restarts": 0}
    answer = run_module("completion", arguments, tmp_path, path=unit_programs(tmp_path, show))
    assert "u keeps dying: 1 restarts" in answer["msg"]


# What systemd says of a unit whose supervisor works: it starts the container again by itself.
ACTIVE = "echo ActiveState=active; echo SubState=running"


def supervised(tmp_path: Path, state: Any) -> dict[str, Any]:
    """Arguments for a server whose supervisor wrote `state`, and which does not answer."""
    path = tmp_path / "state.json"
    path.write_text(state if isinstance(state, str) else json.dumps(state))
    return {"url": "http://127.0.0.1:1", "model": "tiny", "unit": "u", "state_path": str(path), "timeout": 600}


def failures(count: int, at: float) -> list[dict[str, Any]]:
    return [{"at": at, "why": f"exit 13{number}"} for number in range(count)]


def test_completion_stops_when_the_supervisor_keeps_restarting(tmp_path: Path) -> None:
    # They count from the beginning of the waiting, so they are to come.
    arguments = supervised(tmp_path, {"state": "backoff", "failures": failures(3, time.time() + 3600)})
    answer = run_module("completion", arguments, tmp_path, path=unit_programs(tmp_path, ACTIVE))
    assert answer["failed"] is True
    assert "u keeps dying: 3 restarts while waiting, the last as exit 132" in answer["msg"]
    assert 'the log says "ValueError: no such model"' in answer["msg"]


def test_completion_stops_when_the_supervisor_gave_up(tmp_path: Path) -> None:
    arguments = supervised(tmp_path, {"state": "down", "why": "5 failures in 30 minutes", "failures": []})
    answer = run_module("completion", arguments, tmp_path, path=unit_programs(tmp_path, ACTIVE))
    assert "u gave up: 5 failures in 30 minutes" in answer["msg"]


@pytest.mark.parametrize(
    "state",
    [
        {"state": "backoff", "failures": failures(2, time.time() + 3600)},
        {"state": "backoff", "failures": failures(9, 1000.0)},
        {"state": "starting"},
        "{",
        "[]",
    ],
    ids=["as many as tolerated", "from before the waiting", "none", "not whole", "not ours"],
)
def test_completion_waits_on_while_the_supervisor_may_succeed(tmp_path: Path, state: Any) -> None:
    arguments = {**supervised(tmp_path, state), "timeout": 0}
    answer = run_module("completion", arguments, tmp_path, path=unit_programs(tmp_path, ACTIVE))
    assert "gives no completion: " in answer["msg"]


def test_completion_needs_no_state_of_a_supervisor(tmp_path: Path) -> None:
    arguments = {**supervised(tmp_path, {}), "timeout": 0, "state_path": str(tmp_path / "absent")}
    answer = run_module("completion", arguments, tmp_path, path=unit_programs(tmp_path, ACTIVE))
    assert "gives no completion" in answer["msg"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, with its key behind it in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spark-01")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(address, False).add_extension(x509.BasicConstraints(True, None), True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "tls.crt").write_bytes(pem)
    (tmp_path / "tls.pem").write_bytes(pem + secret)
    return tmp_path / "tls.pem"


def test_completion_trusts_the_given_certificate_with_every_request(
    serve, tmp_path: Path, key: str, certificate: Path
) -> None:
    url = serve(Vllm(1), certificate)
    arguments = {"url": url, "model": "tiny", "api_key_path": key, "expect_unauthorized": True, "timeout": 0}
    answer = run_module("completion", {**arguments, "ca_path": str(tmp_path / "tls.crt")}, tmp_path)
    assert (answer.get("msg"), answer["ready"]) == (None, True)
    answer = run_module("completion", arguments, tmp_path)
    assert answer["failed"] is True
    assert "certificate verify failed" in answer["msg"].lower()


@pytest.mark.parametrize(("check", "wait"), [(True, True), (False, False)])
def test_completion_does_not_fail_when_it_only_looks(tmp_path: Path, check: bool, wait: bool) -> None:
    arguments = {"url": "http://127.0.0.1:1", "model": "tiny", "wait": wait, "api_key_path": str(tmp_path / "absent")}
    answer = run_module("completion", arguments, tmp_path, check=check)
    assert (answer.get("failed", False), answer["ready"]) == (False, False)
    assert answer["reason"]
