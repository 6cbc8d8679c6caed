# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Read what is really on a node, and write it down
version_added: "0.1.0"
description:
  - Reads in one call what a node has now, which is versions of the host, what images mean, our running containers with
    the command lines of their servers, and models; and the node's fleet lock, the file that says what was proven.
  - With O(state=present) it writes the lock, where that differs from what is there.
  - What reads like a secret in arguments or environments is hidden on the node.
  - The fleet lock has nothing to do with M(sparkfleet.vllm.run_lock), which keeps two runs from changing a node at
    once.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    description: Reads the same, and writes nothing.
    support: full
  diff_mode:
    description: Shows the lock before and after.
    support: full
options:
  state:
    description: Whether to write the lock, or only to read.
    type: str
    choices: [read, present]
    default: read
  path:
    description: The lock.
    type: path
    default: /etc/sparkfleet/lock.json
  node:
    description: The node's name in the inventory, for O(state=present).
    type: str
    default: ""
  cluster:
    description: The name of its cluster, for O(state=present).
    type: str
    default: ""
  reference:
    description: The image as C(docker run) is given it. Empty means the one in the lock.
    type: str
    default: ""
  tag:
    description: Name of the images that are built. Empty means the one in the lock.
    type: str
    default: ""
  models:
    description:
      - Models of the node, elements of the fact C(spark_cluster.models) with C(path) being the directory on the node.
        With O(state=read), without any, those in the lock.
    type: list
    elements: dict
    default: []
  verify:
    description: Whether to trust remembered hashes of files whose size and times have not changed.
    type: str
    choices: [cached, full]
    default: cached
  containers:
    description: Whether to look at what runs, too.
    type: bool
    default: true
seealso:
  - module: sparkfleet.vllm.model_manifest
"""

EXAMPLES = r"""
- name: Read what is there
  sparkfleet.vllm.fleet_lock:
  register: __drift

- name: Write down what was proven
  sparkfleet.vllm.fleet_lock:
    state: present
    node: "{{ inventory_hostname }}"
    cluster: atlas
    reference: "{{ image_ref }}"
"""

RETURN = r"""
lock:
  description: The lock, as it is after the call; in check mode as it would be. Empty where there is none.
  returned: always
  type: dict
  contains:
    schema:
      description: Version of this format.
      type: int
      sample: 1
    changed:
      description: When the lock last changed, in UTC.
      type: str
      sample: "2026-11-24T10:00:00Z"
    node:
      description: The node's name in the inventory.
      type: str
    cluster:
      description: The name of its cluster.
      type: str
    host:
      description:
        - Versions of the host, namely C(os), C(kernel), C(architecture), C(driver), C(toolkit), C(docker), and
          C(firmware) by board. Empty where there is none.
      type: dict
    image:
      description:
        - The image, as C(reference), C(tag), C(id), and C(content), which is equal for equal images in every store.
        - Also what it says of itself, C(variant), C(versions), C(kernels) and C(patches).
      type: dict
    models:
      description:
        - The models of the node, each with C(name), C(source), C(revision), C(path), C(manifest_sha256) or
          C(quick_sha256), C(executor), the sizes, C(nodes), C(leader), the C(arguments) of the server on this node, and
          the C(settings) of the inventory.
      type: list
      elements: dict
    environment:
      description: The environment of each of our containers besides its image's.
      type: dict
    files:
      description: SHA-256 of each file that says how containers are started.
      type: dict
lock_error:
  description: Why the file that was there is no lock, empty where it is one or where there is none.
  returned: always
  type: str
found:
  description: What is on the node now.
  returned: always
  type: dict
  contains:
    error:
      description: Why Docker could not be asked, empty where it could.
      type: str
    host:
      description: As in RV(lock).
      type: dict
    images:
      description: What each image means now, as C(id), C(content) and C(description). Empty for none.
      type: dict
    containers:
      description:
        - Our running containers by name, each with C(image), C(content), C(description), C(arguments) and
          C(environment).
      type: dict
    models:
      description: The models by name, each with C(manifest) or C(quick), C(files), C(bytes), C(revision), C(error).
      type: dict
    files:
      description: As in RV(lock).
      type: dict
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _engine, _fleet_lock, _node_state
from ansible_collections.sparkfleet.vllm.plugins.module_utils._files import read_text, write_atomically


def read_lock(path: str) -> tuple[str, dict[str, Any], str]:
    """Return the text of the lock, the lock, and why it is none."""
    try:
        text = read_text(path)
        return text or "", _fleet_lock.parse(text) if text is not None else {}, ""
    except OSError as error:
        return "", {}, f"it cannot be read, {error.strerror}"
    except ValueError as error:
        return text or "", {}, str(error)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "present"], "default": "read"},
            "path": {"type": "path", "default": _fleet_lock.PATH},
            "node": {"type": "str", "default": ""},
            "cluster": {"type": "str", "default": ""},
            "reference": {"type": "str", "default": ""},
            "tag": {"type": "str", "default": ""},
            "models": {"type": "list", "elements": "dict", "default": []},
            "verify": {"type": "str", "choices": ["cached", "full"], "default": "cached"},
            "containers": {"type": "bool", "default": True},
        },
        required_if=[("state", "present", ("node", "cluster"))],
        supports_check_mode=True,
    )
    given = module.params
    path = given["path"]
    text, before, error = read_lock(path)
    image = before.get("image") or {}
    references = [given["reference"] or image.get("reference", ""), given["tag"] or image.get("tag", "")]
    models = given["models"] if given["models"] or given["state"] == "present" else before.get("models", [])
    found = _node_state.read(
        _engine.Engine(), references, models, given["verify"] == "full", containers=given["containers"]
    )
    if given["state"] == "read":
        module.exit_json(changed=False, lock=before, lock_error=error, found=found)
    if found["error"]:
        module.fail_json(msg=f"{given['node']}: {found['error']}; see `systemctl status docker` there", found=found)
    wanted, problems = _fleet_lock.compose(
        given["node"], given["cluster"], given["reference"], given["tag"], given["models"], found
    )
    if problems and not module.check_mode:
        module.fail_json(msg="".join(f"{given['node']}: {line}\n" for line in problems), found=found)
    lock, changed = _fleet_lock.dated(before, wanted, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    if changed and not module.check_mode:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_atomically(path, _fleet_lock.text_of(lock))
        except OSError as failed:
            module.fail_json(msg=f"{given['node']}: {path} cannot be written ({failed.strerror}); become root there")
    after = _fleet_lock.text_of(lock) if changed else text
    diff = {"before": text, "after": after, "before_header": path, "after_header": path}
    module.exit_json(changed=changed, lock=lock, lock_error=error, found=found, diff=diff)


if __name__ == "__main__":
    main()
