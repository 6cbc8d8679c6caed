# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""A served model: what a real completion is, and why a server died."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_ERROR = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception|Killed|No space left|out of memory)\b", re.IGNORECASE)
_USELESS = re.compile(r"See root cause above|Engine core initialization failed|EngineDeadError", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)*(?:(?:ERROR|INFO|WARNING)\s+\d\d-\d\d \d\d:\d\d:\d\d\s*(?:\[[^\]]*\])?\s*)?")
# 401 and 403 do not go away by waiting, 404 means that another model is served, 400 that the request is wrong.
FINAL_STATUS = frozenset({400, 401, 403, 404})


@dataclass(frozen=True)
class Completion:
    """A chat completion that produced tokens."""

    id: str
    model: str
    text: str
    finish_reason: str
    usage: dict[str, int]


def chat_request(model: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of a deterministic chat request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


def parse_completion(payload: Any) -> Completion:
    """Read a chat completion; raises ``ValueError`` unless it holds a choice and more than 0 completion tokens."""
    try:
        choice = payload["choices"][0]
        message, usage = choice["message"], payload["usage"]
        counted = {key: int(usage[key]) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
        # A reasoning model may spend all of its tokens before it says anything.
        text = message.get("content") or message.get("reasoning_content") or message.get("reasoning") or ""
        completion = Completion(
            id=str(payload["id"]),
            model=str(payload["model"]),
            text=str(text),
            finish_reason=str(choice.get("finish_reason") or ""),
            usage=counted,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError("the answer is no chat completion") from error
    if counted["completion_tokens"] <= 0:
        raise ValueError("the answer has no completion tokens")
    return completion


def root_cause(lines: Sequence[str]) -> str:
    """Return the line of a server's journal that says most about its end, at most 300 characters."""
    plain = [_PREFIX.sub("", line).strip() for line in lines]
    plain = [line for line in plain if line]
    errors = [line for line in plain if _ERROR.search(line) and not _USELESS.search(line)]
    named = [line for line in errors if re.match(r"(?:[\w.]+\.)?\w+(?:Error|Exception)\b", line)]
    for candidates in (named, errors, plain):
        if candidates:
            return candidates[-1][:300]
    return ""
