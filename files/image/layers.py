# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Split a Python environment into layers: ``layers.py SITE ENVIRONMENT LAYERS OUT``.

LAYERS has a line for each layer, ``name: pattern ...``; the patterns are those of distributions. The files that a
distribution's RECORD names, and their byte code, are moved to ``OUT/name/<their path>``. One layer has the pattern
``*``: it takes whatever no other one does. Runs in the build, with the standard library only.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

EVERYTHING = "*"


class LayersError(Exception):
    """What is wrong with the layers and what to do, in one line."""


def read_layers(text: str) -> dict[str, list[str]]:
    """Return the patterns of each layer, in the order of the file. Raises LayersError."""
    layers: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, patterns = line.partition(":")
        if not colon or not patterns.split() or not re.fullmatch(r"[a-z0-9-]+", name) or name in layers:
            raise LayersError(f"layers: the line {line!r} is no `name: pattern ...` of a new layer; correct it")
        layers[name] = patterns.split()
    if [patterns for patterns in layers.values() if EVERYTHING in patterns] != [[EVERYTHING]]:
        raise LayersError(f"layers: exactly one layer has to have the pattern {EVERYTHING}, and no other; correct it")
    return layers


def normalise(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(site: Path) -> dict[str, Path]:
    """Return the .dist-info of each distribution, by normalised name, sorted."""
    found = {normalise(path.name.split("-")[0]): path for path in site.glob("*.dist-info")}
    return dict(sorted(found.items()))


def byte_code(path: Path) -> Iterator[Path]:
    """Yield what was compiled from a source file."""
    if path.suffix == ".py":
        yield from sorted((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))


def recorded(site: Path, dist_info: Path) -> Iterator[Path]:
    """Yield the files of a distribution that are there, with their byte code."""
    with (dist_info / "RECORD").open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            path = Path(os.path.normpath(site / row[0]))
            if path.is_symlink() or path.is_file():
                yield path
                yield from byte_code(path)


def assign(names: list[str], layers: dict[str, list[str]]) -> dict[str, str]:
    """Return the layer of each distribution. Raises LayersError for a pattern that fits none."""
    chosen: dict[str, str] = {}
    for layer, patterns in layers.items():
        for pattern in patterns:
            fitting = [name for name in names if fnmatchcase(name, pattern)]
            if not fitting:
                raise LayersError(f"layers: {pattern} of layer {layer} fits no package; correct or remove it")
            if pattern != EVERYTHING:
                chosen.update((name, layer) for name in fitting if name not in chosen)
    rest = next(layer for layer, patterns in layers.items() if EVERYTHING in patterns)
    return {name: chosen.get(name, rest) for name in names}


def everything(top: Path) -> Iterator[Path]:
    """Yield every file and link below a directory, sorted."""
    for root, directories, names in os.walk(top):
        directories.sort()
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in sorted([*names, *links]))


def move(path: Path, target: Path) -> None:
    """Move a file or link to the same path below ``target``."""
    new = target / path.relative_to("/")
    new.parent.mkdir(parents=True, exist_ok=True)
    path.rename(new)


def split(site: Path, environment: Path, layers: dict[str, list[str]], out: Path) -> None:
    """Move an environment into its layers. Raises LayersError."""
    known = distributions(site)
    of = assign(list(known), layers)
    rest = next(layer for layer, patterns in layers.items() if EVERYTHING in patterns)
    for layer in layers:
        (out / layer).mkdir(parents=True)
    for name, dist_info in known.items():
        if of[name] != rest:
            # As a list: RECORD itself is moved too.
            for path in list(dict.fromkeys(recorded(site, dist_info))):
                if path.is_symlink() or path.exists():  # two distributions may name one file; the first has it
                    move(path, out / of[name])
    for path in list(everything(environment)):
        move(path, out / rest)


def main(arguments: list[str]) -> int:
    """Split; return the exit status."""
    site, environment, layers, out = map(Path, arguments)
    try:
        split(site, environment, read_layers(layers.read_text(encoding="utf-8")), out)
    except LayersError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
