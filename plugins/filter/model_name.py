# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: model_name
short_description: Name a model after its directory, archive or repository
version_added: "0.1.0"
author: sparkfleet.vllm authors (@sparkfleet)
description:
  - Returns the last part of a path without an archive's suffix, fit for a unit, a container and a directory.
options:
  _input:
    description: Path or repository of the model.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show a model's name
  ansible.builtin.debug:
    msg: "{{ '/srv/models/qwen3.tar.gz' | sparkfleet.vllm.model_name }}" # qwen3
"""

RETURN = r"""
_value:
  description: The name.
  type: str
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.sparkfleet.vllm.plugins.module_utils._model import model_name


class FilterModule:
    """The filter's face."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"model_name": model_name}
