# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _image_source

SOURCE = _image_source.Source(build="source", vllm_ref="v0.20.2", vllm_repository="https://example.org/vllm.git")


def source(**given: Any) -> _image_source.Source:
    return dataclasses.replace(SOURCE, **given)


def only(given: _image_source.Source) -> str:
    """Return the one problem that there is."""
    (problem,) = _image_source.problems(given)
    assert ";" in problem and "\n" not in problem
    return problem


@pytest.mark.parametrize("archs", ["12.1a", "12.0f", "12.1f", "12.0", "9.0a;12.1a", "9.0a 12.0f+PTX", "12.1a,12.0f"])
def test_lists_that_run_on_gb10(archs: str) -> None:
    assert _image_source.arch_problems(archs) == []


@pytest.mark.parametrize(
    ("archs", "why"),
    [
        ("12.0a", "12.0a gives code that runs on sm_120 only and not on GB10"),
        ("12.1a;12.0a", "12.0a gives code"),
        ("12.1", "plain 12.1 (sm_121) has neither E2M1 conversion nor block-scaled MMA"),
        ("12.0f;12.1+PTX", "plain 12.1 (sm_121)"),
        ("sm_121", "sm_121 is no architecture as torch writes them; write 12.1a"),
        ("120f", "write 12.0f"),
        ("Blackwell", "write for example 12.1a"),
        ("9.0a;10.0f", "9.0a;10.0f has no architecture that runs on GB10"),
        ("", "empty has no architecture that runs on GB10"),
    ],
)
def test_lists_that_do_not(archs: str, why: str) -> None:
    (problem,) = _image_source.arch_problems(archs)
    assert why in problem
    assert problem in _image_source.problems(source(torch_cuda_arch_list=archs))


def test_the_cpu_variant_has_no_architectures() -> None:
    assert _image_source.problems(source(variant="cpu", torch_cuda_arch_list="12.0a")) == []


def test_what_the_routes_need() -> None:
    assert _image_source.problems(_image_source.Source()) == []
    assert _image_source.problems(SOURCE) == []
    assert _image_source.problems(_image_source.Source(build="none", ref="vllm@sha256:0")) == []
    assert "give it as image_ref" in only(_image_source.Source(build="none"))
    assert "image_build wheels is unknown" in only(_image_source.Source(build="wheels"))
    assert "needs image_vllm_ref" in only(source(vllm_ref=""))


def test_what_a_wheel_build_would_ignore_is_said() -> None:
    said = only(_image_source.Source(vllm_ref="main", vllm_prs=[1]))
    assert said.startswith("image_vllm_ref and image_vllm_prs would have no effect; set image_build to source")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"vllm_ref": "main; rm -rf /"}, "is neither a release nor a name that git takes"),
        ({"vllm_ref": "--upload-pack=x"}, "is neither a release nor a name that git takes"),
        ({"vllm_ref": "0.20.2#sha256=12"}, "is neither a release nor a name that git takes"),
        ({"vllm_ref": "3b30e6150"}, "give all 40 digits"),
        ({"triton_ref": "a b"}, "image_triton_ref 'a b'"),
        ({"vllm_repository": "vllm"}, "image_vllm_repository 'vllm' is no address"),
        ({"vllm_prs": ["x", 7]}, "image_vllm_prs: x is no number"),
        ({"vllm_ref": "0.20.2", "vllm_prs": [7]}, "set image_vllm_ref to v0.20.2"),
        ({"build_jobs": -1}, "image_build_jobs -1 is negative"),
        ({"patches_skip": ["A B"]}, "image_patches_skip: A B is no entry's name"),
        ({"delivery": "each"}, "image_delivery each needs builds that agree"),
        ({"rebuild": ["all"]}, "image_rebuild: all is unknown; use deps and vllm"),
    ],
)
def test_what_a_source_build_refuses(given: dict[str, Any], why: str) -> None:
    assert why in only(source(**given))


def test_a_wheel_build_has_no_arguments_of_its_own() -> None:
    assert _image_source.arguments(_image_source.Source()) == {}
    assert _image_source.incidental(_image_source.Source(build_jobs=4), "1") == {}


def test_arguments_of_a_release_and_of_a_branch() -> None:
    digest = "ab" * 32
    release = source(vllm_ref=f"0.20.2#sha256={digest}", torch_cuda_arch_list="12.0f, 12.1a", patches_skip=["a", "b"])
    assert _image_source.arguments(release) == {
        "BUILD": "source",
        "VLLM_REF": "0.20.2",
        "VLLM_SHA256": digest,
        "VLLM_TARGET_DEVICE": "cuda",
        "TORCH_CUDA_ARCH_LIST": "12.0f;12.1a",
        "PATCHES_SKIP": "a b",
    }
    branch = source(
        vllm_ref="main", vllm_prs=[12, "34"], triton_ref="v3.5.1", triton_repository="https://t", variant="cpu"
    )
    assert _image_source.arguments(branch) == {
        "BUILD": "source",
        "VLLM_REF": "main",
        "VLLM_REPOSITORY": "https://example.org/vllm.git",
        "VLLM_PRS": "12 34",
        "VLLM_TARGET_DEVICE": "cpu",
        "TRITON_REF": "v3.5.1",
        "TRITON_REPOSITORY": "https://t",
    }


def test_what_is_rebuilt_and_how_is_no_part_of_the_key() -> None:
    given = source(rebuild=["vllm"], build_jobs=8)
    assert _image_source.incidental(given, "now") == {"REBUILD_VLLM": "now", "BUILD_JOBS": "8"}
    assert _image_source.arguments(given) == _image_source.arguments(SOURCE)


def test_mods_keep_their_order() -> None:
    assert _image_source.mod_names(["/srv/mods/b/", "mods/a"]) == ["01-b", "02-a"]


def test_mods_that_cannot_be_run() -> None:
    found = _image_source.mod_problems({"m/good": ["run.sh"], "m/none": [], "m/bad": ["x"], "m/a b": ["run.sh"]})
    assert [line.split(";")[0] for line in found] == [
        "image_mods: m/none is no directory on the controller, or an empty one",
        "image_mods: m/bad has no run.sh",
        "image_mods: m/a b has a name that no directory of a build may have",
    ]
