# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# own.sh: lays out in /out what is this collection's own: the entrypoint, the checks, site/ and the variant's,
# vLLM's settings, and the directory that every user can write to.
set -eu
. /mnt/python.sh
own=/out/opt/sparkfleet
mkdir -p "$own/site" "$own/config" "/out$site" /out/var/cache/sparkfleet
cp /mnt/entrypoint.py /mnt/verify.py /mnt/variant/libraries.txt "$own/"
cp -r /mnt/site/. "$own/site/"
if [ -d /mnt/variant/site ]; then cp -r /mnt/variant/site/. "$own/site/"; fi
echo /opt/sparkfleet/site > "/out$site/sparkfleet.pth"
# vLLM would hand all of its environment to Ray, whose logs and API show it.
echo '["VLLM_API_KEY"]' > "$own/config/ray_non_carry_over_env_vars.json"
compile /out "$own" "$own/site"
settle /out
chmod 1777 /out/var/cache/sparkfleet
