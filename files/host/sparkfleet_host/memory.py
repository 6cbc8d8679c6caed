# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: how much is available, who has the most, the page cache, and the supervisor's own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource

GIB = 1024**3
# mlockall(2): what is there, what will be, and each page only when it is used.
CURRENT_FUTURE_ONFAULT = 1 | 2 | 4


def available_bytes(proc: str = "/proc") -> int:
    """Return MemAvailable in bytes; raises OSError where the kernel does not say."""
    with open(f"{proc}/meminfo", encoding="ascii", errors="replace") as stream:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", stream.read(), re.MULTILINE)
    if not found:
        raise OSError(f"{proc}/meminfo has no MemAvailable")
    return int(found.group(1)) * 1024


def largest_processes(count: int = 3, proc: str = "/proc") -> list[str]:
    """Return the processes with the most resident memory, as "NAME (PID) SIZE"; never their arguments."""
    found = []
    page = os.sysconf("SC_PAGE_SIZE")
    for pid in os.listdir(proc):
        if pid.isdigit():
            # Processes come and go meanwhile.
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"{proc}/{pid}/statm", encoding="ascii") as stream:
                    resident = int(stream.read().split()[1]) * page
                with open(f"{proc}/{pid}/comm", encoding="utf-8", errors="replace") as stream:
                    found.append((resident, stream.read().strip(), pid))
    found.sort(reverse=True)
    return [f"{name} ({pid}) {size(resident)}" for resident, name, pid in found[:count] if resident]


def size(count: int) -> str:
    """Return bytes as people read them."""
    return f"{count / GIB:.1f} GiB"


def lacking(need: int, have: int, waited: float, largest: list[str]) -> str:
    """Say that ``have`` bytes are not the ``need`` ones, after ``waited`` seconds."""
    text = f"needs {size(need)} of memory and {size(have)} are available after {waited:g} s"
    return text + (f"; the largest processes are {', '.join(largest)}" if largest else "")


def drop_page_cache(path: str = "/proc/sys/vm/drop_caches") -> None:
    """Write what is dirty and forget what is cached: loading then need not fight for it. Raises OSError."""
    os.sync()
    with open(path, "w", encoding="ascii") as stream:
        stream.write("1")


def hold_own() -> bool:
    """Keep this process's memory from being paged out, and say whether that is so.

    While a model loads, everything that can be paged out is; a supervisor that waits for its own code then misses
    heartbeats, and a sound group is stopped. Without the right to do it, it goes without.
    """
    try:
        # A limit would make the process's later allocations fail.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return bool(ctypes.CDLL(None).mlockall(CURRENT_FUTURE_ONFAULT) == 0)
    except (OSError, ValueError, AttributeError):
        return False
