# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# python.sh: what the steps that lay out Python files share; read by them, not run.
export PYTHONDONTWRITEBYTECODE=1 # .pth files import modules at each start, which would write theirs with times
export PYTHONHASHSEED=0 PYTHONWARNINGS=ignore
site=/opt/vllm/lib/python$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')/site-packages

# pip as the owner has set it up.
pip_setup() {
    python3 -m venv /tmp/pip
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca GIT_SSL_CAINFO=/run/secrets/ca; fi
    if [ -s /run/secrets/pip_index_url ]; then PIP_INDEX_URL=$(cat /run/secrets/pip_index_url); export PIP_INDEX_URL; fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_COMPILE=1 PIP_ONLY_BINARY=:all: PIP_NO_DEPS=1
    if ls /wheels/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels; fi
}

# environment [OPTION...]: the packages of this machine's lock in /opt/vllm.
environment() {
    lock=/mnt/requirements-$(uname -m).lock
    [ -f "$lock" ] || { echo "this variant has no lock for $(uname -m)" >&2; exit 1; }
    pip_setup
    python3 -m venv --without-pip /opt/vllm
    /tmp/pip/bin/pip --python /opt/vllm/bin/python install "$@" --require-hashes -r "$lock"
}

# compile ROOT DIRECTORY...: byte code with hashes of its source in place of times, under the paths that it has at run
# time. One process per package: what a .pyc holds depends on what its process compiled before, and this order is
# fixed. Packages hold templates that are no valid Python; those stay uncompiled.
compile() {
    root=$1
    shift
    find "$@" -mindepth 1 -maxdepth 1 -print0 | sort -z |
        xargs -0 -n 1 -P "$(nproc)" python3 -m compileall -q -q -s "$root" -p / --invalidation-mode unchecked-hash \
            >/dev/null || true
}

# settle DIRECTORY: one time and one set of permissions, so that a rebuild is bit for bit the same.
settle() {
    chmod -R u=rwX,go=rX "$1"
    find "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
}
