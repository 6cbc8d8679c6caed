# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How our action plugins say no.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t


def refusal(result: t.Mapping[str, t.Any], lines: t.Iterable[str]) -> dict[str, t.Any]:
    """Return a failed result whose message has one reason on each line.

    The newline at the end makes Ansible's YAML output show the message as it is; a message without any is
    folded at 80 columns, which breaks a single long reason in two.
    """
    return {**result, "failed": True, "msg": "".join(f"{line}\n" for line in lines)}
