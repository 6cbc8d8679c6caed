# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: env_file
short_description: Write a mapping as an environment file for containers
version_added: "0.1.0"
author: sparkfleet.vllm authors (@sparkfleet)
description:
  - One C(NAME=value) per line, sorted by name, as C(docker run --env-file) reads it. Empty values are left out.
options:
  _input:
    description: Names and values.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Write an environment file
  ansible.builtin.copy:
    dest: /etc/sparkfleet/atlas/ray.env
    content: "{{ {'RAY_PORT': 6379} | sparkfleet.vllm.env_file }}"
    mode: "0640"
"""

RETURN = r"""
_value:
  description: The file's content.
  type: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _units


def env_file(values: Mapping[str, object]) -> str:
    """Return the environment file, with Ansible's kind of error."""
    try:
        return _units.env_file(values)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter's face."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"env_file": env_file}
