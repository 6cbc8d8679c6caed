# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m sparkfleet_kernels verify``: the self-check."""

from __future__ import annotations

import sys

try:
    from .verify import main
except ImportError as error:
    # A missing library or torch is the owner's to mend: one line, no traceback.
    sys.exit(f"{error}")

if __name__ == "__main__":
    sys.exit(main())
