# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the registry, against a server that keeps blobs and manifests in memory."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _delivery, _registry
from ansible_collections.sparkfleet.vllm.plugins.module_utils._delivery import Blob


class Memory(ThreadingHTTPServer):
    """What the registry has."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.refuses = 0


class Handler(BaseHTTPRequestHandler):
    """As much of the distribution API as the client uses."""

    server: Memory
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do(self) -> None:
        data, path = self.body(), self.path
        match = re.fullmatch(r"/v2/sparkfleet/image/(blobs|manifests)/([^/]+)", path)
        if self.server.refuses:
            self.answer(self.server.refuses, b"disk on fire")
        elif path == "/v2/":
            self.answer(200)
        elif path.endswith("/tags/list"):
            self.answer(200, json.dumps({"tags": list(self.server.manifests) or None}).encode())
        elif path.endswith("/blobs/uploads/"):
            self.answer(202, Location="http://elsewhere:1/upload?state=1")
        elif self.command == "PATCH":
            self.server.blobs["part"] = data
            self.answer(202, Location="/upload?state=2")
        elif self.command == "PUT" and path.startswith("/upload?state="):
            digest = path.rsplit("=", 1)[1]
            whole = self.server.blobs.pop("part", b"") + data
            wrong = _delivery.sha256_of(whole) != digest
            self.server.blobs.update({} if wrong else {digest: whole})
            self.answer(400 if wrong else 201, b"digest invalid" if wrong else b"")
        elif match and self.command == "PUT":
            self.server.manifests[match[2]] = data
            self.answer(201)
        elif match and self.command == "DELETE":
            gone = [tag for tag, kept in self.server.manifests.items() if _delivery.sha256_of(kept) == match[2]]
            for tag in gone:
                del self.server.manifests[tag]
            self.answer(202)
        elif match:
            found = (self.server.blobs if match[1] == "blobs" else self.server.manifests).get(match[2])
            if found is None or (b'"manifests"' in found and "image.index" not in self.headers.get("Accept", "")):
                self.answer(404)
            else:
                self.answer(200, found, Docker_Content_Digest=_delivery.sha256_of(found))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do


@pytest.fixture
def server() -> Iterator[Memory]:
    """Return an empty registry."""
    with Memory() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(server: Memory) -> _registry.Registry:
    """Return a client of it."""
    return _registry.Registry("127.0.0.1", server.server_address[1])


def add_image(client: _registry.Registry, tag: str, layers: dict[str, bytes]) -> str:
    """Add an image of layers by diff ID; return its digest."""
    blobs = [Blob(client.add_bytes(data), len(data)) for data in layers.values()]
    config = json.dumps({"rootfs": {"diff_ids": list(layers)}}).encode()
    return client.add_manifest(_delivery.manifest_of(Blob(client.add_bytes(config), len(config)), blobs), tag)


def test_a_blob_is_sent_while_it_is_made(client: _registry.Registry, server: Memory) -> None:
    digest = _delivery.sha256_of(b"onetwo")
    assert client.answers()
    assert client.add(iter([b"one", b"two"]), lambda: digest) == 6
    assert server.blobs == {digest: b"onetwo"}
    assert client.has(digest) and not client.has("sha256:other")


def test_a_blob_under_a_wrong_digest_is_refused(client: _registry.Registry, server: Memory) -> None:
    with pytest.raises(_registry.RegistryError, match=r"answered 400 to PUT \(digest invalid\); see its journal"):
        client.add([b"data"], lambda: "sha256:wrong")
    assert server.blobs == {}


def test_the_layers_of_all_images_are_known_by_diff_id(client: _registry.Registry, server: Memory) -> None:
    add_image(client, "0000000001-a", {"d1": b"1", "d2": b"2"})
    add_image(client, "0000000002-b", {"d1": b"1", "d3": b"3"})
    client.add_manifest(b'{"manifests": []}', "0000000003-index")
    assert {name: one.digest for name, one in client.known().items()} == {
        f"d{name}": _delivery.sha256_of(name.encode()) for name in "123"
    }
    del server.blobs[_delivery.sha256_of(b"1")]
    assert set(client.known()) == {"d2", "d3"}


def test_an_index_leads_to_its_image(client: _registry.Registry) -> None:
    image = add_image(client, "0000000001-a", {"d1": b"1"})
    client.add_manifest(json.dumps(client.manifest("0000000001-a")[1]).encode(), image)
    other = {"digest": "sha256:other", "platform": {"architecture": "unknown"}}
    index = json.dumps({"manifests": [other, {"digest": image, "platform": {"architecture": "amd64"}}]}).encode()
    client.add_manifest(index, "0000000002-index")
    digest, manifest = client.image("0000000002-index")
    assert digest == _delivery.sha256_of(index)
    assert len(manifest["layers"]) == 1
    assert client.image("0000000001-a")[0] == image


def test_an_empty_registry_knows_nothing(client: _registry.Registry) -> None:
    assert client.known() == {}


def test_a_corrupted_configuration_is_one_line(client: _registry.Registry, server: Memory) -> None:
    add_image(client, "0000000001-a", {"d1": b"1"})
    for digest, data in server.blobs.items():
        if data.startswith(b"{"):
            server.blobs[digest] = b"{}"
    with pytest.raises(_registry.RegistryError, match="is corrupted"):
        client.known()


def test_an_image_is_removed_by_its_tag(client: _registry.Registry) -> None:
    add_image(client, "0000000001-a", {"d1": b"1"})
    add_image(client, "0000000002-b", {"d2": b"2"})
    client.remove_image("0000000001-a")
    client.remove_image("0000000001-a")  # was a step with the same manifest
    assert client.tags() == ["0000000002-b"]


def test_a_registry_that_is_gone_or_refuses_is_one_line(client: _registry.Registry, server: Memory) -> None:
    server.refuses = 507
    with pytest.raises(_registry.RegistryError, match=r"answered 507 to POST \(disk on fire\)"):
        client.add_bytes(b"data")
    gone = _registry.Registry("127.0.0.1", 1)
    assert not gone.answers()
    with pytest.raises(_registry.RegistryError, match="broke off"):
        gone.add([b"data"], lambda: "")


def test_the_images_that_were_offered_last_stay() -> None:
    tags = [
        _registry.image_tag(stamp, content * 20, step)
        for stamp, content in [(5, "a"), (7, "b"), (6, "c")]
        for step in (0, 3)
    ]
    again = [*tags, _registry.image_tag(9, "a" * 20)]
    assert _registry.surplus(tags, 2) == sorted(tags[:2])
    assert _registry.surplus(again, 2) == sorted(tags[4:])
    assert _registry.surplus(again, 3) == []


def test_the_configuration_listens_where_it_is_told() -> None:
    made = _registry.configuration("/store", "fd00::1", 6390, readonly=True)
    assert made["http"]["addr"] == "[fd00::1]:6390"
    assert made["storage"]["maintenance"]["readonly"]["enabled"] is True
    assert made["storage"]["filesystem"]["rootdirectory"] == "/store"
