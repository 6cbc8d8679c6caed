# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the get-pip.py that ansible-test would download to fill its virtual environments.

It takes the pip that Python itself carries, and lets that one install the version which ansible-test asks for
from the package index that pip is configured for.
"""

from __future__ import annotations

import subprocess
import sys

# get-pip.py's own options, which pip does not know.
OPTIONS = {"--no-setuptools", "--no-wheel"}

# In a process of its own, since ensurepip tells pip to read no configuration.
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"])
arguments = [argument for argument in sys.argv[1:] if argument not in OPTIONS]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *arguments]))
