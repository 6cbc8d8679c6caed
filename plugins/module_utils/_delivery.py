# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image gets from one node to others: which node gives it to which, and its layers as blobs.

A layer is compressed once and known by its diff ID from then on, so that an update moves only what changed. What is
read is checked against that ID, which Docker made, and what arrives against the digest of the compressed layer.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import typing as t
from dataclasses import asdict, dataclass, field

from ._image import LABEL_BUILD, STEP

REPOSITORY: t.Final = "sparkfleet/image"
"""Name of all images in the registry; the digest says which."""
SHARE_UNIT: t.Final = "spark-image-share.service"
"""Transient unit that serves the image while others fetch it."""
STORE_UNIT: t.Final = "spark-image-store.service"
"""Transient unit that takes new layers, on loopback, before that."""
REGISTRY_STORE: t.Final = "registry"
"""Directory under the image role's own where the registry keeps layers between runs."""
STREAM_STORE: t.Final = "stream"
"""The same for delivery without a registry."""
INCOMING: t.Final = "incoming"
"""Directory under the image role's own with what arrived of an image; an interrupted transfer goes on from it."""

INDEX_TYPE: t.Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: t.Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: t.Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: t.Final = "application/vnd.oci.image.layer.v1.tar+zstd"

STEP_BYTES: t.Final = 64_000_000
"""At least this much lies between two steps of a transfer; what is behind a step is not sent again."""
CHUNK: t.Final = 1 << 20

_MAGIC: t.Final = {b"\x28\xb5\x2f\xfd": LAYER_TYPE, b"\x1f\x8b": "application/vnd.oci.image.layer.v1.tar+gzip"}


class DeliveryError(Exception):
    """What is wrong and what to do, in one line."""


# --- who gives what to whom -----------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What has to happen in a cluster before all its nodes hold the same image."""

    source: str = ""
    """The node that has the wanted image; empty where none has."""
    content: str = ""
    """What is wanted."""
    lacking: list[str] = field(default_factory=list)
    """Nodes of the run without it."""
    images: dict[str, str] = field(default_factory=dict)
    """What each node that has it calls it."""
    problem: str = ""
    """One line where the nodes hold different images or none, empty where all is well."""


def plan(states: t.Mapping[str, t.Mapping[str, t.Any]], delivery: str) -> Plan:
    """Return what has to happen.

    `states` has what the module image_state said of each node of the cluster that is in the run, the head first: the
    first that has the image gives it to the others.
    """
    held = {node: state.get("image") or "" for node, state in states.items()}
    source = next((node for node, image in held.items() if image), "")
    if not source:
        return Plan(lacking=list(states))
    content = str(states[source]["contents"][held[source]])
    images = {}
    for node, state in states.items():
        same = [image for image, own in (state.get("contents") or {}).items() if own == content]
        if same:
            images[node] = held[node] if held[node] in same else same[0]
    lacking = [node for node in states if node not in images]
    other = {node: held[node] for node in states if held[node]}
    problem = ""
    if any(node in lacking for node in other):
        shown = ", ".join(f"{node} {states[node]['contents'][image][:19]}" for node, image in other.items())
        cure = "set image_delivery to registry" if delivery == "each" else "run site.yml without --tags and --limit"
        problem = f"the nodes hold different images ({shown}); {cure}"
    return Plan(source, content, lacking, images, problem)


# --- layers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """A file that is known by its SHA-256."""

    digest: str
    size: int
    type: str = LAYER_TYPE

    @property
    def descriptor(self) -> dict[str, t.Any]:
        """How a manifest names it."""
        return {"mediaType": self.type, "digest": self.digest, "size": self.size}


def blob_of(descriptor: t.Mapping[str, t.Any]) -> Blob:
    """Return the blob that a manifest names."""
    return Blob(str(descriptor["digest"]), int(descriptor["size"]), str(descriptor["mediaType"]))


@dataclass(frozen=True)
class Offer:
    """What the source tells the others over Ansible's connection, and they trust."""

    delivery: str
    address: str
    port: int
    content: str
    config: Blob
    diff_ids: list[str]
    layers: list[Blob]
    steps: list[str]
    """Digests of manifests in the registry, each of more layers than the one before; the last is the whole image."""

    def as_dict(self) -> dict[str, t.Any]:
        """Return plain data."""
        return asdict(self)


def read_offer(data: t.Mapping[str, t.Any]) -> Offer:
    """Return the offer of `as_dict`."""
    known = {**data, "config": Blob(**data["config"]), "layers": [Blob(**one) for one in data["layers"]]}
    return Offer(**known)


def run_watched(command: t.Sequence[str], every_s: float, tick: t.Callable[[], None]) -> tuple[int, str, str]:
    """Run a command that may take long, call `tick` every few seconds; return exit status, output and errors."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while True:
            try:
                out, err = run.communicate(timeout=every_s)
                return run.returncode, out, err
            except subprocess.TimeoutExpired:
                tick()


def sha256_of(data: bytes) -> str:
    """Return a digest as images write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def manifest_of(config: Blob, layers: t.Sequence[Blob]) -> bytes:
    """Return the manifest of an image; equal images give equal bytes."""
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def step_ends(sizes: t.Sequence[int], at_least: int = STEP_BYTES) -> list[int]:
    """Return after how many layers a step ends. More layers add ends and move none."""
    ends, since = [], 0
    for number, size in enumerate(sizes, 1):
        since += size
        if since >= at_least:
            ends.append(number)
            since = 0
    return ends


def step_config(config: bytes, layers: int, content: str) -> bytes:
    """Return the configuration of an image that is the first `layers` layers of another.

    Images that share layers share no step, so that the registry can forget those of one alone.
    """
    whole = json.loads(config)
    part = {
        "architecture": whole["architecture"],
        "os": whole["os"],
        "config": {"Labels": {LABEL_BUILD: STEP, f"{LABEL_BUILD}.of": content}},
        "rootfs": {"type": "layers", "diff_ids": whole["rootfs"]["diff_ids"][:layers]},
    }
    return json.dumps(part, sort_keys=True).encode()


def chain_ids(diff_ids: t.Sequence[str]) -> list[str]:
    """Return the chain ID of each layer, as the OCI image specification has it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(sha256_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains


class Overlay:
    """The layers of an image in Docker's overlay2 store, read one by one: `docker save` could only give all of them.

    Docker keeps beside each layer how its archive was put together (tar-split); the program of that name puts it
    together again, to the byte.
    """

    def __init__(self, docker_root: str, image: t.Mapping[str, t.Any]) -> None:
        self.diff_ids: list[str] = list(image["RootFS"]["Layers"])
        store = os.path.join(docker_root, "image", "overlay2")
        self._config = os.path.join(store, "imagedb", "content", *image["Id"].split(":"))
        self._layers = [os.path.join(store, "layerdb", *chain.split(":")) for chain in chain_ids(self.diff_ids)]
        self._root = docker_root

    def usable(self) -> bool:
        """Say whether everything is where it is looked for."""
        files = [self._config]
        for layer in self._layers:
            files += [os.path.join(layer, "cache-id"), os.path.join(layer, "tar-split.json.gz")]
        return bool(shutil.which("tar-split") and shutil.which("zstd")) and all(map(os.path.isfile, files))

    def config(self) -> bytes:
        """Return the image's configuration."""
        with open(self._config, "rb") as file:
            return file.read()

    def open(self, number: int) -> subprocess.Popen[bytes]:
        """Start a program that writes a layer's archive to its standard output."""
        layer = self._layers[number]
        with open(os.path.join(layer, "cache-id"), encoding="utf-8") as file:
            tree = os.path.join(self._root, "overlay2", file.read().strip(), "diff")
        command = ["tar-split", "asm", "--input", os.path.join(layer, "tar-split.json.gz"), "--path", tree]
        return subprocess.Popen([*command, "--output", "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


class Compressed:
    """What zstd makes of a stream, chunk by chunk, with the digests of both sides once it is read to the end."""

    def __init__(self, source: t.IO[bytes]) -> None:
        self.size = 0
        self._source = source
        self._raw, self._digest = hashlib.sha256(), hashlib.sha256()

    def __iter__(self) -> t.Iterator[bytes]:
        # Level 1 with all cores: faster than the links that it is for, and 3 % larger than level 3.
        command = ["zstd", "-1", "-T0", "--quiet", "--stdout"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packer:
            sink, compressed = t.cast("t.IO[bytes]", packer.stdin), t.cast("t.IO[bytes]", packer.stdout)
            feeder = threading.Thread(target=self._feed, args=(sink,), daemon=True)
            feeder.start()
            while chunk := compressed.read(CHUNK):
                self._digest.update(chunk)
                self.size += len(chunk)
                yield chunk
            feeder.join()
        if packer.returncode:
            raise DeliveryError(f"zstd ended with {packer.returncode}; see the free memory of the node")

    def _feed(self, sink: t.IO[bytes]) -> None:
        try:
            while chunk := self._source.read(CHUNK):
                self._raw.update(chunk)
                sink.write(chunk)
            sink.close()
        except OSError:
            return  # zstd is gone, which its reader says

    @property
    def diff_id(self) -> str:
        """Digest of what went in."""
        return f"sha256:{self._raw.hexdigest()}"

    @property
    def digest(self) -> str:
        """Digest of what came out."""
        return f"sha256:{self._digest.hexdigest()}"


class Store(t.Protocol):
    """Where layers are kept between runs."""

    def known(self) -> dict[str, Blob]:
        """Return the layers that are there, by diff ID."""

    def add(self, chunks: t.Iterable[bytes], digest: t.Callable[[], str]) -> int:
        """Keep a blob whose digest is known once it is read; return its size."""


def add_layers(source: Overlay, store: Store, done: t.Callable[[list[Blob]], None]) -> tuple[list[Blob], int]:
    """Bring the layers that a store lacks into it; return all, and the bytes that were new. Raises DeliveryError.

    `done` is called after each layer, with all layers up to it.
    """
    known = store.known()
    layers: list[Blob] = []
    new = 0
    for number, diff_id in enumerate(source.diff_ids):
        if diff_id not in known:
            known[diff_id] = _add_layer(source, number, store)
            new += known[diff_id].size
        layers.append(known[diff_id])
        done(layers)
    return layers, new


def _add_layer(source: Overlay, number: int, store: Store) -> Blob:
    """Compress one layer into a store; a layer that is not what its diff ID says does not get a digest there."""
    with source.open(number) as reader:
        packed = Compressed(t.cast("t.IO[bytes]", reader.stdout))

        def digest() -> str:
            if packed.diff_id != source.diff_ids[number]:
                raise DeliveryError(
                    f"layer {source.diff_ids[number][:19]} on the disk is not what Docker once stored; "
                    "remove the image on this node and run site.yml again"
                )
            return packed.digest

        size = store.add(packed, digest)
    return Blob(packed.digest, size)


# --- a directory of blobs -------------------------------------------------------------------------------------------


class Directory:
    """Blobs as files, with an index of their diff IDs; what rsync serves."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._index = os.path.join(path, "layers.json")
        os.makedirs(path, mode=0o755, exist_ok=True)

    def _images(self) -> list[dict[str, Blob]]:
        """Return the files of each image that is kept, newest first, by diff ID."""
        try:
            with open(self._index, encoding="utf-8") as file:
                return [{diff_id: Blob(**one) for diff_id, one in image.items()} for image in json.load(file)]
        except (OSError, ValueError, TypeError, AttributeError):
            return []

    def known(self) -> dict[str, Blob]:
        """Return the layers that are there, by diff ID."""
        listed = {diff_id: one for image in reversed(self._images()) for diff_id, one in image.items()}
        return {diff_id: one for diff_id, one in listed.items() if self._size(one.digest) == one.size}

    def keep(self, image: dict[str, Blob], before: int) -> None:
        """Remember an image's files and those of some images before it; remove every other file."""
        images = [image, *[one for one in self._images() if one != image][:before]]
        with open(f"{self._index}.new", "w", encoding="utf-8") as file:
            json.dump([{diff_id: asdict(one) for diff_id, one in own.items()} for own in images], file)
        os.replace(f"{self._index}.new", self._index)
        wanted = {file_name(one.digest) for own in images for one in own.values()} | {"layers.json"}
        for name in os.listdir(self.path):
            if name not in wanted:
                os.unlink(os.path.join(self.path, name))

    def _size(self, digest: str) -> int:
        try:
            return os.stat(os.path.join(self.path, file_name(digest))).st_size
        except OSError:
            return -1

    def add(self, chunks: t.Iterable[bytes], digest: t.Callable[[], str]) -> int:
        """Write a blob under another name, and rename it when it is whole."""
        part = os.path.join(self.path, "part")
        size = 0
        with open(part, "wb") as file:
            for chunk in chunks:
                size += file.write(chunk)
        os.chmod(part, 0o644)  # the unit that serves it runs as a user of its own
        os.replace(part, os.path.join(self.path, file_name(digest())))
        return size


def file_name(digest: str) -> str:
    """Return the name of a blob's file."""
    return digest.replace(":", "-")


def saved_layers(archive: t.IO[bytes], directory: Directory) -> tuple[bytes, list[str], list[Blob]]:
    """Take apart what `docker save` writes; return configuration, diff IDs and layers. Raises DeliveryError.

    For stores whose layers cannot be read one by one. Layers that are compressed already stay as they are.
    """
    known = directory.known()
    files: dict[str, Blob] = {}
    raw: dict[str, str] = {}
    small: dict[str, bytes] = {}
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            start = file.read(CHUNK)
            if len(start) < CHUNK and start[:1] in (b"{", b"["):
                small[member.name] = start
                continue
            kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
            whole = _Joined(start, file)
            if kind:
                hashed = hashlib.sha256()
                size = directory.add(_hashed(whole, hashed), lambda one=hashed: f"sha256:{one.hexdigest()}")  # type: ignore[misc]
                files[member.name] = Blob(f"sha256:{hashed.hexdigest()}", size, kind)
            else:
                packed = Compressed(t.cast("t.IO[bytes]", whole))
                size = directory.add(packed, lambda one=packed: one.digest)  # type: ignore[misc]
                files[member.name], raw[member.name] = Blob(packed.digest, size), packed.diff_id
    try:
        entry = json.loads(small["manifest.json"])[0]
        config = small[entry["Config"]]
        diff_ids = list(json.loads(config)["rootfs"]["diff_ids"])
        names = list(entry["Layers"])
        layers = [files.get(name) or known[diff_id] for name, diff_id in zip(names, diff_ids, strict=True)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DeliveryError("what docker save wrote is no image; run site.yml again") from error
    if any(raw.get(name, diff_id) != diff_id for name, diff_id in zip(names, diff_ids, strict=True)):
        raise DeliveryError(
            "a layer that docker save wrote is not what it says; remove the image and run site.yml again"
        )
    return config, diff_ids, layers


class _Joined(io.RawIOBase):
    """A stream whose first part was read already."""

    def __init__(self, start: bytes, rest: t.IO[bytes]) -> None:
        super().__init__()
        self._start, self._rest = start, rest

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        start, self._start = self._start, b""
        return start or self._rest.read(size)


def _hashed(stream: _Joined, digest: t.Any) -> t.Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        yield chunk


# --- archives for docker load ---------------------------------------------------------------------------------------


def here(offer: Offer, images: t.Iterable[t.Mapping[str, t.Any]]) -> int:
    """Return how many of the offered layers, from the first on, a node has in one of its images."""
    best = 0
    for image in images:
        count = 0
        for own, wanted in zip(image.get("RootFS", {}).get("Layers") or [], offer.diff_ids, strict=False):
            if own != wanted:
                break
            count += 1
        best = max(best, count)
    return best


def archive(offer: Offer, config: bytes, name: str, directory: str, skip: int) -> t.Iterator[bytes]:
    """Yield an archive for `docker load` that leaves out the first `skip` layers, which the engine has.

    It is both a Docker archive, which the overlay2 store reads, and an OCI layout for the containerd store. `name` has
    to be whole, with a registry's, as the latter completes none.
    """
    manifest = manifest_of(offer.config, offer.layers)
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    listed = {**Blob(sha256_of(manifest), len(manifest), MANIFEST_TYPE).descriptor, "annotations": annotations}
    layers = [_archive_path(layer.digest) for layer in offer.layers]
    docker = [{"Config": _archive_path(offer.config.digest), "RepoTags": [name], "Layers": layers}]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [listed]}
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        _archive_path(sha256_of(manifest)): manifest,
        _archive_path(offer.config.digest): config,
        "manifest.json": json.dumps(docker).encode(),
        "index.json": json.dumps(index).encode(),
    }
    for path, data in files.items():
        yield _archive_header(path, len(data)) + data + _padding(len(data))
    for layer, path in list(zip(offer.layers, layers, strict=True))[skip:]:
        yield _archive_header(path, layer.size)
        with open(os.path.join(directory, file_name(layer.digest)), "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        yield _padding(layer.size)
    yield b"\0" * 2 * tarfile.BLOCKSIZE


def _archive_path(digest: str) -> str:
    return f"blobs/sha256/{digest.split(':')[1]}"


def _archive_header(path: str, size: int) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
