# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A completion counts only with tokens in it; a dead server's journal is reduced to its cause."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _serve

ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "model": "tiny",
    "choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 19, "completion_tokens": 16, "total_tokens": 35, "prompt_tokens_details": None},
}


def test_completion() -> None:
    completion = _serve.parse_completion(ANSWER)
    assert (completion.id, completion.model, completion.text, completion.finish_reason) == (
        "chatcmpl-1",
        "tiny",
        "hi",
        "length",
    )
    assert completion.usage == {"prompt_tokens": 19, "completion_tokens": 16, "total_tokens": 35}


def test_a_model_may_only_have_thought() -> None:
    answer = copy.deepcopy(ANSWER)
    answer["choices"][0]["message"] = {"content": None, "reasoning_content": "hm"}
    assert _serve.parse_completion(answer).text == "hm"


@pytest.mark.parametrize(
    "payload",
    [None, [], {}, {**ANSWER, "choices": []}, {**ANSWER, "usage": None}, {"object": "error", "message": "no"}],
)
def test_anything_else_is_no_completion(payload: Any) -> None:
    with pytest.raises(ValueError, match="no chat completion"):
        _serve.parse_completion(payload)


def test_no_tokens_are_no_completion() -> None:
    with pytest.raises(ValueError, match="no completion tokens"):
        _serve.parse_completion({**ANSWER, "usage": {**ANSWER["usage"], "completion_tokens": 0}})


def test_request_is_deterministic_and_short() -> None:
    body = _serve.chat_request("tiny", "Say hello.", 16)
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 16, "tiny")


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            [
                "(Core pid=12) ERROR 11-22 21:00:01 [core.py:7] ValueError: current platform cpu does not support ray.",
                "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "ValueError: current platform cpu does not support ray.",
        ),
        (
            ["INFO 11-22 21:00:01 [api.py:1] starting", "vllm: error: unrecognized arguments: --nope"],
            "vllm: error: unrec",
        ),
        (["INFO 11-22 21:00:01 [api.py:1] starting", "bye"], "bye"),
        ([], ""),
        (["", "  "], ""),
    ],
)
def test_root_cause(lines: list[str], cause: str) -> None:
    assert _serve.root_cause(lines).startswith(cause)
    assert _serve.root_cause(lines) != "" or cause == ""
