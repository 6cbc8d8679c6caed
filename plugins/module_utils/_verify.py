# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verify playbook runs on a node, and what came of it. Two parts: the image, and the GPU kernels.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

A part's result on a node is a dictionary: ``part``, ``node``, ``title`` (what was verified, the same on nodes that
verified the same), ``state`` (passed, failed, not run), ``summary`` (one line), ``lines`` (what else a person wants to
see), ``problems`` (one line each; with one of them the play fails) and ``reports`` (JSON to keep, by file name).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._image_kernels import DIST, is_wheel, machine_of

MACHINES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}
"""A wheel's name of an architecture by Docker's."""

_BUILD = "`make kernels` in a checkout builds it"

_SHOWN = 5
"""How many figures of a check are shown that are over their limits."""
_TIMED_OUT, _KILLED = 124, 137


def plan_image(node: str, image: Mapping[str, Any], reference: str) -> dict[str, str]:
    """Say which image a node verifies, or why it cannot.

    :param node: the node's inventory name.
    :param image: what docker_image_info said of ``reference``.
    :param reference: the image that site.yml put on the node, by name or ID.
    :return: ``image`` (its ID), ``reference`` and ``problem``, which is empty where it can be done.
    """
    plan = {"image": "", "reference": reference, "problem": ""}
    if "images" not in image:
        plan["problem"] = f"{node}: Docker does not answer ({_last_line(image)}); see `systemctl status docker` there"
    elif not image["images"]:
        plan["problem"] = f"{node}: the image {reference} is not on the node; run site.yml, which puts it there"
    else:
        plan["image"] = str(image["images"][0]["Id"])
    return plan


def plan_kernels(
    node: str, image: Mapping[str, Any], reference: str, named: str, found: Sequence[str]
) -> dict[str, str]:
    """Say which image and which wheel the kernels are verified with, or why they cannot be.

    :param node: the node's inventory name.
    :param image: what docker_image_info said of ``reference``.
    :param reference: the image that site.yml put on the node, by name or ID.
    :param named: the wheel that the owner names, empty for the collection's own.
    :param found: the files on the controller to choose from: ``named`` if it is a file, else the collection's wheels.
    :return: ``image`` (its ID), ``wheel`` (a path) and ``problem``, which is empty where it can be done.
    """
    of_image = plan_image(node, image, reference)
    plan = {"image": of_image["image"], "wheel": "", "problem": of_image["problem"]}
    if plan["problem"]:
        return plan
    architecture = str(image["images"][0]["Architecture"])
    machine = MACHINES.get(architecture, architecture)
    suits = [path for path in found if machine_of(path) == machine]
    if named:
        plan["problem"] = _named_problem(node, named, bool(found), machine)
    elif not suits:
        plan["problem"] = (
            f"no wheel of the kernels for {machine} is in {DIST}; {_BUILD}, or name one with "
            "-e verify_kernels_wheel=FILE"
        )
    elif len(suits) > 1:
        names = ", ".join(sorted(map(os.path.basename, suits)))
        plan["problem"] = f"{len(suits)} wheels of the kernels are in {DIST} ({names}); name one with " + (
            "-e verify_kernels_wheel=FILE"
        )
    if not plan["problem"]:
        plan["wheel"] = suits[0]
    return plan


def _named_problem(node: str, named: str, there: bool, machine: str) -> str:
    if not there:
        return f"verify_kernels_wheel is {named}, which is no file on this machine; correct it ({_BUILD})"
    if not is_wheel(named):
        return f"verify_kernels_wheel is {named}, which is not named as a wheel of sparkfleet-kernels is; {_BUILD}"
    if machine_of(named) != machine:
        return (
            f"{node}: verify_kernels_wheel is {named}, which is for {machine_of(named) or 'another architecture'}; "
            f"name one for {machine}"
        )
    return ""


def judge_image(
    ran: Mapping[str, Any], node: str, plan: Mapping[str, str], gpu: bool = True, seconds: int = 0
) -> dict[str, Any]:
    """Judge what the image's check said on a node.

    :param ran: what was registered: ``check`` (of docker_container) and ``report`` (of slurp). ``error``: why it went
        no further.
    :param node: the node's inventory name.
    :param plan: what ``plan_image`` returned.
    :param gpu: whether the image is one for GPUs, so that one must be there.
    :param seconds: after which a program is ended.
    :return: the part's result.
    """
    result: dict[str, Any] = {
        "part": "image",
        "node": node,
        "title": f"image: {plan['reference']}",
        "state": "failed",
        "summary": "",
        "lines": [],
        "problems": [],
        "reports": {},
    }
    report = _report(ran.get("report"))
    if report is None:
        why = _one_line(str(ran["error"])) if ran.get("error") else _ending(ran.get("check") or {}, seconds)
        result["problems"] = [f"{node}: image: {why}"]
        result["summary"] = "the check came to no result"
        return result
    result["reports"]["image"] = {"node": node, "image": plan["image"], **report}
    checks = report["checks"]
    width = max(len(check["name"]) for check in checks)
    for check in checks:
        result["lines"].append(f"{check['state']:<7}  {check['name']:<{width}}  {check['summary']}".rstrip())
        result["problems"] += [f"{node}: image: {check['name']}: {_one_line(line)}" for line in check["problems"]]
        if gpu and check["name"] == "gpu" and check["state"] == "not run":
            result["problems"].append(f"{node}: image: {check['summary']}; see `nvidia-smi` there")
    states = [check["state"] for check in checks]
    result["summary"] = ", ".join(
        f"{states.count(state)} checks {state}" for state in ("failed", "passed", "not run") if state in states
    )
    if not result["problems"]:
        result["state"] = "passed"
    return result


def judge_kernels(
    ran: Mapping[str, Any],
    node: str,
    plan: Mapping[str, str],
    full: bool = False,
    gpu: bool = True,
    seconds: int = 0,
) -> dict[str, Any]:
    """Judge what the kernels' own check said on a node.

    :param ran: what was registered: ``unpack``, ``check`` and ``bench`` (of docker_container), ``check_report`` and
        ``bench_report`` (of slurp). What was not run is empty or missing. ``error``: why it went no further.
    :param node: the node's inventory name.
    :param plan: what ``plan_kernels`` returned.
    :param full: whether all checks were asked for, not only the quick ones.
    :param gpu: whether the image is one for GPUs, so that one must be there.
    :param seconds: after which a program is ended.
    :return: the part's result.
    """
    wheel = os.path.basename(plan["wheel"])
    result: dict[str, Any] = {
        "part": "kernels",
        "node": node,
        "title": f"kernels: {wheel}, {'all checks' if full else 'quick checks'}",
        "state": "failed",
        "summary": "",
        "lines": [],
        "problems": [],
        "reports": {},
    }
    report = _report(ran.get("check_report"))
    if report is None:
        why = _why_nothing(ran, wheel, seconds)
        result["problems"] = [f"{node}: kernels: {why}"]
        result["summary"] = "the check came to no result"
        return result
    result["reports"]["kernels"] = {"node": node, "image": plan["image"], "wheel": wheel, **report}
    checks, found = report["checks"], report["environment"]
    failed = [check for check in checks if not check["ok"]]
    count = sum(int(check["figures"]) for check in checks)
    device = found.get("device")
    where = f"{device['name']}, capability {device['capability']}, " if device else ""
    versions = f"{where}torch {found['torch']}"
    for check in failed:
        result["problems"] += [f"{node}: kernels: {line}" for line in _over(check, report["seed"])]
    without = report.get("why_not_run")
    if failed:
        result["summary"] = f"{len(failed)} of {len(checks)} checks failed; {versions}"
    elif without:
        result["state"] = "not run"
        result["summary"] = f"{without}; {len(checks)} checks that need none passed, {count} figures; {versions}"
        if gpu:
            result["problems"].append(f"{node}: kernels: {without}; see `nvidia-smi` there")
    else:
        result["state"] = "passed"
        result["summary"] = f"{len(checks)} checks, {count} figures; {_nearest(checks)}{versions}"
    if ran.get("bench"):
        _judge_bench(result, ran, seconds)
    elif ran.get("bench_wanted"):
        result["lines"].append(f"benchmark not run: {'a check failed' if failed else without or 'the check broke off'}")
    return result


def _judge_bench(result: dict[str, Any], ran: Mapping[str, Any], seconds: int) -> None:
    """Add to a result what the benchmark measured, and what was wrong with it."""
    node = result["node"]
    result["lines"] += _said(ran["bench"])
    data = _report(ran.get("bench_report"))
    if data is not None:
        result["reports"]["kernels-bench"] = data
    wrong = (data or {}).get("checks", {}).get("failures") or []
    result["problems"] += [f"{node}: kernels: benchmark: {line}; do not serve with this wheel" for line in wrong]
    if data is None or ("seconds" not in data and not wrong):
        result["problems"].append(f"{node}: kernels: the benchmark broke off: {_ending(ran['bench'], seconds)}")
    if result["problems"]:
        result["state"] = "failed"


def _why_nothing(ran: Mapping[str, Any], wheel: str, seconds: int) -> str:
    unpack, check = ran.get("unpack") or {}, ran.get("check") or {}
    if ran.get("error"):
        return f"{_one_line(str(ran['error']))}"
    if _broke(unpack):
        return f"{wheel} cannot be unpacked ({_last_line(unpack)}); build it again with `make kernels`"
    return _ending(check, seconds)


def _ending(container: Mapping[str, Any], seconds: int) -> str:
    """Say how a program ended that should have left a report."""
    status = container.get("status")
    if status == _TIMED_OUT:
        return f"not finished after {seconds} s, which nothing here should take; see what else keeps the GPU busy"
    if status == _KILLED:
        return "killed (status 137), mostly for want of memory; stop serving meanwhile, with the stop playbook"
    return _last_line(container)


def _broke(container: Mapping[str, Any]) -> bool:
    return bool(container) and container.get("status") != 0


def _over(check: Mapping[str, Any], seed: object) -> list[str]:
    """Return a line for each figure of a check that is over its limit, the first of them."""
    lines = []
    for figure in check["failed"][:_SHOWN]:
        what = f"check {check['name']!r} failed: {_one_line(str(figure['label']))}"
        if figure["value"] is not None:
            what += f": {float(figure['value']):.3g}, limit {float(figure['limit']):g}"
        lines.append(f"{what}; do not serve with this wheel, and report it (seed {seed})")
    more = len(check["failed"]) - _SHOWN
    return lines + ([f"check {check['name']!r}: {more} more figures are over their limits"] if more > 0 else [])


def _nearest(checks: Iterable[Mapping[str, Any]]) -> str:
    """Return which figure came nearest to its limit, empty where no limit is more than 0."""
    worst = [
        (float(check["worst"]["value"]) / float(check["worst"]["limit"]), check)
        for check in checks
        if check.get("worst") and check["worst"]["limit"]
    ]
    sound = [pair for pair in worst if math.isfinite(pair[0])]
    if not sound:
        return ""
    check = max(sound, key=lambda pair: pair[0])[1]
    value, limit = float(check["worst"]["value"]), float(check["worst"]["limit"])
    return f"nearest to its limit: {value:.3g} of {limit:g} ({check['name']}: {check['worst']['label']}); "


def _report(slurped: Any) -> dict[str, Any] | None:
    """Return the JSON that slurp read, None where there is none or it was cut off."""
    try:
        content = json.loads(base64.b64decode(slurped["content"]))
    except (TypeError, KeyError, ValueError, binascii.Error):
        return None
    return content if isinstance(content, dict) else None


def _said(container: Mapping[str, Any]) -> list[str]:
    """Return what a container printed."""
    details = container.get("container")
    text = details.get("Output") if isinstance(details, Mapping) else None
    return [line.rstrip() for line in str(text or container.get("msg") or "").splitlines() if line.strip()]


def _last_line(answer: Mapping[str, Any]) -> str:
    """Return the last line that a failed module or program said, which is where its reason is."""
    lines = _said(answer)
    return _one_line(lines[-1]) if lines else f"it ended with status {answer.get('status', 'unknown')}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def render(results: Sequence[Mapping[str, Any]], lost: Sequence[str] = (), written: str = "") -> list[str]:
    """Return the report for a person.

    :param results: what each part found on each node.
    :param lost: nodes that failed or became unreachable on the way.
    :param written: directory in which the reports are kept.
    """
    lines: list[str] = []
    width = max((len(result["node"]) for result in results), default=0)
    for title in dict.fromkeys(result["title"] for result in results):
        lines.append(title)
        for result in results:
            if result["title"] == title:
                lines.append(f"  {result['node']:<{width}}  {result['state']:<7}  {result['summary']}")
                lines.extend(f"    {line}" for line in result["lines"])
    lines.extend(f"problem: {problem}" for problem in problems(results, lost))
    if written:
        lines.append(f"reports as JSON: {written}")
    return lines


def problems(results: Iterable[Mapping[str, Any]], lost: Iterable[str] = ()) -> list[str]:
    """Return what is wrong on any node, one line each."""
    gone = [f"{node}: failed or became unreachable on the way; see above" for node in lost]
    return [problem for result in results for problem in result["problems"]] + gone


def reports(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return every report to keep, by the name of its file."""
    return {
        f"{result['node']}-{name}.json": content for result in results for name, content in result["reports"].items()
    }
