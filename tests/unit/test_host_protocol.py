# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The handshake and the lines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from files.host.sparkfleet_host.protocol import (
    LONGEST_LINE,
    UNSENT,
    KeyFileError,
    Link,
    ProtocolError,
    WrongKeyError,
    decode,
    encode,
    introduce,
    number,
    open_link,
    proof,
    read_key,
    text,
    texts,
    welcome,
)

MEMBERS = ("spark-02", "spark-03")
End = Callable[[Link], Awaitable[Any]]


async def talk(leader: End, member: End) -> list[Any]:
    """Return what both ends came to, results or errors."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer, time.monotonic)
        try:
            result.set_result(await leader(link))
        except Exception as error:
            result.set_result(error)
        link.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=LONGEST_LINE)
    host, port = server.sockets[0].getsockname()
    link = await open_link(host, port, time.monotonic)
    try:
        theirs: Any = await asyncio.wait_for(member(link), 30)
    except Exception as error:
        theirs = error
    link.close()
    found = [await asyncio.wait_for(result, 30), theirs]
    server.close()
    return found


def shake(leader_key: bytes, member_key: bytes, group: str = "tiny", member: str = "spark-02") -> list[Any]:
    return asyncio.run(
        talk(
            lambda link: welcome(link, leader_key, "tiny", MEMBERS),
            lambda link: introduce(link, member_key, group, member),
        )
    )


def test_both_ends_have_the_key() -> None:
    assert shake(b"key", b"key") == ["spark-02", None]


def test_another_key_is_named_at_both_ends() -> None:
    ours, theirs = shake(b"key", b"another")
    assert isinstance(ours, WrongKeyError) and isinstance(theirs, WrongKeyError)


def test_another_group_and_a_stranger_are_refused() -> None:
    ours, theirs = shake(b"key", b"key", group="other")
    assert str(ours) == "belongs to group other" and str(theirs) == "refuses: this is group tiny, not other"
    ours, theirs = shake(b"key", b"key", member="spark-09")
    assert "spark-09" in str(ours) and str(theirs) == "refuses: spark-09 is not among the members of tiny"


def test_a_leader_without_the_key_is_found_out() -> None:
    async def impostor(link: Link) -> None:
        link.send({"type": "challenge", "version": 1, "nonce": "0" * 32})
        hello = await link.receive()
        assert hello
        # The best that it can do is to send back what it got.
        link.send({"type": "welcome", "version": 1, "proof": hello["proof"]})
        await link.receive()

    theirs = asyncio.run(talk(impostor, lambda link: introduce(link, b"key", "tiny", "spark-02")))[1]
    assert isinstance(theirs, WrongKeyError)


def test_a_proof_is_for_one_end_one_group_one_member_and_one_connection() -> None:
    proofs = {
        proof(b"key", who, group, member, nonces)
        for who in ("leader", "member")
        for group in ("a", "b")
        for member in ("c", "d")
        for nonces in (("1", "2"), ("2", "1"))
    }
    assert len(proofs) == 16


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"[]\n",
        b'{"type": 1}\n',
        b'{"type": "hello"}\n',
        b'{"type": "hello", "version": 1}\n',
        b'{"type": "hello", "version": 2, "nonce": "00000000000000000000000000000000"}\n',
        b'{"type": "hello", "version": true, "nonce": "00000000000000000000000000000000"}\n',
        b'{"type": "hello", "version": 1, "nonce": "short", "member": "spark-02", "group": "tiny", "proof": ""}\n',
        b'{"type": "hello", "version": 1, "nonce": "00000000000000000000000000000000", "proof": "\xc3\xa9"}\n',
        b'{"type": "welcome", "version": 1}\n',
        b"x" * (LONGEST_LINE + 1) + b"\n",
        b"x" * (3 * LONGEST_LINE),
        b"[" * 8000 + b"\n",
        b"9" * 8000 + b"\n",
        b'{"type": "\\ud800"}\n',
        b"\xff\xfe\n",
        b'{"type": "hello", "version": 1, "nonce": "0',
    ],
)
def test_garbage_ends_the_handshake(data: bytes) -> None:
    async def garbage(link: Link) -> None:
        link._writer.write(data)
        link._writer.write_eof()
        await link._reader.read()

    ours = asyncio.run(talk(lambda link: welcome(link, b"key", "tiny", MEMBERS), garbage))[0]
    assert isinstance(ours, ProtocolError)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_a_line_is_a_message_or_an_error(line: bytes) -> None:
    try:
        message = decode(line)
    except ProtocolError:
        return
    assert isinstance(message["type"], str)


def test_fields_that_are_something_else() -> None:
    message = {"type": "x", "a": "b\nc", "n": 3, "t": True, "l": ["x\ty", 1, None], "s": "word"}
    assert decode(encode(message)) == message
    assert (text(message, "a"), text(message, "n"), text(message, "none")) == ("b c", "", "")
    assert (number(message, "n"), number(message, "t"), number(message, "a")) == (3, -1, -1)
    assert (texts(message, "l"), texts(message, "s")) == (["x y"], [])


def test_a_peer_that_does_not_read_is_left() -> None:
    async def deaf(link: Link) -> None:
        await asyncio.get_running_loop().create_future()

    async def send(link: Link) -> str:
        for _turn in range(10**6):
            link.send({"type": "beat", "padding": "x" * 4000})
            if link.why:
                return link.why
        return ""

    async def life() -> str:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        link = await open_link(host, port, time.monotonic)
        why = await send(link)
        assert await asyncio.wait_for(link.receive(), 30) is None
        server.close()
        return why

    assert asyncio.run(life()) == "does not read" and UNSENT


def test_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_key(str(path))
    path.write_text(" \n")
    with pytest.raises(KeyFileError, match="is empty"):
        read_key(str(path))
    path.write_text("abc\n")
    assert read_key(str(path)) == b"abc"
