# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wheel of the kernels an image gets."""

from __future__ import annotations

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _image_kernels

ARM, X86 = (f"/c/dist/sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_{one}.whl" for one in ("aarch64", "x86_64"))
NEWER = ARM.replace("0.1.0", "0.2.0")


@pytest.mark.parametrize(
    ("given", "variant", "machine", "found", "wheel"),
    [
        ("", "cuda", "aarch64", [X86, ARM, "/c/dist/.done"], ARM),
        ("", "cuda", "x86_64", [X86, ARM], X86),
        ("", "cpu", "x86_64", [X86, ARM], ""),
        ("none", "cuda", "aarch64", [ARM], ""),
        ("none", "cuda", "aarch64", [], ""),
        (X86, "cpu", "x86_64", [X86], X86),
        (NEWER, "cuda", "aarch64", [NEWER], NEWER),
    ],
)
def test_the_wheel_is_chosen(given: str, variant: str, machine: str, found: list[str], wheel: str) -> None:
    assert _image_kernels.choose_wheel(given, variant, machine, found) == wheel


@pytest.mark.parametrize(
    ("given", "found", "reason"),
    [
        ("", [], "no wheel of the kernels for aarch64 is in files/kernels/dist; run make kernels in a checkout"),
        ("", [X86], "no wheel of the kernels for aarch64 is in files/kernels/dist; run make kernels in a checkout"),
        ("", [NEWER, ARM], "several wheels of the kernels are in files/kernels/dist"),
        ("/no.whl", [], "image_kernels_wheel /no.whl is no file on the controller; correct it, or leave it empty"),
        ("/no.whl", ["/no.whl"], "/no.whl is not named as a wheel of sparkfleet-kernels is"),
        (X86, [X86], f"{X86} is for x86_64; name the one for aarch64"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(given: str, found: list[str], reason: str) -> None:
    with pytest.raises(_image_kernels.KernelsError) as caught:
        _image_kernels.choose_wheel(given, "cuda", "aarch64", found)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
