# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: completion
short_description: Wait until a model really answers
version_added: "0.1.0"
description:
  - Sends a chat completion to an OpenAI-compatible server until one comes back with tokens in it. A server's health
    page is not proof enough, since engines die on their first request.
  - Stops waiting early when the server's unit has failed or keeps dying, and says why with the journal's words.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Changes nothing. Tries once and does not wait or fail in check mode.
  diff_mode:
    support: N/A
    description: Changes nothing.
options:
  url:
    description: The server's base, without C(/v1).
    type: str
    required: true
  model:
    description: The served model's name.
    type: str
    required: true
  api_key_path:
    description: File with the API key on the host that the module runs on.
    type: path
  ca_path:
    description: Certificate in PEM that the server's is checked against, on the host that the module runs on.
    type: path
  prompt:
    description: What to ask.
    type: str
    default: Say hello.
  max_tokens:
    description: Tokens to ask for at most.
    type: int
    default: 16
  wait:
    description: Wait, and fail when no completion comes. Otherwise try once and return what came.
    type: bool
    default: true
  timeout:
    description: How long to wait, in seconds.
    type: int
    default: 900
  request_timeout:
    description: How long a single request may take, in seconds.
    type: int
    default: 120
  unit:
    description: The systemd unit that runs the server on this host.
    type: str
    default: ""
  state_path:
    description: File in which the supervisor of O(unit) keeps its state.
    type: path
  max_restarts:
    description: Automatic restarts that are tolerated while waiting, whether systemd or the supervisor makes them.
    type: int
    default: 2
  expect_unauthorized:
    description: Make sure as well that the server answers 401 to a request without a key and to one with a wrong key.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Wait for the first completion
  sparkfleet.vllm.completion:
    url: http://10.0.0.11:8888
    model: qwen3
    api_key_path: /etc/sparkfleet/atlas/api-key
    unit: spark-vllm@qwen3.service
    expect_unauthorized: true
  register: answer
"""

RETURN = r"""
ready:
  description: Whether a completion came.
  returned: always
  type: bool
id:
  description: The completion's ID.
  returned: when a completion came
  type: str
model:
  description: The model that answered.
  returned: when a completion came
  type: str
text:
  description: What it said.
  returned: when a completion came
  type: str
finish_reason:
  description: Why it stopped.
  returned: when a completion came
  type: str
usage:
  description: Tokens of prompt and completion.
  returned: when a completion came
  type: dict
  sample: {"prompt_tokens": 19, "completion_tokens": 16, "total_tokens": 35}
seconds:
  description: How long it took, waiting included.
  returned: always
  type: float
reason:
  description: Why no completion came.
  returned: when none came
  type: str
journal:
  description: The last lines of O(unit)'s journal.
  returned: when none came and O(unit) is given
  type: list
  elements: str
"""

import json
import time
import urllib.error
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.sparkfleet.vllm.plugins.module_utils._serve import (
    FINAL_STATUS,
    Completion,
    chat_request,
    parse_completion,
    root_cause,
)
from ansible_collections.sparkfleet.vllm.plugins.module_utils._units import (
    UnitState,
    hopeless,
    keeps_dying,
    parse_show,
    unit_state,
)

INTERVAL_S = 2.0
JOURNAL_LINES = 200
PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,Result"


class Refused(Exception):
    """An answer that waiting does not change."""


def request(url: str, key: str, body: dict[str, Any] | None, timeout: int, ca_path: str | None) -> Any:
    """Send a request and return the JSON of its answer; raises ``OSError`` or ``ValueError``."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body) if body is not None else None
    method = "POST" if body is not None else "GET"
    with open_url(
        url, data=data, headers=headers, method=method, timeout=timeout, use_proxy=False, ca_path=ca_path
    ) as answer:
        return json.loads(answer.read())


def ask(url: str, key: str, body: dict[str, Any], timeout: int, ca_path: str | None) -> Completion:
    """Ask for one completion; raises ``Refused``, ``OSError`` or ``ValueError``."""
    try:
        return parse_completion(request(f"{url}/v1/chat/completions", key, body, timeout, ca_path))
    except urllib.error.HTTPError as error:
        if error.code not in FINAL_STATUS:
            raise
        said = error.read(500).decode("utf-8", "replace").strip()
        raise Refused(f"{url} answers {error.code}: {said}") from error


def open_door(url: str, key: str, timeout: int, ca_path: str | None) -> str:
    """Return what is wrong when the server lets a request in without the right key, or an empty string."""
    for label, bad in (("no key", ""), ("a wrong key", f"not-{key}")):
        try:
            request(f"{url}/v1/models", bad, None, timeout, ca_path)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                continue
            return f"{url} answers {error.code} instead of 401 to {label}"
        return f"{url} lets a request with {label} in; give the server its API key"
    return ""


def read_state(path: str | None) -> dict[str, Any]:
    """Return what the supervisor wrote; empty where it has not yet."""
    try:
        with open(path or "", encoding="utf-8") as stream:
            state = json.load(stream)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


class Unit:
    """The server's unit, read by systemctl and journalctl."""

    def __init__(self, module: AnsibleModule, name: str) -> None:
        self.module, self.name = module, name

    def state(self) -> UnitState:
        systemctl = self.module.get_bin_path("systemctl", required=True)
        _rc, out, _err = self.module.run_command([systemctl, "show", f"--property={PROPERTIES}", self.name])
        return unit_state(parse_show(out))

    def journal(self) -> list[str]:
        journalctl = self.module.get_bin_path("journalctl", required=True)
        arguments = ["--unit", self.name, "--lines", str(JOURNAL_LINES), "--output", "cat", "--no-pager"]
        _rc, out, _err = self.module.run_command([journalctl, *arguments])
        return [line for line in out.splitlines() if line.strip()]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "api_key_path": {"type": "path", "no_log": False},
            "ca_path": {"type": "path"},
            "prompt": {"type": "str", "default": "Say hello."},
            "max_tokens": {"type": "int", "default": 16, "no_log": False},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 900},
            "request_timeout": {"type": "int", "default": 120},
            "unit": {"type": "str", "default": ""},
            "state_path": {"type": "path"},
            "max_restarts": {"type": "int", "default": 2},
            "expect_unauthorized": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    p = module.params
    wait = p["wait"] and not module.check_mode
    url, began = p["url"].rstrip("/"), time.monotonic()
    unit = Unit(module, p["unit"]) if p["unit"] else None
    restarts = unit.state().restarts if unit else 0
    since = time.time()
    body = chat_request(p["model"], p["prompt"], p["max_tokens"])
    answer: Completion | None = None
    while True:
        key, reason, stop = "", "", False
        try:
            if p["api_key_path"]:
                with open(p["api_key_path"], encoding="utf-8") as stream:
                    key = stream.read().strip()
            answer = ask(url, key, body, p["request_timeout"], p["ca_path"])
            reason = open_door(url, key, p["request_timeout"], p["ca_path"]) if p["expect_unauthorized"] else ""
            stop = True
        except Refused as error:
            reason, stop = str(error), True
        except (OSError, ValueError) as error:
            reason = f"{url} gives no completion: {getattr(error, 'reason', None) or error}"
        if unit and not stop:
            verdict = hopeless(p["unit"], unit.state(), restarts, p["max_restarts"]) or keeps_dying(
                p["unit"], read_state(p["state_path"]), since, p["max_restarts"]
            )
            reason, stop = verdict or reason, bool(verdict)
        waited = time.monotonic() - began
        if stop or not wait or waited >= p["timeout"]:
            break
        time.sleep(INTERVAL_S)
    result: dict[str, Any] = {"ready": answer is not None and not reason, "seconds": round(waited, 1)}
    if answer is not None:
        result.update(vars(answer))
    if reason:
        journal = unit.journal() if unit else []
        cause = root_cause(journal)
        result.update(reason=reason, journal=journal[-40:])
        if wait:
            said = f'; the log says "{cause}"' if cause else ""
            todo = f"; see journalctl -u {p['unit']}" if unit else ""
            module.fail_json(
                msg=f"no completion from {p['model']} after {waited:.0f} s: {reason}{said}{todo}", **result
            )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
