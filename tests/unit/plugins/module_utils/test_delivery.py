# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gives the image to whom, layers as blobs, and the archives and directories that carry them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _delivery
from ansible_collections.sparkfleet.vllm.plugins.module_utils._delivery import Blob, DeliveryError, Offer
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import program
from hypothesis import given
from hypothesis import strategies as st


def has(image: str, content: str, **others: str) -> dict[str, Any]:
    """Return the state of a node with an image, and others of the same build key."""
    return {"image": image, "contents": {image: content, **others}}


LACKS: dict[str, Any] = {"image": "", "contents": {}}


# --- who gives what to whom


def test_the_first_node_that_has_it_gives_it_to_those_that_lack_it() -> None:
    plan = _delivery.plan({"s1": has("i", "c"), "s2": LACKS, "s3": has("i", "c")}, "registry")
    assert (plan.source, plan.content, plan.lacking, plan.problem) == ("s1", "c", ["s2"], "")
    assert plan.images == {"s1": "i", "s3": "i"}


def test_a_head_without_it_gets_it_from_another_node() -> None:
    plan = _delivery.plan({"s1": LACKS, "s2": has("i", "c")}, "registry")
    assert (plan.source, plan.lacking) == ("s2", ["s1"])


def test_where_nobody_has_it_all_lack_it() -> None:
    plan = _delivery.plan({"s1": LACKS, "s2": {"skipped": True}}, "registry")
    assert (plan.source, plan.lacking, plan.images) == ("", ["s1", "s2"], {})


def test_equal_content_under_another_id_is_the_same_image() -> None:
    plan = _delivery.plan({"s1": has("config", "c"), "s2": has("manifest", "c")}, "registry")
    assert (plan.lacking, plan.problem) == ([], "")
    assert plan.images == {"s1": "config", "s2": "manifest"}


def test_other_content_under_the_name_is_lacking_and_a_problem_until_it_is_repaired() -> None:
    plan = _delivery.plan({"s1": has("i", "c"), "s2": has("j", "d")}, "registry")
    assert plan.lacking == ["s2"]
    assert plan.problem == "the nodes hold different images (s1 c, s2 d); run site.yml without --tags and --limit"
    assert (
        "set image_delivery to registry" in _delivery.plan({"s1": has("i", "c"), "s2": has("j", "d")}, "each").problem
    )


def test_the_right_one_of_two_with_the_key_is_taken() -> None:
    plan = _delivery.plan({"s1": has("i", "c"), "s2": has("other", "d", i="c")}, "registry")
    assert (plan.images["s2"], plan.lacking, plan.problem) == ("i", [], "")


# --- layers


@given(st.lists(st.integers(0, 50)), st.integers(0, 50), st.integers(1, 60))
def test_more_layers_move_no_step(sizes: list[int], another: int, at_least: int) -> None:
    ends = _delivery.step_ends(sizes, at_least)
    assert _delivery.step_ends([*sizes, another], at_least)[: len(ends)] == ends
    for first, last in zip([0, *ends], ends, strict=False):
        assert sum(sizes[first:last]) >= at_least


def test_chain_ids_are_those_of_the_specification() -> None:
    second = "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} sha256:c".encode()).hexdigest()
    assert _delivery.chain_ids(["sha256:a", "sha256:b", "sha256:c"]) == ["sha256:a", second, third]
    assert _delivery.chain_ids([]) == []


def test_an_offer_survives_its_way_through_ansible() -> None:
    offer = Offer("registry", "192.0.2.1", 6390, "c", Blob("sha256:a", 1, "t"), ["d"], [Blob("sha256:b", 2)], ["s"])
    assert _delivery.read_offer(json.loads(json.dumps(offer.as_dict()))) == offer


def test_a_step_is_the_first_layers_and_can_be_told_from_an_image() -> None:
    config = {
        "architecture": "arm64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": ["a", "b"]},
        "history": 1,
    }
    step = json.loads(_delivery.step_config(json.dumps(config).encode(), 1, "c"))
    assert step["rootfs"]["diff_ids"] == ["a"]
    assert step["config"]["Labels"] == {"io.sparkfleet.build": "step", "io.sparkfleet.build.of": "c"}


LAYERS = [b"first" * 1000, b"second" * 1000]
DIFF_IDS = ["sha256:" + hashlib.sha256(one).hexdigest() for one in LAYERS]
CONFIG = json.dumps(
    {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}}
).encode()
ID = _delivery.sha256_of(CONFIG)


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _delivery.Overlay:
    """Return an image in a Docker directory, with programs that pass layers on as they are."""
    # What asm prints is what lies in the layer's tree; what zstd prints, what it reads.
    program(tmp_path / "bin", "tar-split", 'cat "$5/content"')
    program(tmp_path / "bin", "zstd", "exec cat")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    store = tmp_path / "image" / "overlay2"
    (store / "imagedb" / "content" / "sha256").mkdir(parents=True)
    (store / "imagedb" / "content" / "sha256" / ID.split(":")[1]).write_bytes(CONFIG)
    for number, chain in enumerate(_delivery.chain_ids(DIFF_IDS)):
        layer = store / "layerdb" / "sha256" / chain.split(":")[1]
        layer.mkdir(parents=True)
        (layer / "cache-id").write_text(f"tree{number}")
        (layer / "tar-split.json.gz").write_text("")
        tree = tmp_path / "overlay2" / f"tree{number}" / "diff"
        tree.mkdir(parents=True)
        (tree / "content").write_bytes(LAYERS[number])
    return _delivery.Overlay(str(tmp_path), {"Id": ID, "RootFS": {"Layers": DIFF_IDS}})


def test_layers_are_added_once(overlay: _delivery.Overlay, tmp_path: Path) -> None:
    directory = _delivery.Directory(str(tmp_path / "blobs"))
    seen: list[int] = []
    assert overlay.usable()
    layers, new = _delivery.add_layers(overlay, directory, lambda some: seen.append(len(some)))
    assert [one.digest for one in layers] == DIFF_IDS  # nothing was compressed
    assert (new, seen) == (sum(map(len, LAYERS)), [1, 2])
    directory.keep(dict(zip(DIFF_IDS, layers, strict=True)), 0)
    assert _delivery.add_layers(overlay, directory, lambda _some: None) == (layers, 0)


def test_a_layer_that_changed_on_the_disk_is_refused(overlay: _delivery.Overlay, tmp_path: Path) -> None:
    (tmp_path / "overlay2" / "tree1" / "diff" / "content").write_bytes(b"rotten")
    with pytest.raises(DeliveryError, match="is not what Docker once stored; remove the image"):
        _delivery.add_layers(overlay, _delivery.Directory(str(tmp_path / "blobs")), lambda _some: None)


def test_an_unusual_store_is_left_to_docker(overlay: _delivery.Overlay, tmp_path: Path) -> None:
    (tmp_path / "bin" / "tar-split").unlink()
    assert not overlay.usable()
    program(tmp_path / "bin", "tar-split", "")
    assert overlay.usable()
    next((tmp_path / "image").rglob("cache-id")).unlink()
    assert not overlay.usable()


def test_a_packer_that_fails_is_one_line(overlay: _delivery.Overlay, tmp_path: Path) -> None:
    program(tmp_path / "bin", "zstd", "cat > /dev/null; exit 7")
    with pytest.raises(DeliveryError, match="zstd ended with 7"):
        _delivery.add_layers(overlay, _delivery.Directory(str(tmp_path / "blobs")), lambda _some: None)


# --- a directory of blobs


def blob(directory: _delivery.Directory, data: bytes) -> Blob:
    """Add data to a directory."""
    return Blob(_delivery.sha256_of(data), directory.add([data], lambda: _delivery.sha256_of(data)))


def test_a_directory_keeps_what_it_is_told_and_nothing_else(tmp_path: Path) -> None:
    directory = _delivery.Directory(str(tmp_path))
    for number in range(3):
        one = {"base": blob(directory, b"base"), f"top{number}": blob(directory, b"top%d" % number)}
        directory.keep(one, before=1)
    assert set(directory.known()) == {"base", "top1", "top2"}
    assert len(list(tmp_path.iterdir())) == 4  # with the index


def test_a_file_of_another_size_is_not_known(tmp_path: Path) -> None:
    directory = _delivery.Directory(str(tmp_path))
    one = blob(directory, b"whole")
    directory.keep({"d": one}, 0)
    (tmp_path / _delivery.file_name(one.digest)).write_bytes(b"half")
    assert directory.known() == {}


@pytest.mark.parametrize("index", ["", "{", "[1]", '[{"d": {"x": 1}}]', "{}"])
def test_a_broken_index_is_forgotten(tmp_path: Path, index: str) -> None:
    (tmp_path / "layers.json").write_text(index)
    assert _delivery.Directory(str(tmp_path)).known() == {}


def saved(layers: list[bytes], config: bytes = CONFIG) -> io.BytesIO:
    """Return an archive as docker save writes it."""
    archive = io.BytesIO()
    names = [f"blobs/sha256/{number}" for number in range(len(layers))]
    files = dict(zip(names, layers, strict=True)) | {"config": config}
    files["manifest.json"] = json.dumps([{"Config": "config", "Layers": names}]).encode()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    archive.seek(0)
    return archive


@pytest.mark.usefixtures("overlay")
def test_what_docker_saved_is_taken_apart(tmp_path: Path) -> None:
    config, diff_ids, layers = _delivery.saved_layers(saved(LAYERS), _delivery.Directory(str(tmp_path / "blobs")))
    assert (config, diff_ids) == (CONFIG, DIFF_IDS)
    assert [one.digest for one in layers] == DIFF_IDS


@pytest.mark.usefixtures("overlay")
def test_layers_that_are_compressed_stay_as_they_are(tmp_path: Path) -> None:
    packed = b"\x28\xb5\x2f\xfd" + b"x" * 100
    directory = _delivery.Directory(str(tmp_path / "blobs"))
    _config, _ids, layers = _delivery.saved_layers(saved([packed, LAYERS[1]]), directory)
    assert layers[0] == Blob(_delivery.sha256_of(packed), len(packed))


@pytest.mark.usefixtures("overlay")
def test_what_docker_saved_wrongly_is_one_line(tmp_path: Path) -> None:
    directory = _delivery.Directory(str(tmp_path / "blobs"))
    with pytest.raises(DeliveryError, match="not what it says"):
        _delivery.saved_layers(saved([LAYERS[0], b"rotten"]), directory)
    with pytest.raises(DeliveryError, match="is no image"):
        _delivery.saved_layers(saved(LAYERS, b"{}"), directory)


# --- archives for docker load


def test_what_is_here_counts_from_the_first_layer_on() -> None:
    offer = Offer("stream", "", 0, "", Blob("", 0), ["a", "b", "c"], [], [])
    images = [
        {"RootFS": {"Layers": ["a"]}},
        {"RootFS": {"Layers": ["a", "b", "x"]}},
        {"RootFS": {"Layers": ["b", "c"]}},
        {},
    ]
    assert _delivery.here(offer, images) == 2
    assert _delivery.here(offer, []) == 0


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_an_archive_is_a_docker_archive_and_an_oci_layout(tmp_path: Path, skip: int) -> None:
    directory = _delivery.Directory(str(tmp_path))
    layers = [blob(directory, data) for data in LAYERS]
    config = Blob(_delivery.sha256_of(CONFIG), len(CONFIG), _delivery.CONFIG_TYPE)
    offer = Offer("stream", "", 0, "", config, DIFF_IDS, layers, [])
    data = b"".join(_delivery.archive(offer, CONFIG, "localhost/sparkfleet/arrived:1", str(tmp_path), skip))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {one.name: (tar.extractfile(one) or io.BytesIO()).read() for one in tar}
    [docker] = json.loads(files["manifest.json"])
    assert files[docker["Config"]] == CONFIG
    assert [files.get(path) for path in docker["Layers"]] == [None] * skip + LAYERS[skip:]
    [listed] = json.loads(files["index.json"])["manifests"]
    manifest = files["blobs/sha256/" + listed["digest"].split(":")[1]]
    assert _delivery.sha256_of(manifest) == listed["digest"]
    assert listed["annotations"]["io.containerd.image.name"] == "localhost/sparkfleet/arrived:1"
    assert [one["digest"] for one in json.loads(manifest)["layers"]] == [one.digest for one in layers]
