# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the model answer? A completion of one token is asked for; the server's counters tell stuck from busy.

``/health`` says 200 while the engine is dead or frozen, so it is not asked.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_ANSWER = 4 * 1024 * 1024  # bytes
METRICS_TIMEOUT_S = 10.0

# What moves while an engine works, summed over engines and other labels. A long prompt is counted when it is done;
# while it is being read only the cache's usage moves.
COUNTERS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:kv_cache_usage_perc")
_SAMPLE = re.compile(r"^(vllm:\w+)(?:\{.*\})?\s+([0-9.eE+-]+)(?:\s+\d+)?$")
# No chat template, no such route: the model may be one that only completes.
_NO_CHAT = (400, 404, 405, 501)

Counters = tuple[float, ...]


@dataclass(frozen=True)
class Observation:
    """One probe.

    :param answered: a completion with a token came
    :param why: what came instead
    :param refused: the key was refused, which says nothing about the engine
    :param before: the counters before the request; None where the server gave none
    :param after: the counters after a request that failed
    """

    answered: bool
    why: str = ""
    refused: bool = False
    before: Counters | None = None
    after: Counters | None = None

    @property
    def moved(self) -> bool:
        """Whether the engine worked during the probe."""
        return self.before is not None and self.after is not None and self.before != self.after


def stuck(observations: Sequence[Observation], failures: int) -> str:
    """Say why the engine is stuck, or return an empty string.

    It is when the last ``failures`` probes failed and nothing moved during any of them. A refused key neither counts
    nor interrupts the row.
    """
    row = []
    for one in reversed(observations):
        if one.refused:
            continue
        if one.answered or one.moved:
            break
        row.append(one)
    if not row or len(row) < failures:
        return ""
    counted = next((one.after for one in row if one.after is not None), None)
    tokens = "its counters do not answer" if counted is None else f"its token counter stands at {counted[0]:.0f}"
    return f"the engine is stuck: {len(row)} completions in a row failed ({row[0].why}) and {tokens}"


def parse_counters(text: str) -> Counters:
    """Return the sums of COUNTERS in the server's metrics; one that is missing is 0."""
    sums = dict.fromkeys(COUNTERS, 0.0)
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found and found.group(1) in sums:
            try:
                sums[found.group(1)] += float(found.group(2))
            except ValueError:
                continue
    return tuple(sums.values())


def tokens(payload: bytes) -> int:
    """Return the number of completion tokens of an answer; 0 where it is no completion."""
    try:
        count = json.loads(payload)["usage"]["completion_tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return count if isinstance(count, int) else 0


class ProbeError(Exception):
    """Why no answer came, in a few words."""


@dataclass
class Probe:
    """Asks one server. Blocks, so it is called in a thread.

    :param url: for example ``http://127.0.0.1:8888``
    :param key: returns the API key, or an empty string; may raise OSError
    :param ca: file with certificates; empty: see ``_context``
    """

    url: str
    model: str
    key: Callable[[], str]
    ca: str = ""
    chat: bool = True

    def ask(self, timeout: float, counters: bool) -> Observation:
        """Ask for one token within ``timeout`` seconds; never raises OSError.

        :param counters: read the counters as well. While a model loads they only cost time.
        """
        before = self._counters(timeout) if counters else None
        try:
            status, why = self._complete(timeout)
        except ProbeError as error:
            status, why = 0, str(error)
        if not why:
            return Observation(True, before=before)
        after = self._counters(timeout) if counters else None
        return Observation(False, why, status in (401, 403), before, after)

    def _complete(self, timeout: float) -> tuple[int, str]:
        status, answer = self._post(timeout)
        if self.chat and status in _NO_CHAT:
            self.chat = False
            other, text = self._post(timeout)
            if tokens(text):
                return other, ""
            self.chat = True
        if status in (401, 403):
            return status, f"the API key is refused ({status})"
        if status != 200:
            return status, f"status {status}"
        return status, "" if tokens(answer) else "an answer without a token"

    def _post(self, timeout: float) -> tuple[int, bytes]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
        if self.chat:
            body["messages"] = [{"role": "user", "content": "ping"}]
            return self._request("POST", "/v1/chat/completions", timeout, json.dumps(body).encode())
        body["prompt"] = "ping"
        return self._request("POST", "/v1/completions", timeout, json.dumps(body).encode())

    def _counters(self, timeout: float) -> Counters | None:
        try:
            status, answer = self._request("GET", "/metrics", min(timeout, METRICS_TIMEOUT_S))
        except ProbeError:
            return None
        return parse_counters(answer.decode("utf-8", "replace")) if status == 200 else None

    def _request(self, method: str, path: str, timeout: float, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Connection": "close", "Content-Type": "application/json"}
        try:
            if key := self.key():
                if not re.fullmatch(r"[\x21-\x7e]+", key):
                    # http.client would say so with the key in it.
                    raise ProbeError("the API key's file holds something else than one word")
                headers["Authorization"] = f"Bearer {key}"
            connection = self._connect(timeout)
        except (OSError, ValueError) as error:  # a file of ours; ssl.SSLError is an OSError
            raise ProbeError(f"the probe cannot read its files: {error}") from error
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(LONGEST_ANSWER)
        except TimeoutError as error:
            raise ProbeError(f"no answer within {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(getattr(error, "strerror", "") or str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=timeout)
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=self._context(host))

    def _context(self, host: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca or None)
        if host == "localhost" or host == "::1" or host.startswith("127."):
            # The certificate is for the name that clients use, not for this address. What is said here does not
            # leave the machine, so this is no worse than http.
            context.check_hostname = False
            if not self.ca:
                context.verify_mode = ssl.CERT_NONE
        return context
