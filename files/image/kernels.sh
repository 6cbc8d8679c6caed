# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# kernels.sh: lays out in /out the wheel of the GPU kernels with the hash KERNELS_SHA256; nothing where that is empty.
set -eu
. /mnt/python.sh
mkdir -p /out
if [ -n "$KERNELS_SHA256" ]; then
    wheel=$(cd /mnt && sha256sum -- *.whl | sed -n "s/^$KERNELS_SHA256  //p")
    [ -n "$wheel" ] || { echo "kernels/ holds no wheel with the SHA-256 $KERNELS_SHA256" >&2; exit 1; }
    pip_setup
    /tmp/pip/bin/pip install --quiet --no-index --target "/out$site" "/mnt/$wheel"
    compile /out "/out$site"
fi
settle /out
