# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the names of all settings that the image's NCCL knows to tests/unit/data/nccl-names.txt.

``make lock`` runs it: it downloads the very wheel that the lock of the cuda image pins (about 200 MB). NCCL ignores
a setting that it does not know without a word, so a unit test compares what the fabric role emits with this list.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "files/image/cuda/requirements-aarch64.lock"
NAMES = ROOT / "tests/unit/data/nccl-names.txt"
PACKAGE = "nvidia-nccl-cu13"
LIBRARY = "nvidia/nccl/lib/libnccl.so.2"


def pinned(lock: str) -> tuple[str, set[str]]:
    """Return NCCL's version and the hashes of its wheels, as a lock has them."""
    entry = re.search(rf"^{PACKAGE}==(\S+)((?:\s*\\\n\s+--hash=sha256:[0-9a-f]{{64}})+)", lock, re.MULTILINE)
    if entry is None:
        sys.exit(f"{LOCK}: {PACKAGE} is not in it")
    return entry[1], set(re.findall("[0-9a-f]{64}", entry[2]))


def main() -> None:
    """Download, check, extract."""
    version, hashes = pinned(LOCK.read_text())
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory]
        command += ["--platform", "manylinux_2_18_aarch64", "--only-binary", ":all:", f"{PACKAGE}=={version}"]
        subprocess.run(command, check=True)
        [wheel] = Path(directory).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest not in hashes:
            sys.exit(f"{wheel.name}: sha256 {digest} is not in {LOCK}")
        with zipfile.ZipFile(wheel) as archive:
            library = archive.read(LIBRARY)
    # To the end of a C string: a longer name must not vouch for a shorter one. A message may end in a name.
    names = sorted({name.decode() for name in re.findall(rb"(?<![A-Za-z0-9_])NCCL_[A-Z0-9_]+(?=\0)", library)})
    header = f"# {PACKAGE}=={version} sha256:{digest}\n# The strings NCCL_* of its {LIBRARY}; made by `make lock`.\n"
    NAMES.write_text(header + "".join(f"{name}\n" for name in names))
    print(f"{NAMES.relative_to(ROOT)}: {len(names)} names of NCCL {version}")


if __name__ == "__main__":
    main()
