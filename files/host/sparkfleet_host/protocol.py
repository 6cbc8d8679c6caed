# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the leader and the members say to each other, and how they prove that they belong together.

A connection begins with a challenge in both directions: each end shows, with HMAC-SHA256 over both ends' random
numbers, that it has the group's key. Neither sends the key. After that, each line is one message::

    leader: prepare, go, stop (with a round), group (the state, for display), beat, leaves
    member: ready, waits, running, fault, stopped (with the round they answer to), beat, leaves

A message of an old round is ignored by whoever gets it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from .journal import clean

Message = dict[str, Any]

VERSION = 1
LONGEST_LINE = 32768  # bytes
UNSENT = 65536  # bytes that may wait for a peer that does not read


class ProtocolError(Exception):
    """The other end is not one of ours, or says nonsense; the text says how."""


class WrongKeyError(ProtocolError):
    """The two ends have different keys."""


class KeyFileError(Exception):
    """The key file gives no key; the text says why."""


def read_key(path: str) -> bytes:
    """Return the group's key, without white space around it; raises KeyFileError."""
    try:
        with open(path, "rb") as stream:
            key = stream.read(4096).strip()
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be read ({error.strerror}); run site.yml") from error
    if not key:
        raise KeyFileError(f"key file {path} is empty; run site.yml")
    return key


def proof(key: bytes, who: str, group: str, member: str, nonces: tuple[str, str]) -> str:
    """Return what only an owner of ``key`` can say. ``who`` is the end that says it, so that it cannot be echoed."""
    text = json.dumps(["sparkfleet", VERSION, who, group, member, *nonces])
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def same(one: str, other: str) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def decode(line: bytes) -> Message:
    """Read one line; raises ProtocolError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("sent a line that is no message") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("sent a line that is no message")
    return message


def encode(message: Mapping[str, Any]) -> bytes:
    """Return the line of a message."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def text(message: Mapping[str, Any], key: str) -> str:
    """Return a text field as one printable line; empty where it is missing or something else."""
    value = message.get(key)
    return clean(value) if isinstance(value, str) else ""


def texts(message: Mapping[str, Any], key: str) -> list[str]:
    """Return a field that is a list of texts; empty where it is something else."""
    value = message.get(key)
    return [clean(one) for one in value if isinstance(one, str)] if isinstance(value, list) else []


def number(message: Mapping[str, Any], key: str) -> int:
    """Return a field that is a whole number; -1 where it is something else."""
    value = message.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


class Link:
    """One connection, in messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, now: Callable[[], float]) -> None:
        self._reader, self._writer, self._now = reader, writer, now
        self.heard = now()
        self.why = ""  # why this end closed it
        peer = writer.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else "?"

    async def receive(self) -> Message | None:
        """Return the next message, or None at the end of the connection; raises ProtocolError."""
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise ProtocolError(f"sent a line of more than {LONGEST_LINE} bytes") from error
        except OSError:
            return None
        if not line.endswith(b"\n"):
            return None
        self.heard = self._now()
        return decode(line)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send without waiting. What the other end does not take soon enough ends the connection."""
        if self._writer.is_closing():
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > UNSENT:
            self.close("does not read")

    def close(self, why: str = "") -> None:
        """Close; nothing more is received. What was sent in time still arrives."""
        self.why = self.why or why
        if why:
            self._writer.transport.abort()
        else:
            self._writer.close()


async def open_link(host: str, port: int, now: Callable[[], float]) -> Link:
    """Connect; raises OSError."""
    reader, writer = await asyncio.open_connection(host, port, limit=LONGEST_LINE)
    return Link(reader, writer, now)


async def expect(link: Link, kind: str) -> Message:
    """Return the handshake's next message; raises ProtocolError."""
    message = await link.receive()
    if message is None:
        raise ProtocolError("closed the connection")
    if message["type"] == "refused":
        why = text(message, "why")
        raise WrongKeyError("has another key") if why == "key" else ProtocolError(f"refuses: {why}")
    if message["type"] != kind:
        raise ProtocolError(f"said {clean(message['type'], 20)!r} where {kind!r} was due")
    if number(message, "version") != VERSION:
        raise ProtocolError("runs another version of this program; run site.yml")
    return message


def _nonce(message: Message) -> str:
    nonce = text(message, "nonce")
    if len(nonce) < 32:
        raise ProtocolError("sent no random number")
    return nonce


async def welcome(link: Link, key: bytes, group: str, members: tuple[str, ...]) -> str:
    """Be the leader's end of a handshake and return the member's name; raises ProtocolError."""
    own = secrets.token_hex(16)
    link.send({"type": "challenge", "version": VERSION, "nonce": own})
    hello = await expect(link, "hello")
    member, nonces = text(hello, "member"), (own, _nonce(hello))
    theirs = text(hello, "group")
    if not same(text(hello, "proof"), proof(key, "member", theirs, member, nonces)):
        link.send({"type": "refused", "why": "key"})
        raise WrongKeyError("has another key")
    if theirs != group:
        link.send({"type": "refused", "why": f"this is group {group}, not {theirs}"})
        raise ProtocolError(f"belongs to group {theirs}")
    if member not in members:
        link.send({"type": "refused", "why": f"{member} is not among the members of {group}"})
        raise ProtocolError(f"calls itself {member}, which is not among the members")
    link.send({"type": "welcome", "version": VERSION, "proof": proof(key, "leader", group, member, nonces)})
    return member


async def introduce(link: Link, key: bytes, group: str, member: str) -> None:
    """Be the member's end of a handshake; raises ProtocolError."""
    challenge = await expect(link, "challenge")
    nonces = (_nonce(challenge), secrets.token_hex(16))
    link.send(
        {
            "type": "hello",
            "version": VERSION,
            "group": group,
            "member": member,
            "nonce": nonces[1],
            "proof": proof(key, "member", group, member, nonces),
        }
    )
    answer = await expect(link, "welcome")
    if not same(text(answer, "proof"), proof(key, "leader", group, member, nonces)):
        raise WrongKeyError("has another key")
