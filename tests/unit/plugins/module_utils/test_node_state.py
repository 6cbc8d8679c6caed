# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _model, _node_state
from ansible_collections.sparkfleet.vllm.plugins.module_utils._engine import EngineError

IMAGE = "sha256:" + "a" * 64
INSPECTED: dict[str, Any] = {
    "Id": IMAGE,
    "Architecture": "arm64",
    "Config": {"Env": ["PATH=/bin"], "Labels": {"io.sparkfleet.version.vllm": "1", "io.sparkfleet.variant": "cuda"}},
    "RootFS": {"Layers": ["sha256:1"]},
}
DESCRIPTION = {
    "versions": {"vllm": "1", "nccl": "2", "cudnn": None},
    "kernels": None,
    "patches": {"applied": ["p"], "sha256": "x"},
    "proof": {"code": {"state": "passed"}},
}


class Answer(io.BytesIO):
    """What a request returns."""


class Engine:
    """An engine with one image and one container of it."""

    def __init__(self, pid: int = 0) -> None:
        self.description: Any = DESCRIPTION
        self.pid = pid
        self.error = ""

    def json(self, path: str) -> Any:
        if self.error:
            raise EngineError(self.error)
        if path == "/version":
            return {"Version": "28.3"}
        if path.startswith("/containers/json?"):
            assert "io.sparkfleet.cluster" in path
            return [{"Id": "c1"}]
        assert path == "/containers/c1/json"
        environment = ["PATH=/bin", "HF_TOKEN=s3cret", "NCCL_NET=IB"]
        return {"Name": "/spark-vllm-chat", "Image": IMAGE, "Config": {"Env": environment}, "State": {"Pid": self.pid}}

    def inspect(self, name: str) -> dict[str, Any] | None:
        return INSPECTED if name in (IMAGE, "tag:1") else None

    def request(self, method: str, path: str) -> Any:
        assert (method, path) == ("GET", "/containers/c1/archive?path=/etc/sparkfleet/image.json")
        if self.description is None:
            raise EngineError("Could not find the file")
        content = json.dumps(self.description).encode()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            member = tarfile.TarInfo("image.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        return Answer(packed.getvalue())


def process(root: Path, pid: int, *line: str, children: str = "") -> None:
    (root / f"proc/{pid}/task/{pid}").mkdir(parents=True)
    (root / f"proc/{pid}/cmdline").write_text("".join(f"{word}\0" for word in line))
    (root / f"proc/{pid}/task/{pid}/children").write_text(children)


def test_a_node_is_read_as_it_is(tmp_path: Path) -> None:
    process(tmp_path, 7, "/opt/vllm/bin/python", "/opt/vllm/bin/vllm", "serve", "/m", "--api-key", "s3cret")
    found = _node_state.read(Engine(pid=7), ["tag:1", "", "gone:1"], [], root=str(tmp_path))
    assert found["error"] == "" and found["host"]["docker"] == "28.3"
    assert found["images"]["tag:1"]["id"] == IMAGE and found["images"]["gone:1"] == {}
    assert found["images"]["tag:1"]["description"] == {"variant": "cuda", "versions": {"vllm": "1"}}
    container = found["containers"]["spark-vllm-chat"]
    assert container["content"] == found["images"]["tag:1"]["content"]
    assert container["arguments"] == ["/m", "--api-key", "(not shown)"]
    assert container["environment"] == {"HF_TOKEN": "(not shown)", "NCCL_NET": "IB"}, "and nothing of the image's"
    assert container["description"]["versions"] == {"vllm": "1", "nccl": "2"}
    assert container["description"]["patches"] == {"applied": ["p"], "sha256": "x"}
    assert container["description"]["kernels"] == {"version": "", "sha256": ""}
    assert "s3cret" not in json.dumps(found)


def test_only_what_is_asked_is_read(tmp_path: Path) -> None:
    found = _node_state.read(Engine(), ["tag:1"], [], containers=False, root=str(tmp_path))
    assert found["containers"] == {} and found["images"]["tag:1"]["id"] == IMAGE


@pytest.mark.parametrize("description", [None, [], "text"])
def test_an_image_of_others_says_nothing_of_itself(description: Any, tmp_path: Path) -> None:
    engine = Engine()
    engine.description = description
    found = _node_state.read(engine, [], [], root=str(tmp_path))
    assert found["containers"]["spark-vllm-chat"]["description"] == {}


def test_an_engine_that_does_not_answer_is_said_and_the_host_read(tmp_path: Path) -> None:
    engine = Engine()
    engine.error = "Docker does not answer"
    found = _node_state.read(engine, ["tag:1"], [], root=str(tmp_path))
    assert found["error"] == "Docker does not answer" and found["host"]["kernel"]


def test_the_server_may_be_a_child_of_the_containers_first_process(tmp_path: Path) -> None:
    process(tmp_path, 7, "/sbin/docker-init", "--", "entrypoint", "serve", children="8 9 ")
    process(tmp_path, 8, "sh")
    process(tmp_path, 9, "/opt/vllm/bin/vllm", "serve", "/m")
    assert _node_state.server_arguments(7, str(tmp_path)) == ["/m"]
    assert _node_state.server_arguments(8, str(tmp_path)) is None
    assert _node_state.server_arguments(0, str(tmp_path)) is None


def test_the_files_of_units_are_digested(tmp_path: Path) -> None:
    names = [
        "etc/systemd/system/spark-ray.service",
        "etc/systemd/system/spark-vllm@a.service",
        "etc/sparkfleet/c/a.env",
    ]
    for name in [*names, "etc/sparkfleet/c/api-key", "etc/systemd/system/other.service"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = _node_state.unit_files(str(tmp_path))
    assert found == {f"/{name}": hashlib.sha256(name.encode()).hexdigest() for name in names}


@pytest.fixture(name="model")
def fixture_model(tmp_path: Path) -> Path:
    model = tmp_path / "chat"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "weights").write_bytes(b"w" * 3_000_000)
    return model


def test_a_model_of_ours_is_known_by_its_manifest_and_not_read_again(model: Path) -> None:
    Path(f"{model}.sha256").touch()
    first = _node_state.model_state(str(model))
    entries = {
        name: _model.FileEntry(0, _model.hash_file(str(model / name))) for name in ("config.json", "sub/weights")
    }
    assert first["manifest"] == hashlib.sha256(_model.manifest_text(entries).encode()).hexdigest()
    assert (first["quick"], first["files"], first["bytes"]) == ("", 2, 3_000_002)
    remembered = {}
    for name, info in _model.walk_files(str(model)):
        remembered[name] = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, "0" * 64)
    _model.remember(f"{model}.verified.json", {}, remembered)
    cached = _node_state.model_state(str(model))
    assert cached["manifest"] != first["manifest"], "what was remembered was believed"
    assert _node_state.model_state(str(model), full=True)["manifest"] == first["manifest"]
    (model / "config.json").write_text("{ }")
    assert _node_state.model_state(str(model))["manifest"] not in (cached["manifest"], first["manifest"])
    assert json.loads(Path(f"{model}.verified.json").read_text()).keys() == remembered.keys(), "and nothing was written"


@pytest.mark.parametrize("offset", [0, 999_999, 2_999_999])
def test_a_model_of_others_is_looked_at(offset: int, model: Path) -> None:
    before = _node_state.model_state(str(model))
    assert before["manifest"] == "" and before["quick"]
    with (model / "sub" / "weights").open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    assert _node_state.model_state(str(model))["quick"] != before["quick"]


def test_a_model_of_others_is_hashed_when_asked(model: Path) -> None:
    before = _node_state.model_state(str(model), full=True)
    with (model / "sub" / "weights").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"x")
    after = _node_state.model_state(str(model), full=True)
    assert before["manifest"] and after["manifest"] and before["manifest"] != after["manifest"]


def test_a_model_that_is_gone_is_said(tmp_path: Path) -> None:
    assert _node_state.model_state(str(tmp_path / "x"))["error"] == f"{tmp_path / 'x'} is not there"


def test_the_revision_of_a_download_is_found(model: Path) -> None:
    note = model / ".cache/huggingface/download/config.json.metadata"
    note.parent.mkdir(parents=True)
    for text, revision in ((f"{'a1' * 20}\netag\n", "a1" * 20), ("main\n", ""), ("", "")):
        note.write_text(text)
        assert _node_state.model_state(str(model))["revision"] == revision
    os.unlink(note)
    assert _node_state.hub_revision(str(model)) == ""
