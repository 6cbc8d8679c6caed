# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _image
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = Path(__file__).resolve().parents[4] / "files" / "image"
A, B = "a" * 64, "b" * 64
LOCK = _image.read_lock(
    f"Foo_Bar==1.0 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n    # via x\n"
    f"ray[default]==2 --hash=sha256:{A}\n"
)
BASE = _image.Base("debian:12")


def test_a_lock_is_read_with_normalised_names() -> None:
    assert LOCK["foo-bar"] == _image.Requirement("foo-bar", "1.0", frozenset({A, B}))
    assert LOCK["ray"].version == "2"


@pytest.mark.parametrize("line", ["foo==1.0", f"foo>=1 --hash=sha256:{A}", "git+https://example.org/foo"])
def test_a_lock_without_versions_and_hashes_is_refused(line: str) -> None:
    with pytest.raises(_image.ImageError, match="make lock"):
        _image.read_lock(line)


@pytest.mark.parametrize("variant", _image.VARIANTS)
def test_the_committed_locks_are_sound(variant: str) -> None:
    lock = _image.read_lock((FILES / variant / f"requirements-{_image.MACHINES[variant]}.lock").read_text())
    versions = _image.versions(lock)
    assert (versions["vllm"], versions["ray"]) == ("0.32.0", "2.60.0")


@pytest.mark.parametrize(
    ("filename", "identity"),
    [
        ("ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl", ("ray", "2.60.0")),
        ("torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", ("torch", "2.13.0+cpu")),
        ("Foo_Bar-1.0-1-py3-none-any.whl", ("foo-bar", "1.0")),
        ("foo-1.0.tar.gz", None),
        ("notes.whl", None),
    ],
)
def test_a_wheel_is_known_by_its_file_name(filename: str, identity: tuple[str, str] | None) -> None:
    assert _image.wheel_identity(filename) == identity


FOO, RAY = "foo_bar-1.0-py3-none-any.whl", "ray-2-py3-none-any.whl"


def test_a_whole_wheelhouse_has_no_problem() -> None:
    assert _image.wheelhouse_problems(LOCK, [FOO, RAY, "other-1-py3-none-any.whl"], lambda _: A, "/w") == []


def test_a_lacking_wheel_is_one_line_also_where_another_version_is_there() -> None:
    problems = _image.wheelhouse_problems(LOCK, [FOO, "ray-3-py3-none-any.whl"], lambda _: A, "/w")
    assert problems == ["the wheelhouse /w lacks ray 2; fill it from the lock of the variant"]


def test_a_changed_wheel_is_one_line() -> None:
    problems = _image.wheelhouse_problems(LOCK, [FOO, RAY], lambda name: B, "/w")
    assert len(problems) == 1
    assert RAY in problems[0]
    assert FOO not in problems[0]


def test_long_lists_are_shortened() -> None:
    assert _image.shortened(list("abcde")) == "a, b, c and 2 more"
    assert _image.shortened(["a"]) == "a"


def archive(path: Path, manifest: Any) -> str:
    """Write an archive with that manifest.json."""
    data = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize("config", [f"{A}.json", f"blobs/sha256/{A}"])
def test_an_archive_names_its_image(tmp_path: Path, config: str) -> None:
    path = archive(tmp_path / "a.tar", [{"Config": config, "RepoTags": ["debian:12"], "Layers": []}])
    assert _image.read_archive(path) == _image.Base("debian:12", f"sha256:{A}")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ([{"Config": "x.json", "RepoTags": None}], "names no image"),
        ([], "is not an image"),
        ({"x": 1}, "is not an image"),
    ],
)
def test_an_archive_without_an_image_is_one_line(tmp_path: Path, manifest: Any, reason: str) -> None:
    with pytest.raises(_image.ImageError, match=reason):
        _image.read_archive(archive(tmp_path / "a.tar", manifest))


def test_files_that_are_no_archive_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tar")
    with pytest.raises(_image.ImageError, match="is not an image"):
        _image.read_archive(str(tmp_path / "text"))
    with pytest.raises(_image.ImageError, match="No such file"):
        _image.read_archive(str(tmp_path / "none"))


@settings(deadline=None)  # a loaded machine is no failure
@given(st.dictionaries(st.text(min_size=1), st.text(), min_size=1), st.data())
def test_the_build_key_follows_every_part_and_no_order(files: dict[str, str], data: st.DataObject) -> None:
    args = {"VARIANT": "cpu"}
    key = _image.build_key(files, BASE, args)
    assert key == _image.build_key(dict(reversed(files.items())), BASE, args)
    name = data.draw(st.sampled_from(sorted(files)))
    assert key != _image.build_key({**files, name: files[name] + "x"}, BASE, args)
    assert key != _image.build_key({**files, name + "x\0": ""}, BASE, args)
    assert key != _image.build_key(files, dataclasses.replace(BASE, image_id="sha256:1"), args)
    assert key != _image.build_key(files, BASE, {"VARIANT": "cuda"})


def test_the_plan_labels_the_image() -> None:
    plan = _image.make_plan("cpu", {"Dockerfile": A}, LOCK, BASE)
    assert plan.labels["io.sparkfleet.build"] == plan.key
    assert plan.labels["io.sparkfleet.variant"] == "cpu"
    assert plan.labels["io.sparkfleet.version.ray"] == "2"
    assert {name: plan.args[name] for name in ("BASE", "VARIANT", "SOURCE_DATE_EPOCH")} == {
        "BASE": "debian:12",
        "VARIANT": "cpu",
        "SOURCE_DATE_EPOCH": str(_image.EPOCH),
    }


def test_a_context_is_the_variants_own(tmp_path: Path) -> None:
    for name in ("Dockerfile", "README.md", "cpu/packages.txt", "cpu/requirements.in", "cuda/packages.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert _image.context_files(str(tmp_path), "cpu") == ["Dockerfile", "cpu/packages.txt"]
    (tmp_path / "Dockerfile").unlink()
    with pytest.raises(_image.ImageError, match="no Dockerfile"):
        _image.context_files(str(tmp_path), "cpu")


def test_every_file_that_the_dockerfile_copies_is_in_the_key() -> None:
    for variant in _image.VARIANTS:
        names = set(_image.context_files(str(FILES), variant))
        assert {"Dockerfile", "packages.sh", "venv.sh", "settle.sh", "entrypoint.py"} <= names
        assert {f"{variant}/packages.txt", f"{variant}/packages-build.txt", f"{variant}/trim.txt"} <= names


WISH = _image.Wish(
    plan=_image.make_plan("cpu", {"Dockerfile": A}, LOCK, BASE),
    reference="",
    tag="t",
    variant="cpu",
    builds=True,
    disk_gb=0,
)
NODE: dict[str, Any] = {
    "engine_error": "",
    "images": [],
    "free_bytes": 100 * _image.GB,
    "docker_root": "/var/lib/docker",
    "machine": "x86_64",
    "pull_error": "",
}
GIVEN = dataclasses.replace(WISH, plan=None, reference="sha256:1")


@pytest.mark.parametrize(
    ("wish", "node", "reason"),
    [
        (WISH, {"free_bytes": 9 * _image.GB}, "disk too small for the image: 9.0 GB free in /var/lib/docker, 10 GB"),
        (dataclasses.replace(WISH, disk_gb=200), {}, "200 GB needed"),
        (WISH, {"machine": "aarch64"}, "image_variant cpu has no lock for aarch64; set cuda"),
        (WISH, {"machine": "riscv64"}, "use another machine"),
    ],
)
def test_what_keeps_an_image_from_a_node_is_one_line(wish: _image.Wish, node: dict[str, Any], reason: str) -> None:
    problems = _image.node_problems(wish, NODE | node)
    assert len(problems) == 1
    assert reason in problems[0]
    assert ";" in problems[0]


@pytest.mark.parametrize(
    ("wish", "node"),
    [
        (WISH, {}),
        (WISH, {"images": ["sha256:1"], "free_bytes": 0, "machine": "aarch64"}),
        (WISH, {"engine_error": "stopped", "free_bytes": 0}),
        (dataclasses.replace(WISH, builds=False), {"machine": "aarch64"}),
        (GIVEN, {"free_bytes": 0, "pull_error": "another node may have it"}),
        (GIVEN, {"images": ["sha256:1"], "pull_error": "x"}),
    ],
)
def test_what_does_not_matter_is_no_problem(wish: _image.Wish, node: dict[str, Any]) -> None:
    assert _image.node_problems(wish, NODE | node) == []


def test_a_given_image_that_neither_is_here_nor_can_be_pulled_is_one_line() -> None:
    absent = NODE | {"pull_error": "an ID cannot be pulled"}
    line = _image.absence("sha256:1", absent)
    assert line.startswith("image_ref sha256:1 is not on the node (an ID cannot be pulled); docker load it")
    assert _image.absence("vllm:1", NODE) == ""
    assert _image.absence("sha256:1", absent | {"images": ["sha256:1"]}) == ""
    assert _image.absence("sha256:1", absent | {"engine_error": "stopped"}) == ""


# One image as Docker 26 shows it with the overlay2 store, and what differs with the containerd store.
OVERLAY: dict[str, Any] = {
    "Id": "sha256:0d99",
    "RepoTags": ["small:1"],
    "RepoDigests": [],
    "Architecture": "amd64",
    "Os": "linux",
    "DockerVersion": "",
    "Size": 349317322,
    "Config": {
        "Hostname": "",
        "User": "",
        "Env": ["PATH=/bin"],
        "Cmd": ["bash"],
        "Volumes": None,
        "WorkingDir": "",
        "Labels": {"x": "y"},
    },
    "GraphDriver": {"Data": {"UpperDir": "/var/lib/docker/overlay2/3199/diff"}, "Name": "overlay2"},
    "RootFS": {"Type": "layers", "Layers": ["sha256:a8", "sha256:98"]},
    "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
}
CONTAINERD = OVERLAY | {
    "Id": "sha256:3910",
    "RepoDigests": ["small@sha256:3910"],
    "DockerVersion": "26.1.5+dfsg1",
    "Size": 253325078,
    "Config": {"Env": ["PATH=/bin"], "Cmd": ["bash"], "Labels": {"x": "y"}},
    "GraphDriver": {"Data": None, "Name": "overlayfs"},
    "Metadata": {"LastTagTime": "2026-11-23T08:45:24.640441366Z"},
}


def test_an_image_has_one_content_in_all_stores() -> None:
    assert _image.content_id(OVERLAY) == _image.content_id(CONTAINERD)
    assert _image.content_id(OVERLAY | {"RepoTags": ["other:2"]}) == _image.content_id(OVERLAY)


@pytest.mark.parametrize(
    "change",
    [
        {"RootFS": {"Type": "layers", "Layers": ["sha256:98", "sha256:a8"]}},
        {"Architecture": "arm64"},
        *({"Config": OVERLAY["Config"] | {name: {"x": "z"}}} for name in _image.CONTENT_FIELDS),
    ],
)
def test_what_a_container_would_see_changes_the_content(change: dict[str, Any]) -> None:
    assert _image.content_id(OVERLAY | change) != _image.content_id(OVERLAY)


def test_an_image_from_another_cluster_is_the_same() -> None:
    labels = OVERLAY["Config"].get("Labels") or {}
    moved = OVERLAY["Config"] | {"Labels": {**labels, "io.sparkfleet.cluster": "triton"}}
    assert _image.content_id(OVERLAY | {"Config": moved}) == _image.content_id(OVERLAY)


def test_only_what_may_mean_nothing_elsewhere_gets_another_name() -> None:
    assert _image.alias_of("vllm:1") == ""
    names = {_image.alias_of("sha256:1"), _image.alias_of("vllm@sha256:1"), _image.alias_of("vllm:1@sha256:2")}
    assert len(names) == 3
    assert all(name.startswith("sparkfleet/given:") for name in names)


def ours(image: str, tagged: str, key: str = "k") -> dict[str, Any]:
    """Return one of our images, tagged at some time."""
    return {"Id": image, "Config": {"Labels": {_image.LABEL_BUILD: key}}, "Metadata": {"LastTagTime": tagged}}


IMAGES = [ours("new", "4"), ours("third", "1"), ours("first", "3"), ours("second", "2"), ours("part", "9", _image.STEP)]


@pytest.mark.parametrize(
    ("wanted", "used", "keep", "gone"),
    [
        ("new", (), 1, {"second", "third", "part"}),
        ("new", (), 0, {"first", "second", "third", "part"}),
        ("new", (), 9, {"part"}),
        ("new", ("third",), 1, {"first", "second", "part"}),
        ("new", ("second", "third"), 0, {"first", "part"}),
        ("", (), 0, set()),  # what an interrupted transfer goes on from
    ],
)
def test_old_images_go_but_none_in_use(wanted: str, used: tuple[str, ...], keep: int, gone: set[str]) -> None:
    assert set(_image.surplus(IMAGES, wanted, used, keep, "sparkfleet/vllm:2")) == gone


@pytest.mark.parametrize(
    ("tags", "stays", "foreign"),
    [
        ([], False, False),
        (["sparkfleet/vllm:1"], False, False),
        (["sparkfleet/vllm:2"], True, False),
        (["mine/vllm:1"], True, True),
        (["sparkfleet/vllm:1", "mine/vllm:1"], True, False),
    ],
)
def test_what_somebody_else_named_stays(tags: list[str], stays: bool, foreign: bool) -> None:
    # An image that was built on one of ours has its labels.
    one = ours("derived", "1") | {"RepoTags": tags}
    assert (_image.surplus([one], "new", (), 0, "sparkfleet/vllm:2") == []) is stays
    assert _image.named_by_others(one, "sparkfleet/vllm:2") is foreign


@pytest.mark.parametrize(
    ("tags", "removed"),
    [
        ([], ["derived"]),
        (["sparkfleet/vllm:1", "sparkfleet/given:2"], ["derived"]),
        (["own/image:2"], ["derived"]),
        (["mine/vllm:1"], []),
        (["sparkfleet/vllm:1", "mine/vllm:1"], ["sparkfleet/vllm:1"]),
    ],
)
def test_a_reset_leaves_what_somebody_else_named(tags: list[str], removed: list[str]) -> None:
    assert _image.removable([ours("derived", "1") | {"RepoTags": tags}], "own/image:1") == removed
