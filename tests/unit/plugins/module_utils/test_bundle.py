# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes into a bundle, and that the same content is the same file."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bundle
from ansible_collections.sparkfleet.vllm.plugins.module_utils._bundle import BundleError, Part
from ansible_collections.sparkfleet.vllm.plugins.module_utils._image import EPOCH, MACHINES, Requirement

ROOT = Path(__file__).parents[4]
WHEEL = "six-1.17.0-py3-none-any.whl"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def locked(*contents: str) -> dict[str, Requirement]:
    return {"six": Requirement("six", "1.17.0", frozenset(map(digest, contents)))}


def test_the_platforms_are_those_that_the_locks_are_resolved_for() -> None:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "files" / "image" / "lock.py")
    assert spec and spec.loader
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    for variant, machine in MACHINES.items():
        platform = f"{machine}-manylinux_2_{_bundle.GLIBCS[variant]}"
        assert lock.MACHINES[variant][machine] == (platform, _bundle.PYTHONS[variant])


def test_the_role_gives_files_the_time_that_the_plan_does() -> None:
    variables = yaml.safe_load((ROOT / "roles" / "image" / "vars" / "main.yml").read_text())
    assert variables["_image_epoch"] == str(EPOCH)


@pytest.mark.parametrize(
    ("name", "cuda", "cpu"),
    [
        ("a-1-py3-none-any.whl", True, True),
        ("a-1-py2.py3-none-any.whl", True, True),
        ("a-1-py2-none-any.whl", False, False),
        ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", True, False),
        ("a-1-cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True, False),
        ("a-1-cp311-cp311-manylinux_2_28_aarch64.whl", False, False),
        ("a-1-cp312-cp312t-manylinux_2_28_aarch64.whl", False, False),
        ("a-1-cp312-cp312-manylinux_2_41_aarch64.whl", False, False),
        ("a-1-cp39-abi3-manylinux_2_28_x86_64.whl", False, True),
        ("a-1-cp312-abi3-manylinux_2_28_x86_64.whl", False, False),
        ("a-1-cp311-cp311-manylinux1_x86_64.whl", False, True),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False, False),
        ("a-1-py3-none-manylinux_2_38_x86_64.whl", False, False),
        ("a-1-py3-none-manylinux_2_38_aarch64.whl", True, False),
        ("a-1-7-py3-none-any.whl", True, True),
    ],
)
def test_a_wheel_fits_or_not(name: str, cuda: bool, cpu: bool) -> None:
    assert (_bundle.fits(name, "cuda"), _bundle.fits(name, "cpu")) == (cuda, cpu)


def test_what_is_missing_is_what_has_no_fitting_wheel_of_that_hash() -> None:
    lock = locked("good")
    assert _bundle.fitting(lock, {WHEEL: digest("good")}, "cpu") == ({WHEEL: digest("good")}, {})
    assert _bundle.fitting(lock, {WHEEL: digest("bad")}, "cpu") == ({}, lock)
    other = {"six-1.17.0-cp311-cp311-win32.whl": digest("good"), "six-1.16.0-py3-none-any.whl": digest("good")}
    assert _bundle.fitting(lock, other, "cpu") == ({}, lock)


def test_a_wheelhouse_is_right_or_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"lacks six 1\.17\.0; fill it"):
        _bundle.wheelhouse(locked("good"), str(tmp_path), "cpu")
    (tmp_path / WHEEL).write_text("bad")
    with pytest.raises(BundleError, match=rf"has {WHEEL} with a hash other than the lock's"):
        _bundle.wheelhouse(locked("good"), str(tmp_path), "cpu")
    (tmp_path / WHEEL).write_text("good")
    (tmp_path / "other-1-py3-none-any.whl").write_text("not of the lock")
    assert _bundle.wheelhouse(locked("good"), str(tmp_path), "cpu") == {WHEEL: digest("good")}
    with pytest.raises(BundleError, match=r"cannot be read \(No such file or directory\); correct the path"):
        _bundle.wheelhouse(locked("good"), str(tmp_path / "none"), "cpu")


def test_pip_is_asked_for_the_images_platform_and_by_hash() -> None:
    options = _bundle.pip_options("cuda", "r.txt", "wheels")
    assert {"--require-hashes", "--platform=manylinux_2_39_aarch64", "--abi=cp312", "--no-deps"} <= set(options)
    assert not any("x86_64" in one for one in options)
    assert _bundle.requirements(locked("a").values()) == f"six==1.17.0 --hash=sha256:{digest('a')}\n"


def test_downloads_come_in_parts_and_none_is_left_out() -> None:
    some = [Requirement(f"p{number}", "1", frozenset({"a"})) for number in range(2 * _bundle.BATCH + 1)]
    parts = _bundle.batches(some)
    assert [len(one) for one in parts] == [_bundle.BATCH, _bundle.BATCH, 1]
    assert [one for part in parts for one in part] == some
    assert _bundle.batches([]) == []


def test_what_may_be_secret_is_in_the_environment_only() -> None:
    given = {"http": "http://u:p@proxy:1", "no_proxy": "local"}
    assert _bundle.pip_environment("https://index", "", given) == {
        "PIP_INDEX_URL": "https://index",
        "PIP_NO_INPUT": "1",
        "http_proxy": "http://u:p@proxy:1",
        "HTTP_PROXY": "http://u:p@proxy:1",
        "no_proxy": "local",
        "NO_PROXY": "local",
    }


def test_pip_says_in_one_line_what_went_wrong() -> None:
    mismatch = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated\n"
        "    six==1.17.0 from https://index/six.whl (from -r r.txt (line 1)):\n"
        "        Expected sha256 aa\n             Got        bb\n"
    )
    assert _bundle.pip_failure(mismatch).startswith("six==1.17.0 from https://index/six.whl has a hash other than")
    absent = "WARNING: Retrying\nERROR: No matching distribution found for six==1.17.0 (from -r r.txt (line 1))\n"
    assert _bundle.pip_failure(absent).startswith(
        "pip: No matching distribution found for six==1.17.0; check the index"
    )
    assert "no reason given" in _bundle.pip_failure("")


# --- the image to build on ------------------------------------------------------------------------------------------


def tarball(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def archive(path: Path, architecture: str, *layers: bytes) -> Path:
    body = json.dumps({"architecture": architecture}).encode()
    name = f"{hashlib.sha256(body).hexdigest()}.json"
    named = {f"{number}/layer.tar": layer for number, layer in enumerate(layers)}
    manifest = json.dumps([{"Config": name, "RepoTags": ["base:1"], "Layers": [*named]}]).encode()
    path.write_bytes(tarball({name: body, **named, "manifest.json": manifest}))
    return path


def layer(**packages: str) -> bytes:
    blocks = [f"Package: {name}\nStatus: {status}\nVersion: 1\n" for name, status in packages.items()]
    return tarball({"var/lib/dpkg/status": "\n".join(blocks).encode(), "var/x": b""})


def test_an_archive_of_another_machine_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "base.tar", "amd64")
    assert _bundle.check_base(str(path), "cpu") == "base:1"
    with pytest.raises(
        BundleError, match="is for amd64, and variant cuda for arm64; save it on a machine of that kind"
    ):
        _bundle.check_base(str(path), "cuda")


@pytest.mark.parametrize("how", ["text", "cut", "no configuration", "cut layer"])
def test_a_damaged_archive_is_refused(tmp_path: Path, how: str) -> None:
    path = archive(tmp_path / "base.tar", "amd64", gzip.compress(layer(python3="install ok installed")))
    data = path.read_bytes()
    if how == "text":
        path.write_text("no archive")
    elif how == "cut":
        path.write_bytes(data[:700])
    elif how == "no configuration":
        path.write_bytes(data.replace(b"amd64", b"amd6\0", 1))
    else:
        broken = gzip.compress(layer(python3="install ok installed"))
        archive(path, "amd64", broken[: len(broken) // 2])
    with pytest.raises(
        BundleError, match=r"bundle_base_archive .*(is not an image|is damaged).*; make it.* docker save"
    ):
        _bundle.check_base(str(path), "cpu", {"python3"})


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_archive_without_the_packages_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    first = layer(python3="install ok installed")
    second = layer(python3="install ok installed", libnuma1="install ok installed", gone="deinstall ok config-files")
    path = str(archive(tmp_path / "base.tar", "amd64", pack(first), pack(second), pack(tarball({"etc/x": b""}))))
    assert _bundle.check_base(path, "cpu", {"python3", "libnuma1"}) == "base:1"
    with pytest.raises(
        BundleError, match=r"lacks the packages gone, python3-venv; install them in that image, or give"
    ):
        _bundle.check_base(path, "cpu", {"python3", "gone", "python3-venv"})


def test_packages_that_cannot_be_seen_are_not_missed(tmp_path: Path) -> None:
    """Not everybody's layers can be read here, and not everybody's image is made by dpkg."""
    for layers in ([b"\x28\xb5\x2f\xfd zstd"], [tarball({"etc/x": b""})], []):
        path = archive(tmp_path / "base.tar", "amd64", *layers)
        assert _bundle.check_base(str(path), "cpu", {"python3"}) == "base:1"


@pytest.mark.parametrize("variant", MACHINES)
def test_the_packages_are_those_of_the_images_lists(variant: str) -> None:
    found = _bundle.listed(str(ROOT / "files" / "image"), variant)
    assert {"python3", "python3-venv", "libnuma1"} <= found
    assert not [name for name in found if "#" in name or " " in name]


def test_the_base_has_another_name_when_its_packages_change(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    for name in _bundle.BASE_FILES:
        (tmp_path / name.format("cpu")).write_text(name)
    before = _bundle.base_name("cpu", "debian", str(tmp_path))
    assert before == _bundle.base_name("cpu", "debian", str(tmp_path))
    assert before != _bundle.base_name("cpu", "ubuntu", str(tmp_path))
    (tmp_path / "cpu" / "packages.txt").write_text("one more")
    assert before != _bundle.base_name("cpu", "debian", str(tmp_path))


# --- collections ----------------------------------------------------------------------------------------------------


def collection(root: Path) -> Path:
    (root / "plugins" / "__pycache__").mkdir(parents=True)
    (root / "plugins" / "a.py").write_text("a = 1\n")
    (root / "plugins" / "__pycache__" / "a.pyc").write_text("x")
    info = {"namespace": "n", "name": "c", "version": "1.2.3", "dependencies": {}}
    manifest = {"collection_info": info, "file_manifest_file": {"name": "FILES.json", "chksum_sha256": "old"}}
    (root / "MANIFEST.json").write_text(json.dumps(manifest))
    (root / "FILES.json").write_text('{"files": [{"name": "tests/gone.py"}]}')
    return root


def test_a_collection_is_packed_as_it_lies_there_and_always_alike(tmp_path: Path) -> None:
    root = collection(tmp_path / "installed")
    (tmp_path / "out").mkdir()
    path = Path(_bundle.pack_collection(str(root), str(tmp_path / "out")))
    before = path.read_bytes()
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["MANIFEST.json", "FILES.json", "plugins", "plugins/a.py"]
        listing = tar.extractfile("FILES.json").read()  # type: ignore[union-attr]
        manifest = json.load(tar.extractfile("MANIFEST.json"))  # type: ignore[arg-type]
    assert manifest["file_manifest_file"]["chksum_sha256"] == hashlib.sha256(listing).hexdigest()
    assert {one["name"] for one in json.loads(listing)["files"]} == {".", "plugins", "plugins/a.py"}
    (root / "plugins" / "a.py").touch()
    assert Path(_bundle.pack_collection(str(root), str(tmp_path / "out"))).read_bytes() == before


def test_dependencies_of_dependencies_come_along() -> None:
    needs = {"a.a": {"b.b": "*"}, "b.b": {"c.c": "*"}, "c.c": {"b.b": "*"}}
    installed = {"b.b": "/b", "c.c": "/c"}
    assert _bundle.dependencies("a.a", installed, lambda name: {"dependencies": needs[name]}) == ["/b", "/c"]
    with pytest.raises(BundleError, match=r"collection c\.c is not installed; ansible-galaxy collection install c\.c"):
        _bundle.dependencies("a.a", {"b.b": "/b"}, lambda name: {"dependencies": needs[name]})


# --- the file -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_can_be_carried_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("wheel")
    parts = {"wheels/a": Part.of_file(str(tmp_path / "a")), "README.md": Part.of_data(b"text")}
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    _bundle.write(str(one), "bundle", parts, "")
    again = _bundle.read(str(one))
    assert _bundle.sums(again) == _bundle.sums(parts)
    (tmp_path / "a").unlink()
    _bundle.write(str(two), "bundle", again, str(one))
    assert one.read_bytes() == two.read_bytes()
    more = {**again, "vars.yml": Part.of_data(b"new")}
    assert _bundle.changes(more, again) == "vars.yml"


@pytest.mark.parametrize("how", ["cut", "flipped", "no tar"])
def test_a_damaged_bundle_is_none(tmp_path: Path, how: str) -> None:
    path = tmp_path / "bundle.tar"
    _bundle.write(str(path), "bundle", {"wheels/a": Part.of_data(b"wheel" * 1000)}, "")
    data = path.read_bytes()
    broken = {"cut": data[:3000], "flipped": data.replace(b"wheelwheel", b"wheelWheel", 1), "no tar": b"x"}
    path.write_bytes(broken[how])
    assert _bundle.read(str(path)) == {}
    assert _bundle.read(str(tmp_path / "none")) == {}


@pytest.mark.parametrize("kernels", ["", "sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_aarch64.whl"])
def test_the_variables_are_yaml_of_role_image(kernels: str) -> None:
    found = yaml.safe_load(_bundle.texts("cuda", "0.1.0", kernels)["vars.yml"])
    assert found["image_wheelhouse"] == "{{ bundle_directory }}/wheels"
    assert found["image_kernels_wheel"] == (f"{{{{ bundle_directory }}}}/kernels/{kernels}" if kernels else "none")
    known = yaml.safe_load((ROOT / "roles" / "image" / "defaults" / "main.yml").read_text())
    assert set(found) - {"bundle_directory"} <= set(known)


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    def check(path: Path | str) -> None:
        _bundle.check_target(str(path), str(tmp_path / "collection"))

    with pytest.raises(BundleError, match=r"is a directory; name a file in it"):
        check(tmp_path)
    with pytest.raises(BundleError, match=r"the directory .*/none is not there; make it, or correct the path"):
        check(tmp_path / "none" / "bundle.tar")
    with pytest.raises(BundleError, match=r"the directory /proc/1 cannot be written to"):
        check("/proc/1/bundle.tar")


def test_a_bundle_does_not_come_into_itself(tmp_path: Path) -> None:
    root = tmp_path / "collection"
    (root / "build").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"is in the collection, which the bundle takes in; choose another place"):
        _bundle.check_target(str(root / "bundle.tar"), str(root))
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(BundleError, match=r"is in the collection"):
        _bundle.check_target(str(tmp_path / "link" / "bundle.tar"), str(root))
    _bundle.check_target(str(root / "build" / "bundle.tar"), str(root))
    _bundle.check_target(str(tmp_path / "bundle.tar"), str(root))


def test_only_a_bundle_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    _bundle.write(str(path), "bundle-cpu-0.1.0", {"wheels/a": Part.of_data(b"wheel" * 1000)}, "")
    _bundle.check_target(str(path), str(tmp_path / "collection"))
    path.write_bytes(path.read_bytes()[:3000])
    _bundle.check_target(str(path), str(tmp_path / "collection"))
    for other in (tarball({"backup/SHA256SUMS": b""}), b"", b"text"):
        path.write_bytes(other)
        with pytest.raises(BundleError, match=r"is there and is no bundle; remove it, or choose another name"):
            _bundle.check_target(str(path), str(tmp_path / "collection"))


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"disk too small for the bundle: .* GB free in .*, 1000000\.0 GB needed; make"
    ):
        _bundle.check_room(str(tmp_path / "bundle.tar"), 1e15)
    wheel, base = Part("", 10, data=b""), Part("", 5)
    assert _bundle.room("cpu", {"a": wheel}, base, 0) == 15
    assert _bundle.room("cpu", {"a": wheel}, base, 1) == 2e9 + 5
