# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's Docker Engine through its socket, where the docker command hides what is needed: progress, and streams.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import threading
import typing as t
import urllib.parse

Event = t.Mapping[str, t.Any]
"""One line of what the engine says while it pulls, pushes or loads."""


class EngineError(Exception):
    """What the engine answered, in one line."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


def socket_path() -> str:
    """Return the engine's socket."""
    host = os.environ.get("DOCKER_HOST", "")
    return host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock"


class Engine:
    """The engine of this node. All methods raise EngineError."""

    def __init__(self, path: str = "") -> None:
        self.path = path or socket_path()

    def request(
        self, method: str, path: str, body: t.Any = None, headers: t.Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Return the answer to one request; the caller reads it."""
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}), encode_chunked=body is not None)
            response = connection.getresponse()
        except OSError as error:
            raise EngineError(f"Docker does not answer on {self.path} ({error.strerror or error})") from error
        if response.status >= 400:
            text = response.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["message"]
            raise EngineError(" ".join(text.split()) or f"Docker answered {response.status}")
        return response

    def json(self, path: str) -> t.Any:
        """Return what the engine knows at `path`."""
        return json.loads(self.request("GET", path).read())

    def inspect(self, name: str) -> dict[str, t.Any] | None:
        """Return what is known about an image, None where there is none."""
        try:
            return t.cast("dict[str, t.Any]", self.json(f"/images/{name}/json"))
        except EngineError as error:
            if "o such image" in str(error):
                return None
            raise

    def _follow(self, response: http.client.HTTPResponse, seen: t.Callable[[Event], None]) -> None:
        """Give each line of a stream to `seen`."""
        try:
            for line in response:
                event = json.loads(line)
                if "error" in event or "errorDetail" in event:
                    text = (event.get("errorDetail") or {}).get("message") or event.get("error")
                    raise EngineError(" ".join(str(text).split()))
                seen(event)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(f"Docker broke off ({error})") from error

    def pull(self, name: str, reference: str, seen: t.Callable[[Event], None]) -> None:
        """Pull `name` at a tag or digest."""
        query = urllib.parse.urlencode({"fromImage": name, "tag": reference})
        self._follow(self.request("POST", f"/images/create?{query}"), seen)

    def push(self, name: str, tag: str) -> None:
        """Push an image that has this name and tag."""
        headers = {"X-Registry-Auth": base64.urlsafe_b64encode(b"{}").decode()}
        self._follow(self.request("POST", f"/images/{name}/push?tag={tag}", headers=headers), lambda _event: None)

    def load(self, archive: t.Iterator[bytes]) -> None:
        """Load an archive that is made while it is sent."""
        response = self.request(
            "POST",
            "/images/load?quiet=1",
            body=archive,
            headers={"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"},
        )
        self._follow(response, lambda _event: None)

    def save(self, name: str) -> http.client.HTTPResponse:
        """Return the archive of an image as a stream."""
        return self.request("GET", f"/images/{name}/get")

    def tag(self, image: str, name: str) -> None:
        """Give an image a name; the image that had it loses it."""
        repository, tag = split_name(name)
        query = urllib.parse.urlencode({"repo": repository, "tag": tag})
        self.request("POST", f"/images/{image}/tag?{query}").read()

    def forget(self, name: str) -> None:
        """Take a name from an image, and remove the image if it has no other; no such name is no error."""
        try:
            self.request("DELETE", f"/images/{name}?noprune=false").read()
        except EngineError as error:
            if "o such image" not in str(error):
                raise


def split_name(name: str) -> tuple[str, str]:
    """Return repository and tag of an image's name."""
    repository, sep, tag = name.rpartition(":")
    if not sep or "/" in tag:
        return name, "latest"
    return repository, tag


class Forwarder:
    """A port on loopback that leads to another machine's, for as long as the context lasts.

    Docker talks HTTP to registries on loopback, and to no other without an entry in its configuration and a restart.
    """

    def __init__(self, address: str, port: int) -> None:
        self.target = (address, port)
        self.received = 0
        """Bytes that came from the other machine."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _peer = self._server.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(self.target, timeout=10)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        try:
            while data := source.recv(1 << 18):
                if count:  # before they are handed on: who has them all may ask for the sum
                    self.received += len(data)
                sink.sendall(data)
        except OSError:
            pass  # one end is gone, and with it the other
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
