# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many hosts are asked at once, over ssh and without a question to the user.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import os
import shlex
import socket
import subprocess
import typing as t

from ansible_collections.sparkfleet.vllm.plugins.module_utils import _arp, _neighbours, _roce
from ansible_collections.sparkfleet.vllm.plugins.module_utils._discover import (
    Observation,
    failure,
    is_spark,
    program,
    read_answer,
)

# What a node needs beside the time for its connection: Python starts, the ports are asked for a second.
_PATIENCE_S: t.Final = 20
_LISTEN_S: t.Final = 1.0
_AT_ONCE: t.Final = 32
_CONNECTIONS_AT_ONCE: t.Final = 128


class Target(t.NamedTuple):
    """Where an SSH server may be.

    `managed` is False for an address of the fabric, `expected` is True where the user has named the host.
    """

    host: str
    port: int = 22
    managed: bool = True
    expected: bool = False


class Access(t.NamedTuple):
    """How ssh logs in."""

    user: str
    private_key_file: str
    common_args: str
    timeout_s: float
    sudo: bool


class Outcome(t.NamedTuple):
    """What came of asking a host: an observation, or the line that says why there is none.

    `other` is True for a host that answered and is no Spark.
    """

    seen: Observation | None
    line: str = ""
    other: bool = False


def resolve(target: Target) -> Target | None:
    """Return a target with its IPv4 address in place of a name, None where the name stands for none."""
    try:
        found = socket.getaddrinfo(target.host, target.port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return target._replace(host=str(found[0][4][0])) if found else None


def listening(targets: t.Sequence[Target], timeout_s: float) -> list[Target]:
    """Return those who accept a connection at once: most addresses of a network belong to nobody."""

    def accepts(target: Target) -> bool:
        try:
            with socket.create_connection((target.host, target.port), timeout=timeout_s):
                return True
        except OSError:
            return False

    if not targets:
        return []
    with concurrent.futures.ThreadPoolExecutor(min(_CONNECTIONS_AT_ONCE, len(targets))) as pool:
        answers = list(pool.map(accepts, targets))
    return [target for target, answer in zip(targets, answers, strict=True) if answer]


def ask(targets: t.Sequence[Target], everybody: t.Sequence[str], access: Access) -> list[Outcome]:
    """Ask each target who it is and whom it sees of `everybody`, in the order of `targets`."""
    if not targets:
        return []
    sources = {
        name: inspect.getsource(module)
        for name, module in (("_arp", _arp), ("_roce", _roce), ("_neighbours", _neighbours))
    }

    def one(target: Target) -> Outcome:
        others = [host for host in everybody if host != target.host]
        text = program(sources, target.host if target.managed else "", others, _LISTEN_S, access.sudo)
        return _ask(target, text, access)

    with concurrent.futures.ThreadPoolExecutor(min(_AT_ONCE, len(targets))) as pool:
        return list(pool.map(one, targets))


def ssh_command(target: Target, access: Access) -> list[str]:
    """Return the command that runs a Python program from its standard input on a host."""
    # The user's own arguments come first: of an option that is given twice, ssh takes the first one.
    command = ["ssh", *shlex.split(access.common_args)]
    command += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(access.timeout_s))}"]
    # Somebody else's machine may announce itself too: it gets neither the agent nor the display.
    command += ["-o", "ControlPath=none", "-T", "-a", "-x", "-p", str(target.port)]
    if access.private_key_file:
        command += ["-i", access.private_key_file]
    if access.user:
        command += ["-l", access.user]
    return [*command, "--", target.host, "python3 -"]


def _ask(target: Target, text: str, access: Access) -> Outcome:
    try:
        done = subprocess.run(
            ssh_command(target, access),
            check=False,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=access.timeout_s + _PATIENCE_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, failure(target.host, None, ""))
    except OSError as error:
        return Outcome(None, f"{target.host}: ssh cannot be started ({error.strerror}); install the OpenSSH client")
    answer = read_answer(done.stdout) if done.returncode == 0 else None
    if answer is None:
        return Outcome(None, failure(target.host, done.returncode, done.stderr))
    if not is_spark(answer):
        product = answer["product"] or "a machine without a name"
        return Outcome(
            None, f"{target.host}: {answer['hostname']} is no DGX Spark, but {product}; left out", other=True
        )
    return Outcome(Observation(address=target.host, port=target.port, answer=answer))
