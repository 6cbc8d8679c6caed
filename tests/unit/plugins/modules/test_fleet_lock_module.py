# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet_lock writes what it read where that differs, and nothing in check mode or where something is wrong."""

from __future__ import annotations

import http.server
import json
import socketserver
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import run_module
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import drift_examples as example

ANSWERS: dict[str, Any] = {
    "/version": {"Version": "28.3.3"},
    f"/images/{example.TAG}/json": {"Id": example.IMAGE, "Config": {}, "RootFS": {"Layers": ["sha256:1"]}},
    "/containers/json": [],
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as an engine does."""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.partition("?")[0])
        body = json.dumps({"message": "No such image"} if answer is None else answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return ""


@pytest.fixture(name="engine")
def fixture_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = str(tmp_path / "docker.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socketserver.UnixStreamServer(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


def present(tmp_path: Path, check: bool = False, **more: Any) -> dict[str, Any]:
    given = {"state": "present", "node": "s1", "cluster": "atlas", "path": str(tmp_path / "etc" / "lock.json")}
    return run_module("fleet_lock", {**given, "reference": example.TAG, **more}, tmp_path, check=check)


@pytest.mark.usefixtures("engine")
def test_the_lock_is_written_once_and_keeps_its_time(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "lock.json"
    assert present(tmp_path, check=True)["changed"] is True and not path.exists()
    first = present(tmp_path)
    assert first["changed"] is True and first["lock"]["image"]["id"] == example.IMAGE
    assert json.loads(path.read_text()) == first["lock"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    old = {**first["lock"], "changed": "2020-01-01T00:00:00Z"}
    path.write_text(json.dumps(old))
    again = present(tmp_path)
    assert again["changed"] is False and again["lock"] == old
    moved = present(tmp_path, cluster="borea")
    assert moved["changed"] is True and moved["lock"]["changed"] > old["changed"]
    assert '"cluster": "atlas"' in moved["diff"]["before"] and '"cluster": "borea"' in moved["diff"]["after"]


@pytest.mark.usefixtures("engine")
def test_reading_takes_image_and_models_from_the_lock_and_writes_nothing(tmp_path: Path) -> None:
    model = {**example.MODEL, "path": str(tmp_path / "gone")}
    lock = present(tmp_path, models=[model])["lock"]
    text = (tmp_path / "etc" / "lock.json").read_text()
    answer = run_module("fleet_lock", {"path": str(tmp_path / "etc" / "lock.json")}, tmp_path)
    assert answer["changed"] is False and answer["lock"] == lock and answer["lock_error"] == ""
    assert answer["found"]["images"][example.TAG]["id"] == example.IMAGE
    assert answer["found"]["models"]["chat"]["error"].endswith("gone is not there")
    assert (tmp_path / "etc" / "lock.json").read_text() == text


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("text", "error"), [("{", "it is no JSON"), ('{"schema": 9}', "its schema is 9")])
def test_a_damaged_lock_is_said_and_replaced(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "lock.json").write_text(text)
    answer = run_module("fleet_lock", {"path": str(tmp_path / "etc" / "lock.json")}, tmp_path)
    assert answer["lock"] == {} and answer["lock_error"].startswith(error)
    assert present(tmp_path)["changed"] is True and present(tmp_path)["lock_error"] == ""


def test_without_docker_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    failed = present(tmp_path)
    assert failed["failed"] and failed["msg"].startswith("s1: Docker does not answer on ")
    assert not (tmp_path / "etc").exists()
    read = run_module("fleet_lock", {"path": str(tmp_path / "none")}, tmp_path)
    assert read["found"]["error"].startswith("Docker does not answer") and read["lock"] == {}
