# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: image_fetch
short_description: Fetch an image that another node offers
version_added: "0.1.0"
description:
  - Fetches those layers of an image that this node lacks from the node that M(sparkfleet.vllm.image_share) runs on, and
    gives the image its names.
  - Every layer is checked against its digest, and the whole against the content that was offered. Until then the names
    stay with the images that had them.
  - What an interrupted transfer brought is not sent again.
  - Progress, with rate and remaining time, goes to the journal as C(sparkfleet-image).
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Says that it would fetch and does nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  offer:
    description: What M(sparkfleet.vllm.image_share) returned.
    type: dict
    required: true
  names:
    description: Names that the image gets here.
    type: list
    elements: str
    required: true
  root:
    description: Directory of the image role on the node.
    type: path
    default: /var/lib/sparkfleet/image
"""

EXAMPLES = r"""
- name: Fetch the image
  sparkfleet.vllm.image_fetch:
    offer: "{{ hostvars['spark-01'].share.offer }}"
    names: [sparkfleet/vllm:cpu-0.32.0]
"""

RETURN = r"""
image:
  description: ID of the image on this node. Empty in check mode.
  returned: success
  type: str
received_bytes:
  description: Bytes that came over the network for it.
  returned: success
  type: int
seconds:
  description: How long it took.
  returned: success
  type: float
corrupted:
  description: Whether it failed because a layer was not what its digest says.
  returned: failure
  type: bool
"""

import os
import shutil
import syslog
import threading
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _delivery, _engine
from ansible_collections.sparkfleet.vllm.plugins.module_utils._delivery import (
    INCOMING,
    REPOSITORY,
    DeliveryError,
    Offer,
    file_name,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._engine import Engine, EngineError, Forwarder
from ansible_collections.sparkfleet.vllm.plugins.module_utils._image import content_id, file_sha256

ARRIVED = "localhost/sparkfleet/arrived:1"
"""Name that an image has here between its load and its check."""
REPORT_S = 5
"""Seconds between two lines of progress."""
PATIENCE_S = 60
"""Seconds without a byte after which a stream is given up."""


class Progress:
    """What has come so far, as lines of the journal."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.current: dict[str, int] = {}
        self.began = time.monotonic()
        self._reported = self.began
        syslog.openlog("sparkfleet-image")

    def seen(self, event: _engine.Event) -> None:
        """Take in what the engine says of a layer."""
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and "id" in event:
            self.current[event["id"]] = max(self.current.get(event["id"], 0), int(detail.get("current") or 0))
        self.report()

    def report(self, done: int | None = None) -> None:
        """Write a line when one is due."""
        now = time.monotonic()
        if now - self._reported < REPORT_S:
            return
        self._reported = now
        have = sum(self.current.values()) if done is None else done
        rate = have / (now - self.began)
        left = f", about {(self.total - have) / rate:.0f} s left" if rate and self.total > have else ""
        syslog.syslog(f"{have / 1e6:.0f} of {self.total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s{left}")


class Fetch:
    """One image on its way to this node."""

    def __init__(self, module: AnsibleModule, offer: Offer) -> None:
        self.module, self.offer = module, offer
        self.engine = Engine()
        self.progress = Progress(sum(one.size for one in offer.layers))
        self.incoming = os.path.join(module.params["root"], INCOMING)
        self.containerd = False
        self.images: list[dict[str, t.Any]] = []

    def present(self) -> dict[str, t.Any]:
        """Fetch, check and name the image; return the module's answer."""
        # Asking an image is cheaper than asking the engine, where there is one.
        known = [self.engine.inspect(one["Id"]) for one in self.engine.json("/images/json")]
        self.images = [one for one in known if one]
        drivers = {(one.get("GraphDriver") or {}).get("Name") for one in self.images}
        self.containerd = "overlay2" not in (drivers or {self.engine.json("/info").get("Driver")})
        if self.offer.delivery == "registry":
            image, received = self.pull()
        else:
            image, received = self.stream()
        for name in self.module.params["names"]:
            self.engine.tag(image, name)
        self.forget_names()
        shutil.rmtree(self.incoming, ignore_errors=True)
        seconds = time.monotonic() - self.progress.began
        syslog.syslog(f"{received / 1e6:.1f} MB in {seconds:.1f} s, {received / 1e6 / seconds:.1f} MB/s")
        return {"image": image, "received_bytes": received, "seconds": round(seconds, 2)}

    def checked(self, name: str) -> str:
        """Return the ID of an image that arrived, if it is the one that was offered."""
        found = self.engine.inspect(name)
        if found is None or content_id(found) != self.offer.content:
            raise DeliveryError("what arrived is not what was offered; run site.yml again")
        return str(found["Id"])

    # --- registry

    def pull(self) -> tuple[str, int]:
        """Pull through a port on loopback, all steps at once: the engine fetches what they share only once."""
        # The containerd store keeps layers of an interrupted pull by itself; others need the steps that they lack.
        steps = self.offer.steps[-1:]
        if not self.containerd:
            have = _delivery.here(self.offer, self.images)
            ends = _delivery.step_ends([one.size for one in self.offer.layers])
            between = zip(ends, self.offer.steps[:-1], strict=False)
            steps = [*(digest for end, digest in between if end > have), *steps]
        with Forwarder(self.offer.address, self.offer.port) as forwarder:
            name = f"127.0.0.1:{forwarder.port}/{REPOSITORY}"
            errors: list[EngineError] = []

            def step(digest: str) -> None:
                try:
                    self.engine.pull(name, digest, self.progress.seen)
                except EngineError as error:
                    errors.append(error)

            threads = [threading.Thread(target=step, args=(digest,), daemon=True) for digest in steps]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[-1]
            return self.checked(f"{name}@{steps[-1]}"), forwarder.received

    def forget_names(self) -> None:
        """Take away the names that only the transfer needed, also an earlier one."""
        for image in self.engine.json("/images/json"):
            for name in [*(image.get("RepoDigests") or []), *(image.get("RepoTags") or [])]:
                if name == ARRIVED or (name.startswith("127.0.0.1:") and f"/{REPOSITORY}@" in name):
                    self.engine.forget(name)

    # --- stream

    def stream(self) -> tuple[str, int]:
        """Fetch the files of the layers that no image here has, and load them."""
        skip = _delivery.here(self.offer, self.images)
        os.makedirs(self.incoming, mode=0o700, exist_ok=True)
        received = self.fetch(skip)
        try:
            self.load(skip)
        except EngineError:
            # The containerd store may have these layers otherwise compressed, which is another file to it.
            if not (self.containerd and skip):
                raise
            received += self.fetch(0)
            self.load(0)
        return self.checked(ARRIVED), received

    def load(self, skip: int) -> None:
        """Load what was fetched."""
        with open(os.path.join(self.incoming, file_name(self.offer.config.digest)), "rb") as file:
            config = file.read()
        self.engine.load(_delivery.archive(self.offer, config, ARRIVED, self.incoming, skip))

    def fetch(self, skip: int) -> int:
        """Fetch files until all are whole and right; return the bytes that came."""
        wanted = [self.offer.config, *self.offer.layers[skip:]]
        received = 0
        for attempt in range(2):
            received += self.rsync([file_name(one.digest) for one in wanted])
            wrong = [
                path
                for one in wanted
                for path in [os.path.join(self.incoming, file_name(one.digest))]
                if f"sha256:{file_sha256(path)}" != one.digest
            ]
            if not wrong:
                return received
            for path in wrong:  # what was left of an earlier transfer may be to blame
                os.unlink(path)
            if attempt:
                raise DeliveryError(f"{os.path.basename(wrong[0])[:19]} arrived corrupted (verification failed)")
        return received

    def rsync(self, names: list[str]) -> int:
        """Bring files from the other node, going on with what is there of them; return the bytes that came."""
        listing = os.path.join(self.incoming, "files")
        with open(listing, "w", encoding="utf-8") as file:
            file.write("\n".join(names) + "\n")
        host = f"[{self.offer.address}]" if ":" in self.offer.address else self.offer.address
        command = ["rsync", "--inplace", "--partial", "--no-motd", "--contimeout=10", f"--timeout={PATIENCE_S}"]
        command += ["--out-format=%b", f"--files-from={listing}"]
        command += [f"rsync://{host}:{self.offer.port}/image/", self.incoming]
        received, last = 0, time.monotonic()
        while True:
            before = self.size()
            rc, out, err = _delivery.run_watched(command, REPORT_S, lambda: self.progress.report(self.size()))
            grown = self.size() - before
            received += max(grown, sum(int(line) for line in out.split() if line.isdigit()))
            if rc == 0:
                return received
            if grown > 0:
                last = time.monotonic()
            said = (err.strip().splitlines() or [f"exit {rc}"])[0]
            # 10, 12, 30, 35: the other end is away; it may come back, and what is here stays.
            if rc not in (10, 12, 30, 35) or time.monotonic() - last > PATIENCE_S:
                raise DeliveryError(f"rsync: {said}")
            time.sleep(0.5)

    def size(self) -> int:
        """Return the bytes that are here."""
        return sum(one.stat().st_size for one in os.scandir(self.incoming))


def in_a_line(error: Exception, offer: Offer) -> str:
    """Return what happened, what is still as before, and what to do."""
    text = str(error)
    where = f"{offer.address}:{offer.port}"
    cure = "run site.yml again, it goes on from here"
    if "no space left" in text.lower():
        cure = "make room where Docker keeps images and run site.yml again"
    elif corrupted(text):
        cure = "the source makes its copy anew when site.yml is run again"
    elif "Docker does not answer" in text:
        cure = "start Docker and run site.yml again"
    elif "refused" in text or "EOF" in text:
        cure = f"see journalctl -u spark-image-share on {where} and run site.yml again"
    return f"the image did not come from {where} ({text}); what was here stays; {cure}"


def corrupted(text: str) -> bool:
    """Say whether an error is that of a layer that is not what its digest says."""
    signs = ("verification failed", "unexpected commit digest", "failed size validation", "failed precondition")
    return any(sign in text for sign in signs)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "offer": {"type": "dict", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "root": {"type": "path", "default": "/var/lib/sparkfleet/image"},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True, image="", received_bytes=0, seconds=0.0)
    offer = _delivery.read_offer(module.params["offer"])
    try:
        module.exit_json(changed=True, **Fetch(module, offer).present())
    except (DeliveryError, EngineError, OSError) as error:
        module.fail_json(msg=in_a_line(error, offer), corrupted=corrupted(str(error)))


if __name__ == "__main__":
    main()
