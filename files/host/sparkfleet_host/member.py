# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A member: connects to the leader, and does what it says with this node's container."""

from __future__ import annotations

import asyncio

from .journal import Journal, Notifier
from .options import Options
from .protocol import (
    KeyFileError,
    Link,
    Message,
    ProtocolError,
    WrongKeyError,
    introduce,
    number,
    open_link,
    read_key,
    text,
    texts,
)
from .supervisor import Supervisor
from .waiting import DeadlineError, within

REPEAT_S = 60.0  # between two lines that say the same
SLOWLY = 5  # times slower it tries again where only a person can help
STATES = ("waiting", "starting", "running", "stopping", "backoff", "down", "stopped")


class Member(Supervisor):
    """Nothing runs here without a connection to the leader."""

    def __init__(self, options: Options, journal: Journal, notifier: Notifier, boot: str) -> None:
        super().__init__(options, journal, notifier, boot)
        self._link: Link | None = None
        self._said = ("", 0.0)

    async def main(self) -> None:
        """Connect, obey, and come back when the connection ends."""
        await self.agent.clean(self._wait)
        self._wait(f"leader {self.options.address}")
        while not self.leaving:
            pause = self.options.retry
            try:
                link = await within(self.options.handshake_timeout, self._connect())
            except WrongKeyError:
                pause *= SLOWLY
                self._trouble(f"has another key than {self.options.key_file} here; run site.yml")
            except ProtocolError as error:
                pause *= SLOWLY
                self._trouble(str(error))
            except KeyFileError as error:
                self._trouble("", str(error))
            except DeadlineError:
                self._trouble("does not answer")
            except OSError as error:
                self._trouble(f"cannot be reached ({error.strerror or error})")
            else:
                await self._session(link)
            await asyncio.sleep(pause)

    def report(self, message: Message) -> None:
        """Take a message of this node's agent."""
        if self._link:
            self._link.send(message)
        if message["type"] == "fault":
            self.say(f"{text(message, 'why')}; tells the leader")

    def depart(self) -> None:
        """Tell the leader; it stops the others and waits for this node."""
        if self._link:
            self._link.send({"type": "leaves"})
        self._become("stopping", "asked to stop")

    def close(self) -> None:
        """Note that all has stopped."""
        self._become("stopped", "stopped in order")
        if self._link:
            self._link.close()

    def _become(self, state: str, why: str, waiting_for: tuple[str, ...] = ()) -> None:
        if state != self.state.state:
            self.state.since = self.clock.time()
        self.state.state, self.state.why, self.state.waiting_for = state, why, list(waiting_for)
        self.publish()

    def _wait(self, what: str) -> None:
        if not self.leaving:
            self._become("waiting", self.state.why, (what,))

    def _trouble(self, leader: str, own: str = "") -> None:
        """Say what is wrong with the leader or here: once, and again every REPEAT_S."""
        line = own or f"leader {self.options.address} {leader}"
        self._wait(line if own else f"leader {self.options.address}")
        now = self.clock.monotonic()
        if line != self._said[0] or now - self._said[1] >= REPEAT_S:
            self._said = (line, now)
            self.say(f"{line}; nothing runs until then, tries again")

    async def _connect(self) -> Link:
        options = self.options
        key = read_key(options.key_file)
        link = await open_link(options.host, options.port, self.clock.monotonic)
        try:
            await introduce(link, key, options.name, options.member)
        except BaseException:
            link.close()
            raise
        return link

    async def _session(self, link: Link) -> None:
        """Obey until the connection ends, then stop what runs."""
        self._said = ("", 0.0)
        self.say(f"connected to leader {self.options.address}")
        self._link = link
        beats = self.spawn(self._beat(link))
        why = "the connection to the leader is lost"
        try:
            while message := await link.receive():
                if message["type"] == "leaves":
                    why = "the leader was stopped"
                    break
                self._obey(message)
        except ProtocolError as error:
            why = f"the leader {error}"
        finally:
            beats.cancel()
            self._link = None
        if self.leaving:
            link.close()
            return
        down = self.state.state == "down"
        why = self.state.why if down else link.why or why
        self.say(f"the group is down: {why}" if down else f"{why}; nothing runs here without the leader")
        self._become("stopping", why)
        await self.agent.halt()
        link.close()
        self._wait(f"leader {self.options.address}")

    def _obey(self, message: Message) -> None:
        if self.leaving:
            return
        if message["type"] in ("prepare", "go", "stop"):
            self.agent.order(message)
        elif message["type"] == "group" and text(message, "state") in STATES:
            self.state.round = max(0, number(message, "round"))
            self._become(text(message, "state"), text(message, "why"), tuple(texts(message, "waiting_for")))

    async def _beat(self, link: Link) -> None:
        options = self.options
        due = self.clock.monotonic()
        while True:
            due += options.heartbeat
            await asyncio.sleep(max(0.0, due - self.clock.monotonic()))
            now = self.clock.monotonic()
            if now - due > options.heartbeat:
                # This process was held up, so what the leader said may still wait to be read.
                due = link.heard = now
            link.send({"type": "beat"})
            if now - link.heard > options.heartbeat_timeout:
                link.close(f"the leader is silent for {options.heartbeat_timeout:g} s")
