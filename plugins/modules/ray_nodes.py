# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ray_nodes
short_description: Wait until every node of a Ray cluster is alive with its GPUs
version_added: "0.1.0"
description:
  - Reads Ray's state API on the head and needs no Ray package there.
  - Waits until each expected address is an ALIVE node with the wanted number of GPUs; nodes that died stay in Ray's
    lists and are left out.
  - Tells as well on which node each rank of a running vLLM server sits.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing. Reads once and does not wait in check mode.
  diff_mode:
    support: N/A
    description: Changes nothing.
options:
  url:
    description: The dashboard, seen from the host that the module runs on.
    type: str
    default: http://127.0.0.1:8265
  token_path:
    description: The file with Ray's authentication token. Empty when the cluster has none.
    type: path
  expected:
    description: Addresses of the nodes that must be there.
    type: list
    elements: str
    default: []
  gpus:
    description: GPUs that each of them must bring.
    type: float
    default: 0
  wait:
    description: Wait, and fail when the time is over. Otherwise read once and return what is there.
    type: bool
    default: true
  timeout:
    description: How long to wait, in seconds.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Wait for two nodes with one GPU each
  sparkfleet.vllm.ray_nodes:
    token_path: /etc/sparkfleet/atlas/ray-token
    expected: [192.168.177.11, 192.168.177.12]
    gpus: 1
  register: ray

- name: Show all GPUs of the cluster
  ansible.builtin.debug:
    msg: "{{ ray.nodes | community.general.json_query('sum([].gpus)') }}"
"""

RETURN = r"""
nodes:
  description: The living nodes, head first.
  returned: always
  type: list
  elements: dict
  sample: [{"address": "192.168.177.11", "head": true, "state": "ALIVE", "gpus": 1.0, "cpus": 20.0}]
ranks:
  description: The workers of a running vLLM server, by rank.
  returned: always
  type: list
  elements: dict
  sample: [{"actor": "vllm_Worker_0_TP0", "tp": 0, "address": "192.168.177.11"}]
missing:
  description: What is wrong, by address.
  returned: always
  type: dict
  sample: {"192.168.177.12": "has not joined"}
reachable:
  description: Whether Ray's API answered.
  returned: always
  type: bool
seconds:
  description: How long the module waited.
  returned: always
  type: float
raw:
  description: The API's own answers, under C(nodes) and C(actors).
  returned: when Ray's API answered
  type: dict
"""

import json
import time
import urllib.error
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.sparkfleet.vllm.plugins.module_utils._ray import RayNode, alive_nodes, ranks, shortfalls

INTERVAL_S = 2.0


def fetch(url: str, token: str) -> Any:
    """GET a JSON document; raises ``OSError`` or ``ValueError``."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with open_url(url, headers=headers, timeout=10, use_proxy=False) as answer:
        return json.loads(answer.read())


def read_token(path: str | None) -> str:
    """Return the token, or an empty string without a path; raises ``OSError``."""
    if not path:
        return ""
    with open(path, encoding="utf-8") as stream:
        return stream.read().strip()


def explain(error: Exception, url: str) -> str:
    """Say in a few words why the API did not answer."""
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
        return f"Ray at {url} refuses the token of this node's file"
    return f"Ray does not answer at {url}: {getattr(error, 'reason', None) or error}"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8265"},
            "token_path": {"type": "path"},
            "expected": {"type": "list", "elements": "str", "default": []},
            "gpus": {"type": "float", "default": 0},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    p = module.params
    wait = p["wait"] and not module.check_mode
    url, began = p["url"].rstrip("/"), time.monotonic()
    nodes: list[RayNode] = []
    raw: dict[str, Any] = {}
    while True:
        reason = ""
        try:
            token = read_token(p["token_path"])
            raw = {"nodes": fetch(f"{url}/api/v0/nodes?limit=1000", token)}
            nodes = alive_nodes(raw["nodes"])
        except (OSError, ValueError) as error:
            nodes, raw, reason = [], {}, explain(error, url)
        missing = shortfalls(p["expected"], p["gpus"], nodes)
        waited = time.monotonic() - began
        if not wait or (not missing and not reason) or waited >= p["timeout"]:
            break
        time.sleep(INTERVAL_S)
    found = []
    if raw:
        try:
            raw["actors"] = fetch(f"{url}/api/v0/actors?limit=1000", token)
            found = ranks(raw["actors"], nodes)
        except (OSError, ValueError) as error:
            module.warn(explain(error, url))
    result = {
        "nodes": [node.as_dict() for node in nodes],
        "ranks": [rank.as_dict() for rank in found],
        "missing": missing,
        "reachable": bool(raw),
        "seconds": round(waited, 1),
        "raw": raw,
    }
    if wait and (missing or reason):
        what = reason or "; ".join(f"{address} {problem}" for address, problem in missing.items())
        module.fail_json(msg=f"the Ray cluster is not complete after {waited:.0f} s: {what}", **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
