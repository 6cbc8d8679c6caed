# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""Models as checksum manifests: what the source on the controller holds, and what a node has of it.

A manifest maps a file's path inside the model (with ``/``) to its size in bytes and its SHA-256 in hex.
Hashes are remembered beside size and times, so that a 60 GB model is read once and not on every run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from ._files import write_atomically

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
UNSUPPORTED_SUFFIXES = (".tar.zst", ".7z", ".rar")
CHECKSUM_FILE = "SHA256SUMS"
PARTIAL_DIR = ".rsync-partial"
# What tools leave in a downloaded repository; synchronize leaves it out as well.
IGNORED_TOP = (".git", ".cache", PARTIAL_DIR)

_CHUNK = 1 << 20
_MAX_HEADER = 100_000_000  # the safetensors format's own limit
_MAX_JSON = 64 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of a model: size in bytes and SHA-256 in lower-case hex."""

    size: int
    sha256: str


Manifest = dict[str, FileEntry]
# path -> [size, mtime_ns, ctime_ns, sha256]
Memory = dict[str, tuple[int, int, int, str]]


@dataclass
class SourceReport:
    """What the controller knows of a model's source. Usable only when ``problems`` is empty."""

    name: str
    path: str
    kind: str = "directory"
    files: Manifest = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """A node's directory against a manifest. Paths are sorted; ``hashed`` counts the files that were read."""

    missing: list[str]
    corrupt: list[str]
    extra: list[str]
    memory: Memory
    hashed: int

    @property
    def equal(self) -> bool:
        return not (self.missing or self.corrupt or self.extra)


@dataclass
class _Inspected:
    """What one pass over a source's files found."""

    files: Manifest = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def strip_archive_suffix(name: str) -> str:
    """Return ``name`` without the suffix of an archive."""
    for suffix in sorted(ARCHIVE_SUFFIXES + UNSUPPORTED_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def model_name(source: str) -> str:
    """Return the name of a model: the last part of its path, usable for a unit, a container and a directory.

    >>> model_name("/srv/models/Qwen3-0.6B.tar.gz")
    'Qwen3-0.6B'
    """
    last = strip_archive_suffix(source.rstrip("/").rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")


def is_hub_id(source: str) -> bool:
    """Say whether ``source`` reads like a Hugging Face repository (``org/name``) rather than a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def manifest_text(files: Mapping[str, FileEntry]) -> str:
    """Return a manifest in the format of ``sha256sum``, sorted by path."""
    return "".join(f"{files[path].sha256}  {path}\n" for path in sorted(files))


def parse_checksums(text: str) -> dict[str, str]:
    """Read the output format of ``sha256sum``; lines that are something else are skipped."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\\?([0-9a-fA-F]{64}) [ *](.+)", line.strip())
        if match:
            found[match.group(2).removeprefix("./")] = match.group(1).lower()
    return found


def check_safetensors(head: bytes, size: int) -> str:
    """Judge a safetensors file by its beginning.

    :param head: at least the 8 length bytes and the header, or all that the file has
    :param size: the file's size in bytes
    :return: what is wrong, or an empty string
    """
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights; run git lfs pull in the source"
    if len(head) < 8:
        return "is truncated: no safetensors header"
    length = struct.unpack("<Q", head[:8])[0]
    if length > _MAX_HEADER or 8 + length > size or len(head) < 8 + length:
        return "is truncated or is no safetensors file: its header does not fit"
    try:
        header = json.loads(head[8 : 8 + length])
        ends = [int(item["data_offsets"][1]) for key, item in header.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "has a safetensors header that cannot be read"
    wanted = 8 + length + max(ends, default=0)
    if wanted != size:
        return f"is truncated or damaged: its header asks for {wanted} bytes, the file has {size}"
    return ""


def _is_json(path: str) -> bool:
    return path == "config.json" or path.endswith(".safetensors.index.json")


def _read_head(stream: IO[bytes], path: str, size: int, seen: _Inspected) -> bytes:
    """Read as much of a file as its judgement needs, and judge it."""
    if path.endswith(".safetensors"):
        head = stream.read(8)
        if head != b"version ":
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if length <= min(_MAX_HEADER, size):
                head += stream.read(length)
        else:
            head += stream.read(_CHUNK)
        problem = check_safetensors(head, size)
        if problem:
            seen.problems.append(f"{path} {problem}")
        return head
    if (_is_json(path) or path == CHECKSUM_FILE) and size <= _MAX_JSON:
        head = stream.read(size)
        seen.kept[path] = head
        return head
    return b""


def _hash(stream: IO[bytes], head: bytes = b"") -> str:
    digest = hashlib.sha256(head)
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file in hex; raises ``OSError`` when it cannot be read."""
    with open(path, "rb") as stream:
        return _hash(stream)


def walk_files(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every file below ``root`` with its path inside it and its status; a dangling link gives its own."""
    for directory, subdirs, names in os.walk(root):
        inside = os.path.relpath(directory, root)
        ignored = IGNORED_TOP if inside == "." else (PARTIAL_DIR,)
        subdirs[:] = sorted(name for name in subdirs if name not in ignored)
        for name in sorted(names):
            path = name if inside == "." else f"{inside}/{name}"
            full = os.path.join(directory, name)
            yield path, os.stat(full) if os.path.exists(full) else os.lstat(full)


def _stamp(info: os.stat_result) -> tuple[int, int, int]:
    return (info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def load_memory(path: str) -> Memory:
    """Read remembered hashes; whatever cannot be read counts as nothing remembered."""
    try:
        with open(path, encoding="utf-8") as stream:
            raw = json.load(stream)
        return {str(key): (int(v[0]), int(v[1]), int(v[2]), str(v[3])) for key, v in raw.items()}
    except (OSError, ValueError, TypeError, IndexError, AttributeError):
        return {}


def _inspect_directory(root: str, memory: Memory) -> tuple[_Inspected, Memory]:
    seen, remembered = _Inspected(), Memory()
    for path, info in walk_files(root):
        known = memory.get(path)
        with open(os.path.join(root, path), "rb") as stream:
            head = _read_head(stream, path, info.st_size, seen)
            sha256 = known[3] if known and known[:3] == _stamp(info) else _hash(stream, head)
        remembered[path] = (*_stamp(info), sha256)
        seen.files[path] = FileEntry(info.st_size, sha256)
    return seen, remembered


def _members(archive: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield path, size and content of every regular file in an archive."""
    if archive.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if not info.is_dir():
                    with bundle.open(info) as content:
                        yield info.filename, info.file_size, content
        return
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name, member.size, stream
            elif not member.isdir():
                raise ValueError(f"{member.name} in it is a link or a device; pack the files themselves (tar -h)")


def common_top(paths: list[str]) -> str:
    """Return the one directory (with ``/``) that all paths lie in, or an empty string."""
    tops = {path.split("/", 1)[0] for path in paths}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in path for path in paths) else ""


def _clean_member(path: str) -> str:
    clean = os.path.normpath(path)
    if clean.startswith(("/", "..")):
        raise ValueError(f"{path} in it points outside of it")
    return clean


def _inspect_archive(archive: str) -> _Inspected:
    # Which files matter is known only when the common directory is, so judge all of them by their last parts.
    files: Manifest = {}
    heads: list[tuple[str, int, bytes]] = []
    for raw, size, stream in _members(archive):
        path, seen = _clean_member(raw), _Inspected()
        head = _read_head(stream, path.rsplit("/", 1)[-1], size, seen)
        if head:
            heads.append((path, size, head))
        files[path] = FileEntry(size, _hash(stream, head))
    top = common_top(list(files))
    inner = {path[len(top) :]: entry for path, entry in files.items()}
    result = _Inspected(files={path: e for path, e in inner.items() if path.split("/", 1)[0] not in IGNORED_TOP})
    for path, size, head in heads:
        inside = path[len(top) :]
        if inside not in result.files:
            continue
        if inside.endswith(".safetensors"):
            problem = check_safetensors(head, size)
            if problem:
                result.problems.append(f"{inside} {problem}")
        else:
            result.kept[inside] = head
    return result


def judge(seen: _Inspected) -> list[str]:
    """Return all that is wrong with a model's files as such, one line each."""
    problems = list(seen.problems)
    documents: dict[str, Any] = {}
    for path, content in seen.kept.items():
        if _is_json(path):
            try:
                documents[path] = json.loads(content)
            except ValueError as error:
                problems.append(f"{path} is no valid JSON: {error}")
    if "config.json" not in seen.files:
        problems.append("config.json is missing")
    elif "config.json" in documents and not isinstance(documents["config.json"], dict):
        problems.append("config.json holds no JSON object")
    for path, document in documents.items():
        if path == "config.json":
            continue
        weights = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(weights, dict):
            problems.append(f"{path} has no weight_map")
            continue
        base = path.rsplit("/", 1)[0] + "/" if "/" in path else ""
        absent = sorted({str(name) for name in weights.values()} - {p[len(base) :] for p in seen.files})
        if absent:
            problems.append(f"{path} names files that are not there: {shorten(absent)}")
    listed = parse_checksums(seen.kept.get(CHECKSUM_FILE, b"").decode("utf-8", "replace"))
    for path, sha256 in sorted(listed.items()):
        if path not in seen.files:
            problems.append(f"{CHECKSUM_FILE} lists {path}, which is not there")
        elif seen.files[path].sha256 != sha256:
            problems.append(f"{path} does not match {CHECKSUM_FILE}")
    return problems


def shorten(names: list[str], limit: int = 3) -> str:
    """Join names for a message; more than ``limit`` are counted."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    # Every host of a play asks for the same source at the same time: the first one reads, the others take its result.
    with open(path, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _cache_file(cache_dir: str, path: str, suffix: str) -> str:
    os.makedirs(cache_dir, mode=0o700, exist_ok=True)
    return os.path.join(cache_dir, hashlib.sha256(path.encode()).hexdigest()[:24] + suffix)


def _read_archive(path: str, cache_dir: str) -> tuple[Manifest, list[str]]:
    """Read an archive once per content (path, size and time) and remember its manifest and its problems."""
    stamp = [*_stamp(os.stat(path))]
    cached = _cache_file(cache_dir, path, ".archive.json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(cached, encoding="utf-8") as stream:
            raw = json.load(stream)
        if raw["stamp"] == stamp:
            files = {name: FileEntry(int(e[0]), str(e[1])) for name, e in raw["files"].items()}
            return files, [str(problem) for problem in raw["problems"]]
    seen = _inspect_archive(path)
    problems = judge(seen)
    sidecar = f"{path}.sha256"
    if os.path.isfile(sidecar):
        with open(sidecar, encoding="utf-8", errors="replace") as stream:
            wanted = re.match(r"[0-9a-fA-F]{64}", stream.read().strip())
        if wanted and wanted.group().lower() != hash_file(path):
            problems.append(f"it does not match {os.path.basename(sidecar)}")
            return seen.files, problems  # not remembered: the sidecar is not part of the stamp
    manifest = {name: [entry.size, entry.sha256] for name, entry in seen.files.items()}
    write_atomically(cached, json.dumps({"stamp": stamp, "files": manifest, "problems": problems}), 0o600)
    return seen.files, problems


def read_source(source: str, cache_dir: str) -> SourceReport:
    """Read a model's source on the controller: a directory or an archive.

    :param source: path of a directory or an archive
    :param cache_dir: directory for remembered hashes; made when absent
    :return: the manifest, and every problem in a form fit for a message (``what; what to do``)
    """
    report = SourceReport(name=model_name(source), path=source)
    if not source:
        report.problems.append("serve_model is empty; set it to the model's directory or archive on the controller")
        return report
    path = os.path.realpath(os.path.expanduser(source))
    report.path = path
    if not os.path.exists(path):
        if is_hub_id(source):
            hint = f"download it (hf download {source} --local-dir DIR) and set serve_model to that directory"
            report.problems.append(f"{source} is no path on the controller but reads like a Hugging Face model; {hint}")
        else:
            report.problems.append(f"model {source} does not exist on the controller; set serve_model to its path")
        return report
    if not os.path.isdir(path) and not path.lower().endswith(ARCHIVE_SUFFIXES):
        known = ", ".join(ARCHIVE_SUFFIXES)
        report.problems.append(f"model {source} is neither a directory nor an archive ({known}); unpack it first")
        return report
    if not report.name:
        report.problems.append(f"model {source} gives no usable name; rename its directory")
        return report
    try:
        with _locked(_cache_file(cache_dir, path, ".lock")):
            if os.path.isdir(path):
                remembered = _cache_file(cache_dir, path, ".json")
                before = load_memory(remembered)
                seen, memory = _inspect_directory(path, before)
                if memory != before:
                    write_atomically(remembered, json.dumps(memory), 0o600)
                report.files, problems = seen.files, judge(seen)
            else:
                report.kind = "archive"
                report.files, problems = _read_archive(path, cache_dir)
    except (OSError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        problems = [f"it cannot be read: {error}"]
    report.problems += [f"model {source}: {problem}; copy or download the model again" for problem in problems]
    return report


def unpack(report: SourceReport, cache_dir: str) -> str:
    """Return a directory with the model's files; an archive is unpacked below ``cache_dir`` once.

    Raises ``OSError``, ``ValueError`` or ``tarfile.TarError`` when the archive cannot be unpacked.
    """
    if report.kind == "directory":
        return report.path
    home = _cache_file(cache_dir, report.path, ".unpacked")
    target = os.path.join(home, hashlib.sha256(manifest_text(report.files).encode()).hexdigest()[:24])
    with _locked(_cache_file(cache_dir, report.path, ".lock")):
        if os.path.isdir(target):
            return target
        shutil.rmtree(home, ignore_errors=True)
        partial = f"{target}.partial"
        os.makedirs(partial)
        names: list[str] = []
        for raw, _size, stream in _members(report.path):
            path = _clean_member(raw)
            names.append(path)
            os.makedirs(os.path.dirname(os.path.join(partial, path)), exist_ok=True)
            with open(os.path.join(partial, path), "wb") as output:
                shutil.copyfileobj(stream, output, _CHUNK)
        os.replace(os.path.join(partial, common_top(names)), target)
        shutil.rmtree(partial, ignore_errors=True)
    return target


def compare(root: str, files: Mapping[str, FileEntry], memory: Memory, full: bool) -> Comparison:
    """Compare a node's directory with a manifest.

    :param root: the model's directory; one that is not there lacks every file
    :param files: the manifest
    :param memory: what an earlier run has hashed; used for files whose size and times are unchanged
    :param full: hash every file, whatever is remembered
    """
    corrupt, extra, hashed = [], [], 0
    remembered = Memory()
    for path, info in walk_files(root):
        entry = files.get(path)
        if entry is None:
            extra.append(path)
            continue
        known = memory.get(path)
        if info.st_size != entry.size:
            corrupt.append(path)
            continue
        if known and known[:3] == _stamp(info) and not full:
            sha256 = known[3]
        else:
            sha256 = hash_file(os.path.join(root, path))
            hashed += 1
        remembered[path] = (*_stamp(info), sha256)
        if sha256 != entry.sha256:
            corrupt.append(path)
    missing = sorted(set(files) - set(remembered) - set(corrupt))
    return Comparison(missing, sorted(corrupt), sorted(extra), remembered, hashed)


def remember(path: str, before: object, now: Memory | str) -> None:
    """Write a memory file when it is not what is there. Raises ``OSError``.

    :param before: what was read from it, or ``None`` to read it now
    """
    text = now if isinstance(now, str) else json.dumps(now)
    if before is None:
        with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as stream:
            if stream.read() == text:
                return
    elif before == now:
        return
    write_atomically(path, text)


def free_bytes(path: str) -> int:
    """Return the bytes that are free where ``path`` is or will be."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def read_config(path: str) -> str:
    """Return what keeps a directory from being a model, or an empty string."""
    config = os.path.join(path, "config.json")
    if not os.path.isdir(path):
        return f"{path} is no directory on this node"
    try:
        with open(config, encoding="utf-8") as stream:
            if isinstance(json.load(stream), dict):
                return ""
    except OSError as error:
        return f"{config} cannot be read: {error.strerror}"
    except ValueError:
        pass
    return f"{config} holds no JSON object"
