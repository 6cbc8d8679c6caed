# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New connections for a while, and the old settings afterwards."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleError
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._connection import new_connections


class Ssh:
    """A connection as the ssh plugin is one."""

    def __init__(self) -> None:
        self.options: dict[str, t.Any] = {"ssh_args": "-o ControlMaster=auto", "reconnection_retries": 5}
        self.resets = 0

    def get_option(self, name: str) -> t.Any:
        return self.options[name]

    def set_option(self, name: str, value: t.Any) -> None:
        self.options[name] = value

    def reset(self) -> None:
        self.resets += 1


def test_the_kept_connection_is_dropped_and_none_is_kept_meanwhile() -> None:
    ssh = Ssh()
    with new_connections(ssh):
        assert ssh.resets == 1
        # ssh takes the first value of an option.
        assert ssh.options["ssh_args"].startswith("-o ControlMaster=no -o ControlPath=none ")
        assert ssh.options["ssh_args"].endswith(" -o ControlMaster=auto")
        assert ssh.options["reconnection_retries"] == 0
    assert ssh.options == {"ssh_args": "-o ControlMaster=auto", "reconnection_retries": 5}
    assert ssh.resets == 2, "the last of the new ones is not kept either"


def test_the_settings_come_back_after_an_error() -> None:
    ssh = Ssh()
    with pytest.raises(ValueError), new_connections(ssh):
        raise ValueError
    assert ssh.options["reconnection_retries"] == 5


def test_other_connections_are_dropped_as_well_as_can_be() -> None:
    class Unreachable(Ssh):
        def reset(self) -> None:
            raise AnsibleError("nobody there")

    class Local:
        def get_option(self, name: str) -> t.Any:
            raise KeyError(name)

    entered = 0
    for connection in (Unreachable(), Local(), object()):
        with new_connections(connection):
            entered += 1
    assert entered == 3
