# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of a node's memory: earlyoom with settings for unified memory, and an sshd that is not killed.

`plan` says what has to change on a node and is pure; the module host_guard reads the node and does it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import shlex
import typing as t
from dataclasses import dataclass

EARLYOOM: t.Final = "earlyoom.service"
SSH: t.Final = "ssh.service"
EARLYOOM_FILE: t.Final = "/etc/default/earlyoom"
SSH_FILE: t.Final = "/etc/systemd/system/ssh.service.d/sparkfleet.conf"
RECORD: t.Final = "/var/lib/sparkfleet/host-before.json"

SSH_ADJUST: t.Final = -1000
"""oom_score_adj of a process that nothing kills for memory."""
CAP_SYS_RESOURCE: t.Final = 24
"""Number of the capability to lower oom_score_adj."""

# earlyoom sees a process's name as the kernel does, 15 characters of it. An engine and its workers hold the GPU's
# memory, which no score of the kernel counts. Ray renames its workers, and torch its children while they start.
PREFER: t.Final = "^(VLLM::Worker|VLLM::EngineCor|RayWorkerProc|ray::|pt_main_thread)"
AVOID: t.Final = (
    "^(sshd|systemd|init|login|dbus|dockerd|containerd|NetworkManager|wpa_supplicant|avahi|earlyoom|nvidia-persist)"
)

_REPORT_S = 3600
_SMALL_PERCENT = 10
_OTHERS_GIB = 16
_MARK = "# Managed by role host of sparkfleet.vllm: changes here are lost. What was here is put back by reset.\n"

SSH_TEXT: t.Final = f"""\
{_MARK}[Service]
# The listener alone, which does this itself where it can. OOMScoreAdjust= would be inherited by every login, and so
# protect whatever is started from there.
ExecStartPost=-/usr/bin/choom --adjust {SSH_ADJUST} --pid $MAINPID
"""


def earlyoom_arguments(version: tuple[int, ...], free_gib: float) -> str:
    """Return how earlyoom is to be started, so that it acts when less than `free_gib` GiB are available.

    Half of that is where it kills at once. Swap does not count: GPU memory cannot be swapped out, and a node that swaps
    the rest answers nobody. An empty `version` stands for an old one.

    Before 1.8 percentages are of all memory, and the smaller of `-m` and `-M` counts, which leaves room on small
    machines. Since 1.8 they are of what user space could have, anonymous and available memory, of which GPU memory is
    no part. `-M` would then act at a fraction of what it says. So a share is given that fits 16 GiB of other programs.
    """
    if version < (1, 8):
        kib = int(free_gib * 1024 * 1024)
        memory = f"-m {_SMALL_PERCENT},{_SMALL_PERCENT // 2} -M {kib},{kib // 2}"
    else:
        percent = max(2, round(100 * free_gib / (free_gib + _OTHERS_GIB)))
        memory = f"-m {percent},{percent // 2}"
    return f"{memory} -s 100,100 -r {_REPORT_S} --prefer '{PREFER}' --avoid '{AVOID}'"


def earlyoom_text(version: tuple[int, ...], free_gib: float) -> str:
    """Return the whole of /etc/default/earlyoom."""
    return f'{_MARK}EARLYOOM_ARGS="{earlyoom_arguments(version, free_gib)}"\n'


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version that `earlyoom -v` prints, `earlyoom v1.8.2` or `earlyoom 1.7`; empty where it says none."""
    match = re.search(r"earlyoom v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


@dataclass(frozen=True)
class Wanted:
    """What the node is to have. Without `earlyoom` it gets back what it had; without `ssh` too."""

    earlyoom: bool
    ssh: bool
    free_gib: float = 4.0
    installed: bool = False
    """Whether earlyoom was installed by us just now."""


@dataclass(frozen=True)
class Present:
    """What the node has."""

    units: t.Mapping[str, t.Mapping[str, str]]
    """Properties of EARLYOOM and SSH: LoadState, ActiveState, UnitFileState, MainPID."""
    files: t.Mapping[str, str | None]
    """Text of EARLYOOM_FILE and SSH_FILE, None for one that is not there."""
    record: t.Mapping[str, t.Any]
    """What RECORD holds: under `earlyoom` what was there before us, `file`, `enabled`, `active`, `installed`."""
    version: tuple[int, ...] = ()
    running: tuple[str, ...] = ()
    """Arguments of the running earlyoom."""
    adjust: int | None = None
    """oom_score_adj of the running sshd, None where none runs."""
    may_adjust: bool = True
    """Whether it can be lowered: not in a container that lacks the capability."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order."""

    record: t.Mapping[str, t.Any]
    """What RECORD is to hold; empty: no file."""
    files: t.Mapping[str, str | None]
    """Files to write, or to remove where there is no text."""
    commands: tuple[tuple[str, ...], ...] = ()
    """Arguments of systemctl."""
    adjust: bool = False
    """Whether the running sshd is to get SSH_ADJUST."""
    purge: bool = False
    """Whether the package earlyoom is to go: we installed it."""


def plan(wanted: Wanted, present: Present) -> Plan:
    """Return what brings the node from what it has to what it is to have; nothing if it is there."""
    files: dict[str, str | None] = {}
    commands: list[tuple[str, ...]] = []
    record = dict(present.record)
    loaded = present.units.get(SSH, {}).get("LoadState") == "loaded"
    ssh_text = SSH_TEXT if wanted.ssh and loaded else None
    if present.files.get(SSH_FILE) != ssh_text:
        files[SSH_FILE] = ssh_text
        # sshd itself is not restarted: what it is to become is set on the running one.
        commands.append(("daemon-reload",))
    before = record.get("earlyoom")
    purge = False
    if wanted.earlyoom:
        record["earlyoom"] = before or _before(present, wanted.installed)
        text = earlyoom_text(present.version, wanted.free_gib)
        # What runs counts: a run that was cut off may have written the file and no more.
        outdated = present.running != tuple(shlex.split(earlyoom_arguments(present.version, wanted.free_gib)))
        commands += _kept(present, text, files, enabled=True, active=True, outdated=outdated)
    elif before:
        del record["earlyoom"]
        purge = bool(before["installed"])
        if not purge:
            commands += _kept(present, before["file"], files, before["enabled"], before["active"])
    return Plan(
        record=record,
        files=files,
        commands=tuple(commands),
        adjust=wanted.ssh and present.adjust not in (None, SSH_ADJUST) and present.may_adjust,
        purge=purge,
    )


def _before(present: Present, installed: bool) -> dict[str, t.Any]:
    unit = present.units.get(EARLYOOM, {})
    text = present.files.get(EARLYOOM_FILE)
    return {
        # Ours, where the record was lost, is nothing to go back to.
        "file": None if text and text.startswith(_MARK) else text,
        "enabled": unit.get("UnitFileState") == "enabled",
        "active": unit.get("ActiveState") == "active",
        "installed": installed,
    }


def _kept(
    present: Present,
    text: str | None,
    files: dict[str, str | None],
    enabled: bool,
    active: bool,
    outdated: bool = False,
) -> list[tuple[str, ...]]:
    """Return the commands after which earlyoom runs, or does not, with `text`; note the file where it differs."""
    unit = present.units.get(EARLYOOM, {})
    commands: list[tuple[str, ...]] = []
    differs = present.files.get(EARLYOOM_FILE) != text
    if differs:
        files[EARLYOOM_FILE] = text
    if enabled != (unit.get("UnitFileState") == "enabled"):
        commands.append(("enable" if enabled else "disable", EARLYOOM))
    runs = unit.get("ActiveState") == "active"
    if active and (differs or outdated or not runs):
        commands.append(("restart", EARLYOOM))
    elif runs and not active:
        commands.append(("stop", EARLYOOM))
    return commands
