# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry on the head, as a client of the OCI distribution API sees it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import typing as t

from . import _delivery
from ._delivery import INDEX_TYPE, MANIFEST_TYPE, REPOSITORY, Blob, DeliveryError

_BINARY: t.Final = {"Content-Type": "application/octet-stream"}
_DOCKER: t.Final = "application/vnd.docker.distribution.manifest"
_ANY: t.Final = {"Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}, {_DOCKER}.v2+json, {_DOCKER}.list.v2+json"}
"""A registry shows an index only to those who name its type."""


class RegistryError(DeliveryError):
    """What the registry answered, in one line."""


def configuration(directory: str, address: str, port: int, readonly: bool) -> dict[str, t.Any]:
    """Return the registry's configuration; JSON is YAML too."""
    host = f"[{address}]" if ":" in address else address
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": directory},
            "cache": {"blobdescriptor": "inmemory"},
            "delete": {"enabled": True},
            "maintenance": {"readonly": {"enabled": readonly}},
        },
        "http": {"addr": f"{host}:{port}", "relativeurls": True},
    }


class Registry:
    """One repository of a registry without TLS. All methods raise RegistryError."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self._base = f"/v2/{REPOSITORY}"
        self._connection: http.client.HTTPConnection | None = None

    def _request(
        self, method: str, path: str, body: t.Any = None, headers: t.Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self._connection or http.client.HTTPConnection(self.address, self.port, timeout=600)
        self._connection = None
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            data = response.read()
            self._connection = connection  # an update is many small requests
            return response.status, response.headers, data
        except (OSError, http.client.HTTPException) as error:
            raise RegistryError(
                f"the registry on {self.address}:{self.port} broke off ({error or type(error).__name__}); "
                "see journalctl -u spark-image-share and the free disk space"
            ) from error
        finally:
            if self._connection is None:
                connection.close()

    def _wanted(
        self, status: int, method: str, path: str, body: t.Any = None, headers: t.Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        got, answered, data = self._request(method, path, body, headers)
        if got != status:
            said = " ".join(data.decode(errors="replace").split())[:200]
            raise RegistryError(
                f"the registry answered {got} to {method} ({said}); see its journal (spark-image-share) and the disk"
            )
        return answered, data

    def answers(self) -> bool:
        """Say whether it is up."""
        try:
            return self._request("GET", "/v2/")[0] == 200
        except RegistryError:
            return False

    def has(self, digest: str) -> bool:
        """Say whether a blob is there."""
        return self._request("HEAD", f"{self._base}/blobs/{digest}")[0] == 200

    def _where(self, answered: http.client.HTTPMessage, digest: str = "") -> str:
        location = answered["Location"]
        if "://" in location:
            location = "/" + location.split("://", 1)[1].split("/", 1)[1]
        return location + (f"{'&' if '?' in location else '?'}digest={digest}" if digest else "")

    def add(self, chunks: t.Iterable[bytes], digest: t.Callable[[], str]) -> int:
        """Send a blob while it is made; its digest comes last."""
        size = 0

        def counted() -> t.Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                size += len(chunk)
                yield chunk

        answered, _data = self._wanted(202, "POST", f"{self._base}/blobs/uploads/")
        answered, _data = self._wanted(202, "PATCH", self._where(answered), counted(), _BINARY)
        self._wanted(201, "PUT", self._where(answered, digest()))
        return size

    def add_bytes(self, data: bytes) -> str:
        """Send a small blob; return its digest."""
        digest = _delivery.sha256_of(data)
        answered, _data = self._wanted(202, "POST", f"{self._base}/blobs/uploads/")
        self._wanted(201, "PUT", self._where(answered, digest), data, _BINARY)
        return digest

    def add_manifest(self, manifest: bytes, tag: str) -> str:
        """Send a manifest under a tag; return its digest."""
        self._wanted(201, "PUT", f"{self._base}/manifests/{tag}", manifest, {"Content-Type": MANIFEST_TYPE})
        return _delivery.sha256_of(manifest)

    def manifest(self, reference: str) -> tuple[str, dict[str, t.Any]]:
        """Return digest and content of a manifest."""
        _answered, data = self._wanted(200, "GET", f"{self._base}/manifests/{reference}", headers=_ANY)
        return _delivery.sha256_of(data), json.loads(data)

    def image(self, reference: str) -> tuple[str, dict[str, t.Any]]:
        """Return digest and content of a manifest; of an index, its digest and the content of its image's manifest."""
        digest, content = self.manifest(reference)
        for one in content.get("manifests") or []:
            if (one.get("platform") or {}).get("architecture") != "unknown":  # that is what goes with an image
                return digest, self.manifest(one["digest"])[1]
        return digest, content

    def blob(self, digest: str) -> bytes:
        """Return a small blob, checked. Raises RegistryError where it is not what its digest says."""
        _answered, data = self._wanted(200, "GET", f"{self._base}/blobs/{digest}")
        if hashlib.sha256(data).hexdigest() != digest.split(":")[1]:
            raise RegistryError(f"{digest[:19]} in the registry is corrupted; it is removed, run site.yml again")
        return data

    def tags(self) -> list[str]:
        """Return all tags, sorted."""
        status, _headers, data = self._request("GET", f"{self._base}/tags/list")
        return sorted(json.loads(data).get("tags") or []) if status == 200 else []

    def known(self) -> dict[str, Blob]:
        """Return the layers that are there, by diff ID; read from the images that name them."""
        found: dict[str, Blob] = {}
        tags = self.tags()
        whole = {_content(tag) for tag in tags if "." not in tag}
        # Steps have nothing that their image has not; of an interrupted push there are only steps.
        for tag in [tag for tag in tags if "." not in tag or _content(tag) not in whole]:
            _digest, manifest = self.manifest(tag)
            if "layers" not in manifest:
                continue  # an index, which the engine pushed
            diff_ids = json.loads(self.blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"]
            found |= {
                diff_id: _delivery.blob_of(one)
                for diff_id, one in zip(diff_ids, manifest["layers"], strict=True)
                if diff_id not in found
            }
        return {diff_id: one for diff_id, one in found.items() if self.has(one.digest)}

    def remove_image(self, tag: str) -> None:
        """Remove a manifest; its layers go with the next garbage collection."""
        status, answered, _data = self._request("HEAD", f"{self._base}/manifests/{tag}", headers=_ANY)
        if status == 200:
            self._wanted(202, "DELETE", f"{self._base}/manifests/{answered['Docker-Content-Digest']}")


def image_tag(stamp: int, content: str, step: int = 0) -> str:
    """Return the tag of an image or a step: when it was offered last, and what it is."""
    return f"{stamp:010d}-{content.split(':')[-1][:16]}" + (f".{step}" if step else "")


def surplus(tags: t.Iterable[str], keep: int) -> list[str]:
    """Return the tags of all images but the `keep` that were offered last."""
    newest: dict[str, str] = {}
    for tag in sorted(tags):
        newest[_content(tag)] = tag.split("-")[0]
    order = sorted(newest, key=lambda content: (newest[content], content), reverse=True)
    return sorted(tag for tag in tags if _content(tag) in order[keep:])


def _content(tag: str) -> str:
    return tag.partition("-")[2].split(".")[0]


def size_of(directory: str) -> int:
    """Return the bytes of all files below a directory."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_size for folder, _folders, names in os.walk(directory) for name in names
    )
