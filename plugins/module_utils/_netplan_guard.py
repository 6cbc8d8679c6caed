# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Applies a netplan file on a node, and takes it back by itself unless somebody confirms it.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

The module fabric_netplan imports this file, and also copies it onto the node, where systemd runs it as a program: so
it may import nothing but the standard library. A change goes through these stages:

- `stage` writes what was and what is wanted into `pending.json`, and the wanted file into /run/netplan, where it
  hides the one of the same name in /etc/netplan and is gone after a reboot. Then it starts a timer and the apply.
- `commit` moves the file to /etc/netplan; or else
- `revert`, which the timer runs, puts everything back.

`pending.json` is what counts: who holds the lock and finds it may commit or revert, and removes it at last. So it does
not matter if the timer fires in the middle of a commit.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NAME = "95-sparkfleet.yaml"
REVERT_UNIT, APPLY_UNIT = "sparkfleet-fabric-revert", "sparkfleet-fabric-apply"
SYSLOG = "sparkfleet"

# The answer of the module that starts the apply has to get back to the controller before the network blinks.
_GRACE_S = 1.0
_NETPLAN_S = 60
_COMMAND_S = 10
# NetworkManager and networkd go on changing interfaces after netplan has returned: watch until it is quiet.
_QUIET_S, _LIMIT_S, _STEP_S = 5.0, 45.0, 0.5
_STATE_FLAGS = {"linkdown", "dead", "offload", "trap", "rt_offload", "rt_trap", "offload_failed"}

Runner = Callable[[Sequence[str], float], "Done"]


@dataclass(frozen=True)
class Done:
    """What a command has come to; 127 where it could not be started, 124 where it took too long."""

    rc: int
    out: str
    err: str


@dataclass(frozen=True)
class Link:
    """What an interface is, or should be."""

    up: bool
    mtu: int
    addresses: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    """Family option of `ip` and the route as `ip route` writes it."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Link:
        """Read back what was written as JSON."""
        return cls(
            up=bool(data["up"]),
            mtu=int(data["mtu"]),
            addresses=tuple(str(address) for address in data["addresses"]),
            routes=tuple((str(family), str(route)) for family, route in data["routes"]),
        )


@dataclass(frozen=True)
class Goal:
    """What is to become of an interface."""

    up: bool | None = None
    mtu: int | None = None
    addresses: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Pending:
    """A change that nobody has confirmed yet.

    Attributes:
        own: Text of our file before the change, None if there was none.
        wanted: Text that it is to have, empty if it is to go.
        fabric: The interfaces of the two texts, as they were before the change.
        management: The interfaces that carry management, as they were before the change.
        goals: What is to be done to the fabric's interfaces besides netplan's part.
        deadline: When the node takes the change back, in seconds of CLOCK_MONOTONIC.
        forget: Whether a commit ends our part: what was before our first change is forgotten.
    """

    own: str | None
    wanted: str
    fabric: dict[str, Link]
    management: dict[str, Link]
    goals: dict[str, Goal] = field(default_factory=dict)
    deadline: float = 0.0
    forget: bool = False

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(self, default=lambda value: value.__dict__, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Pending:
        """Read what `to_json` has written. Raises ValueError, KeyError or TypeError for anything else."""
        data = json.loads(text)
        return cls(
            own=data["own"],
            wanted=str(data["wanted"]),
            fabric={name: Link.of(link) for name, link in data["fabric"].items()},
            management={name: Link.of(link) for name, link in data["management"].items()},
            goals={name: _goal(goal) for name, goal in data["goals"].items()},
            deadline=float(data["deadline"]),
            forget=bool(data["forget"]),
        )


def _goal(data: Mapping[str, Any]) -> Goal:
    link = Link.of({**data, "up": False, "mtu": 0})
    return Goal(data["up"], data["mtu"], link.addresses, tuple(data["without"]), link.routes)


@dataclass(frozen=True)
class Paths:
    """Where things are. Another root than / is for tests."""

    root: str = "/"

    def _at(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    @property
    def own(self) -> str:
        """Our file, as it is at boot."""
        return self._at("etc/netplan", NAME)

    @property
    def staged(self) -> str:
        """Our file, as it is until it is confirmed."""
        return self._at("run/netplan", NAME)

    @property
    def state(self) -> str:
        """The directory of everything below."""
        return self._at("run/sparkfleet/fabric")

    @property
    def guard(self) -> str:
        """The copy of this program."""
        return self._at(self.state, "guard.py")

    @property
    def lock(self) -> str:
        """Held by who commits or reverts."""
        return self._at(self.state, "lock")

    @property
    def pending(self) -> str:
        """The change that is not confirmed."""
        return self._at(self.state, "pending.json")

    @property
    def applied(self) -> str:
        """What applying has come to."""
        return self._at(self.state, "applied.json")

    @property
    def reverted(self) -> str:
        """What the last revert has done."""
        return self._at(self.state, "reverted.json")


def run(command: Sequence[str], timeout: float = _COMMAND_S) -> Done:
    """Run a command and return what it has come to."""
    path = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env={**os.environ, **path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Done(124, "", f"{command[0]} took more than {timeout:g} s")
    except OSError as error:
        return Done(127, "", f"{command[0]} cannot be run: {error.strerror}")
    return Done(done.returncode, done.stdout, done.stderr)


def write(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file so that it is there as a whole or not at all, also after a power cut."""
    temporary = f"{path}.{os.getpid()}.tmp"  # netplan reads only what ends in .yaml
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, mode)
    os.replace(temporary, path)


def read(path: str) -> str | None:
    """Return a file's text, None where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove(path: str) -> None:
    """Remove a file that may be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def load(paths: Paths) -> Pending | None:
    """Return the change that waits for its confirmation, None where there is none."""
    text = read(paths.pending)
    return None if text is None else Pending.from_json(text)


@contextlib.contextmanager
def locked(paths: Paths, wait: bool) -> Iterator[bool]:
    """Hold the lock of commit and revert; False where somebody else has it and ``wait`` is not given."""
    with open(os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o600), "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def parse_links(addresses: str, routes: Mapping[str, str]) -> dict[str, Link]:
    """Return all interfaces of a host.

    Args:
        addresses: Output of ``ip -j addr show``.
        routes: Output of ``ip route show`` by family option.
    """
    by_interface = parse_routes(routes)
    links: dict[str, Link] = {}
    for item in json.loads(addresses or "[]"):
        # Some versions print an empty object for what has vanished meanwhile.
        if not item.get("ifname"):
            continue
        found = [
            f"{info['local']}/{info['prefixlen']}"
            for info in item.get("addr_info", [])
            if info.get("family") == "inet" or (info.get("family") == "inet6" and _kept_by_us(info))
        ]
        links[item["ifname"]] = Link(
            up="UP" in item.get("flags", []),
            mtu=int(item.get("mtu", 0)),
            addresses=tuple(found),
            routes=by_interface.get(item["ifname"], ()),
        )
    return links


def _kept_by_us(info: Mapping[str, Any]) -> bool:
    """Whether an IPv6 address comes back only if somebody sets it."""
    return info.get("scope") == "global" and not info.get("dynamic") and not info.get("temporary")


def parse_routes(routes: Mapping[str, str]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the routes of each interface, in the order in which they can be set.

    Routes that the kernel makes with an address, or learns, come back by themselves and are left out; so are those
    that go several ways.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for family, text in routes.items():
        for line in text.splitlines():
            words = [word for word in line.split() if word not in _STATE_FLAGS]
            if line[:1].isspace() or "dev" not in words[:-1] or "proto kernel" in line or "proto ra" in line:
                continue
            if "expires" in words:
                at = words.index("expires")
                del words[at : at + 2]
            interface = words[words.index("dev") + 1]
            found.setdefault(interface, []).append((family, " ".join(words)))
    # A gateway can be set only when it can be reached: directly connected networks first.
    return {name: tuple(sorted(lines, key=lambda line: " via " in line[1])) for name, lines in found.items()}


def links_now(runner: Runner = run) -> dict[str, Link]:
    """Return all interfaces of this host as they are. Raises OSError where iproute2 does not say."""
    done = runner(["ip", "-j", "addr", "show"], _COMMAND_S)
    if done.rc:
        raise OSError(f"ip addr show failed: {done.err.strip()}")
    routes = {family: runner(["ip", family, "route", "show"], _COMMAND_S).out for family in ("-4", "-6")}
    try:
        return parse_links(done.out, routes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"ip addr show says something unknown: {error}") from error


def steps(goals: Mapping[str, Goal], links: Mapping[str, Link]) -> list[list[str]]:
    """Return the commands that bring the interfaces nearer to the goals; none if they are there."""
    commands: list[list[str]] = []
    for name, goal in goals.items():
        link = links.get(name)
        if link is None:
            continue
        if goal.mtu is not None and goal.mtu != link.mtu:
            commands.append(["ip", "link", "set", "dev", name, "mtu", str(goal.mtu)])
        commands += [
            ["ip", "addr", "del", address, "dev", name] for address in goal.without if address in link.addresses
        ]
        if goal.up and not link.up:
            commands.append(["ip", "link", "set", "dev", name, "up"])
        commands += [_add(address, name) for address in goal.addresses if address not in link.addresses]
        if goal.up is not False:
            commands += [
                ["ip", family, "route", "replace", *route.split()]
                for family, route in goal.routes
                if (family, route) not in link.routes
            ]
        if goal.up is False and link.up:
            commands.append(["ip", "link", "set", "dev", name, "down"])
    return commands


def _add(address: str, name: str) -> list[str]:
    command = ["ip", "addr", "add", address, "dev", name]
    return command if ":" in address else [*command, "brd", "+"]


def settle(
    goals: Mapping[str, Goal],
    runner: Runner = run,
    quiet: float = _QUIET_S,
    limit: float = _LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Bring interfaces to their goals, and hold them there until nobody has changed them for ``quiet`` seconds.

    Returns:
        What was done, one line for each command.
    """
    did: list[str] = []
    begin = quiet_since = clock()
    while goals:
        try:
            commands = steps(goals, links_now(runner))
        except OSError as error:
            did.append(str(error))
            commands = []
        for command in commands:
            done = runner(command, _COMMAND_S)
            line = " ".join(command) + (f": {done.err.strip()}" if done.rc else "")
            if line not in did:
                did.append(line)
        now = clock()
        if commands:
            quiet_since = now
        if now - quiet_since >= quiet or now - begin >= limit:
            break
        sleep(_STEP_S)
    return did


def say(line: str) -> None:
    """Write a line to the journal of the unit that runs us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def apply(paths: Paths, runner: Runner = run) -> bool:
    """Apply what is staged, and write down what it has come to."""
    pending = load(paths)
    if pending is None:
        return False
    time.sleep(_GRACE_S)
    done = runner(["netplan", "apply"], _NETPLAN_S)
    did = settle(pending.goals, runner) if done.rc == 0 else []
    said = "" if done.rc == 0 else last_line(done)
    if os.path.exists(paths.pending):  # else this has been taken back meanwhile
        write(paths.applied, json.dumps({"said": said, "did": did}))
    for line in ["netplan apply: " + (said or "done"), *did]:
        say(line)
    return done.rc == 0


def last_line(done: Done) -> str:
    """Return what a command has to say about its failure, in one line."""
    lines = [line.strip() for line in f"{done.out}\n{done.err}".splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {done.rc}"


def goals_back(pending: Pending) -> dict[str, Goal]:
    """Return what the interfaces have to become for things to be as before."""
    goals = {}
    for name, link in pending.fabric.items():
        added = [address for address in addresses_of(pending.wanted) if address not in link.addresses]
        added += [a for a in pending.goals.get(name, Goal()).addresses if a not in link.addresses]
        goals[name] = Goal(link.up, link.mtu, link.addresses, tuple(added), link.routes)
    for name, link in pending.management.items():
        # Only what is missing: somebody else may have added things here for good reasons.
        goals[name] = Goal(True if link.up else None, link.mtu, link.addresses, (), link.routes)
    return goals


def addresses_of(text: str) -> list[str]:
    """Return the addresses that a text of our file holds, of all its interfaces."""
    return [line.strip()[2:] for line in text.splitlines() if line.startswith("        - ")]


def revert(paths: Paths, runner: Runner = run, settler: Callable[..., list[str]] = settle) -> bool:
    """Put everything back, if there is a change that nobody has confirmed."""
    with locked(paths, wait=True):
        pending = load(paths)
        if pending is None:
            return False
        say("nobody has confirmed the new addresses of the fabric: going back to the old ones")
        runner(["systemctl", "stop", f"{APPLY_UNIT}.service"], _NETPLAN_S)
        remove(paths.staged)
        if pending.own is None:
            remove(paths.own)
        elif read(paths.own) != pending.own:
            write(paths.own, pending.own)
        goals = goals_back(pending)
        # Management first, whatever netplan does then: netplan may take its time or fail.
        did = settler({name: goals[name] for name in pending.management}, runner, quiet=0)
        done = runner(["netplan", "apply"], _NETPLAN_S)
        did.append("netplan apply" + (f": {last_line(done)}" if done.rc else ""))
        did += settler(goals, runner)
        for line in did:
            say(line)
        write(paths.reverted, json.dumps({"did": did}))
        remove(paths.applied)
        remove(paths.pending)
    return True


def main(arguments: Sequence[str]) -> int:
    """Run as a program: ``guard.py apply`` or ``guard.py revert``."""
    paths = Paths()
    if list(arguments) == ["apply"]:
        return 0 if apply(paths) else 1
    if list(arguments) == ["revert"]:
        revert(paths)
        return 0
    sys.stderr.write("use: guard.py apply|revert\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
