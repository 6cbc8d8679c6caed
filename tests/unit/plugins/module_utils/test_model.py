# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model's source is judged as a whole, and a node's files are compared with it file by file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _model


def safetensors(tensor_bytes: int = 16) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * tensor_bytes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = tmp_path / "tiny"
    (model / ".cache").mkdir(parents=True)
    (model / ".cache" / "download.json").write_text("{}")
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    (model / "model.safetensors").write_bytes(safetensors())
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model.safetensors"}}')
    (model / "sub").mkdir()
    (model / "sub" / "notes.txt").write_text("hello")
    return model


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


FILES = ["config.json", "model.safetensors", "model.safetensors.index.json", "sub/notes.txt"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/models/Qwen3-0.6B/", "Qwen3-0.6B"),
        ("/srv/models/Qwen3-0.6B.tar.gz", "Qwen3-0.6B"),
        ("nvidia/Qwen3-30B-A3B-NVFP4", "Qwen3-30B-A3B-NVFP4"),
        ("/srv/my model (1).zip", "my-model-1"),
        ("/", ""),
    ],
)
def test_name(path: str, name: str) -> None:
    assert _model.model_name(path) == name


def test_a_good_directory_has_no_problems(source: Path, cache: str) -> None:
    report = _model.read_source(str(source), cache)
    assert report.problems == []
    assert sorted(report.files) == FILES
    assert report.files["sub/notes.txt"] == _model.FileEntry(5, hashlib.sha256(b"hello").hexdigest())


def test_hashes_are_remembered_by_size_and_time(source: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _model.read_source(str(source), cache)
    read: list[int] = []
    original = _model._hash
    monkeypatch.setattr(_model, "_hash", lambda *args: read.append(1) or original(*args))
    assert _model.read_source(str(source), cache).files == first.files
    assert read == []
    (source / "sub" / "notes.txt").write_text("other")
    changed = _model.read_source(str(source), cache)
    assert len(read) == 1
    assert changed.files["sub/notes.txt"].sha256 == hashlib.sha256(b"other").hexdigest()


def spoil_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def spoil_list(model: Path) -> None:
    (model / "config.json").write_text("[]")


def remove_config(model: Path) -> None:
    (model / "config.json").unlink()


def truncate(model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors(15))


def cut_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors()[:20])


def pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def lose_shard(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00002.safetensors"}}')


def break_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("[]")


def wrong_sum(model: Path) -> None:
    (model / "SHA256SUMS").write_text(f"{'0' * 64}  sub/notes.txt\n")


def sum_of_nothing(model: Path) -> None:
    (model / "SHA256SUMS").write_text(f"{'0' * 64} *./gone.bin\n")


def dangling(model: Path) -> None:
    (model / "weights.bin").symlink_to("gone")


SPOILED = [
    (spoil_config, "config.json is no valid JSON"),
    (spoil_list, "config.json holds no JSON object"),
    (remove_config, "config.json is missing"),
    (truncate, "is truncated or damaged: its header asks for"),
    (cut_header, "its header does not fit"),
    (pointer, "git lfs pull"),
    (lose_shard, "names files that are not there: model-00002.safetensors"),
    (break_index, "has no weight_map"),
    (wrong_sum, "sub/notes.txt does not match SHA256SUMS"),
    (sum_of_nothing, "SHA256SUMS lists gone.bin, which is not there"),
]


@pytest.mark.parametrize(("spoil", "said"), [*SPOILED, (dangling, "cannot be read")])
def test_a_corrupt_directory_is_refused(source: Path, cache: str, spoil, said: str) -> None:
    spoil(source)
    problems = _model.read_source(str(source), cache).problems
    assert len(problems) == 1
    assert said in problems[0]
    assert problems[0].startswith(f"model {source}: ")
    assert "; copy or download the model again" in problems[0]


def pack(source: Path, suffix: str) -> Path:
    archive = source.with_name(f"tiny{suffix}")
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as bundle:
            for path in sorted(source.rglob("*")):
                bundle.write(path, path.relative_to(source))
    else:
        with tarfile.open(archive, f"w:{'gz' if suffix.endswith('gz') else ''}") as tar:
            tar.add(source, arcname="tiny")
    return archive


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".zip"])
def test_an_archive_is_the_same_model(source: Path, cache: str, suffix: str) -> None:
    archive = pack(source, suffix)
    report = _model.read_source(str(archive), cache)
    assert report.problems == []
    assert report.kind == "archive"
    assert report.name == "tiny"
    assert report.files == _model.read_source(str(source), cache).files
    directory = _model.unpack(report, cache)
    assert _model.compare(directory, report.files, {}, full=False).equal
    assert _model.unpack(report, cache) == directory
    again = _model.read_source(str(archive), cache)
    assert again.files == report.files


@pytest.mark.parametrize(("spoil", "said"), SPOILED)
def test_a_corrupt_model_in_an_archive_is_refused(source: Path, cache: str, spoil, said: str) -> None:
    spoil(source)
    for _run in range(2):  # the second answer is the remembered one
        problems = _model.read_source(str(pack(source, ".tar")), cache).problems
        assert len(problems) == 1
        assert said in problems[0]


def test_a_truncated_archive_is_refused(source: Path, cache: str) -> None:
    archive = pack(source, ".tar.gz")
    archive.write_bytes(archive.read_bytes()[:-40])
    assert "cannot be read" in _model.read_source(str(archive), cache).problems[0]


def test_an_archive_that_its_checksum_denies_is_refused(source: Path, cache: str) -> None:
    archive = pack(source, ".tar")
    Path(f"{archive}.sha256").write_text(f"{'0' * 64}  tiny.tar\n")
    assert "does not match tiny.tar.sha256" in _model.read_source(str(archive), cache).problems[0]
    Path(f"{archive}.sha256").write_text(f"{_model.hash_file(str(archive))}  tiny.tar\n")
    assert _model.read_source(str(archive), cache).problems == []


@pytest.mark.parametrize("member", ["../evil", "/evil"])
def test_an_archive_that_points_outside_is_refused(tmp_path: Path, cache: str, member: str) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(member)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert "points outside" in _model.read_source(str(archive), cache).problems[0]


def test_an_archive_with_links_is_refused(source: Path, cache: str) -> None:
    (source / "link").symlink_to("config.json")
    assert "is a link or a device" in _model.read_source(str(pack(source, ".tar")), cache).problems[0]


def test_symlinked_files_are_followed(source: Path, cache: str) -> None:
    # As in a Hugging Face cache, where a snapshot is a directory of links.
    snapshot = source.with_name("snapshot")
    snapshot.mkdir()
    for name in FILES[:3]:
        (snapshot / name).symlink_to(source / name)
    report = _model.read_source(str(snapshot), cache)
    assert report.problems == []
    assert sorted(report.files) == FILES[:3]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "serve_model is empty"),
        ("org/name", "hf download org/name"),
        ("/nowhere/model", "does not exist on the controller"),
    ],
)
def test_a_source_that_is_not_there(cache: str, path: str, said: str) -> None:
    problems = _model.read_source(path, cache).problems
    assert len(problems) == 1
    assert said in problems[0]
    assert "; " in problems[0]


def test_a_file_that_is_no_archive(tmp_path: Path, cache: str) -> None:
    (tmp_path / "model.tar.zst").write_text("x")
    assert "unpack it first" in _model.read_source(str(tmp_path / "model.tar.zst"), cache).problems[0]


class TestCompare:
    @pytest.fixture
    def files(self, source: Path, cache: str) -> _model.Manifest:
        return _model.read_source(str(source), cache).files

    def test_nothing_is_there(self, tmp_path: Path, files: _model.Manifest) -> None:
        found = _model.compare(str(tmp_path / "nothing"), files, {}, full=False)
        assert found.missing == FILES
        assert not found.equal

    def test_every_kind_of_difference(self, source: Path, files: _model.Manifest) -> None:
        (source / "config.json").unlink()
        (source / "model.safetensors").write_bytes(b"\0" * files["model.safetensors"].size)
        (source / "sub" / "notes.txt").write_text("longer than before")
        (source / "extra").write_text("x")
        (source / _model.PARTIAL_DIR).mkdir()
        (source / _model.PARTIAL_DIR / "rest").write_text("x")
        found = _model.compare(str(source), files, {}, full=False)
        assert found.missing == ["config.json"]
        assert found.corrupt == ["model.safetensors", "sub/notes.txt"]
        assert found.extra == ["extra"]

    def test_verified_files_are_not_read_again(self, source: Path, files: _model.Manifest) -> None:
        first = _model.compare(str(source), files, {}, full=False)
        assert (first.equal, first.hashed) == (True, 4)
        second = _model.compare(str(source), files, first.memory, full=False)
        assert (second.equal, second.hashed, second.memory) == (True, 0, first.memory)
        assert _model.compare(str(source), files, first.memory, full=True).hashed == 4

    def test_a_change_that_keeps_size_and_mtime_is_seen(self, source: Path, files: _model.Manifest) -> None:
        memory = _model.compare(str(source), files, {}, full=False).memory
        notes = source / "sub" / "notes.txt"
        info = notes.stat()
        notes.write_text("jello")
        os.utime(notes, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert _model.compare(str(source), files, memory, full=False).corrupt == ["sub/notes.txt"]

    def test_memory_survives_a_file(self, source: Path, files: _model.Manifest, tmp_path: Path) -> None:
        memory = _model.compare(str(source), files, {}, full=False).memory
        path = str(tmp_path / "memory.json")
        _model.remember(path, {}, memory)
        assert _model.load_memory(path) == memory

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": [1]}', "\0"])
    def test_a_broken_memory_is_no_memory(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "memory.json").write_text(content)
        assert _model.load_memory(str(tmp_path / "memory.json")) == {}


def test_manifest_text_is_what_sha256sum_reads(source: Path, cache: str) -> None:
    files = _model.read_source(str(source), cache).files
    assert _model.parse_checksums(_model.manifest_text(files)) == {name: e.sha256 for name, e in files.items()}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: None, "is no directory on this node"),
        (lambda d: d.mkdir(), "cannot be read"),
        (lambda d: (d.mkdir(), (d / "config.json").write_text("[]")), "holds no JSON object"),
        (lambda d: (d.mkdir(), (d / "config.json").write_text("{")), "holds no JSON object"),
        (lambda d: (d.mkdir(), (d / "config.json").write_text("{}")), ""),
    ],
)
def test_a_given_model_needs_its_config(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "given")
    problem = _model.read_config(str(tmp_path / "given"))
    assert (said in problem) if said else problem == ""
