# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of a node's memory: which arguments earlyoom gets, and what is to be done on a node."""

from __future__ import annotations

import re
import shlex
import typing as t

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _guard
from ansible_collections.sparkfleet.vllm.plugins.module_utils._guard import (
    EARLYOOM,
    EARLYOOM_FILE,
    SSH,
    SSH_FILE,
    SSH_TEXT,
    Present,
    Wanted,
    earlyoom_arguments,
    earlyoom_text,
    parse_version,
    plan,
)

NOBLE, TRIXIE = (1, 7), (1, 8, 2)
GIB = 1024**2  # in KiB
SPARK_KIB = 119 * GIB
THEIRS = 'EARLYOOM_ARGS="-r 60"\n'
ON = Wanted(earlyoom=True, ssh=True)
OFF = Wanted(earlyoom=False, ssh=True)
GONE = Wanted(earlyoom=False, ssh=False)
RUNS = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "MainPID": "7"}
STOPPED = {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled", "MainPID": "0"}
RECORD = {"earlyoom": {"file": THEIRS, "enabled": False, "active": False, "installed": False}}


def option(arguments: str, name: str) -> tuple[float, ...]:
    """The numbers of an option."""
    words = shlex.split(arguments)
    return tuple(float(word) for word in words[words.index(name) + 1].split(","))


def fires_below(version: tuple[int, ...], total_kib: float, anonymous_kib: float, free_gib: float = 4) -> list[float]:
    """Available memory in GiB below which earlyoom of a version sends SIGTERM, and SIGKILL.

    Before 1.8 its percentages are of all memory. Since then they are of available and anonymous memory, and -M is
    turned into a percentage of all memory once.
    """
    arguments = earlyoom_arguments(version, free_gib)
    percents = option(arguments, "-m")
    if "-M" in arguments:
        percents = tuple(
            min(p, 100 * kib / total_kib) for p, kib in zip(percents, option(arguments, "-M"), strict=True)
        )
    if version < (1, 8):
        return [percent / 100 * total_kib / GIB for percent in percents]
    # available / (available + anonymous) = percent / 100
    return [percent / (100 - percent) * anonymous_kib / GIB for percent in percents]


@pytest.mark.parametrize("version", [(), (1, 6, 2), NOBLE])
def test_a_spark_acts_at_4_gib_and_at_2(version: tuple[int, ...]) -> None:
    for anonymous in (2 * GIB, 12 * GIB, 100 * GIB):
        assert fires_below(version, SPARK_KIB, anonymous) == pytest.approx([4, 2])


def test_since_1_8_memory_of_the_gpu_does_not_keep_it_from_acting() -> None:
    # 100 GiB are the GPU's, and no process has them; the others have some GiB.
    term, kill = fires_below(TRIXIE, SPARK_KIB, 12 * GIB)
    assert 2 < term < 6 and 1 < kill < term
    # -M alone would have waited until almost nothing was left.
    by_size = 100 * 4 * GIB / SPARK_KIB
    assert by_size / (100 - by_size) * 12 < 0.5


def test_a_small_machine_keeps_a_tenth() -> None:
    assert fires_below(NOBLE, 16 * GIB, 4 * GIB) == pytest.approx([1.6, 0.8])


@pytest.mark.parametrize("version", [NOBLE, TRIXIE])
def test_the_owner_says_how_much(version: tuple[int, ...]) -> None:
    assert fires_below(version, SPARK_KIB, 12 * GIB, 8) > fires_below(version, SPARK_KIB, 12 * GIB, 2)


@pytest.mark.parametrize("version", [NOBLE, TRIXIE])
def test_swap_does_not_count(version: tuple[int, ...]) -> None:
    # Both have to be below, and with one number SIGKILL would ask for half of it.
    assert option(earlyoom_arguments(version, 4), "-s") == (100, 100)


@pytest.mark.parametrize(
    ("name", "preferred", "avoided"),
    [
        ("VLLM::EngineCore", True, False),
        ("VLLM::EngineCore_DP1", True, False),
        ("VLLM::Worker_TP0", True, False),
        ("VLLM::Worker", True, False),
        ("RayWorkerProc", True, False),
        ("ray::RayWorkerProc.execute", True, False),
        ("pt_main_thread", True, False),
        ("vllm", False, False),
        ("VLLM::APIServer_0", False, False),
        ("python3", False, False),
        ("jupyter-lab", False, False),
        ("sshd", False, True),
        ("sshd-session", False, True),
        ("systemd", False, True),
        ("systemd-journald", False, True),
        ("dbus-daemon", False, True),
        ("dockerd", False, True),
        ("containerd-shim-runc-v2", False, True),
        ("NetworkManager", False, True),
        ("nvidia-persistenced", False, True),
        ("my-sshd-like", False, False),
    ],
)
def test_a_name_as_the_kernel_has_it(name: str, preferred: bool, avoided: bool) -> None:
    seen = name[:15]
    assert bool(re.search(_guard.PREFER, seen)) is preferred
    assert bool(re.search(_guard.AVOID, seen)) is avoided


def test_the_file_is_read_alike_by_systemd_and_by_a_shell() -> None:
    for version in (NOBLE, TRIXIE):
        line = earlyoom_text(version, 4).splitlines()[-1]
        name, _equals, value = line.partition("=")
        assert name == "EARLYOOM_ARGS"
        # Nothing that a shell would replace, or that would end the quotes.
        assert value[0] == value[-1] == '"' and not set(value[1:-1]) & set('"$`\\')
        assert shlex.split(shlex.split(value)[0]) == shlex.split(earlyoom_arguments(version, 4))


@pytest.mark.parametrize(
    ("text", "version"),
    [("earlyoom v1.8.2\n", (1, 8, 2)), ("earlyoom 1.7\n", (1, 7)), ("", ()), ("not found", ())],
)
def test_the_version_that_it_prints(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


# --- what is to be done


def node(**changed: t.Any) -> Present:
    """A new node, with earlyoom as somebody else has set it up."""
    given: dict[str, t.Any] = {
        "units": {SSH: RUNS, EARLYOOM: RUNS},
        "files": {EARLYOOM_FILE: THEIRS, SSH_FILE: None},
        "record": {},
        "version": NOBLE,
        "running": ("-r", "60"),
        "adjust": -1000,
    }
    return Present(**{**given, **changed})


def converged(**changed: t.Any) -> Present:
    """A node that is as wanted, and had a stopped earlyoom before."""
    given: dict[str, t.Any] = {
        "files": {EARLYOOM_FILE: earlyoom_text(NOBLE, 4), SSH_FILE: SSH_TEXT},
        "record": RECORD,
        "running": tuple(shlex.split(earlyoom_arguments(NOBLE, 4))),
    }
    return node(**{**given, **changed})


def test_a_new_node() -> None:
    found = plan(ON, node())
    assert found.files == {SSH_FILE: SSH_TEXT, EARLYOOM_FILE: earlyoom_text(NOBLE, 4)}
    assert found.commands == (("daemon-reload",), ("restart", EARLYOOM))
    assert found.record == {"earlyoom": {"file": THEIRS, "enabled": True, "active": True, "installed": False}}
    assert not found.adjust and not found.purge


def test_a_converged_node_is_left_alone() -> None:
    found = plan(ON, converged())
    assert (found.files, found.commands, found.adjust, found.purge) == ({}, (), False, False)
    assert found.record == RECORD


def test_sshd_is_never_restarted() -> None:
    for wanted in (ON, OFF, GONE):
        for present in (node(), converged(), node(adjust=0), converged(adjust=0)):
            assert not [command for command in plan(wanted, present).commands if SSH in command]
    assert "OOMScoreAdjust" not in [line.partition("=")[0] for line in SSH_TEXT.splitlines()]


def test_the_running_sshd_is_protected_where_that_can_be_done() -> None:
    assert plan(ON, converged(adjust=0)).adjust
    assert not plan(ON, converged(adjust=0, may_adjust=False)).adjust, "a container would say changed for ever"
    assert not plan(ON, converged(adjust=None)).adjust, "systemd listens, and no sshd runs"
    assert not plan(GONE, converged(adjust=0)).adjust


def test_a_node_without_debians_sshd_gets_no_file_for_it() -> None:
    units = {SSH: {"LoadState": "not-found"}, EARLYOOM: RUNS}
    assert SSH_FILE not in plan(ON, node(units=units)).files


def test_a_changed_file_restarts_it() -> None:
    found = plan(ON, converged(files={EARLYOOM_FILE: "edited", SSH_FILE: SSH_TEXT}))
    assert found.files == {EARLYOOM_FILE: earlyoom_text(NOBLE, 4)}
    assert found.commands == (("restart", EARLYOOM),)
    assert found.record == RECORD, "what somebody made of our file is nothing to go back to"


def test_a_restart_that_a_run_did_not_come_to_is_made_up_for() -> None:
    found = plan(ON, converged(running=("-r", "60")))
    assert (found.files, found.commands) == ({}, (("restart", EARLYOOM),))


def test_a_stopped_one_is_started_and_enabled() -> None:
    found = plan(ON, converged(units={SSH: RUNS, EARLYOOM: STOPPED}, running=()))
    assert found.commands == (("enable", EARLYOOM), ("restart", EARLYOOM))


def test_turned_off_the_node_has_what_it_had() -> None:
    found = plan(OFF, converged())
    assert found.files == {EARLYOOM_FILE: THEIRS}
    assert found.commands == (("disable", EARLYOOM), ("stop", EARLYOOM))
    assert found.record == {} and not found.purge
    ran = {"earlyoom": {"file": None, "enabled": True, "active": True, "installed": False}}
    found = plan(GONE, converged(record=ran))
    assert found.files == {SSH_FILE: None, EARLYOOM_FILE: None}
    assert found.commands == (("daemon-reload",), ("restart", EARLYOOM))


def test_turned_off_twice_is_once() -> None:
    restored = converged(
        files={EARLYOOM_FILE: THEIRS, SSH_FILE: None}, units={SSH: RUNS, EARLYOOM: STOPPED}, record={}, running=()
    )
    found = plan(GONE, restored)
    assert (found.files, found.commands, found.record, found.purge) == ({}, (), {}, False)


def test_somebody_elses_earlyoom_is_not_touched_where_none_is_wanted() -> None:
    found = plan(OFF, node())
    assert found.files == {SSH_FILE: SSH_TEXT}
    assert found.commands == (("daemon-reload",),)


def test_a_package_that_was_installed_for_this_goes_again() -> None:
    installed = plan(Wanted(earlyoom=True, ssh=True, installed=True), node())
    assert installed.record["earlyoom"]["installed"] is True
    found = plan(GONE, converged(record=installed.record))
    assert found.purge
    assert EARLYOOM_FILE not in found.files, "it belongs to the package"
    # A later run installs nothing, and does not forget.
    assert plan(ON, converged(record=installed.record)).record == installed.record


def test_our_own_file_is_nothing_to_go_back_to() -> None:
    lost = plan(ON, converged(record={}))
    assert lost.record["earlyoom"]["file"] is None
