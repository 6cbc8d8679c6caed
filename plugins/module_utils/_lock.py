# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds the lock of a node: one run of a playbook, named by its controller process.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import typing as t
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Holder:
    """One run, as the lock file records it."""

    hostname: str
    user: str
    pid: int
    """Main ansible-playbook process on the controller."""
    pid_start: int
    """Start time of that process in clock ticks since boot, 0 where the controller cannot tell."""
    boot_id: str
    """Boot of the controller's kernel, empty where it cannot tell."""
    pid_namespace: str
    """Where `pid` is valid: two containers on one kernel share the boot but not the process numbers."""
    started: int
    """When that process started or took the lock, in seconds since the epoch."""

    def same_run(self, other: Holder) -> bool:
        """Return whether both were written by the same ansible-playbook process."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        return (self.hostname, self.boot_id, self.pid_namespace, self.pid, self.pid_start)

    def to_json(self) -> str:
        """Return the content of a lock file."""
        return json.dumps(asdict(self), sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Holder | None:
        """Return the holder that a lock file names, None where it is not one of our files."""
        try:
            content = json.loads(text)
            return cls(
                hostname=str(content["hostname"]),
                user=str(content["user"]),
                pid=int(content["pid"]),
                pid_start=int(content["pid_start"]),
                boot_id=str(content["boot_id"]),
                pid_namespace=str(content["pid_namespace"]),
                started=int(content["started"]),
            )
        except (ValueError, TypeError, KeyError):
            return None


def process_start(pid: int, proc: str = "/proc") -> int | None:
    """Return when a process started, in clock ticks since boot; None where it is gone or a zombie."""
    try:
        with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            # The command name, in parentheses, may itself contain spaces and parentheses.
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    if not fields or fields[0] in "ZX":
        return None
    return int(fields[19])


def this_run(pid: int, hostname: str, user: str, proc: str = "/proc") -> Holder:
    """Return the holder for the ansible-playbook process `pid` of this controller."""
    try:
        with open(f"{proc}/sys/kernel/random/boot_id", encoding="utf-8") as boot:
            boot_id = boot.read().strip()
        namespace = os.readlink(f"{proc}/{pid}/ns/pid")
    except OSError:  # No Linux: nothing can be said about other runs, so none is ever taken for dead.
        boot_id = namespace = ""
    return Holder(
        hostname=hostname,
        user=user,
        pid=pid,
        pid_start=process_start(pid, proc) or 0,
        boot_id=boot_id,
        pid_namespace=namespace,
        started=int(time.time()),
    )


def is_dead(holder: Holder, observer: Holder, proc: str = "/proc") -> bool:
    """Return whether `holder` is surely gone, as far as the run `observer` can see from its controller.

    Only a process of the same boot and process number space can be judged; any other may be alive.
    """
    if not observer.boot_id or not holder.pid_start:
        return False
    if (holder.boot_id, holder.pid_namespace) != (observer.boot_id, observer.pid_namespace):
        return False
    return process_start(holder.pid, proc) != holder.pid_start


def conflict(holder: Holder | None, path: str) -> str:
    """Return the line, without the host, that tells who is in the way and what to do."""
    if holder is None:
        return f"{path} is held by something unknown; remove it with -e host_lock_break=true if no run is going on"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.started))
    return (
        f"another run by {holder.user}@{holder.hostname} (pid {holder.pid}, since {since}) is changing this node; "
        "wait for it, or remove the lock with -e host_lock_break=true if it is gone"
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a request for the lock."""

    held: bool
    """Whether the requesting run holds the lock now (or would, in check mode)."""
    other: str | None = None
    """Content of the lock file of the run that holds it instead."""


def acquire(
    path: str, run: Holder, replace: str | None = None, force: bool = False, look_only: bool = False
) -> Outcome:
    """Take the lock file `path` for `run`, unless another run holds it.

    `replace` is the exact content of a lock that is known to be dead, `force` takes over whatever is there.
    With `look_only` nothing is written. Raises OSError where the directory cannot be written.
    """
    directory = os.path.dirname(path)
    if look_only and not os.path.isdir(directory):
        return Outcome(held=True)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    with _exclusive(directory):
        content = _read(path)
        holder = Holder.from_json(content) if content is not None else None
        mine = holder is not None and holder.same_run(run)
        if content is not None and not (mine or force or content == replace):
            return Outcome(held=False, other=content)
        if not mine and not look_only:
            _write(path, run.to_json())
        return Outcome(held=True)


def release(path: str, run: Holder, look_only: bool = False) -> bool:
    """Remove the lock file `path` where `run` holds it; return whether it did. Raises OSError."""
    if not os.path.isdir(os.path.dirname(path)):
        return False
    with _exclusive(os.path.dirname(path)):
        content = _read(path)
        holder = Holder.from_json(content) if content is not None else None
        if holder is None or not holder.same_run(run):
            return False
        if not look_only:
            os.unlink(path)
        return True


class _exclusive:
    """Keep other calls of this code on this node out while a lock file is looked at and changed."""

    def __init__(self, directory: str) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_exception: object) -> None:
        os.close(self._descriptor)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as lock:
            return lock.read()
    except FileNotFoundError:
        return None


def _write(path: str, content: str) -> None:
    """Put the file there at once, so that a reader, or a crash, never sees half of it."""
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as lock:
        lock.write(content)
    os.replace(temporary, path)


__all__: t.Final = ["Holder", "Outcome", "acquire", "conflict", "is_dead", "process_start", "release", "this_run"]
