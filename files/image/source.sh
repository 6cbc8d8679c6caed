# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# source.sh: builds what source.py says, in an environment of the lock; the wheels come to lie in /built.
set -eu
. /mnt/python.sh

environment --quiet
python3 /mnt/source.py "$site"
# Only /built leaves this stage; the engine's cache need not keep the rest.
rm -rf /opt/vllm /src /tmp/pip /tmp/build-requires
