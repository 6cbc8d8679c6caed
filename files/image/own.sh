# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# own.sh: lays out in /out what is this collection's own: the entrypoint, the checks, the variant's site/.
set -eu
. /mnt/python.sh
own=/out/opt/sparkfleet
mkdir -p "$own/site" "/out$site"
cp /mnt/entrypoint.py /mnt/verify.py /mnt/variant/libraries.txt "$own/"
if [ -d /mnt/variant/site ]; then cp -r /mnt/variant/site/. "$own/site/"; fi
echo /opt/sparkfleet/site > "/out$site/sparkfleet.pth"
compile /out "$own" "$own/site"
settle /out
