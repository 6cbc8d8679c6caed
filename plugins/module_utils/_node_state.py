# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is really on a node now: versions, images, running containers with their command lines, models.

Reads only. Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import glob
import hashlib
import http.client
import io
import json
import os
import platform
import tarfile
import typing as t
import urllib.parse

from . import _host, _model
from ._engine import EngineError
from ._fleet_lock import environment_without_secrets, without_secrets
from ._image import LABEL_VARIANT, LABEL_VERSIONS, content_id

DESCRIPTION: t.Final = "/etc/sparkfleet/image.json"
"""Where an image of ours says what is in it."""
OUR_LABEL: t.Final = _host.OUR_LABEL
UNITS: t.Final = ("etc/systemd/system/spark-ray.service", "etc/systemd/system/spark-vllm@*.service")
"""Units of ours that start containers."""

_EDGE = 1 << 20
"""Bytes at either end of a file that a quick look reads."""

Data = dict[str, t.Any]
_Known = t.Mapping[str, t.Any]


class Docker(t.Protocol):
    """What is asked of a Docker Engine; the methods raise EngineError."""

    def json(self, path: str) -> t.Any:
        """Return what the engine knows at `path`."""

    def inspect(self, name: str) -> Data | None:
        """Return what is known about an image, None where there is none."""

    def request(self, method: str, path: str) -> http.client.HTTPResponse:
        """Return the answer to one request."""


def read(
    engine: Docker,
    references: t.Iterable[str],
    models: t.Iterable[_Known],
    full: bool = False,
    containers: bool = True,
    root: str = "/",
) -> Data:
    """Return what is on this node.

    :param references: images by name or id; what each means now.
    :param models: each with ``name`` and ``path``, its directory here.
    :param full: hash every file of the models, whatever is remembered.
    :param containers: look at what runs, too.
    :return: ``host``, ``images``, ``containers``, ``models``, ``files``, and ``error``, why Docker could not be asked,
        empty where it could. What is not there is empty.
    """
    found: Data = {"images": {}, "containers": {}, "error": "", "files": unit_files(root) if containers else {}}
    docker_version = ""
    try:
        docker_version = str(engine.json("/version").get("Version") or "")
        found["images"] = {name: _image(engine, name) for name in dict.fromkeys(references) if name}
        if containers:
            found["containers"] = _containers(engine, root)
    except (EngineError, OSError, ValueError, KeyError, http.client.HTTPException) as error:
        found["error"] = " ".join(str(error).split()) or type(error).__name__
    found["host"] = host_fields(
        {
            "os": _host.os_release(),
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "gpu": _host.gpu(root),
            "docker": {"engine_version": docker_version},
            "firmware": _host.firmware(root),
        }
    )
    found["models"] = {str(model["name"]): model_state(str(model["path"]), full) for model in models if model["path"]}
    return found


def host_fields(facts: _Known) -> Data:
    """Return what counts of a host's versions, from what ``_host.read`` or its parts say; absent is empty."""
    return {
        "os": facts["os"]["name"],
        "kernel": facts["kernel"],
        "architecture": facts["architecture"],
        "driver": facts["gpu"]["driver_version"],
        "toolkit": facts["gpu"]["toolkit_version"],
        "docker": facts["docker"]["engine_version"],
        "firmware": dict(facts["firmware"]),
    }


# --- images and containers ------------------------------------------------------------------------------------------


def _image(engine: Docker, name: str) -> Data:
    """Return an image by name or id: its id, what is in it, and what its labels say; empty where there is none."""
    image = engine.inspect(name)
    if image is None:
        return {}
    return {"id": image["Id"], "content": content_id(image), "description": labelled(image)}


def labelled(image: _Known) -> Data:
    """Return what the labels of an image of ours say is in it, empty for an image of others."""
    labels = (image.get("Config") or {}).get("Labels") or {}
    versions = {
        name.removeprefix(LABEL_VERSIONS): value for name, value in labels.items() if name.startswith(LABEL_VERSIONS)
    }
    return {"variant": labels.get(LABEL_VARIANT, ""), "versions": versions} if versions else {}


def described(description: _Known) -> Data:
    """Return what counts of an image's own description."""
    versions = description.get("versions") or {}
    kernels, patches = description.get("kernels") or {}, description.get("patches") or {}
    return {
        "variant": description.get("variant") or "",
        "versions": {name: version for name, version in versions.items() if version},
        "kernels": {"version": kernels.get("version") or "", "sha256": kernels.get("sha256") or ""},
        "patches": {"applied": list(patches.get("applied") or []), "sha256": patches.get("sha256") or ""},
    }


def _containers(engine: Docker, root: str) -> Data:
    """Return our running containers by name."""
    chosen = urllib.parse.quote(json.dumps({"label": [OUR_LABEL]}))
    found = {}
    images: dict[str, Data | None] = {}
    descriptions: dict[str, Data] = {}
    for entry in engine.json(f"/containers/json?filters={chosen}"):
        container = engine.json(f"/containers/{entry['Id']}/json")
        name, image_id = str(container["Name"]).lstrip("/"), str(container["Image"])
        if image_id not in images:
            images[image_id] = engine.inspect(image_id)
            descriptions[image_id] = _description(engine, str(entry["Id"]))
        image = images[image_id]
        config = container.get("Config") or {}
        found[name] = {
            "image": image_id,
            # One that was removed by force runs on, and cannot be looked at.
            "content": content_id(image) if image else "",
            "description": descriptions[image_id],
            "arguments": server_arguments(int((container.get("State") or {}).get("Pid") or 0), root),
            "environment": own_environment(config.get("Env") or [], (image or {}).get("Config") or {}),
        }
    return found


def own_environment(given: t.Iterable[str], image: _Known) -> dict[str, str]:
    """Return the environment that a container got besides its image's, without what reads like a secret."""
    of_image = set(image.get("Env") or [])
    pairs = (entry.partition("=") for entry in given if entry not in of_image)
    return environment_without_secrets({name: value for name, _equals, value in pairs})


def _description(engine: Docker, container: str) -> Data:
    """Return what the image of a running container says of itself, empty for an image of others."""
    try:
        archive = engine.request("GET", f"/containers/{container}/archive?path={DESCRIPTION}").read()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(os.path.basename(DESCRIPTION))
            description = json.loads(file.read()) if file else {}
    except (EngineError, OSError, ValueError, KeyError, tarfile.TarError):
        return {}
    return described(description) if isinstance(description, dict) else {}


def server_arguments(pid: int, root: str = "/") -> list[str] | None:
    """Return what ``vllm serve`` was started with in a container, None where no such process is found.

    :param pid: the container's first process; the server may be a child of it.
    """
    waiting = [pid] if pid else []
    while waiting:
        process = waiting.pop(0)
        line = _text(os.path.join(root, f"proc/{process}/cmdline")).rstrip("\0").split("\0")
        for index, word in enumerate(line[1:], 1):
            if word == "serve" and os.path.basename(line[index - 1]) == "vllm":
                return without_secrets(line[index + 1 :])
        for children in glob.glob(os.path.join(root, f"proc/{process}/task/*/children")):
            waiting += [int(child) for child in _text(children).split()]
    return None


def unit_files(root: str = "/") -> dict[str, str]:
    """Return the SHA-256 of every file that says how our containers are started; there are no secrets in these."""
    patterns = (*UNITS, "etc/sparkfleet/*/*.env")
    paths = sorted(path for pattern in patterns for path in glob.glob(os.path.join(root, pattern)))
    return {"/" + os.path.relpath(path, root): _model.hash_file(path) for path in paths}


# --- models ---------------------------------------------------------------------------------------------------------


def model_state(path: str, full: bool = False) -> Data:
    """Return what is in a model's directory.

    A model that we brought has its manifest: files whose size and times are those that were remembered are not read.
    A model that somebody else put there is only looked at, unless ``full``.

    :return: ``path``; ``manifest``, the SHA-256 of the manifest of what is there, empty for a model not hashed;
        ``quick``, a digest of names, sizes and ends of the files, empty for one that was; ``files``, ``bytes``,
        ``revision`` where a download left it; ``error``, why it cannot be read.
    """
    state: Data = {"path": path, "manifest": "", "quick": "", "files": 0, "bytes": 0, "revision": "", "error": ""}
    ours = os.path.exists(f"{path}.sha256")
    if not os.path.isdir(path):
        return {**state, "error": f"{path} is not there"}
    memory = {} if full else _model.load_memory(f"{path}.verified.json")
    manifest: _model.Manifest = {}
    quick = hashlib.sha256()
    try:
        for name, info in _model.walk_files(path):
            file = os.path.join(path, name)
            known = memory.get(name)
            state["files"] += 1
            state["bytes"] += info.st_size
            if not (ours or full):
                quick.update(f"{name}\0{info.st_size}\0".encode("utf-8", "surrogateescape") + _ends(file))
            elif known and known[:3] == (info.st_size, info.st_mtime_ns, info.st_ctime_ns):
                manifest[name] = _model.FileEntry(info.st_size, known[3])
            else:
                manifest[name] = _model.FileEntry(info.st_size, _model.hash_file(file))
    except OSError as error:
        return {**state, "error": f"{error.filename or path} cannot be read ({error.strerror})"}
    state["revision"] = hub_revision(path)
    if ours or full:
        text = _model.manifest_text(manifest).encode("utf-8", "surrogateescape")
        return {**state, "manifest": hashlib.sha256(text).hexdigest()}
    return {**state, "quick": quick.hexdigest()}


def _ends(path: str) -> bytes:
    """Return the SHA-256 of the first and the last MiB of a file. Raises OSError."""
    with open(path, "rb") as stream:
        digest = hashlib.sha256(stream.read(_EDGE))
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(_EDGE, size - _EDGE))
        digest.update(stream.read(_EDGE))
    return digest.digest()


def hub_revision(path: str) -> str:
    """Return the commit that ``hf download --local-dir`` noted beside a model's files, empty where there is none."""
    note = _text(os.path.join(path, ".cache/huggingface/download/config.json.metadata")).splitlines()
    commit = note[0].strip() if note else ""
    return commit if len(commit) == 40 and all(digit in "0123456789abcdef" for digit in commit) else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
