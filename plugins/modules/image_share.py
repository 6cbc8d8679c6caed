# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: image_share
short_description: Offer an image to other nodes while they fetch it
version_added: "0.1.0"
description:
  - Brings the layers of an image that a store on this node lacks into it, compressed with zstd, and serves the store on
    one address, for reading only, by a transient systemd unit that runs as a user of its own and ends by itself after
    O(max_seconds).
  - With O(delivery=registry) the store is a registry (C(docker-registry)), with O(delivery=stream) a directory that
    C(rsync) serves.
  - The store stays between runs, so that the next image adds only what is new. Older images than O(keep) are removed.
  - With O(state=absent), stops the unit and removes what only a build or a delivery needed; also what an interrupted
    run left of them.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Says what it would do and does nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  state:
    description: Whether the image is served, or nothing is left of that.
    type: str
    choices: [present, absent]
    default: present
  delivery:
    description: By what it is served.
    type: str
    choices: [registry, stream]
    default: registry
  image:
    description: ID or name of the image. Required when O(state=present).
    type: str
  content:
    description: What identifies the image's content on all nodes. Required when O(state=present).
    type: str
  address:
    description: Address of this node to listen on. Required when O(state=present).
    type: str
  port:
    description: TCP port to listen on, and on loopback while layers are added.
    type: int
    default: 6390
  keep:
    description: How many images before this one the store keeps.
    type: int
    default: 1
  purge:
    description: With O(state=absent), remove the stores too.
    type: bool
    default: false
  root:
    description: Directory of the image role on the node.
    type: path
    default: /var/lib/sparkfleet/image
  max_seconds:
    description: Seconds after which the unit ends by itself.
    type: int
    default: 7200
"""

EXAMPLES = r"""
- name: Offer the image
  sparkfleet.vllm.image_share:
    image: sparkfleet/vllm:cpu-0.32.0
    content: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    address: 192.168.177.11
  register: share

- name: Stop that
  sparkfleet.vllm.image_share:
    state: absent
"""

RETURN = r"""
offer:
  description: What M(sparkfleet.vllm.image_fetch) needs. Empty in check mode.
  returned: when O(state=present)
  type: dict
added_bytes:
  description: Compressed size of the layers that the store lacked.
  returned: when O(state=present)
  type: int
total_bytes:
  description: Compressed size of all layers.
  returned: when O(state=present)
  type: int
seconds:
  description: How long it took until others could fetch.
  returned: when O(state=present)
  type: float
by:
  description: What read the layers. C(layers) one by one, C(docker push) or C(docker save) all of them.
  returned: when O(state=present)
  type: str
removed:
  description: What was removed.
  returned: when O(state=absent)
  type: list
  elements: str
"""

import errno
import json
import os
import shutil
import socket
import syslog
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _delivery, _engine, _registry
from ansible_collections.sparkfleet.vllm.plugins.module_utils._delivery import (
    REGISTRY_STORE,
    SHARE_UNIT,
    STORE_UNIT,
    STREAM_STORE,
    Blob,
    DeliveryError,
    Offer,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._image import TRANSFER

START_S = 30
"""Seconds within which a unit has to answer."""
COLLECT = "collect"
"""File in the registry's store that says that there is something to remove from it."""
STATE = "/var/lib"
"""Where systemd keeps the directories of units with users of their own."""


class Share:
    """The unit, and the store that it serves."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.root = module.params["root"]
        self.transfer = os.path.join(self.root, TRANSFER)
        self.address, self.port = module.params["address"], module.params["port"]
        self.engine = _engine.Engine()
        self.by = "layers"

    # --- the unit

    def run(self, *command: str) -> str:
        """Run a command; fail with its last line where it fails."""
        rc, out, err = self.module.run_command(list(command))
        if rc:
            said = (err.strip() or out.strip() or f"exit {rc}").splitlines()[-1]
            raise DeliveryError(f"{command[0]} {command[1]} failed: {said}")
        return str(out)

    def loaded(self) -> list[str]:
        """Return those of our units that systemd still knows, running or failed."""
        known = self.run("systemctl", "show", "--property=LoadState", SHARE_UNIT, STORE_UNIT).split()
        return [
            unit for unit, state in zip((SHARE_UNIT, STORE_UNIT), known, strict=False) if state == "LoadState=loaded"
        ]

    def remove(self, purge: bool) -> list[str]:
        """Remove what is there; return its names."""
        removed = self.loaded()
        if removed and not self.module.check_mode:
            self.run("systemctl", "stop", *removed)
        self.collect()
        stores = [os.path.join(self.root, name) for name in (REGISTRY_STORE, STREAM_STORE)] if purge else []
        for path in [self.transfer, *stores]:
            real = os.path.realpath(path)  # systemd puts a link where a unit has a user of its own
            if os.path.lexists(path):
                removed.append(path)
            if self.module.check_mode:
                continue
            if os.path.isdir(real):
                shutil.rmtree(real)
            if os.path.islink(path):
                os.unlink(path)
                parent = os.path.dirname(real)
                while parent.startswith(f"{STATE}/private/") and not os.listdir(parent):
                    os.rmdir(parent)
                    parent = os.path.dirname(parent)
        return removed

    def check_listen(self, address: str) -> None:
        """Fail in one line where the address is not here or the port is taken."""
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, self.port))
        except OSError as error:
            reason = f"cannot listen on {address}:{self.port} ({error.strerror}); check the fabric address"
            if error.errno == errno.EADDRINUSE:
                reason = f"port {self.port} of {address} is taken; stop what uses it or set image_share_port"
            raise DeliveryError(reason) from error

    def collect(self) -> None:
        """Remove layers that no image in the registry's store names any more, which nobody uses now."""
        store = os.path.join(self.root, REGISTRY_STORE)
        due = os.path.join(store, COLLECT)
        program = self.module.get_bin_path("docker-registry")
        if self.module.check_mode or not program or not os.path.exists(due):
            return
        text = json.dumps(_registry.configuration(store, "127.0.0.1", 0, readonly=False))
        self.run(program, "garbage-collect", self.write("registry.yml", text))
        os.unlink(due)

    def start(self, unit: str, properties: t.Mapping[str, str], *command: str) -> None:
        """Start a unit."""
        given = {
            "DynamicUser": "yes",
            "User": SHARE_UNIT.removesuffix(".service"),  # of both units, as they share a store
            "NoNewPrivileges": "yes",
            "ProtectSystem": "strict",
            "ProtectHome": "yes",
            "PrivateTmp": "yes",
            "RuntimeMaxSec": str(self.module.params["max_seconds"]),
            # A transfer goes on where it was when the program is back.
            "Restart": "on-failure",
            "RestartSec": "1",
            "SuccessExitStatus": "20 143",  # rsync ends with 20 when it is stopped
            **properties,
        }
        self.run(
            "systemd-run",
            f"--unit={unit}",
            "--description=Image for the other nodes of the cluster",
            "--collect",
            "--quiet",
            *(f"--property={name}={value}" for name, value in given.items()),
            *command,
        )

    def wait(self, unit: str, up: t.Callable[[], bool]) -> None:
        """Wait until a unit answers."""
        deadline = time.monotonic() + START_S
        while not up():
            if time.monotonic() > deadline:
                raise DeliveryError(f"{unit} does not answer; see journalctl -u {unit}")
            time.sleep(0.005)

    def write(self, name: str, text: str) -> str:
        """Write a file that the unit reads; return its path."""
        os.makedirs(self.transfer, mode=0o755, exist_ok=True)
        path = os.path.join(self.transfer, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)
        return path

    def say(self, text: str) -> None:
        """Write a line to the journal, where an owner can follow it."""
        syslog.openlog("sparkfleet-image")
        syslog.syslog(text)

    # --- the image

    def source(self, image: dict[str, t.Any]) -> _delivery.Overlay | None:
        """Return what reads single layers, None where the store does not allow it."""
        driver = image.get("GraphDriver") or {}
        root, found, _tree = ((driver.get("Data") or {}).get("UpperDir") or "").rpartition("/overlay2/")
        if driver.get("Name") != "overlay2" or not found:
            return None
        overlay = _delivery.Overlay(root, image)
        return overlay if overlay.usable() else None

    def registry(self, image: dict[str, t.Any], content: str) -> tuple[Offer, int]:
        """Push what the registry lacks on loopback, while another one serves the address for reading only."""
        program = self.module.get_bin_path("docker-registry")
        if not program:
            raise DeliveryError("docker-registry is missing; install the package, or set image_delivery to stream")
        directory = os.path.join(self.root, REGISTRY_STORE)
        self.check_listen("127.0.0.1")
        self._start_registry(STORE_UNIT, program, directory, "127.0.0.1", readonly=False)
        self._start_registry(SHARE_UNIT, program, directory, self.address, readonly=True)
        client = _registry.Registry("127.0.0.1", self.port)
        self.wait(STORE_UNIT, client.answers)
        stamp = int(time.time())
        source = self.source(image)
        if source:
            offer, new = self._push_layers(client, source, content, stamp)
        else:
            offer, new = self._push_by_engine(client, image, content, stamp)
        old = _registry.surplus(client.tags(), self.module.params["keep"] + 1)
        for tag in old:
            client.remove_image(tag)
        if old:  # their layers go when nobody fetches any more
            with open(os.path.join(directory, COLLECT), "w", encoding="utf-8"):
                pass
        self.run("systemctl", "stop", STORE_UNIT)
        self.wait(SHARE_UNIT, _registry.Registry(self.address, self.port).answers)
        return offer, new

    def _start_registry(self, unit: str, program: str, directory: str, address: str, readonly: bool) -> None:
        text = json.dumps(_registry.configuration(directory, address, self.port, readonly))
        state = os.path.relpath(directory, STATE)
        self.start(unit, {"StateDirectory": state}, program, "serve", self.write(f"{unit}.yml", text))

    def _push_layers(
        self, client: _registry.Registry, source: _delivery.Overlay, content: str, stamp: int
    ) -> tuple[Offer, int]:
        config = source.config()
        steps: list[str] = []

        def done(layers: list[Blob]) -> None:
            number = len(layers)
            self.say(f"layer {number} of {len(source.diff_ids)} is ready, {layers[-1].size / 1e6:.1f} MB")
            # What is behind a step need not be sent again after an interruption, by either side.
            if number < len(source.diff_ids) and number in _delivery.step_ends([one.size for one in layers]):
                part = _delivery.step_config(config, number, content)
                steps.append(self._add_image(client, part, layers, _registry.image_tag(stamp, content, number)))

        layers, new = _delivery.add_layers(source, client, done)
        steps.append(self._add_image(client, config, layers, _registry.image_tag(stamp, content)))
        blob = Blob(_delivery.sha256_of(config), len(config), _delivery.CONFIG_TYPE)
        return self._offer(blob, source.diff_ids, layers, steps), new

    def _add_image(self, client: _registry.Registry, config: bytes, layers: list[Blob], tag: str) -> str:
        blob = Blob(client.add_bytes(config), len(config), _delivery.CONFIG_TYPE)
        return client.add_manifest(_delivery.manifest_of(blob, layers), tag)

    def _push_by_engine(
        self, client: _registry.Registry, image: dict[str, t.Any], content: str, stamp: int
    ) -> tuple[Offer, int]:
        """Let the engine push: its containerd store has the layers compressed, and knows which ones were pushed."""
        self.by = "docker push"
        directory = os.path.join(self.root, REGISTRY_STORE)
        before = _registry.size_of(os.path.realpath(directory))
        tag = _registry.image_tag(stamp, content)
        name = f"127.0.0.1:{self.port}/{_delivery.REPOSITORY}"
        self.engine.tag(image["Id"], f"{name}:{tag}")
        try:
            self.engine.push(name, tag)
        finally:
            self.engine.forget(f"{name}:{tag}")
        digest, manifest = client.image(tag)
        layers = [_delivery.blob_of(one) for one in manifest.get("layers") or []]
        blob = _delivery.blob_of(manifest["config"]) if "config" in manifest else Blob(digest, 0)
        offer = self._offer(blob, list(image["RootFS"]["Layers"]), layers, [digest])
        return offer, max(0, _registry.size_of(os.path.realpath(directory)) - before)

    def stream(self, image: dict[str, t.Any]) -> tuple[Offer, int]:
        """Write what the directory lacks, then serve it."""
        program = self.module.get_bin_path("rsync")
        if not program:
            raise DeliveryError("rsync is missing; install the package, or set image_delivery to registry")
        if not self.module.get_bin_path("zstd"):
            raise DeliveryError("zstd is missing; install the package, or set image_delivery to registry")
        self.check_listen(self.address)
        directory = _delivery.Directory(os.path.join(self.root, STREAM_STORE))
        before = directory.known()
        source = self.source(image)
        if source:
            config, diff_ids = source.config(), source.diff_ids
            layers, new = _delivery.add_layers(source, directory, lambda _layers: None)
        else:
            self.by = "docker save"
            with self.engine.save(image["Id"]) as archive:
                config, diff_ids, layers = _delivery.saved_layers(t.cast("t.IO[bytes]", archive), directory)
            known = {one.digest for one in before.values()}
            new = sum(one.size for one in layers if one.digest not in known)
        blob = Blob(_delivery.sha256_of(config), len(config), _delivery.CONFIG_TYPE)
        directory.add([config], lambda: blob.digest)
        directory.keep({"config": blob, **dict(zip(diff_ids, layers, strict=True))}, self.module.params["keep"])
        lines = ["use chroot = no", "read only = yes", "[image]", f"path = {directory.path}", ""]
        self.start(
            SHARE_UNIT,
            {},
            *(program, "--daemon", "--no-detach", f"--address={self.address}", f"--port={self.port}"),
            *(f"--config={self.write('rsyncd.conf', chr(10).join(lines))}", "--log-file=/dev/null"),
        )
        self.wait(SHARE_UNIT, self._accepts)
        return self._offer(blob, diff_ids, layers, []), new

    def _accepts(self) -> bool:
        try:
            with socket.create_connection((self.address, self.port), timeout=5):
                return True
        except OSError:
            return False

    def _offer(self, config: Blob, diff_ids: list[str], layers: list[Blob], steps: list[str]) -> Offer:
        given = self.module.params
        return Offer(given["delivery"], self.address, self.port, given["content"], config, diff_ids, layers, steps)

    def present(self) -> dict[str, t.Any]:
        """Offer the image; return the module's answer."""
        began = time.monotonic()
        left = self.loaded()
        if left:
            self.run("systemctl", "stop", *left)
        self.check_listen(self.address)
        image = self.engine.inspect(self.module.params["image"])
        if image is None:
            raise DeliveryError(f"{self.module.params['image']} is not on this node; run site.yml again")
        if self.module.params["delivery"] == "registry":
            offer, new = self.registry(image, self.module.params["content"])
        else:
            offer, new = self.stream(image)
        total = sum(one.size for one in offer.layers)
        seconds = time.monotonic() - began
        self.say(f"{new / 1e6:.1f} of {total / 1e6:.1f} MB were new, ready after {seconds:.1f} s")
        return {"offer": offer.as_dict(), "added_bytes": new, "total_bytes": total, "seconds": round(seconds, 2)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "delivery": {"type": "str", "choices": ["registry", "stream"], "default": "registry"},
            "image": {"type": "str"},
            "content": {"type": "str"},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 6390},
            "keep": {"type": "int", "default": 1},
            "purge": {"type": "bool", "default": False},
            "root": {"type": "path", "default": "/var/lib/sparkfleet/image"},
            "max_seconds": {"type": "int", "default": 7200},
        },
        required_if=[("state", "present", ("image", "content", "address"))],
        supports_check_mode=True,
    )
    share = Share(module)
    try:
        if module.params["state"] == "absent":
            removed = share.remove(module.params["purge"])
            module.exit_json(changed=bool(removed), removed=removed)
        if module.check_mode:
            module.exit_json(changed=True, offer={}, added_bytes=0, total_bytes=0, seconds=0.0, by="")
        module.exit_json(changed=True, **share.present(), by=share.by)
    except (DeliveryError, _engine.EngineError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        cure = "make room" if error.errno == errno.ENOSPC else "see the node's journal"
        module.fail_json(msg=f"{error.strerror or error} ({error.filename or 'while the layers were read'}); {cure}")


if __name__ == "__main__":
    main()
