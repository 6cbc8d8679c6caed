# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bundle with a small collection, a package index on loopback, and the real pip and ansible-galaxy."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bundle
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import ROOT, run_module

NAMES = [f"p{number:02}" for number in range(_bundle.BATCH + 1)]
"""More than pip is asked for at once."""
LAST = NAMES[-1]


def filename(name: str) -> str:
    return f"{name}-1-py3-none-any.whl"


def wheel(name: str, text: str = "") -> bytes:
    """Return a wheel that pip takes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for path, content in {
            f"{name}.py": text,
            f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
            f"{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}-1.dist-info/RECORD": "",
        }.items():
            file.writestr(zipfile.ZipInfo(path), content)
    return out.getvalue()


class Index:
    """A package index, or a proxy to one, that remembers which files were asked for, and may keep one back."""

    def __init__(self) -> None:
        self.files = {filename(name): wheel(name) for name in NAMES}
        self.asked: list[str] = []
        self.hosts: set[str | None] = set()
        self.withheld = ""
        self.waiting, self.go_on = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path  # a proxy is asked for the whole URL
        self.hosts.add(urlsplit(request.path).hostname)
        name = path.strip("/").rpartition("/")[2]
        if path.startswith("/simple/"):
            found = [one for one in self.files if one.startswith(f"{name}-")]
            body = "".join(f'<a href="/files/{one}">{one}</a>' for one in found).encode()
        else:
            self.asked.append(name)
            if name == self.withheld:
                self.waiting.set()
                self.go_on.wait()
            body = self.files[name]
        try:
            request.send_response(200)
            request.send_header("Content-Type", "text/html" if path.startswith("/simple/") else "a/b")
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        except OSError:
            pass  # who asked was killed


@pytest.fixture
def index() -> Iterator[Index]:
    made = Index()
    yield made
    made.go_on.set()
    made.server.shutdown()
    made.server.server_close()


def archive(path: Path, name: str, architecture: str = "amd64", packages: str = "python3 python3-venv") -> Path:
    """Write an image with one layer, as `docker save` does."""

    def pack(members: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for member, data in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return out.getvalue()

    status = "\n".join(f"Package: {one}\nStatus: install ok installed\n" for one in packages.split())
    body = json.dumps({"architecture": architecture}).encode()
    digest = hashlib.sha256(body).hexdigest()
    manifest = json.dumps([{"Config": f"{digest}.json", "RepoTags": [name], "Layers": ["0/layer.tar"]}]).encode()
    layer = pack({"var/lib/dpkg/status": status.encode()})
    path.write_bytes(pack({f"{digest}.json": body, "0/layer.tar": layer, "manifest.json": manifest}))
    return path


class Site:
    """A collection, one that it needs, and the directory that the bundle comes into."""

    def __init__(self, tmp_path: Path, index: Index) -> None:
        self.tmp_path = tmp_path
        self.out = tmp_path / "out"
        self.out.mkdir()
        self.file = self.out / "bundle.tar"
        self.part = self.out / "bundle.tar.part"
        self.root = self.collection("sparkfleet.vllm", {"n.c": "*"})
        self.other = self.collection("n.c", {})
        image = self.root / "files" / "image"
        (image / "cpu").mkdir(parents=True)
        for name in ("Dockerfile", "packages.sh", "settle.sh", "cpu/packages-build.txt"):
            (image / name).write_text(f"# {name}\n")
        (image / "cpu" / "packages.txt").write_text("# What it needs.\npython3\n")
        self.lock({name: index.files[filename(name)] for name in NAMES})
        self.arguments: dict[str, Any] = {
            "file": str(self.file),
            "variant": "cpu",
            "collection": str(self.root),
            "base": "debian",
            "base_archive": str(archive(tmp_path / "base.tar", "base:1")),
            "wheelhouse": str(self.wheelhouse("wheels", index.files)),
        }
        self.download: dict[str, Any] = {"wheelhouse": "", "index_url": index.url, "proxy": {"no_proxy": "127.0.0.1"}}

    def collection(self, name: str, dependencies: dict[str, str]) -> Path:
        namespace, _dot, short = name.partition(".")
        root = self.tmp_path / "collections" / "ansible_collections" / namespace / short
        (root / "plugins").mkdir(parents=True)
        (root / "plugins" / "a.py").write_text(f"# {name}\n")
        info = {"namespace": namespace, "name": short, "version": "1.0.0", "dependencies": dependencies}
        manifest = {"collection_info": info, "file_manifest_file": {"chksum_sha256": ""}}
        (root / "MANIFEST.json").write_text(json.dumps(manifest))
        (root / "FILES.json").write_text("{}")
        return root

    def lock(self, wheels: dict[str, bytes]) -> None:
        lines = [f"{name}==1 --hash=sha256:{hashlib.sha256(data).hexdigest()}\n" for name, data in wheels.items()]
        (self.root / "files" / "image" / "cpu" / "requirements-x86_64.lock").write_text("".join(lines))

    def wheelhouse(self, name: str, files: dict[str, bytes]) -> Path:
        directory = self.tmp_path / name
        directory.mkdir()
        for one, data in files.items():
            (directory / one).write_bytes(data)
        return directory

    def run(self, check: bool = False, **more: Any) -> dict[str, Any]:
        return run_module("bundle", {**self.arguments, **more}, self.tmp_path, check=check)

    def members(self) -> dict[str, bytes]:
        with tarfile.open(self.file) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            return {name.partition("/")[2]: file.read() for name, file in files.items() if file}

    def content(self) -> dict[str, bytes]:
        """Everything that lies where the bundle belongs."""
        return {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


@pytest.fixture
def site(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path / "collections"))
    monkeypatch.setenv("ANSIBLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return Site(tmp_path, index)


def test_everything_comes_into_one_file(site: Site, index: Index) -> None:
    answer = site.run()
    assert answer["changed"] is True, answer
    assert answer["size"] == site.file.stat().st_size
    members = site.members()
    assert {name for name in members if "/" not in name} == {
        *("SHA256SUMS", "README.md", "vars.yml", "base.tar", "base.txt"),
    }
    assert {name for name in members if name.startswith("wheels/")} == {f"wheels/{filename(name)}" for name in NAMES}
    assert {name for name in members if name.startswith("collections/")} == {
        *("collections/n-c-1.0.0.tar.gz", "collections/sparkfleet-vllm-1.0.0.tar.gz"),
    }
    listed = dict(reversed(line.split("  ")) for line in members.pop("SHA256SUMS").decode().splitlines())
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    assert members["base.txt"] == b"base:1\n"
    assert [path.name for path in site.out.iterdir()] == ["bundle.tar"]


def test_a_second_run_changes_and_downloads_nothing(site: Site, index: Index) -> None:
    site.run(**site.download)
    assert len(index.asked) == len(NAMES)
    before = site.file.stat().st_mtime_ns, site.file.stat().st_ino
    for check in (False, True):
        answer = site.run(check, **site.download)
        assert (answer["changed"], answer["new"]) == (False, "")
        assert (site.file.stat().st_mtime_ns, site.file.stat().st_ino) == before
    assert len(index.asked) == len(NAMES)


def test_check_mode_writes_nothing(site: Site, index: Index) -> None:
    answer = site.run(check=True, **site.download)
    assert (answer["changed"], answer["new"]) == (True, f"p00 1, p01 1, p02 1 and {len(NAMES) - 3} more")
    assert site.content() == {}
    assert not list(site.out.iterdir())
    assert index.asked == []


def test_check_mode_sees_a_changed_collection(site: Site) -> None:
    site.run()
    before = site.content()
    (site.other / "plugins" / "a.py").write_text("# another\n")
    answer = site.run(check=True)
    assert (answer["changed"], answer["new"]) == (True, "collections/n-c-1.0.0.tar.gz")
    assert site.content() == before
    assert site.run()["new"] == "collections/n-c-1.0.0.tar.gz"


def test_only_what_the_lock_changed_is_downloaded(site: Site, index: Index) -> None:
    site.run()
    index.files[filename(LAST)] = wheel(LAST, "other")
    site.lock({name: index.files[filename(name)] for name in NAMES[1:]})
    answer = site.run(**site.download)
    assert answer["changed"] is True, answer
    assert set(index.asked) == {filename(LAST)}
    members = site.members()
    assert f"wheels/{filename(NAMES[0])}" not in members
    assert members[f"wheels/{filename(LAST)}"] == index.files[filename(LAST)]
    assert members[f"wheels/{filename(NAMES[1])}"] == index.files[filename(NAMES[1])]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_bundle_that_was_cut_off_is_made_again(site: Site, share: float) -> None:
    site.run()
    whole = site.file.read_bytes()
    site.file.write_bytes(whole[: int(len(whole) * share)])
    assert site.run()["changed"] is True
    assert site.file.read_bytes() == whole


def test_a_file_that_is_no_bundle_stays(site: Site) -> None:
    site.file.write_text("somebody's")
    answer = site.run()
    assert (
        answer["msg"] == f"bundle: bundle_file {site.file} is there and is no bundle; remove it, or choose another name"
    )
    assert site.content() == {"bundle.tar": b"somebody's"}


def test_a_run_that_was_killed_goes_on_where_it_was(site: Site, index: Index) -> None:
    index.withheld = filename(LAST)
    arguments = {
        **site.arguments,
        **site.download,
        "_ansible_check_mode": False,
        "_ansible_remote_tmp": str(site.tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "ansible_collections.sparkfleet.vllm.plugins.modules.bundle"],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".collections")},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        assert run.stdin
        run.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        run.stdin.close()
        assert index.waiting.wait(120)
        os.killpg(run.pid, signal.SIGKILL)
    assert not site.file.exists()
    index.withheld = ""
    index.go_on.set()
    index.asked.clear()
    (site.part / "bundle.tar").write_text("half of one")
    (site.part / "wheels" / filename(LAST)).write_text("half of one")
    (site.part / "base.tar").write_text("half of one")
    assert site.run(**site.download)["changed"] is True
    assert set(index.asked) == {filename(LAST)}
    assert [path.name for path in site.out.iterdir()] == ["bundle.tar"]
    assert site.members()[f"wheels/{filename(LAST)}"] == index.files[filename(LAST)]


def test_relative_paths_start_where_the_owner_is(site: Site) -> None:
    answer = site.run(directory=str(site.tmp_path), file="out/bundle.tar", base_archive="base.tar", wheelhouse="wheels")
    assert answer["changed"] is True, answer
    assert [path.name for path in site.out.iterdir()] == ["bundle.tar"]
    message = site.run(directory=str(site.tmp_path), kernels_wheel="k.whl")["msg"]
    assert message.startswith(f"bundle: image_kernels_wheel {site.tmp_path}/k.whl is no file")


def test_two_runs_at_once_are_one(site: Site) -> None:
    site.part.mkdir()
    held = os.open(site.part, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert site.run()["msg"] == f"bundle: another run makes {site.file}; wait for it"
    finally:
        os.close(held)
    assert site.run()["changed"] is True


def test_the_image_to_build_on_is_asked_for_once(site: Site) -> None:
    asked = site.run(check=True, base_archive="")
    assert (asked["base_needed"], asked["machine"], asked["base"]) == (True, "x86_64", "debian")
    answer = site.run(base_archive="")
    assert answer["msg"] == f"bundle: the image to build on is not in {asked['incoming']}; give bundle_base_archive"
    incoming = Path(asked["incoming"])
    incoming.parent.mkdir()
    archive(incoming, asked["base_name"])
    assert site.run(base_archive="")["changed"] is True
    assert site.members()["base.txt"].decode() == f"{asked['base_name']}\n"
    again = site.run(base_archive="")
    assert (again["changed"], again["base_needed"]) == (False, False)
    assert site.run(check=True, base_archive="", base="another")["base_needed"] is True


@pytest.mark.parametrize("left", ["of another machine", "of other packages", "half of one"])
def test_an_image_that_another_run_left_is_not_taken(site: Site, left: str) -> None:
    asked = site.run(check=True, base_archive="")
    site.part.mkdir()
    if left == "half of one":
        site.part.joinpath("base.tar").write_text(left)
    else:
        other = left == "of another machine"
        name = asked["base_name"] if other else "sparkfleet/base:cpu-000000000000"
        archive(site.part / "base.tar", name, "arm64" if other else "amd64")
    assert site.run(check=True, base_archive="")["base_needed"] is True


def test_a_checkout_is_built_first(site: Site) -> None:
    (site.root / "MANIFEST.json").unlink()
    (site.root / "FILES.json").unlink()
    (site.root / "README.md").write_text("text")
    (site.root / "build").mkdir()
    (site.root / "build" / "large").write_text("not for anybody")
    (site.root / "galaxy.yml").write_text(
        "{namespace: sparkfleet, name: vllm, version: 1.0.0, readme: README.md, authors: [a],"
        " dependencies: {n.c: '*'}, build_ignore: [build]}"
    )
    for _time in range(2):
        answer = site.run(file=str(site.root / "build" / "bundle.tar"))
        assert "msg" not in answer, answer
    assert answer["changed"] is False
    site.file = site.root / "build" / "bundle.tar"
    with tarfile.open(fileobj=io.BytesIO(site.members()["collections/sparkfleet-vllm-1.0.0.tar.gz"])) as tar:
        assert {"MANIFEST.json", "FILES.json", "plugins/a.py", "README.md"} <= set(tar.getnames())
        assert not [name for name in tar.getnames() if name.startswith("build")]


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "no directory": (
        {"file": "{}/none/bundle.tar"},
        "the directory {}/none is not there; make it, or correct the path",
    ),
    "no wheelhouse": ({"wheelhouse": "{}/none"}, "bundle_wheelhouse {}/none cannot be read"),
    "wheelhouse lacks": (
        {"wheelhouse": "{}/lacks"},
        f"the wheelhouse {{}}/lacks lacks {LAST} 1; fill it from the lock",
    ),
    "wheelhouse differs": (
        {"wheelhouse": "{}/wrong"},
        f"the wheelhouse {{}}/wrong has {filename(LAST)} with a hash other than the lock's; replace it",
    ),
    "base of another machine": (
        {"base_archive": "{}/arm.tar"},
        "bundle_base_archive {}/arm.tar is for arm64, and variant cpu for amd64; save it on a machine of that kind",
    ),
    "base without packages": (
        {"base_archive": "{}/bare.tar"},
        "{}/bare.tar lacks the packages python3; install them in",
    ),
    "no base": ({"base_archive": "{}/none.tar"}, "bundle_base_archive {}/none.tar cannot be read"),
    "no certificates": (
        {"wheelhouse": "", "ca_file": "{}/none.pem"},
        "image_ca_file {}/none.pem is no file; correct the path",
    ),
    "no kernels": ({"kernels_wheel": "{}/none.whl"}, "image_kernels_wheel {}/none.whl is no file on the controller"),
    "no index": (
        {"wheelhouse": "", "index_url": "http://u:secret@127.0.0.1:9/simple"},
        "check the index (image_pip_index_url, ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line(site: Site, index: Index, fault: str) -> None:
    site.wheelhouse("lacks", {filename(name): index.files[filename(name)] for name in NAMES[:-1]})
    site.wheelhouse("wrong", {**index.files, filename(LAST): b"broken"})
    archive(site.tmp_path / "arm.tar", "base:1", "arm64")
    archive(site.tmp_path / "bare.tar", "base:1", packages="bash")
    given, expected = FAULTS[fault]
    answer = site.run(**{name: value.format(site.tmp_path) for name, value in given.items()})
    assert answer["failed"] is True
    message = answer["msg"]
    assert message.startswith("bundle: ")
    assert expected.replace("{}", str(site.tmp_path)) in message
    assert "\n" not in message
    assert "secret" not in json.dumps(answer)
    assert not site.file.exists()


def test_a_collection_that_is_missing_is_named(site: Site) -> None:
    (site.other / "MANIFEST.json").unlink()
    site.other.rename(site.tmp_path / "away")
    answer = site.run()
    assert answer["msg"] == "bundle: collection n.c is not installed; ansible-galaxy collection install n.c"
    assert not site.file.exists()


def test_downloads_go_through_the_proxy(site: Site, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.invalid")  # as it is not asked over TLS
    proxy = {"http": index.url.removesuffix("/simple"), "no_proxy": "elsewhere.invalid"}
    answer = site.run(**{**site.download, "index_url": "http://index.invalid/simple", "proxy": proxy})
    assert answer["changed"] is True, answer
    assert len(index.asked) == len(NAMES)
    assert index.hosts == {"index.invalid"}


def test_an_index_with_another_file_is_refused(site: Site, index: Index) -> None:
    index.files[filename(LAST)] = wheel(LAST, "other")
    message = site.run(**site.download)["msg"]
    assert message.startswith(f"bundle: {LAST}==1 from http://")
    assert message.endswith("has a hash other than the lock's; do not use this index, or run make lock")
    del index.files[filename(LAST)]
    message = site.run(**site.download)["msg"]
    assert message.startswith(f"bundle: pip: No matching distribution found for {LAST}==1; check the index")
    assert not site.file.exists()
