# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# source.sh: builds what source.py says, in an environment of the lock; the wheels come to lie in /built.
set -eu
. /mnt/python.sh
lock=/mnt/requirements-$(uname -m).lock
[ -f "$lock" ] || { echo "this variant has no lock for $(uname -m)" >&2; exit 1; }

pip_setup
python3 -m venv --without-pip /opt/vllm
/tmp/pip/bin/pip --python /opt/vllm/bin/python install --quiet --require-hashes -r "$lock"
python3 /mnt/source.py "$site"
# Only /built leaves this stage; the engine's cache need not keep the rest.
rm -rf /opt/vllm /src /tmp/pip /tmp/build-requires
