# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stuck or busy, and the probe against a server of the test's own."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from files.host.sparkfleet_host.liveness import Observation, Probe, parse_counters, stuck, tokens

GOOD = Observation(True, before=(1.0, 1.0, 0.0))
STANDS = Observation(False, "no answer within 60 s", before=(5.0, 1.0, 0.1), after=(5.0, 1.0, 0.1))
MOVES = Observation(False, "no answer within 60 s", before=(5.0, 1.0, 0.1), after=(6.0, 1.0, 0.1))
READS = Observation(False, "no answer within 60 s", before=(5.0, 1.0, 0.1), after=(5.0, 1.0, 0.2))
SILENT = Observation(False, "no answer within 60 s")
REFUSED = Observation(False, "the API key is refused (401)", refused=True)


@pytest.mark.parametrize(
    ("observations", "expected"),
    [
        ([], False),
        ([GOOD], False),
        ([STANDS], False),
        ([STANDS, STANDS], True),
        ([GOOD, STANDS, STANDS], True),
        ([STANDS, GOOD, STANDS], False),
        ([STANDS, MOVES, STANDS], False),
        ([STANDS, READS, STANDS], False),
        ([MOVES, MOVES, MOVES], False),
        ([SILENT, SILENT], True),
        ([STANDS, SILENT], True),
        ([REFUSED, REFUSED, REFUSED], False),
        ([STANDS, REFUSED, STANDS], True),
        ([STANDS, REFUSED], False),
        ([STANDS, STANDS, GOOD], False),
    ],
)
def test_stuck(observations: list[Observation], expected: bool) -> None:
    assert bool(stuck(observations, 2)) is expected


def test_stuck_says_why() -> None:
    assert stuck([STANDS, STANDS], 2) == (
        "the engine is stuck: 2 completions in a row failed (no answer within 60 s) and its token counter stands at 5"
    )
    assert stuck([SILENT], 1).endswith("and its counters do not answer")


def test_counters_are_summed_over_labels() -> None:
    text = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
vllm:generation_tokens_total{engine="0",model_name="a b} c"} 112.0
vllm:generation_tokens_total{engine="1",model_name="tiny"} 1.12e+02
vllm:generation_tokens_created{engine="0"} 1.7e+09
vllm:prompt_tokens_total{engine="0"} 4 1700000000
vllm:prompt_tokens_total{engine="0"} NaN
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="0"} e
garbage"""
    assert parse_counters(text) == (224.0, 4.0, 0.5)
    assert parse_counters("") == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b'{"usage": {"completion_tokens": 1}}', 1),
        (b'{"usage": {"completion_tokens": "1"}}', 0),
        (b'{"usage": null}', 0),
        (b"[]", 0),
        (b"", 0),
        (b"<html>", 0),
        (b"[" * 100000, 0),
    ],
)
def test_tokens(payload: bytes, count: int) -> None:
    assert tokens(payload) == count


@contextlib.contextmanager
def serving(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Serve ``answers``, path to status and body; yields the URL and what was asked."""
    asked: list[tuple[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")))
            status, body = answers.get(self.path, (404, {}))
            if status:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


ANSWER = {"usage": {"completion_tokens": 1}}


def ask(url: str, counters: bool = False, key: str = "") -> Observation:
    return Probe(url, "tiny", lambda: key).ask(5.0, counters)


def test_a_completion_with_a_token_is_an_answer() -> None:
    with serving({"/v1/chat/completions": (200, ANSWER)}) as (url, asked):
        assert ask(url).answered
        body = asked[0][1]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 1, 0)


def test_a_model_that_cannot_chat_completes() -> None:
    answers = {"/v1/chat/completions": (400, {}), "/v1/completions": (200, ANSWER)}
    with serving(answers) as (url, asked):
        probe = Probe(url, "tiny", lambda: "")
        assert probe.ask(5.0, False).answered and probe.ask(5.0, False).answered
        assert [path for path, _body in asked] == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]


@pytest.mark.parametrize(
    ("status", "body", "why", "refused"),
    [
        (401, {}, "the API key is refused (401)", True),
        (503, {}, "status 503", False),
        (500, ANSWER, "status 500", False),
        (404, {}, "status 404", False),
        (200, {"usage": {"completion_tokens": 0}}, "an answer without a token", False),
        (200, "no json", "an answer without a token", False),
        (0, "", "Remote end closed connection without response", False),
    ],
)
def test_anything_else_is_none(status: int, body: Any, why: str, refused: bool) -> None:
    with serving({"/v1/chat/completions": (status, body)}) as (url, _asked):
        seen = ask(url)
        assert (seen.answered, seen.why, seen.refused) == (False, why, refused)


def test_the_counters_are_read_around_a_request_that_fails() -> None:
    metrics = 'vllm:generation_tokens_total{engine="0"} 3.0\n'
    with serving({"/v1/chat/completions": (500, {}), "/metrics": (200, metrics)}) as (url, asked):
        seen = ask(url, counters=True)
        assert seen.before == seen.after == (3.0, 0.0, 0.0) and not seen.moved
        assert [path for path, _body in asked] == ["/metrics", "/v1/chat/completions", "/metrics"]


def test_a_server_that_is_away() -> None:
    assert ask("http://127.0.0.1:9").why == "Connection refused"
    assert ask("https://127.0.0.1:9").why == "Connection refused"


def test_files_that_are_missing_are_no_crash() -> None:
    def key() -> str:
        raise FileNotFoundError(2, "No such file or directory", "/etc/api-key")

    seen = Probe("http://127.0.0.1:9", "tiny", key).ask(1.0, True)
    assert seen.why.startswith("the probe cannot read its files") and "/etc/api-key" in seen.why
    assert "cannot read its files" in Probe("https://127.0.0.1:9", "tiny", lambda: "", "/no/ca").ask(1.0, False).why
    with serving({}) as (url, _asked):
        assert ask(url, key="sk\nX-Evil: 1").why == "the API key's file holds something else than one word"
