# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# settle.sh STAMP DIRECTORY: gives everything changed since STAMP one fixed time, so that a rebuild is bit for bit the same.
set -eu
find "$2" -xdev -newer "$1" ! -path "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
rm -f "$1"
# The container's runtime makes its mount points in / and /etc before any step starts.
touch --date "@$SOURCE_DATE_EPOCH" "$(dirname "$1")" /etc /
