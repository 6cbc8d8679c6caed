# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_manifest
short_description: Compare a model on a node with its source on the controller
version_added: "0.1.0"
description:
  - Reads the source on the controller (a directory or an archive), judges it, hashes its files, and compares the
    node's files with them in one call.
  - Hashes are remembered on both sides beside size and times, so that a converged run reads no weights.
  - Changes nothing on the node but its own memory of verified files beside the model.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Does the same and remembers nothing.
  diff_mode:
    support: N/A
    description: Changes nothing.
options:
  source:
    description:
      - Directory or archive on the controller, relative to the current directory or absolute.
      - Not used when O(path) is given and O(root) is not.
    type: str
    default: ""
  root:
    description: Directory on the node in which the model's own directory lies.
    type: path
  path:
    description: The model's directory on the node, for a model that is there already. Only its presence is checked.
    type: path
  files:
    description: The manifest, path to C([size, sha256]). Filled in from O(source).
    type: dict
  verify:
    description: Whether to trust remembered hashes of files whose size and times have not changed.
    type: str
    choices: [cached, full]
    default: cached
  required:
    description: Fail when something is wrong. Otherwise only say so.
    type: bool
    default: false
  unpack:
    description: Unpack an archive on the controller, so that its files can be copied.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Compare
  sparkfleet.vllm.model_manifest:
    source: /srv/models/qwen3
    root: /var/lib/sparkfleet/models
  register: model

- name: Check that a model is there
  sparkfleet.vllm.model_manifest:
    path: /models/qwen3
    required: true
"""

RETURN = r"""
path:
  description: The model's directory on the node.
  returned: always
  type: str
directory:
  description: Directory on the controller with the files to copy.
  returned: when O(unpack) is set
  type: str
transfer:
  description: Whether files must be copied or removed.
  returned: always
  type: bool
missing:
  description: Files that the node lacks.
  returned: when the node was read
  type: list
  elements: str
corrupt:
  description: Files that differ on the node.
  returned: when the node was read
  type: list
  elements: str
extra:
  description: Files that the source does not have.
  returned: when the node was read
  type: list
  elements: str
hashed:
  description: Files that were read in full on the node.
  returned: when the node was read
  type: int
problems:
  description: Everything that is wrong, as C(what; what to do).
  returned: always
  type: list
  elements: str
"""

import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model import (
    FileEntry,
    compare,
    free_bytes,
    load_memory,
    manifest_text,
    read_config,
    remember,
    shorten,
)


def check_present(path: str) -> dict[str, Any]:
    """Judge a model that somebody else put there."""
    problem = read_config(path)
    return {"problems": [f"model_path {problem}; put the model there or unset model_path"] if problem else []}


def check_files(module: AnsibleModule, path: str, files: dict[str, FileEntry]) -> dict[str, Any]:
    """Compare the node's directory with the manifest and remember what was read."""
    memory_path = f"{path}.verified.json"
    before = load_memory(memory_path)
    found = compare(path, files, before, module.params["verify"] == "full")
    if not module.check_mode and os.path.isdir(path):
        remember(memory_path, before, found.memory)
        if found.equal:
            # In the format of sha256sum, for people and for the role that serves the model.
            remember(f"{path}.sha256", None, manifest_text(files))
    problems = []
    if not found.equal:
        needed = sum(files[name].size for name in found.missing + found.corrupt)
        free = free_bytes(path)
        if needed > free:
            problems.append(
                f"the model needs {needed / 1e9:.1f} GB more in {os.path.dirname(path)}, {free / 1e9:.1f} GB are free; "
                "free some space or set model_root"
            )
        if shutil.which("rsync") is None:
            problems.append("rsync is not installed; apt install rsync")
        if module.params["required"]:
            wrong = shorten([f"{name} (missing)" for name in found.missing] + [f"{n} (differs)" for n in found.corrupt])
            wrong = wrong or shorten(found.extra)
            problems.append(f"{path} differs from the source: {wrong}; run site.yml again, then check the disk")
    return {
        "transfer": not found.equal,
        "missing": found.missing,
        "corrupt": found.corrupt,
        "extra": found.extra,
        "hashed": found.hashed,
        "problems": problems,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "default": ""},
            "root": {"type": "path"},
            "path": {"type": "path"},
            "files": {"type": "dict"},
            "verify": {"type": "str", "choices": ["cached", "full"], "default": "cached"},
            "required": {"type": "bool", "default": False},
            "unpack": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    path, files = module.params["path"], module.params["files"]
    if not path:
        module.fail_json(msg="either source and root or path must be given")
    result: dict[str, Any] = {"path": path, "transfer": False, "problems": []}
    try:
        if files is None:
            result.update(check_present(path))
        else:
            entries = {name: FileEntry(int(entry[0]), str(entry[1])) for name, entry in files.items()}
            result.update(check_files(module, path, entries))
    except OSError as error:
        result["problems"] = [f"{path} cannot be read: {error}; check the disk"]
    if result["problems"] and module.params["required"]:
        module.fail_json(msg=" | ".join(result["problems"]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
