# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# proof.sh: checks the image that it runs in, and lays out in /proof the description of an image that passed.
# proof.sh tools: lays out in /tools what the checks of this variant need beside the image.
set -eu
. /mnt/python.sh
if [ "${1:-}" = tools ]; then
    mkdir -p /tools
    if [ -f "/mnt/proof-$(uname -m).lock" ]; then
        pip_setup
        /tmp/pip/bin/pip install --quiet --target /tools --require-hashes -r "/mnt/proof-$(uname -m).lock"
    fi
    exit 0
fi
lock=/mnt/requirements-$(uname -m).lock
etc=/proof/etc/sparkfleet
mkdir -p "$etc"
cp "$lock" "$etc/requirements.lock"
built=/report/built.txt # what the source route built
cat "$built" /opt/sparkfleet/mods.txt > /tmp/built.txt 2>/dev/null || true # and what mods installed
if [ -s /tmp/built.txt ]; then cp /tmp/built.txt "$etc/built.txt"; fi
required=imports,versions,libraries,shim
if [ "$VARIANT" = cuda ]; then required=$required,code; fi
if [ -n "$KERNELS_SHA256" ]; then required=$required,kernels; fi
HOME=/tmp /opt/vllm/bin/python /opt/sparkfleet/verify.py --require "$required" --lock "$lock" --built /tmp/built.txt --tools /tools --json /tmp/proof.json
/opt/vllm/bin/python /mnt/describe.py --lock "$lock" --built "$built" --proof /tmp/proof.json --variant "$VARIANT" --base "$BASE" \
    --build-key "$BUILD_KEY" --kernels-sha256 "$KERNELS_SHA256" --patches /report/patches.json > "$etc/image.json"
settle /proof
