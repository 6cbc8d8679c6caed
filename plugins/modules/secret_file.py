# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: secret_file
short_description: Keep a secret in a file that only root reads
version_added: "0.1.0"
description:
  - Writes a secret, alone on one line, into a file, or makes a random one where none is wanted in particular.
  - Neither the result's diff nor the log shows the secret. Use C(no_log) on the task when O(generate) is used,
    because the result then carries it.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing and says what would change.
  diff_mode:
    support: partial
    description: Shows what a change would do.
    details:
      - The diff names the file and never its content.
options:
  path:
    description: The file. Its directory is made, for root only, when it is not there.
    type: path
    required: true
  value:
    description: The secret. Empty to take what the file holds, or to make one, see O(generate).
    type: str
    default: ""
  generate:
    description: Make a secret of 64 hexadecimal digits when O(value) is empty and the file is absent or empty.
    type: bool
    default: false
  rotate:
    description: Make a new secret even when the file holds one. Needs O(generate) and an empty O(value).
    type: bool
    default: false
  owner:
    description: Who owns the file, a name or a number, such as the user that a container runs as.
    type: str
    default: root
  group:
    description: The group of the file, a name or a number.
    type: str
    default: root
  mode:
    description: Permissions of the file.
    type: str
    default: "0600"
"""

EXAMPLES = r"""
- name: Make a token once
  sparkfleet.vllm.secret_file:
    path: /etc/sparkfleet/atlas/ray-token
    generate: true
  no_log: true
  register: token

- name: Keep the API key
  sparkfleet.vllm.secret_file:
    path: /etc/sparkfleet/atlas/api-key
    value: "{{ serve_api_key }}"
"""

RETURN = r"""
secret:
  description: The secret that the file holds; absent when it was given as O(value).
  returned: when O(value) is empty
  type: str
revision:
  description: Changes when the content does, and tells nothing of it. Empty in check mode when it would change.
  returned: always
  type: str
  sample: "1795000000000000000"
"""

import os
import secrets

from ansible.module_utils.basic import AnsibleModule


def read_secret(path: str) -> str | None:
    """Return the stripped content of a file, or ``None`` when it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "value": {"type": "str", "default": "", "no_log": True},
            "generate": {"type": "bool", "default": False},
            "rotate": {"type": "bool", "default": False},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0600"},
        },
        supports_check_mode=True,
    )
    # As it is read back: a key in PEM ends with a line feed.
    path, value = module.params["path"], module.params["value"].strip()
    try:
        current = read_secret(path)
        kept = "" if module.params["rotate"] and module.params["generate"] else current
        wanted = value or kept or (secrets.token_hex(32) if module.params["generate"] else "")
        if not wanted:
            module.fail_json(msg=f"{path} is empty or absent and no secret was given; give one")
        changed = current != wanted
        if changed and not module.check_mode:
            os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
            # Never for a moment readable by others: made with its mode, moved into place.
            temporary = f"{path}.{os.getpid()}.tmp"
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(f"{wanted}\n")
            os.replace(temporary, path)
        exists = os.path.exists(path)
        revision = "" if changed and module.check_mode else str(os.stat(path).st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{path} cannot be kept: {error}")
    state = {None: "absent", "": "empty"}.get(current, "another secret" if changed else "the secret")
    result = {"revision": revision, "diff": {"before": f"{path}: {state}\n", "after": f"{path}: the secret\n"}}
    if not value:
        result["secret"] = wanted
    if exists:
        changed = module.set_owner_if_different(path, module.params["owner"], changed)
        changed = module.set_group_if_different(path, module.params["group"], changed)
        changed = module.set_mode_if_different(path, module.params["mode"], changed)
    module.exit_json(changed=changed, **result)


if __name__ == "__main__":
    main()
