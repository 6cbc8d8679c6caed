# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SHA-256 of files on the controller, remembered between runs.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import json
import os
import tempfile
import typing as t

from ansible_collections.sparkfleet.vllm.plugins.module_utils._image import file_sha256


class Digests:
    """A memory of digests beside each file's size and time of change; a context manager that saves what it learned."""

    def __init__(self, path: str = "") -> None:
        """Use `path`, or the file that belongs to the user."""
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.path = path or os.path.join(cache, "sparkfleet", "digests.json")
        self.known: dict[str, list[t.Any]] = {}
        self.learned = False

    def __enter__(self) -> Digests:
        try:
            with open(self.path, encoding="utf-8") as file:
                known = json.load(file)
        except (OSError, ValueError):
            known = None
        self.known = known if isinstance(known, dict) else {}
        return self

    def of(self, path: str) -> str:
        """Return the SHA-256 of a file in hex. Raises OSError."""
        status = os.stat(path)
        seen = [status.st_size, status.st_mtime_ns]
        entry = self.known.get(path)
        if not isinstance(entry, list) or entry[:2] != seen or len(entry) != 3:
            entry = self.known[path] = [*seen, file_sha256(path)]
            self.learned = True
        return str(entry[2])

    def __exit__(self, *_exception: object) -> None:
        if not self.learned:
            return
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            # Several hosts of a play do this at once: each writes its own file, the last rename wins.
            handle, name = tempfile.mkstemp(dir=os.path.dirname(self.path))
            with open(handle, "w", encoding="utf-8") as file:
                json.dump({path: entry for path, entry in self.known.items() if os.path.exists(path)}, file)
            os.replace(name, self.path)
        except OSError:
            return  # a memory that cannot be kept costs time, nothing else
