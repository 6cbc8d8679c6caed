# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line."""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class UsageError(Exception):
    """What is wrong with the command line and what to do, in one line."""


@dataclass(frozen=True)
class Options:
    """What the supervisor was told. Times are seconds."""

    name: str
    container: str
    command: tuple[str, ...]
    role: str  # leader, member or single
    node: str  # this node's name in messages
    member: str  # its name in the leader's --members; empty unless it is a member
    host: str  # the leader's address; empty for a single node
    port: int
    members: tuple[str, ...]
    key_file: str
    after_container: str
    restart_limit: int
    restart_window: float
    backoff: float
    backoff_max: float
    min_available_bytes: int
    drop_caches: bool
    memory_wait: float
    stop_timeout: float
    fault_stop_timeout: float
    run_timeout: float
    watch_interval: float
    heartbeat: float
    heartbeat_timeout: float
    handshake_timeout: float
    retry: float
    start_timeout: float
    probe_url: str
    probe_model: str
    probe_key_file: str
    probe_ca: str
    probe_interval: float
    probe_timeout: float
    probe_failures: int
    state_dir: str
    docker: str
    docker_timeout: float

    @property
    def address(self) -> str:
        """The leader's address and port as one writes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name; use letters, digits and . _ -")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(_name(one) for one in text.split(","))
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text} names a node twice")
    return names


def _address(text: str) -> tuple[str, int]:
    host, _colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return host, int(port)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no ADDRESS:PORT; give an IP address, [ADDRESS]:PORT for IPv6")


def _number(text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no number" + ("" if least < 0 else f" of at least {least:g}"))
    return value


def _seconds(text: str) -> float:
    """More than zero."""
    value = _number(text, 0)
    if not value:
        raise argparse.ArgumentTypeError("0 is no time to wait; give a number of seconds above it")
    return value


def _seconds_or_0(text: str) -> float:
    return _number(text, 0)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{text!r} is no http or https URL")
    return text.rstrip("/")


def _parser() -> _Parser:
    parser = _Parser(
        prog="sparkfleet_host",
        allow_abbrev=False,
        description="Run a container, as one of a group or alone, and bring it back when it dies.",
        epilog="Everything after -- is the command that runs the container in the foreground.",
    )
    add = parser.add_argument
    add("--name", type=_name, required=True, help="the group's name")
    add("--container", type=_name, required=True, help="the container's name")
    add("--node", type=_name, help="this node's name in messages; default: --member, or the host name")
    add("--listen", type=_address, metavar="ADDRESS:PORT", help="lead the group, and listen here for its members")
    add("--members", type=_names, metavar="NAME,...", help="with --listen: the group's other nodes")
    add("--leader", type=_address, metavar="ADDRESS:PORT", help="be a member of the group that is led from here")
    add("--member", type=_name, metavar="NAME", help="with --leader: this node's name in the leader's --members")
    add("--key-file", default="", help="the secret of the group's nodes; read anew at each connection")
    add("--after-container", type=_name, help="start only while this container runs on this node")
    add("--restart-limit", type=_count, default=5, help="restarts within --restart-window after which it gives up")
    add("--restart-window", type=_seconds, default=1800.0)
    add("--backoff", type=_seconds_or_0, default=5.0, help="pause before the first restart; doubles with each")
    add("--backoff-max", type=_seconds_or_0, default=120.0)
    add("--min-available-bytes", type=_count, default=0, help="start only with this much MemAvailable")
    add("--drop-caches", action="store_true", help="drop the page cache before each start")
    add("--memory-wait", type=_seconds_or_0, default=60.0, help="how long --min-available-bytes may take")
    add("--stop-timeout", type=_seconds_or_0, default=30.0, help="what the container gets to stop by itself")
    add(
        "--fault-stop-timeout", type=_seconds_or_0, default=10.0, help="the same when another part of the group is gone"
    )
    add("--run-timeout", type=_seconds, default=120.0, help="from the command's start until the container runs")
    add("--watch-interval", type=_seconds_or_0, default=30.0, help="look for a lost or frozen container; 0: never")
    add("--heartbeat", type=_seconds, default=2.0)
    add("--heartbeat-timeout", type=_seconds, default=10.0, help="silence after which the other end is lost")
    add("--handshake-timeout", type=_seconds, default=5.0)
    add("--retry", type=_seconds, default=2.0, help="pause between two tries to listen, to connect, to ask Docker")
    add("--start-timeout", type=_seconds, default=900.0, help="from the start until the first completion")
    add("--probe-url", type=_url, help="ask this server for completions")
    add("--probe-model", default="")
    add("--probe-key-file", default="")
    add("--probe-ca", default="", help="certificates to check the server's with")
    add("--probe-interval", type=_seconds, default=60.0)
    add("--probe-timeout", type=_seconds, default=60.0)
    add("--probe-failures", type=_count, default=2, help="probes in a row that fail while no token moves")
    add("--state-dir", default="/run/sparkfleet/group")
    add("--docker", default="docker")
    add("--docker-timeout", type=_seconds, default=30.0, help="deadline of each docker command")
    return parser


def parse(arguments: Sequence[str], hostname: str) -> Options:
    """Read the command line; ``hostname`` is this machine's. Raises UsageError."""
    own, command = list(arguments), []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1 :]
    given = vars(_parser().parse_args(own))
    listen, leader = given.pop("listen"), given.pop("leader")
    members, member, node = given.pop("members"), given.pop("member"), given.pop("node")
    if not command:
        raise UsageError("no container to run; give its command after --")
    if listen and leader:
        raise UsageError("--listen and --leader exclude each other; a node leads the group or is a member of it")
    if bool(listen) != bool(members):
        raise UsageError("--listen and --members belong together; give both or neither")
    if bool(leader) != bool(member):
        raise UsageError("--leader and --member belong together; give both or neither")
    if (listen or leader) and not given["key_file"]:
        raise UsageError("--key-file is missing; the nodes of a group prove with it that they belong to it")
    if leader and given["probe_url"]:
        raise UsageError("--probe-url is for the leader; a member does not ask the model")
    if given["probe_url"] and not given["probe_model"]:
        raise UsageError("--probe-model is missing; --probe-url needs to know what to ask for")
    if given["probe_failures"] < 1:
        raise UsageError("--probe-failures is 0; give at least 1")
    if given["heartbeat_timeout"] < 2 * given["heartbeat"]:
        raise UsageError("--heartbeat-timeout is less than two heartbeats; one late message would end the group")
    node = node or member or hostname
    if members and node in members:
        raise UsageError(f"{node} leads the group and is in --members; leave it out there")
    # Without a default: argparse would hand it to the type.
    given.update({key: given[key] or "" for key in ("after_container", "probe_url")})
    given["state_dir"] = os.path.abspath(given["state_dir"])
    host, port = listen or leader or ("", 0)
    return Options(
        **given,
        command=tuple(command),
        role="leader" if listen else "member" if leader else "single",
        node=node,
        member=member or "",
        host=host,
        port=port,
        members=members or (),
    )
