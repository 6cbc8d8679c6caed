# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# venv.sh: lays out in /out what the image adds to its base: the Python environment, the entrypoint, the variant's site/.
set -eu
export PYTHONDONTWRITEBYTECODE=1 # .pth files import modules at each start, which would write theirs with times
lock=/mnt/requirements-$(uname -m).lock
[ -f "$lock" ] || { echo "this variant has no lock for $(uname -m)" >&2; exit 1; }
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -s /run/secrets/pip_index_url ]; then PIP_INDEX_URL=$(cat /run/secrets/pip_index_url); export PIP_INDEX_URL; fi
source=
if ls /wheels/*.whl >/dev/null 2>&1; then source="--no-index --find-links /wheels"; fi

python3 -m venv /tmp/pip
python3 -m venv --without-pip /opt/vllm
# shellcheck disable=SC2086 # options
/tmp/pip/bin/pip --python /opt/vllm/bin/python install --disable-pip-version-check --root-user-action ignore \
    --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all: $source -r "$lock"

site=$(/opt/vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
grep -vE '^ *(#|$)' /mnt/trim.txt | while read -r pattern; do
    # shellcheck disable=SC2086 # the lines are patterns
    (cd "$site" && rm -rf -- $pattern)
done

mkdir -p /opt/sparkfleet/site
cp /mnt/entrypoint.py /opt/sparkfleet/entrypoint.py
if [ -d /mnt/site ]; then cp -r /mnt/site/. /opt/sparkfleet/site/; fi
echo /opt/sparkfleet/site > "$site/sparkfleet.pth"

# One process per package: what a .pyc holds depends on what its process compiled before, and this order is fixed.
# Packages hold templates that are no valid Python; those stay uncompiled.
export PYTHONHASHSEED=0
find "$site" /opt/sparkfleet -mindepth 1 -maxdepth 1 -print0 | sort -z |
    xargs -0 -n 1 -P "$(nproc)" /opt/vllm/bin/python -m compileall -q -q --invalidation-mode unchecked-hash >/dev/null || true

# An image that cannot even start its programs is not worth a name.
/opt/vllm/bin/vllm --version
/opt/vllm/bin/ray --version

mkdir -p /out/opt
mv /opt/vllm /opt/sparkfleet /out/opt/
chmod -R u=rwX,go=rX /out
find /out -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
