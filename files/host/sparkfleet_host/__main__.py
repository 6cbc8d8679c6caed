# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the supervisor: ``python3 -B sparkfleet_host OPTIONS -- /usr/bin/docker run ...``."""

from __future__ import annotations

import os
import sys

if not __package__:
    # Started as a directory, which Python then takes for the place of top-level modules; they are a package's.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from sparkfleet_host.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
