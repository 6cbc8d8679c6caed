# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wheel of the GPU kernels goes into an image.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import glob
import os
import re
import typing as t

DIST: t.Final = "files/kernels/dist"
"""Where `make kernels` puts the wheels, in the collection."""
NONE: t.Final = "none"
"""Value of image_kernels_wheel that leaves the kernels out."""

_WHEEL = re.compile(r"sparkfleet_kernels-([^-]+)(?:-\d[^-]*)?-[^-]+-[^-]+-([^-]+)\.whl")
_MACHINE = re.compile(r"(x86_64|aarch64)\Z")


class KernelsError(Exception):
    """What is wrong and what to do, in one line."""


def is_wheel(path: str) -> bool:
    """Say whether a file is named as a wheel of sparkfleet-kernels is."""
    return bool(_WHEEL.fullmatch(os.path.basename(path)))


def machine_of(path: str) -> str:
    """Return the architecture that a wheel of ours is for, empty where the file is none."""
    wheel = _WHEEL.fullmatch(os.path.basename(path))
    machine = _MACHINE.search(wheel[2]) if wheel else None
    return machine[1] if machine else ""


def find_wheel(given: str, variant: str, machine: str, root: str) -> str:
    """Return the path of the wheel that an image gets, empty for none. Raises KernelsError.

    `given` is image_kernels_wheel, with a whole path where it is one; `root` is the collection's directory.
    """
    if given and given != NONE:
        found = [given] if os.path.isfile(given) else []
    else:
        found = [os.path.realpath(path) for path in glob.glob(os.path.join(root, DIST, "*.whl"))]
    return choose_wheel(given, variant, machine, found)


def choose_wheel(given: str, variant: str, machine: str, found: t.Sequence[str]) -> str:
    """Return the path of the wheel that an image gets, empty for none. Raises KernelsError.

    `given` is image_kernels_wheel: a path, `none`, or empty for the collection's own. `found` are the wheels to choose
    from: the given one if it is a file, else those of the collection. The CPU's image runs no kernels and gets them
    only when asked to.
    """
    if given == NONE or (not given and variant == "cpu"):
        return ""
    if given:
        named = f"image_kernels_wheel {given}"
        if not found:
            raise KernelsError(f"{named} is no file on the controller; correct it, or leave it empty")
        if not is_wheel(given):
            raise KernelsError(f"{named} is not named as a wheel of sparkfleet-kernels is; `make kernels` builds one")
        if machine_of(given) != machine:
            raise KernelsError(f"{named} is for {machine_of(given) or 'another machine'}; name the one for {machine}")
        return found[0]
    fitting = sorted(path for path in found if machine_of(path) == machine)
    if not fitting:
        raise KernelsError(
            f"no wheel of the kernels for {machine} is in {DIST}; run make kernels in a checkout, name one with "
            f"image_kernels_wheel, or set that to {NONE}"
        )
    if len(fitting) > 1:
        names = ", ".join(map(os.path.basename, fitting))
        raise KernelsError(f"several wheels of the kernels are in {DIST} ({names}); name one with image_kernels_wheel")
    return fitting[0]
