# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# mods.sh: runs run.sh of each directory in /mods, in the order of their names, and compiles what it changed.
set -eu
. /mnt/python.sh
sh /mnt/packages.sh /mnt/packages-mods.txt
touch /tmp/stamp

# packages: what is installed, a line name==version for each.
packages() {
    /opt/vllm/bin/python -c 'from importlib.metadata import distributions
print("\n".join(sorted({f"{one.name}=={one.version}" for one in distributions()})))'
}
packages > /tmp/before

# Mods are written for images whose Python is the system's; for as long as they run, the environment is there too.
other=/usr/local/lib/$(basename "$(dirname "$site")")/dist-packages
was=absent
if [ -d "$other" ]; then was=empty; fi
if [ ! -e "$other" ] || rmdir "$other" 2>/dev/null; then
    mkdir -p "$(dirname "$other")"
    ln -s "$site" "$other"
else
    was=used
fi

# patch goes through no symbolic link on its way to a file, so it gets the files' own names.
mkdir /tmp/bin
cat > /tmp/bin/patch <<END
#!/bin/bash
rename() { sed -E 's#(^|[ /])usr/local/lib/python3\.[0-9]+/dist-packages/#\1${site#/}/#' "\$@"; }
words=()
input=
while [ \$# -gt 0 ]; do
    case \$1 in
        -i) input=\$2; shift ;;
        --input=*) input=\${1#*=} ;;
        *) words+=("\$1") ;;
    esac
    shift
done
rename \${input:+"\$input"} | /usr/bin/patch "\${words[@]}"
END
chmod 755 /tmp/bin/patch

for mod in /mods/*/; do
    name=$(basename "$mod")
    cp -r "$mod" /tmp/mod
    (cd /tmp/mod && PATH=/tmp/bin:/opt/vllm/bin:$PATH WORKSPACE_DIR=/tmp/mod bash ./run.sh) ||
        { echo "mod ${name#*-}: its run.sh failed; correct it, or leave it out of image_mods" >&2; exit 1; }
    rm -rf /tmp/mod
    echo "mod ${name#*-}: applied"
done
if [ "$was" != used ]; then rm "$other"; fi
if [ "$was" = empty ]; then mkdir "$other"; fi
packages > /tmp/after
comm -13 /tmp/before /tmp/after > /opt/sparkfleet/mods.txt # these differ from the lock, and may
rm -r /tmp/before /tmp/after /tmp/bin

# Byte code is never compared with its source here: what a mod changed has to be compiled anew. The time of the change
# counts, for a file may have been put there with its old time.
find "$site" -name '*.py' -newercm /tmp/stamp -print0 |
    xargs -0 -r python3 -m compileall -q -q -f --invalidation-mode unchecked-hash >/dev/null || true
sh /mnt/settle.sh /tmp/stamp /
