# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: memory_plan
short_description: Compute whether a model fits into the memory of Sparks, on how many, and with which settings
version_added: "0.1.0"
description:
  - Reads C(config.json), and where they are there the weights' index or sizes and C(hf_quant_config.json), from a
    directory where it runs. It reads no weights, contacts nobody and needs no GPU.
  - RV(plan) answers for 1 to O(max_sparks) Sparks. RV(admission) is the verdict on exactly the O(settings) given, with
    the sums and with the nearest settings that fit.
  - What is counted and how is in the collection's C(docs/memory.md).
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing.
  diff_mode:
    support: N/A
    description: Changes nothing.
options:
  model:
    description: The model's directory.
    type: path
    required: true
  settings:
    description: What vLLM would be started with. What is left out, or 0, is vLLM's own choice.
    type: dict
    suboptions:
      tensor_parallel_size:
        description: Nodes that share the tensors of a layer. Counts for RV(admission) only.
        type: int
        default: 1
      pipeline_parallel_size:
        description: Groups of nodes that share the layers. Counts for RV(admission) only.
        type: int
        default: 1
      data_parallel_size:
        description: Copies of the model that work together.
        type: int
        default: 1
      max_model_len:
        description: Tokens of context; 0 is the model's own limit.
        type: int
        default: 0
      max_num_seqs:
        description: Sequences of a step.
        type: int
        default: 0
      max_num_batched_tokens:
        description: Tokens of a step.
        type: int
        default: 0
      gpu_memory_utilization:
        description:
          - Share of the memory that vLLM may take. 0 is the most that leaves the node room, for RV(admission) at most
            vLLM's default, 0.92.
        type: float
        default: 0.0
      kv_cache_memory_bytes:
        description: Bytes of the KV cache on each node; 0 is what the share leaves.
        type: int
        default: 0
      kv_cache_dtype:
        description: How the KV cache is stored.
        type: str
        default: auto
      dtype:
        description: How the weights and activations are stored that are not quantised.
        type: str
        default: auto
      block_size:
        description: Tokens of a block of the KV cache.
        type: int
        default: 0
      enforce_eager:
        description: Whether vLLM goes without CUDA graphs.
        type: bool
        default: false
      executor:
        description: What spreads the ranks; V(none) on a single node.
        type: str
        choices: [ray, mp, none]
        default: none
      shm_bytes:
        description: Size of the containers' shared memory, a limit of what of it counts; 0 is none.
        type: int
        default: 0
      object_store_bytes:
        description: Size of Ray's object store; 0 is Ray's default, 30 % of the memory.
        type: int
        default: 0
      device:
        description: What the image computes on.
        type: str
        choices: [cuda, cpu]
        default: cuda
  node:
    description: A node. All nodes are taken for equal.
    type: dict
    suboptions:
      memory:
        description: Its C(MemTotal), in bytes; 0 is a DGX Spark's.
        type: int
        default: 0
      other:
        description: Bytes that other models take there.
        type: int
        default: 0
      os:
        description: Bytes of the operating system and its services; 0 is 8 GiB, or an eighth of a small node.
        type: int
        default: 0
      free:
        description: Bytes that have to stay free; 0 is 3 GiB, or a sixteenth of a small node.
        type: int
        default: 0
  max_sparks:
    description: How many Sparks RV(plan) goes up to.
    type: int
    default: 8
"""

EXAMPLES = r"""
- name: How many Sparks does it need?
  sparkfleet.vllm.memory_plan:
    model: ~/models/gpt-oss-120b
  delegate_to: localhost
  register: memory

- name: Show it
  ansible.builtin.debug:
    msg: "{{ memory.text }}"

- name: Would these settings fit?
  sparkfleet.vllm.memory_plan:
    model: ~/models/gpt-oss-120b
    settings:
      tensor_parallel_size: 2
      executor: ray
      max_model_len: 65536
      gpu_memory_utilization: 0.8
  delegate_to: localhost
  register: memory
  failed_when: not memory.admission.fits
"""

RETURN = r"""
plan:
  description: The answer for each number of Sparks.
  returned: success
  type: dict
  contains:
    fits:
      description: Whether the wanted context fits on any of them.
      type: bool
    verdict:
      description: The answer in a line.
      type: str
    sparks:
      description: The number of Sparks to choose; null where nothing fits.
      type: int
    variables:
      description: What to write into the inventory.
      type: dict
    rows:
      description: One entry for each number of Sparks, sizes in bytes on a node.
      type: list
      elements: dict
text:
  description: The same as lines for a person.
  returned: success
  type: list
  elements: str
admission:
  description: The verdict on the settings as they are given.
  returned: success
  type: dict
  contains:
    fits:
      description: Whether vLLM would start and the node would hold it.
      type: bool
    lines:
      description: The sums, one to a line.
      type: list
      elements: str
    reason:
      description: Why it does not fit; empty if it does.
      type: str
    advice:
      description: The nearest settings that fit; empty if these do.
      type: str
    need_bytes:
      description: What has to be free on each node before the start, the leader first.
      type: list
      elements: int
    gpu_memory_utilization:
      description: The share that was asked for or chosen; 0 where none fits, and on a CPU.
      type: float
    need_bytes_per_node:
      description: The most of need_bytes.
      type: int
    takes_bytes_per_node:
      description: The same without what has to stay free, for another model that is to share the node.
      type: int
    max_model_len:
      description: The longest context that vLLM would start with.
      type: int
    bytes:
      description: The single sums.
      type: dict
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._admission import SPARK_BYTES, Node, admit, settled
from ansible_collections.sparkfleet.vllm.plugins.module_utils._memory_plan import plan
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model import is_hub_id
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_config import ModelError, read_model
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_memory import Settings

NUMBERS = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "block_size",
    "shm_bytes",
    "object_store_bytes",
)
SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"type": "int", "default": 1} for name in SIZES},
    **{name: {"type": "int", "default": 0} for name in NUMBERS},
    # Tokens of text and no secret.
    "max_num_batched_tokens": {"type": "int", "default": 0, "no_log": False},
    "gpu_memory_utilization": {"type": "float", "default": 0.0},
    "kv_cache_dtype": {"type": "str", "default": "auto"},
    "dtype": {"type": "str", "default": "auto"},
    "enforce_eager": {"type": "bool", "default": False},
    "executor": {"type": "str", "default": "none", "choices": ["ray", "mp", "none"]},
    "device": {"type": "str", "default": "cuda", "choices": ["cuda", "cpu"]},
}
NODE = {name: {"type": "int", "default": 0} for name in ("memory", "other", "os", "free")}


def wrong_values(settings: dict[str, Any], node: dict[str, Any], max_sparks: int) -> str:
    """Return what is wrong with the numbers, or an empty string."""
    low = [name for name in SIZES if settings[name] < 1] + [name for name in NUMBERS if settings[name] < 0]
    if low or not 0 <= settings["gpu_memory_utilization"] <= 1:
        return f"{(low or ['gpu_memory_utilization'])[0]} is out of its range"
    if any(value < 0 for value in node.values()):
        return "the node's sizes cannot be negative"
    return "" if max_sparks > 0 else "max_sparks has to be 1 or more"


def not_a_directory(model: str) -> str:
    """Return what a person should do about a model that is none, or an empty string."""
    if os.path.isdir(model):
        return ""
    if os.path.exists(model):
        return f"{model} is no directory; unpack it, or give the directory that holds its config.json"
    # A name on Hugging Face is two parts that look like a path, which a playbook may have made absolute.
    parent, name = os.path.split(model.rstrip("/"))
    hub = f"{os.path.basename(parent)}/{name}"
    if is_hub_id(hub) and not os.path.isdir(parent):
        return (
            f"{model} is no directory here; if {hub} is a name on Hugging Face, download its config.json and "
            "model.safetensors.index.json and give their directory"
        )
    return f"{model or 'an empty name'} is no directory; give the one that holds the model's config.json"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "path", "required": True},
            "settings": {"type": "dict", "apply_defaults": True, "options": SETTINGS},
            "node": {"type": "dict", "apply_defaults": True, "options": NODE},
            "max_sparks": {"type": "int", "default": 8},
        },
        supports_check_mode=True,
    )
    directory, settings, node = module.params["model"], module.params["settings"], module.params["node"]
    problem = not_a_directory(directory) or wrong_values(settings, node, module.params["max_sparks"])
    if problem:
        module.fail_json(msg=problem)
    asked, each = Settings(**settings), Node(**{**node, "memory": node["memory"] or SPARK_BYTES})
    try:
        model = read_model(directory)
        table = plan(model, asked, each, module.params["max_sparks"])
        exact = settled(model, asked, each)
        verdict = admit(model, exact, each)
    except ModelError as error:
        module.fail_json(msg=str(error))
    share = exact.gpu_memory_utilization
    admission = {**verdict.report(), "gpu_memory_utilization": share}
    module.exit_json(changed=False, plan=table.report(), text=table.text(), admission=admission)


if __name__ == "__main__":
    main()
