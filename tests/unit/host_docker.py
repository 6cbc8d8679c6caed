# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A docker command for tests of the host program: containers are processes, the daemon's memory is a directory.

``FAKE_DOCKER`` names the directory. A file ``down`` in it: no daemon answers. A file ``hang``: the commands whose names
are in it never end. ``docker run`` takes ``--rm --name NAME image COMMAND...``; the container is a session of its own,
so it outlives a ``docker run`` that is killed, as a real one does. It is a shell script because a test calls it often.
"""

from __future__ import annotations

SCRIPT = r"""#!/bin/sh
cd "$FAKE_DOCKER" || exit 9
echo "$*" >> calls
verb=$1
shift
if [ -e down ]; then
    echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock." >&2
    [ "$verb" = run ] && exit 125
    exit 1
fi
if [ -e hang ]; then
    case " $(cat hang) " in *" $verb "*) exec sleep 99999 ;; esac
fi

# The state letter of process $1; empty for one that is gone or a zombie.
letter() {
    stat=
    { read -r stat < "/proc/$1/stat"; } 2>/dev/null
    stat=${stat##*) }
    stat=${stat%% *}
    case $stat in Z|X) stat= ;; esac
    echo "$stat"
}

# Set id and pid of container $1; --rm has removed one whose process is gone.
load() {
    id= pid=
    { read -r id pid < "$1.container"; } 2>/dev/null
    if [ -n "$pid" ]; then
        [ -n "$(letter "$pid")" ] && return
        rm -f "$1.container"
    fi
    echo "Error: No such container: $1" >&2
    exit 1
}

# Wait until process $1 is gone, at most for $2 hundredths of a second.
gone() {
    left=$2
    while [ -n "$(letter "$1")" ]; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 0.01
    done
}

for last; do :; done
case $verb in
run)
    name=$3
    shift 4
    { read -r id pid < "$name.container"; } 2>/dev/null
    if [ -n "$pid" ] && [ -n "$(letter "$pid")" ]; then
        echo "docker: Conflict. The container name \"/$name\" is already in use" >&2
        exit 125
    fi
    # Not the leader of a process group, so setsid needs no process of its own.
    setsid "$@" &
    # The id has the time in it: process numbers come again.
    read -r now rest < /proc/uptime
    echo "$!-$now $!" > "$name.new"
    mv "$name.new" "$name.container"
    exec 2>/dev/null
    wait $!
    code=$?
    rm -f "$name.container"
    exit $code
    ;;
top)
    load "$1"
    printf 'PID TT STAT COMMAND\n%s ? %s engine\n' "$pid" "$(letter "$pid")"
    ;;
inspect)
    load "$last"
    paused=false
    [ -e "$last.container.paused" ] && paused=true
    echo "$id true $paused"
    ;;
stop)
    load "$last"
    kill -TERM "-$pid" 2>/dev/null
    gone "$pid" "${2}00" || kill -KILL "-$pid" 2>/dev/null
    gone "$pid" 1000
    echo "$last"
    ;;
rm)
    load "$last"
    kill -KILL "-$pid" 2>/dev/null
    gone "$pid" 1000
    rm -f "$last.container"
    echo "$last"
    ;;
esac
exit 0
"""
