# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader, and the supervisor of a node that is alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

from .group import GAVE_UP, Group
from .history import History
from .journal import Journal, Notifier, clean
from .liveness import Observation, Probe, stuck
from .options import Options
from .protocol import (
    LONGEST_LINE,
    KeyFileError,
    Link,
    Message,
    ProtocolError,
    WrongKeyError,
    read_key,
    welcome,
)
from .supervisor import Supervisor
from .waiting import DeadlineError, in_thread, within

STRANGERS = 8  # connections at once from one address that have not shown who they are
SAID = 32  # lines about strangers within REPEAT_S
REPEAT_S = 60.0  # between two lines about strangers
EAGER_S = 2.0  # between two probes until the first answer


class Leader(Supervisor):
    """Lets the group's rules act on the world."""

    def __init__(self, options: Options, journal: Journal, notifier: Notifier, boot: str, unit: str) -> None:
        super().__init__(options, journal, notifier, boot)
        history = History(options.restart_limit, options.restart_window, options.backoff, options.backoff_max)
        left = self.files.read()
        self._crashed = bool(left and left.state in ("starting", "running"))
        if left:
            self.state.round, self.state.recovered = left.round, left.recovered
            history.failures = left.failures
        slow = 4 * options.docker_timeout
        self.group = Group(
            self.state,
            options.node,
            options.members,
            history,
            self,
            self.clock,
            probing=bool(options.probe_url),
            run_grace=options.run_timeout + slow + options.heartbeat_timeout,
            stop_grace=options.stop_timeout + slow + options.heartbeat_timeout,
            unit=unit,
        )
        self._links: dict[str, Link] = {}
        self._server: asyncio.Server | None = None
        self._strangers: Counter[str] = Counter()
        self._stranger_said: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._told: Message = {}
        self._probing: asyncio.Task[None] | None = None
        self._probed_round = 0

    # --- the rules' port ---

    def send(self, name: str, message: Message) -> None:
        """Send an order to a node."""
        if name == self.options.node:
            self.agent.order(message)
        elif link := self._links.get(name):
            link.send(message)

    def drop(self, name: str, why: str) -> None:
        """End the connection to a member."""
        self.say(f"{name}: {why}")
        if link := self._links.pop(name, None):
            link.close(why)

    # --- the role ---

    async def main(self) -> None:
        """Clean up after whoever was before, then lead."""
        self._after()
        await self.agent.clean(self._hinder)
        if self._crashed:
            self.group.crashed()
            self._after()
        if self.options.role == "leader":
            await self._listen()
            self.spawn(self._beat())
        self._hinder("")
        self.group.joined(self.options.node)
        self._after()

    def report(self, message: Message) -> None:
        """Take a message of this node's agent."""
        self.group.received(self.options.node, message)
        self._after()

    def depart(self) -> None:
        """Let nobody in any more."""
        if self._server:
            self._server.close()
        self.group.leave()
        self._after()

    def close(self) -> None:
        """Tell the members; they stop, and come back when there is a leader again."""
        self.group.closed()
        for link in self._links.values():
            link.close()

    def _hinder(self, why: str) -> None:
        self.group.hinder(why)
        self._after()

    def _after(self) -> None:
        """Do what follows from an event: set the timer, tell everyone, ask the model."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        deadline = self.group.deadline()
        if deadline is not None:
            delay = max(0.0, deadline - self.clock.monotonic())
            self._timer = self._loop.call_later(delay, self._tick)
        self._tell()
        self.publish()
        up = self.state.state in ("starting", "running") and not self.leaving
        if self._probing and (not up or self._probed_round != self.state.round):
            self._probing.cancel()
            self._probing = None
        if up and self.options.probe_url and not self._probing:
            self._probed_round = self.state.round
            self._probing = self.spawn(self._probe(self.state.round))
        if self.group.finished and not self.leaving:
            self.leaving = True
            self.spawn(self._give_up())

    def _tick(self) -> None:
        self._timer = None
        self.group.tick()
        self._after()

    def _tell(self) -> None:
        told = {
            "type": "group",
            "state": self.state.state,
            "round": self.state.round,
            "why": clean(self.state.why),
            # A line has a limit, and a group may be large.
            "waiting_for": [clean(one, 80) for one in self.state.waiting_for[:32]],
        }
        if told != self._told:
            self._told = told
            for link in list(self._links.values()):
                link.send(told)

    async def _give_up(self) -> None:
        if self._server:
            self._server.close()
        await self.agent.halt()
        for link in self._links.values():
            link.close()
        self.finish(GAVE_UP)

    # --- members ---

    async def _listen(self) -> None:
        """Listen as soon as the address is there: after a boot the network may come later."""
        options = self.options
        while True:
            try:
                self._server = await asyncio.start_server(
                    self._accept, options.host, options.port, limit=LONGEST_LINE, backlog=128
                )
                return
            except OSError as error:
                self._hinder(f"address {options.address} ({clean(error.strerror or str(error), 120)})")
            await asyncio.sleep(options.retry)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. Whatever a stranger does, it ends here."""
        link = Link(reader, writer, self.clock.monotonic)
        try:
            name = await self._authenticate(link)
        except (ProtocolError, KeyFileError) as error:
            self._stranger(link.peer, f"a connection from {link.peer} {error}")
            name = ""
        except DeadlineError:
            self._stranger(link.peer, f"a connection from {link.peer} does not say who it is")
            name = ""
        except Exception as error:
            self._stranger(link.peer, f"a connection from {link.peer} failed ({type(error).__name__}: {error})")
            name = ""
        if not name or self.leaving:
            link.close()
            return
        await self._serve(name, link)

    async def _authenticate(self, link: Link) -> str:
        if self._strangers[link.peer] >= STRANGERS:
            raise ProtocolError(f"came while {STRANGERS} others from there had not said who they are")
        self._strangers[link.peer] += 1
        try:
            key = read_key(self.options.key_file)
            handshake = welcome(link, key, self.options.name, self.options.members)
            return await within(self.options.handshake_timeout, handshake)
        except KeyFileError as error:
            raise KeyFileError(f"cannot be answered: {error}") from error
        except WrongKeyError as error:
            raise ProtocolError(f"has another key than {self.options.key_file} here; run site.yml") from error
        finally:
            self._strangers[link.peer] -= 1
            self._strangers += Counter()  # forgets zeros

    def _stranger(self, peer: str, text: str) -> None:
        """Say it, but leave the journal readable when someone scans ports."""
        now = self.clock.monotonic()
        self._stranger_said = {one: at for one, at in self._stranger_said.items() if now - at < REPEAT_S}
        if peer not in self._stranger_said and len(self._stranger_said) < SAID:
            self._stranger_said[peer] = now
            self.say(text)

    async def _serve(self, name: str, link: Link) -> None:
        if former := self._links.pop(name, None):
            former.close("was replaced")
        self._links[name] = link
        self.group.joined(name)
        link.send(self._told)
        self._after()
        why = "connection lost"
        try:
            while message := await link.receive():
                if self._links.get(name) is not link:
                    return
                if message["type"] == "leaves":
                    why = ""
                    break
                if message["type"] != "beat":
                    self.group.received(name, message)
                    self._after()
        except ProtocolError as error:
            why = str(error)
        if self._links.get(name) is not link:
            return
        del self._links[name]
        if why:
            self.group.lost(name, link.why or why)
        else:
            self.group.left(name)
        link.close(why)
        self._after()

    async def _beat(self) -> None:
        options = self.options
        due = self.clock.monotonic()
        while True:
            due += options.heartbeat
            await asyncio.sleep(max(0.0, due - self.clock.monotonic()))
            now = self.clock.monotonic()
            if now - due > options.heartbeat:
                # This process was held up, so what the others said may still wait to be read.
                due = now
                for link in self._links.values():
                    link.heard = now
            for link in list(self._links.values()):
                link.send({"type": "beat"})
                if now - link.heard > options.heartbeat_timeout:
                    link.close(f"silent for {options.heartbeat_timeout:g} s: the node or its network is down")

    # --- the model ---

    def _api_key(self) -> str:
        if not self.options.probe_key_file:
            return ""
        with open(self.options.probe_key_file, encoding="utf-8") as stream:
            return stream.read().strip()

    async def _probe(self, round_id: int) -> None:
        """Ask the model until the round ends, and tell the rules what comes of it."""
        options, now = self.options, self.clock.monotonic
        probe = Probe(options.probe_url, options.probe_model, self._api_key, options.probe_ca)
        end = now() + options.start_timeout
        why = "no probe was made"
        while (left := end - now()) > 0:
            seen = await self._ask(probe, min(left, options.probe_timeout), counters=False)
            if seen.answered:
                break
            why = seen.why
            await asyncio.sleep(min(EAGER_S, options.probe_interval))
        else:
            self.group.silent(round_id, f"the model does not answer {options.start_timeout:g} s after the start: {why}")
            self._after()
            return
        self.group.answered(round_id)
        self._after()
        row: list[Observation] = []
        while True:
            await asyncio.sleep(options.probe_interval)
            seen = await self._ask(probe, options.probe_timeout, counters=True)
            if seen.answered:
                self.group.answered(round_id)
            elif not row or row[-1].why != seen.why:
                self.say(f"the model gives no completion ({seen.why}){'; it is busy' if seen.moved else ''}")
            # Refused keys must not push what is known out of the row.
            row = [*(one for one in row if not one.refused), seen][-options.probe_failures - 1 :]
            if why := stuck(row, options.probe_failures):
                self.group.silent(round_id, why)
            self._after()

    async def _ask(self, probe: Probe, timeout: float, counters: bool) -> Observation:
        try:
            return await in_thread(partial(probe.ask, timeout, counters))
        except Exception as error:
            # A strange answer is the model's fault and not a reason to end here.
            return Observation(False, f"the probe failed: {type(error).__name__}: {error}")
