# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Get the files that the patch catalogue reads from vLLM's source distributions, and write its table.

``python tests/patches/sources.py`` downloads what is not there yet (180 MB for six versions, of which 4 MB stay in
.cache/vllm-sources); with ``--write`` it brings files/image/patches/table.json up to date, which docs/patch_table.py
makes the documentation from. sources.json has the versions and the hashes of their distributions. pip downloads them as
it is set up on this machine, and checks the hash.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = CHECKOUT / ".cache" / "vllm-sources"
TABLE = CHECKOUT / "files" / "image" / "patches" / "table.json"
PINNED: dict[str, str] = json.loads((HERE / "sources.json").read_text(encoding="utf-8"))

sys.path.insert(0, str(CHECKOUT / "files" / "image"))

from patches import _core, catalogue  # noqa: E402


class SourcesError(Exception):
    """What could not be had, in one line."""


def wanted() -> list[str]:
    """Return every path that a predicate may read, and what says that a tree is vLLM's."""
    paths = {path for patch in catalogue.PATCHES for path in patch.paths}
    return sorted(paths | {"vllm/__init__.py", "PKG-INFO"})


def download(version: str, sha256: str, directory: Path) -> Path:
    """Download one source distribution into ``directory``; pip compares the hash."""
    requirement = directory / "requirements.txt"
    requirement.write_text(f"vllm=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-cache-dir", "--no-deps", "--no-build-isolation"]
    line += ["--no-binary", "vllm", "--require-hashes", "--requirement", str(requirement), "--dest", str(directory)]
    done = subprocess.run(
        line,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "files" / "image" / "sdist")},
        capture_output=True,
        text=True,
        check=False,
    )
    found = list(directory.glob("vllm-*.tar.gz"))
    if done.returncode or len(found) != 1:
        said = [text for text in done.stderr.splitlines() if text.startswith("ERROR")] or [f"exit {done.returncode}"]
        raise SourcesError(f"vllm {version}: pip did not download its source: {said[0]}")
    return found[0]


def extract(archive: Path, paths: Sequence[str], into: Path) -> None:
    """Take the files at ``paths`` below the archive's one directory; what it does not have is no error."""
    left = set(paths)
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            if path in left and member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                (into / path).write_bytes(content.read())
                left.discard(path)


def source(version: str) -> Path:
    """Return the directory with a version's files, downloaded once and again when the catalogue reads more."""
    directory = CACHE / version
    note = directory / ".read.json"
    have = {"sha256": PINNED[version], "paths": wanted()}
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == have:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        extract(download(version, PINNED[version], Path(temporary)), wanted(), directory)
    note.write_text(json.dumps(have), encoding="utf-8")
    return directory


def findings(directory: Path) -> dict[str, dict[str, str]]:
    """Return every entry's finding in a tree."""
    entries = _core.status(catalogue.PATCHES, _core.Tree(directory))
    return {
        one.patch.id: {"state": one.finding.state, "file": one.finding.file, "reason": one.finding.reason}
        for one in entries
    }


def table() -> dict[str, Any]:
    """Return the findings in all pinned versions."""
    return {version: {"sha256": PINNED[version], "entries": findings(source(version))} for version in PINNED}


def main(argv: Sequence[str] | None = None) -> int:
    """Get the sources, and write the table where that is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description="Get vLLM's sources for the patch catalogue.")
    parser.add_argument("--write", action="store_true", help="write files/image/patches/table.json anew")
    write = parser.parse_args(argv).write
    try:
        for version in PINNED:
            source(version)
        if write:
            TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
    except (SourcesError, _core.PatchError) as error:
        print(f"sources: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
