# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# packages.sh LIST: installs those packages of LIST that the image lacks; asks apt for nothing when it lacks none.
set -eu
touch /tmp/stamp
missing=$(grep -vE '^ *(#|$)' "$1" | while read -r name; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$name"
done)
if [ -n "$missing" ]; then
    apt-get update -q
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb
    find / -xdev -name __pycache__ -newer /tmp/stamp -prune -exec rm -rf {} +
    # Emptied, not removed: a layer's mark that a file of the base is gone carries the time of its making.
    find /var/log /var/cache/ldconfig /var/cache/debconf /var/lib/dpkg -xdev -type f -newer /tmp/stamp \
        \( -path '/var/log/*' -o -name aux-cache -o -name '*-old' \) -exec truncate --size 0 {} +
fi
sh /mnt/settle.sh /tmp/stamp /
