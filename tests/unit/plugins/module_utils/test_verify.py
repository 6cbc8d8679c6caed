# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which wheel a node verifies, and what is made of what its check said."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _verify

NODE = "spark-01"
TAG = "sparkfleet/vllm:cuda-0.32.0"
IMAGE = "sha256:" + "ab" * 32
DIST = "/collection/files/kernels/dist/"
ARM, X86 = (
    f"{DIST}sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_{machine}.whl" for machine in ("aarch64", "x86_64")
)
PLAN = {"image": IMAGE, "wheel": ARM, "problem": ""}
GPU = {"name": "NVIDIA GB10", "capability": "12.1", "multiprocessors": 48, "memory": 128 << 30, "l2": 24 << 20}
NO_GPU = "no GPU here: numerics not run"


def docker(architecture: str = "arm64") -> dict[str, Any]:
    return {"images": [{"Id": IMAGE, "Architecture": architecture}], "changed": False}


# --- which wheel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "wheel"), [("arm64", ARM), ("amd64", X86)])
def test_the_collections_wheel_is_that_for_the_images_architecture(architecture: str, wheel: str) -> None:
    plan = _verify.plan_kernels(NODE, docker(architecture), TAG, "", [ARM, X86, f"{DIST}torch-2.13.0-py3-none-any.whl"])
    assert plan == {"image": IMAGE, "wheel": wheel, "problem": ""}


@pytest.mark.parametrize("name", ["linux_aarch64", "manylinux_2_34_aarch64.manylinux_2_28_aarch64"])
def test_a_wheel_that_is_named_goes_before_the_collections(name: str) -> None:
    path = f"/home/me/sparkfleet_kernels-0.2.0-1-py3-none-{name}.whl"
    assert _verify.plan_kernels(NODE, docker(), TAG, path, [path])["wheel"] == path


@pytest.mark.parametrize(
    ("image", "named", "found", "problem"),
    [
        (
            {"images": []},
            "",
            [ARM],
            f"spark-01: the image {TAG} is not on the node; run site.yml, which puts it there",
        ),
        (
            {"failed": True, "msg": "Error connecting:\n  No such file or directory"},
            "",
            [ARM],
            "spark-01: Docker does not answer (No such file or directory); see `systemctl status docker` there",
        ),
        (
            docker(),
            "",
            [X86],
            "no wheel of the kernels for aarch64 is in files/kernels/dist; `make kernels` in a checkout builds it, or "
            "name one with -e verify_kernels_wheel=FILE",
        ),
        (
            docker(),
            "",
            [ARM, ARM.replace("0.1.0", "0.2.0")],
            "2 wheels of the kernels are in files/kernels/dist (sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_"
            "aarch64.whl, sparkfleet_kernels-0.2.0-py3-none-manylinux_2_34_aarch64.whl); name one with "
            "-e verify_kernels_wheel=FILE",
        ),
        (
            docker(),
            "/nowhere.whl",
            [],
            "verify_kernels_wheel is /nowhere.whl, which is no file on this machine; correct it (`make kernels` in a "
            "checkout builds it)",
        ),
        (
            docker(),
            "/vllm-0.32.0-py3-none-any.whl",
            ["/vllm-0.32.0-py3-none-any.whl"],
            "verify_kernels_wheel is /vllm-0.32.0-py3-none-any.whl, which is not named as a wheel of "
            "sparkfleet-kernels is; `make kernels` in a checkout builds it",
        ),
        (
            docker("amd64"),
            ARM,
            [ARM],
            f"spark-01: verify_kernels_wheel is {ARM}, which is for aarch64; name one for x86_64",
        ),
        (
            docker("riscv64"),
            ARM,
            [ARM],
            f"spark-01: verify_kernels_wheel is {ARM}, which is for aarch64; name one for riscv64",
        ),
    ],
)
def test_what_cannot_be_verified_is_said_in_one_line(
    image: dict[str, Any], named: str, found: list[str], problem: str
) -> None:
    plan = _verify.plan_kernels(NODE, image, TAG, named, found)
    assert plan["problem"] == problem
    assert plan["wheel"] == ""


# --- what the check said ---------------------------------------------------------------------------------------------


def check(name: str, *failed: tuple[str, float | None, float | None], value: float = 0.1) -> dict[str, Any]:
    return {
        "name": name,
        "ok": not failed,
        "figures": 10,
        "seconds": 0.5,
        "worst": {"label": f"{name}'s worst", "value": value, "limit": 0.2},
        "failed": [{"label": label, "value": value, "limit": limit} for label, value, limit in failed],
    }


def slurped(content: object) -> dict[str, Any]:
    return {"content": base64.b64encode(json.dumps(content).encode()).decode()}


def report(*checks: dict[str, Any], device: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `python -m sparkfleet_kernels verify --json` writes."""
    failed = any(not one["ok"] for one in checks)
    return {
        "schema": 1,
        "status": "failed" if failed else "passed" if device else "not run",
        "why_not_run": None if device else NO_GPU,
        "subset": "quick",
        "seed": 4711,
        "environment": {"package": "0.1.0", "torch": "2.13.0", "cuda": "13.0" if device else None, "device": device},
        "checks": list(checks),
    }


def container(status: int, printed: str = "") -> dict[str, Any]:
    """What docker_container returns of a program that has ended."""
    failure = {"failed": True, "msg": printed} if status else {}
    return {"status": status, "container": {"Output": printed}, **failure}


def ran(said: dict[str, Any] | None, status: int = 0, printed: str = "", **more: Any) -> dict[str, Any]:
    return {
        "unpack": container(0),
        "check": container(status, printed),
        "check_report": slurped(said) if said else {"failed": True, "msg": "file not found"},
        "bench": {},
        "bench_report": {},
        "bench_wanted": False,
        "error": "",
        **more,
    }


def test_a_gpu_that_passes() -> None:
    said = report(check("dense"), check("experts", value=0.15), device=GPU)
    result = _verify.judge_kernels(ran(said), NODE, PLAN)
    assert (result["state"], result["problems"]) == ("passed", [])
    assert result["summary"] == (
        "2 checks, 20 figures; nearest to its limit: 0.15 of 0.2 (experts: experts's worst); "
        "NVIDIA GB10, capability 12.1, torch 2.13.0"
    )
    assert result["title"].endswith("aarch64.whl, quick checks")
    assert result["reports"]["kernels"]["checks"] == said["checks"]
    assert (result["reports"]["kernels"]["node"], result["reports"]["kernels"]["image"]) == (NODE, IMAGE)


def test_figures_without_a_limit_or_without_a_value_are_not_the_nearest() -> None:
    exact = check("layout") | {"worst": {"label": "differences", "value": 0.0, "limit": 0.0}}
    nan = check("poison", value=float("nan"))
    broken = check("other") | {"worst": None}
    assert "nearest" not in _verify.judge_kernels(ran(report(exact, nan, broken, device=GPU)), NODE, PLAN)["summary"]


@pytest.mark.parametrize("gpu", [True, False])
def test_no_gpu_is_a_problem_for_an_image_that_needs_one_and_for_no_other(gpu: bool) -> None:
    result = _verify.judge_kernels(ran(report(check("layout"))), NODE, PLAN, gpu=gpu)
    assert result["state"] == "not run"
    assert result["summary"] == f"{NO_GPU}; 1 checks that need none passed, 10 figures; torch 2.13.0"
    assert result["problems"] == ([f"spark-01: kernels: {NO_GPU}; see `nvidia-smi` there"] if gpu else [])


@pytest.mark.parametrize("device", [None, GPU])
def test_a_failed_check_is_named_with_figure_limit_and_seed(device: dict[str, Any] | None) -> None:
    said = report(check("layout"), check("dense small", ("M 1,\n N 63", 0.31234, 0.01)), device=device)
    result = _verify.judge_kernels(ran(said, status=1, printed="FAIL"), NODE, PLAN, gpu=device is not None)
    assert result["state"] == "failed"
    assert result["problems"] == [
        "spark-01: kernels: check 'dense small' failed: M 1, N 63: 0.312, limit 0.01; do not serve with this wheel, "
        "and report it (seed 4711)"
    ]
    assert result["summary"].startswith("1 of 2 checks failed; ")


def test_an_exception_has_no_figure_and_many_figures_are_cut_short() -> None:
    raised = check("compile", ("RuntimeError: no kernel image", None, None))
    many = check("dense", *((f"M {m}", float("nan"), 0.0) for m in range(8)))
    result = _verify.judge_kernels(ran(report(raised, many, device=GPU), status=1), NODE, PLAN)
    first, *others, last = result["problems"]
    assert first.startswith("spark-01: kernels: check 'compile' failed: RuntimeError: no kernel image; do not serve")
    assert len(others) == 5 and "M 0: nan, limit 0; " in others[0]
    assert last == "spark-01: kernels: check 'dense': 3 more figures are over their limits"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"unpack": container(1, "Traceback (most recent call last):\nzipfile.BadZipFile: File is not a zip file")},
            "sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_aarch64.whl cannot be unpacked (zipfile.BadZipFile: File "
            "is not a zip file); build it again with `make kernels`",
        ),
        (
            {"check": container(1, "sparkfleet_kernels: it cannot be loaded\n")},
            "sparkfleet_kernels: it cannot be loaded",
        ),
        ({"check": container(3)}, "it ended with status 3"),
        (
            {"check": {"failed": True, "msg": 'Error starting container: could not select device driver "" [[gpu]]'}},
            'Error starting container: could not select device driver "" [[gpu]]',
        ),
        (
            {"check": container(124, "ok   layout")},
            "not finished after 1800 s, which nothing here should take; see what else keeps the GPU busy",
        ),
        (
            {"check": container(137, "ok   layout")},
            "killed (status 137), mostly for want of memory; stop serving meanwhile, with the stop playbook",
        ),
        ({"error": "Bring the wheel:\n no space left"}, "Bring the wheel: no space left"),
        (
            {"check_report": {"content": base64.b64encode(b'{"schema": 1, "che').decode()}, "check": container(139)},
            "139",
        ),
    ],
)
def test_a_check_without_a_report_failed_for_one_reason(change: dict[str, Any], reason: str) -> None:
    result = _verify.judge_kernels(ran(None, **change), NODE, PLAN, seconds=1800)
    assert result["state"] == "failed" and result["reports"] == {}
    (line,) = result["problems"]
    assert line.startswith("spark-01: kernels: ") and line.endswith(reason)
    assert "\n" not in line


# --- the benchmark ---------------------------------------------------------------------------------------------------

MEASURED = {"schema": 1, "checks": {"count": 30, "failures": []}, "seconds": 61.0}


def benched(status: int, data: object, printed: str = "# NVIDIA GB10: read 240 GB/s") -> dict[str, Any]:
    said = report(check("dense"), device=GPU)
    return ran(said, bench=container(status, printed), bench_report=slurped(data) if data else {}, bench_wanted=True)


def test_a_benchmark_is_shown_and_kept_as_it_is() -> None:
    result = _verify.judge_kernels(benched(0, MEASURED), NODE, PLAN)
    assert (result["state"], result["problems"]) == ("passed", [])
    assert result["lines"] == ["# NVIDIA GB10: read 240 GB/s"]
    assert result["reports"]["kernels-bench"] == MEASURED


def test_a_benchmark_with_a_wrong_result_fails() -> None:
    wrong = MEASURED | {"checks": {"count": 30, "failures": ["dense 64x64, M 8: 0.3"]}}
    result = _verify.judge_kernels(benched(1, wrong), NODE, PLAN)
    assert result["state"] == "failed"
    assert result["problems"] == ["spark-01: kernels: benchmark: dense 64x64, M 8: 0.3; do not serve with this wheel"]


@pytest.mark.parametrize("data", [None, {"schema": 1}])
def test_a_benchmark_that_broke_off_fails_and_what_it_had_is_kept(data: dict[str, Any] | None) -> None:
    result = _verify.judge_kernels(benched(1, data, "# dense\ntorch.OutOfMemoryError: no memory"), NODE, PLAN)
    assert result["state"] == "failed"
    assert result["problems"] == ["spark-01: kernels: the benchmark broke off: torch.OutOfMemoryError: no memory"]
    assert result["reports"].get("kernels-bench") == data


@pytest.mark.parametrize(
    ("said", "why"),
    [(report(check("layout")), NO_GPU), (report(check("dense", ("x", 1.0, 0.0)), device=GPU), "a check failed")],
)
def test_a_benchmark_that_was_not_begun_says_why(said: dict[str, Any], why: str) -> None:
    result = _verify.judge_kernels(ran(said, bench_wanted=True), NODE, PLAN, gpu=False)
    assert result["lines"] == [f"benchmark not run: {why}"]


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_lists_nodes_under_what_they_verified_and_all_problems_last() -> None:
    good = _verify.judge_kernels(benched(0, MEASURED), NODE, PLAN)
    bad = _verify.judge_kernels(ran(None, error="no space left"), "spark-2", PLAN)
    other = _verify.judge_kernels(ran(report(check("dense"), device=GPU)), "spark-03", PLAN | {"wheel": X86}, full=True)
    lines = _verify.render([good, bad, other], ["spark-04"], "/reports")
    assert lines[0] == "kernels: sparkfleet_kernels-0.1.0-py3-none-manylinux_2_34_aarch64.whl, quick checks"
    assert lines[1].startswith("  spark-01  passed   1 checks, 10 figures; ")
    assert lines[2:4] == ["    # NVIDIA GB10: read 240 GB/s", "  spark-2   failed   the check came to no result"]
    assert lines[4].endswith("x86_64.whl, all checks")
    assert lines[5].startswith("  spark-03  passed ")
    assert lines[6:] == [
        "problem: spark-2: kernels: no space left",
        "problem: spark-04: failed or became unreachable on the way; see above",
        "reports as JSON: /reports",
    ]
    assert _verify.problems([good, bad, other], ["spark-04"]) == [line[9:] for line in lines[6:8]]
    assert sorted(_verify.reports([good, bad, other])) == [
        "spark-01-kernels-bench.json",
        "spark-01-kernels.json",
        "spark-03-kernels.json",
    ]


def test_an_empty_report_has_no_lines() -> None:
    assert _verify.render([]) == []


# --- the image -------------------------------------------------------------------------------------------------------

IMAGE_PLAN = {"image": IMAGE, "reference": TAG, "problem": ""}


def proof(*checks: tuple[str, str, list[str]]) -> dict[str, Any]:
    """Return what slurp read of the image's report."""
    found = [
        {"name": name, "state": state, "summary": f"of {name}", "problems": problems, "figures": {}}
        for name, state, problems in checks
    ]
    report = {"schema": 1, "status": "passed", "checks": found, "description": {"variant": "cuda"}}
    return {"content": base64.b64encode(json.dumps(report).encode()).decode()}


def test_the_image_is_named_by_its_id() -> None:
    assert _verify.plan_image(NODE, docker(), TAG) == IMAGE_PLAN
    assert "is not on the node; run site.yml" in _verify.plan_image(NODE, {"images": []}, TAG)["problem"]
    assert "Docker does not answer" in _verify.plan_image(NODE, {"msg": "gone"}, TAG)["problem"]


def test_an_image_that_is_well_passes_with_a_line_for_each_check() -> None:
    ran = {"check": {"status": 0}, "report": proof(("imports", "passed", []), ("gpu", "passed", []))}
    result = _verify.judge_image(ran, NODE, IMAGE_PLAN)
    assert (result["state"], result["summary"], result["problems"]) == ("passed", "2 checks passed", [])
    assert result["lines"] == ["passed   imports  of imports", "passed   gpu      of gpu"]
    assert result["reports"]["image"]["image"] == IMAGE


def test_what_is_wrong_with_an_image_is_one_line_each() -> None:
    checks = (("imports", "failed", ["ray cannot be imported; build again"]), ("gpu", "not run", []))
    ran = {"check": {"status": 1}, "report": proof(*checks)}
    result = _verify.judge_image(ran, NODE, IMAGE_PLAN)
    assert (result["state"], result["summary"]) == ("failed", "1 checks failed, 1 checks not run")
    assert result["problems"] == [
        "spark-01: image: imports: ray cannot be imported; build again",
        "spark-01: image: of gpu; see `nvidia-smi` there",
    ]
    assert len(_verify.judge_image(ran, NODE, IMAGE_PLAN, gpu=False)["problems"]) == 1


@pytest.mark.parametrize(
    ("ran", "problem"),
    [
        ({"check": {"status": 124}}, "spark-01: image: not finished after 60 s, which nothing here should take"),
        ({"check": {"status": 1, "container": {"Output": "a\npython3: not found\n"}}}, "python3: not found"),
        ({"error": "Bring the check: no\nspace"}, "spark-01: image: Bring the check: no space"),
        ({}, "spark-01: image: it ended with status unknown"),
    ],
)
def test_a_check_without_a_report_says_why(ran: dict[str, Any], problem: str) -> None:
    result = _verify.judge_image(ran, NODE, IMAGE_PLAN, seconds=60)
    assert result["state"] == "failed"
    assert problem in result["problems"][0]
