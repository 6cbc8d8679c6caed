# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed where the engine or a tool is missing, and the one line where it cannot be."""

from __future__ import annotations

import pytest

from simulator import engine


def test_nothing_is_missing_where_all_commands_are_there() -> None:
    assert engine.missing_packages(lambda name: f"/usr/bin/{name}", engine_answers=False) == []


def test_packages_are_named_by_the_commands_that_lack() -> None:
    there = set(engine.TOOLS) - {"rsync", "debootstrap"}
    found = engine.missing_packages(lambda name: name if name in there else None, engine_answers=False)
    assert found == ["debootstrap", "docker.io", "rsync"]


def test_an_engine_that_answers_is_not_installed_again() -> None:
    assert engine.missing_packages(lambda name: None if name == "dockerd" else name, engine_answers=True) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ID=debian\n", True),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', True),
        ("ID=fedora\nID_LIKE=rhel\n", False),
        ("", False),
    ],
)
def test_debian_and_its_derivatives_are_known(text: str, expected: bool) -> None:
    assert engine.is_debian(text) is expected


def test_another_distribution_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "is_debian", lambda text: False)
    with pytest.raises(engine.EngineError, match=r"not found: docker\.io, rsync .*install them and try again"):
        engine.install(["docker.io", "rsync"], [])


def test_no_rights_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    with pytest.raises(engine.EngineError, match="run this as root"):
        engine.privilege()
