# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# venv.sh: makes the Python environment of the lock, and lays it out in /out, in a directory for each layer.
set -eu
. /mnt/python.sh

environment

mkdir /report
if ls /built/*.whl >/dev/null 2>&1; then
    # What source.sh built takes the place of the lock's. Its binaries differ from build to build, its name says which.
    /tmp/pip/bin/pip --python /opt/vllm/bin/python install --no-index --force-reinstall /built/*.whl
    for wheel in /built/*.whl; do
        basename "$wheel" | sed -E 's/^([^-]+)-([^-]+)-.*/\1==\2/'
    done > /report/built.txt
    cp /built/source.json /report/
fi

grep -vE '^ *(#|$)' /mnt/trim.txt | while read -r pattern; do
    # shellcheck disable=SC2086 # the lines are patterns
    (cd "$site" && rm -rf -- $pattern)
done
if [ -f /built/patches.json ]; then
    cp /built/patches.json /report/
else
    # An older vLLM gets the fixes in Python that it lacks; what is compiled is the source route's.
    PYTHONPATH=/mnt python3 -m patches apply --source "$site" --report /report/patches.json
fi
compile / "$site"
python3 /mnt/layers.py "$site" /opt/vllm /mnt/layers.txt /out
settle /out
