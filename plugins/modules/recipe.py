# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: recipe
short_description: Show what becomes of recipes for vLLM on Sparks
version_added: "0.1.0"
description:
  - Reads recipes of sparkrun (version 2) and spark-vllm-docker (version 1) as role serve does, and returns the
    variables and the C(vllm serve) command that follow, and all that is not honoured. The collection's
    C(docs/recipes.md) has the table of fields.
  - Contacts no node. This is an action plugin for a play on C(localhost), and it fails only where an argument is wrong;
    why a recipe cannot be served is in RV(problems).
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
  recipe:
    description:
      - A recipe's file on the controller. It is shown for every cluster of the inventory that C(--limit) leaves, in
        place of what they serve; without an inventory, for nodes that have only the variables of the command line.
      - Empty shows the recipes that the inventory names.
    type: str
    default: ""
  nodes:
    description:
      - Show O(recipe) for so many nodes without looking at the inventory. 0 takes the inventory's clusters, or without
        any as many nodes as the recipe needs.
    type: int
    default: 0
seealso:
  - module: sparkfleet.vllm.fleet
"""

EXAMPLES = r"""
- name: What would two Sparks do with it?
  sparkfleet.vllm.recipe:
    recipe: recipes/qwen3.yaml
    nodes: 2
  register: shown

- name: Show it
  ansible.builtin.debug:
    msg: "{{ shown.text }}"
"""

RETURN = r"""
models:
  description: Each model that has a recipe.
  returned: always
  type: list
  elements: dict
  contains:
    cluster:
      description: Name of its cluster.
      type: str
    name:
      description: Name of its unit.
      type: str
    recipe:
      description: The recipe's file.
      type: str
    nodes:
      description: The nodes that it runs on, the one with the API first.
      type: list
      elements: str
    variables:
      description: The variables of role serve that the recipe has values for, as they are in the end.
      type: dict
    overruled:
      description: What the recipe says for those that the inventory sets otherwise.
      type: dict
    commands:
      description: >-
        The command line on each node that starts one. The name of a node stands for its address on the fabric. Where
        no share of the memory is given, it is found when the model is admitted and stands on the command line then.
      type: list
      elements: dict
problems:
  description: Why recipes cannot be served, one C(who; what; what to do) line each.
  returned: always
  type: list
  elements: str
notes:
  description: What of the recipes is not honoured, one line each.
  returned: always
  type: list
  elements: str
text:
  description: The same as lines for a person.
  returned: always
  type: list
  elements: str
"""
