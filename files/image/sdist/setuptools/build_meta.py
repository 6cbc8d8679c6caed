# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build backend that builds nothing.

pip asks a source distribution's backend for metadata even where it shall only download, and vLLM's needs torch for
that. pip finds this one in setuptools' place and gets what the distribution says of itself in PKG-INFO; no code of the
distribution runs.
"""

from __future__ import annotations

import email
from pathlib import Path


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    """Write PKG-INFO as METADATA; return the directory's name."""
    info = Path("PKG-INFO").read_text(encoding="utf-8")
    named = email.message_from_string(info)
    directory = Path(metadata_directory) / f"{named['Name']}-{named['Version']}.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(info, encoding="utf-8")
    return directory.name
