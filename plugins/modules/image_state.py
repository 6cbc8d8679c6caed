# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: image_state
short_description: Compare the image on a node with the one that is wanted
version_added: "0.1.0"
description:
  - On the controller, works out the wanted image's build key from everything that goes into it, and checks the
    wheelhouse and the base image's archive.
  - On the node, asks the engine for images with that key, or for a given reference, in one call.
  - Says what is wrong instead of failing, so that the problems of all hosts can be shown at once.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing in either mode.
  diff_mode:
    support: N/A
    description: Changes nothing.
options:
  directory:
    description: Directory on the controller with the Dockerfile. Not needed with O(reference).
    type: path
  variant:
    description: Variant of the image.
    type: str
    choices: [cuda, cpu]
    default: cuda
  base:
    description: Name of the image to build on.
    type: str
    default: ""
  base_archive:
    description: File on the controller with that image, as C(docker save) writes it. Its name goes before O(base).
    type: str
    default: ""
  wheelhouse:
    description: Directory on the controller with the wheels of the lock. Empty when the build downloads them.
    type: str
    default: ""
  ca_file:
    description: File on the controller with the certificates that the build's downloads need.
    type: str
    default: ""
  kernels_wheel:
    description:
      - Wheel of the GPU kernels on the controller. Empty takes the collection's own where the variant needs
        them, V(none) leaves them out.
    type: str
    default: ""
  source:
    description:
      - What is built from source, with the image role's variables of these names without C(image_) as keys, among them
        C(mods). Empty for the wheels of the lock.
    type: dict
    default: {}
  reference:
    description: Image that must be there, by ID or name. Empty when it is built from O(directory).
    type: str
    default: ""
  tag:
    description: Name of the image on the node.
    type: str
    default: ""
  builds:
    description: Whether this node builds the image. The others get a copy.
    type: bool
    default: false
  min_disk_gb:
    description:
      - Free space in GB (10^9 bytes) that the node needs for a new image. V(0) stands for what the variant needs.
    type: float
    default: 0
  keep:
    description: How many images of ours stay beside the wanted one.
    type: int
    default: 1
  root:
    description: Directory of the image role on the node.
    type: path
    default: /var/lib/sparkfleet/image
  key:
    description: Build key of the wanted image. Filled in on the controller.
    type: str
    default: ""
  base_id:
    description: ID of the image in O(base_archive). Filled in on the controller.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Which images of this collection are here?
  sparkfleet.vllm.image_state:
    directory: "{{ role_path }}/../../files/image"
    variant: cpu
    base: debian:bookworm-slim
    tag: sparkfleet/vllm:cpu-0.32.0
  register: image

- name: Is this image here?
  sparkfleet.vllm.image_state:
    reference: registry.example/vllm@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  register: image
"""

RETURN = r"""
image:
  description: ID of the wanted image in this node's store, empty where the node lacks it.
  returned: always
  type: str
contents:
  description:
    - What identifies the content of each wanted image on all nodes, by its ID here. IDs differ between stores; equal
      contents are equal images.
  returned: always
  type: dict
named:
  description: Whether O(reference) as it stands names the image here.
  returned: always
  type: bool
tagged:
  description: Whether O(tag) names that image.
  returned: always
  type: bool
images:
  description: IDs of all images with the wanted key.
  returned: when the node was read
  type: list
  elements: str
removable:
  description:
    - All images that this collection built, of whatever key, and parts of them, by ID. One that has a name of somebody
      else's too is listed by our names, and not at all where it has no name of ours.
  returned: when the node was read
  type: list
  elements: str
surplus:
  description: IDs of those of them that nothing uses and O(keep) does not cover.
  returned: when the node was read
  type: list
  elements: str
packages:
  description: Packages of the registry that the node lacks.
  returned: when the node was read
  type: list
  elements: str
absence:
  description: Why O(reference) is not here and cannot be pulled, as C(what; what to do). Empty where it is or can.
  returned: always
  type: str
base_present:
  description: Whether the image of O(base_archive) is on the node.
  returned: always
  type: bool
leftovers:
  description: What an interrupted run left behind.
  returned: when the node was read
  type: list
  elements: str
engine_error:
  description: Why the engine did not answer, empty where it did.
  returned: when the node was read
  type: str
plan:
  description: Build key, base image, labels, build arguments, the kernels' wheel and the mods. Empty with O(reference).
  returned: always
  type: dict
problems:
  description: Everything that is wrong, as C(what; what to do).
  returned: always
  type: list
  elements: str
"""

import json
import os
import platform
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._delivery import SHARE_UNIT, STORE_UNIT
from ansible_collections.sparkfleet.vllm.plugins.module_utils._image import (
    LABEL_BUILD,
    TRANSFER,
    alias_of,
    content_id,
    named_by_others,
    removable,
    surplus,
)

PACKAGES = {"docker-registry": "docker-registry", "tar-split": "tar-split", "zstd": "zstd"}
"""What a registry on this node needs, by the program that shows that it is there."""


class Node:
    """The engine of this node, read through the docker command."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.docker = module.get_bin_path("docker")
        self.error = "" if self.docker else "the docker command is missing"

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run docker; return exit status, output, and the last line of what it complains about."""
        if self.docker is None:
            return 127, "", self.error
        rc, out, err = self.module.run_command([self.docker, *arguments])
        return rc, out, (err.strip().splitlines() or [""])[-1]

    def labelled(self, label: str) -> list[str]:
        """Return the IDs of the images with a label, newest first; remember an engine that does not answer."""
        rc, out, err = self.run("image", "ls", "--quiet", "--no-trunc", "--filter", f"label={label}")
        if rc:
            self.error = err or f"exit {rc}"
            return []
        return list(dict.fromkeys(out.split()))

    def inspect(self, *names: str) -> list[dict[str, t.Any]]:
        """Return what is known about those of the images that are there."""
        _rc, out, _err = self.run("image", "inspect", *names)
        found: list[dict[str, t.Any]] = json.loads(out or "[]")
        return found

    def used(self) -> set[str]:
        """Return the IDs of the images that containers use, running or not."""
        _rc, out, _err = self.run("container", "ls", "--all", "--quiet")
        if not out.split():
            return set()
        _rc, out, _err = self.run("container", "inspect", "--format", "{{.Image}}", *out.split())
        return set(out.split())

    def disk(self) -> tuple[str, int]:
        """Return where the engine keeps images, and the bytes free there."""
        _rc, out, _err = self.run("info", "--format", "{{.DockerRootDir}}")
        root = out.strip() or "/var/lib/docker"
        while not os.path.isdir(root):
            root = os.path.dirname(root)
        status = os.statvfs(root)
        return root, status.f_bavail * status.f_frsize


def leftovers(module: AnsibleModule, root: str) -> list[str]:
    """Return what a run that was interrupted while it built or copied left on this node."""
    found = []
    transfer = os.path.join(root, TRANSFER)
    if os.path.exists(transfer):
        found.append(transfer)
    units = [unit for unit in (SHARE_UNIT, STORE_UNIT) if os.path.exists(os.path.join("/run/systemd/transient", unit))]
    found += units
    return found


def read(module: AnsibleModule) -> dict[str, t.Any]:
    """Return what this node has of the wanted image."""
    key, base, reference, tag = (module.params[name] for name in ("key", "base_id", "reference", "tag"))
    node = Node(module)
    labelled = node.labelled(LABEL_BUILD)
    asked = [*labelled, *filter(None, [base])]
    known = node.inspect(*asked) if asked and not node.error else []
    ours = [one for one in known if one["Id"] in labelled]
    named = node.inspect(reference) if reference and not node.error else []
    if reference:
        wanted = named or (node.inspect(alias_of(reference)) if alias_of(reference) and not node.error else [])
        tagged = {one["Id"] for one in wanted}
    else:
        wanted = [
            one
            for one in known
            if key and (one["Config"].get("Labels") or {}).get(LABEL_BUILD) == key and not named_by_others(one, tag)
        ]
        tagged = {one["Id"] for one in wanted if tag in (one.get("RepoTags") or [])}
        wanted.sort(key=lambda one: (one["Id"] not in tagged, one["Id"]))
    images = list(dict.fromkeys(one["Id"] for one in wanted))
    image = images[0] if images else ""
    result = {
        "image": image,
        "images": images,
        "contents": {one["Id"]: content_id(one) for one in wanted},
        "tagged": bool(tagged),
        "named": bool(named),
        "base_present": base in {one["Id"] for one in known},
        "removable": removable(ours, tag),
        "surplus": surplus(ours, image, node.used(), module.params["keep"], tag) if len(ours) > 1 else [],
        "packages": [package for package, name in PACKAGES.items() if not module.get_bin_path(name)],
        "leftovers": leftovers(module, module.params["root"]),
        "engine_error": node.error,
        "machine": platform.machine(),
        "docker_root": "",
        "free_bytes": 0,
        "pull_error": "",
    }
    if not images and not node.error:
        result["docker_root"], result["free_bytes"] = node.disk()
        if reference:
            result["pull_error"] = pull_error(node, reference)
    return result


def pull_error(node: Node, reference: str) -> str:
    """Return why an image cannot be pulled, empty where it can; asks its registry for the manifest only."""
    if reference.startswith("sha256:"):
        return "an ID cannot be pulled"
    rc, _out, err = node.run("manifest", "inspect", reference)
    return (err or f"exit {rc}") if rc else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path"},
            "variant": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
            "base": {"type": "str", "default": ""},
            "base_archive": {"type": "str", "default": ""},
            "wheelhouse": {"type": "str", "default": ""},
            "ca_file": {"type": "str", "default": ""},
            "kernels_wheel": {"type": "str", "default": ""},
            "source": {"type": "dict", "default": {}},
            "reference": {"type": "str", "default": ""},
            "tag": {"type": "str", "default": ""},
            "builds": {"type": "bool", "default": False},
            "min_disk_gb": {"type": "float", "default": 0},
            "keep": {"type": "int", "default": 1},
            "root": {"type": "path", "default": "/var/lib/sparkfleet/image"},
            "key": {"type": "str", "default": "", "no_log": False},
            "base_id": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, plan={}, problems=[], absence="", **read(module))


if __name__ == "__main__":
    main()
