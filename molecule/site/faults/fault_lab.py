# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair that serves, and clients that never stop asking."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.scenario import api_key, ask, on_node, site

REQUEST_TIMEOUT_S = 60.0
HEAD, WORKER = "spark-01", "spark-02"
MODEL = "spark-vllm-tiny"
VARIABLES: dict[str, Any] = {
    # A stuck engine is found sooner than an owner would want to be asked for: every fault waits for it.
    "serve_liveness_interval_s": 10,
    "serve_liveness_timeout_s": 10,
    "serve_restart_limit": 20,
    "serve_drain_timeout_s": 60,
    # What starts again finds its peers through it.
    "host_firewall": True,
}


@dataclass(frozen=True)
class Request:
    """What became of a request; times in seconds of the monotonic clock."""

    sent: float
    ended: float
    outcome: str
    """`ok`, or what went wrong."""


class Clients:
    """Two clients that ask again and again, each request with a timeout."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._key = api_key()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_again, daemon=True) for _turn in range(2)]

    def _ask_again(self) -> None:
        while not self._stop.is_set():
            sent = time.monotonic()
            try:
                outcome = "ok" if ask(HEAD, self._key, tokens=16, timeout_s=REQUEST_TIMEOUT_S) > 0 else "no tokens"
            except (OSError, ValueError, KeyError) as error:
                outcome = f"{type(error).__name__}: {error}"
            self.requests.append(Request(sent, time.monotonic(), outcome))
            # The nodes' two cores are for what starts again.
            self._stop.wait(0.5)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(REQUEST_TIMEOUT_S + 30)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs beyond its timeout"

    def answered_since(self, moment: float) -> bool:
        """Say whether a request that was sent after `moment` came back whole."""
        return any(one.sent > moment and one.outcome == "ok" for one in self.requests)

    def gap(self, moment: float) -> float:
        """Return the longest time without an answer that ended after `moment`, in seconds."""
        good = sorted(one.ended for one in self.requests if one.outcome == "ok")
        after = [(max(sooner, moment), later) for sooner, later in itertools.pairwise(good) if later > moment]
        return max((later - sooner for sooner, later in after), default=0)

    @property
    def lost(self) -> int:
        """How many requests ended with an error."""
        return sum(one.outcome != "ok" for one in self.requests)

    @property
    def longest(self) -> float:
        """How long the slowest request took, in seconds."""
        return max(one.ended - one.sent for one in self.requests)


class Cluster:
    """The pair, served by one executor."""

    def __init__(self, executor: str) -> None:
        self.executor = executor
        self.ranks = "spark-ray" if executor == "ray" else MODEL
        """The container in which a rank runs on each node."""

    def site(self, **variables: Any) -> None:
        """Run site.yml."""
        site(serve_executor=self.executor, **{**VARIABLES, **variables})

    def state(self, node: str = HEAD, container: str = MODEL) -> dict[str, Any]:
        """Return what a supervisor wrote; empty where it has not, or where the node is away."""
        try:
            found: dict[str, Any] = json.loads(on_node(node, f"cat /run/sparkfleet/group/{container}.json"))
        except (AssertionError, ValueError):
            return {}
        return found

    def whole(self) -> bool:
        """Say whether every part runs, as the supervisors see it."""
        parts = {(HEAD, MODEL), (HEAD, self.ranks), (WORKER, self.ranks)}
        return all(self.state(*part).get("state") == "running" for part in parts)
