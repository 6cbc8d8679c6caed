# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that prove something: made after a change, and given up soon where they hang.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible.errors import AnsibleError

# Every command comes over a connection of its own, and one that hangs is given up soon. The first value of an option is
# the one that ssh takes.
_NEW_CONNECTION: t.Final = (
    "-o ControlMaster=no -o ControlPath=none -o ConnectTimeout=5 -o ConnectionAttempts=1 "
    "-o ServerAliveInterval=3 -o ServerAliveCountMax=2"
)


@contextlib.contextmanager
def new_connections(connection: t.Any) -> t.Iterator[None]:
    """Drop the connection that is kept open, and make a new one for every call."""
    _reset(connection)
    saved: dict[str, t.Any] = {}
    try:
        for name, value in (("ssh_args", _NEW_CONNECTION), ("reconnection_retries", 0)):
            before = connection.get_option(name)
            given = f"{value} {before or ''}".strip() if name == "ssh_args" else value
            connection.set_option(name, given)
            saved[name] = before
    except (AnsibleError, KeyError, AttributeError):
        pass  # not ssh: dropping the connection has to do
    try:
        yield
    finally:
        for name, value in saved.items():
            connection.set_option(name, value)
        _reset(connection)


def _reset(connection: t.Any) -> None:
    """Drop the connection that is kept open; what cannot be reached has nothing to drop."""
    with contextlib.suppress(AnsibleError, AttributeError):
        connection.reset()
