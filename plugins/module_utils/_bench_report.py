# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bench measured: the record that is kept, its comparison with an earlier one, and both as a table.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

A record is what `_bench.plan` knew beforehand and, of each step, vLLM's figures: throughput per second, latencies in
milliseconds. A figure that was not measured is None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SCHEMA = "sparkfleet.vllm/bench/1"

LATENCIES: Mapping[str, str] = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
"""Latency by its key, with its name: first token, each further token, between two tokens, whole answer."""
_VLLM = {"e2e": "e2el"}

Figure = tuple[str, str]
"""A figure of a step: its key, and for a latency "median" or "p99"."""
THROUGHPUT: Sequence[Figure] = (("requests_per_s", ""), ("output_tokens_per_s", ""))
MEDIANS: Sequence[Figure] = tuple((f"{key}_ms", "median") for key in LATENCIES)
NINETY_NINTH: Sequence[Figure] = tuple((f"{key}_ms", "p99") for key in LATENCIES)
JUDGED: Sequence[Figure] = (*THROUGHPUT, ("ttft_ms", "median"), ("tpot_ms", "median"), ("e2e_ms", "median"))
"""What counts as slower. The 99th percentile of few requests is nearly the slowest of them, and left out."""

TITLES: Mapping[str, str] = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    **{f"{key}_ms": f"{name} ms" for key, name in LATENCIES.items()},
}

_TIMED_OUT, _KILLED = 124, 137
_STAMP = r"\d{8}T\d{6}Z"
IMAGE_DIGITS = 12


# --- the record ------------------------------------------------------------------------------------------------------


def stem(record: Mapping[str, Any]) -> str:
    """Return the name of a record's files without its suffix."""
    return f"{record['cluster']}-{record['model']}-{re.sub('[:-]', '', record['when'])}"


def moment(record: Mapping[str, Any]) -> str:
    """Return when a record was measured, for a person: 2026-11-24 10:15 UTC."""
    return f"{record['when'][:16].replace('T', ' ')} UTC"


def is_candidate(filename: str, record: Mapping[str, Any]) -> bool:
    """Tell whether a file is named as an earlier record of the same cluster and model is."""
    pattern = rf"{re.escape(record['cluster'])}-{re.escape(record['model'])}-{_STAMP}\.json"
    return bool(re.fullmatch(pattern, filename)) and filename < f"{stem(record)}.json"


def judge(
    plan: Mapping[str, Any], report: Mapping[str, Any] | None, ended: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the record of a run, and what went wrong, one line each.

    :param plan: what `_bench.plan` returned.
    :param report: what sweep.py wrote; None where it wrote nothing.
    :param ended: how its container ended: ``status``, ``said`` (its last line), or ``error`` (why it did not run).
    """
    found = report or {"vllm": "", "steps": []}
    record = {"schema": SCHEMA, **plan["record"], "vllm": found["vllm"], "steps": []}
    label = f"{plan['cluster']}: {plan['name']}"
    problems: list[str] = []
    for done in found["steps"]:
        warmup = done["name"] == "warm-up"
        where = f"{label}: {_step_name(done['name'])}"
        if "error" in done:
            problems.append(f"{where}: {_explained(done['error'], plan['record'], ended)}")
            continue
        step = _step(done["result"])
        if not warmup:
            record["steps"].append(step)
        if step["failed"]:
            problems.append(f"{where}: {_failures(step, plan['record'])}")
    missing = [step["name"] for step in plan["steps"][len(found["steps"]) :]]
    if missing and not any("error" in done for done in found["steps"]):
        names = ", ".join(map(_step_name, missing))
        problems.append(f"{label}: {names} not measured; {_ending(plan, ended, bool(problems))}")
    return record, problems


def _step_name(name: str) -> str:
    return name if name == "warm-up" else f"concurrency {name}"


def _step(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a step that are kept of what vLLM saved."""
    step: dict[str, Any] = {
        "concurrency": result["max_concurrency"],
        "prompts": result["num_prompts"],
        "completed": result["completed"],
        "failed": result["failed"],
        "errors": result["errors"],
        "duration_s": result["duration"],
        "input_tokens": result["total_input_tokens"],
        "output_tokens": result["total_output_tokens"],
        "requests_per_s": result["request_throughput"],
        "output_tokens_per_s": result["output_throughput"],
        "total_tokens_per_s": result["total_token_throughput"],
    }
    for key in LATENCIES:
        name = _VLLM.get(key, key)
        # vLLM writes 0 where there was nothing to measure, as the second token of answers that have one.
        step[f"{key}_ms"] = {kind: result[f"{kind}_{name}_ms"] or None for kind in ("median", "p99")}
    return step


def _failures(step: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    reasons = sorted(step["errors"].items(), key=lambda pair: -pair[1])
    why = "; ".join(f"{reason} ({count})" if len(reasons) > 1 else reason for reason, count in reasons[:3])
    text = f"{step['failed']} of {step['completed'] + step['failed']} requests failed: {why or 'no reason was given'}"
    if "Bad Request" in step["errors"]:
        return f"{text}; prompt and answer may be longer than the model's {record['max_model_len']} tokens"
    return f"{text}; see the logs playbook"


def _explained(error: str, record: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    if record["workload"]["dataset"] == "sharegpt" and "empty sequence" in error:
        return "vLLM takes none of the conversations: it wants prompts and answers of 4 to 1024 tokens"
    if "ended with status" in error and ended.get("said"):
        return f"{error}: {ended['said']}"
    return error


def _ending(plan: Mapping[str, Any], ended: Mapping[str, Any], known: bool) -> str:
    """Say why the steps ended early."""
    if ended.get("error"):
        return str(ended["error"])
    if ended.get("status") == _TIMED_OUT:
        return f"time was up after {plan['timeout_s'] // 60} min; ask for less, or raise bench_timeout_min"
    if ended.get("status") == _KILLED:
        return "the client was killed (status 137), mostly for want of memory"
    if known:
        return "no request before it was answered"
    return str(ended.get("said") or f"the client ended with status {ended.get('status', 'unknown')}")


# --- the comparison --------------------------------------------------------------------------------------------------


def last(
    record: Mapping[str, Any], earlier: Iterable[tuple[str, str | OSError]]
) -> tuple[str, dict[str, Any] | None, list[str]]:
    """Return the newest record that asked for the same, with its file's name, and what was passed over and why.

    :param earlier: names of files with their text, or with why it cannot be read, newest first.
    """
    notes: list[str] = []
    other = 0
    for filename, text in earlier:
        if isinstance(text, OSError):
            notes.append(f"{filename} is passed over: it cannot be read ({text.strerror})")
            continue
        before, why = _read(text)
        if before is None:
            notes.append(f"{filename} is passed over: {why}")
        elif before["workload"] != record["workload"] or not _pairs(record, before):
            other += 1
        else:
            return filename, before, notes
    if other:
        notes.append(f"{other} earlier {'run' if other == 1 else 'runs'} asked for something else, so not compared")
    return "", None, notes


def _read(text: str) -> tuple[dict[str, Any] | None, str]:
    """Return a record, or why a text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None, "it is no JSON"
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return None, f"it is no record of {SCHEMA}"
    try:
        for step in found["steps"]:
            for key in ("concurrency", "prompts", "completed", "failed"):
                int(step[key])
            for figure in (*THROUGHPUT, *MEDIANS, *NINETY_NINTH):
                float(value(step, figure) or 0)
        sound = all(isinstance(found[key], kind) for key, kind in _FIELDS.items())
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    return (found, "") if sound else (None, f"it says {SCHEMA}, but lacks what belongs to that")


_FIELDS: Mapping[str, type] = {
    "when": str,
    "vllm": str,
    "executor": str,
    "nodes": list,
    "workload": dict,
    "image": dict,
    "sizes": dict,
    "server": dict,
}


def value(step: Mapping[str, Any], figure: Figure) -> float | None:
    """Return a figure of a step."""
    key, kind = figure
    found = step[key][kind] if kind else step[key]
    return None if found is None else float(found)


def _pairs(record: Mapping[str, Any], before: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return the earlier steps by concurrency of those that both measured without a failure."""
    sound = {step["concurrency"] for step in record["steps"] if step["completed"] and not step["failed"]}
    return {
        step["concurrency"]: step
        for step in before["steps"]
        if step["concurrency"] in sound and step["completed"] and not step["failed"]
    }


def change(now: float | None, then: float | None) -> float | None:
    """Return by how many percent a figure changed; None where that cannot be said."""
    return (now - then) / then * 100 if now is not None and then else None


def changes(record: Mapping[str, Any], before: Mapping[str, Any]) -> dict[int, dict[Figure, float | None]]:
    """Return the changes of every figure in percent, by concurrency."""
    pairs = _pairs(record, before)
    return {
        step["concurrency"]: {
            figure: change(value(step, figure), value(pairs[step["concurrency"]], figure))
            for figure in (*THROUGHPUT, *MEDIANS, *NINETY_NINTH)
        }
        for step in record["steps"]
        if step["concurrency"] in pairs
    }


def slower(changed: Mapping[int, Mapping[Figure, float | None]], limit: float) -> list[str]:
    """Return what became worse by more than so many percent."""
    found = []
    for clients, figures in changed.items():
        for figure in JUDGED:
            percent = figures[figure]
            worse = None if percent is None else -percent if figure in THROUGHPUT else percent
            if worse is not None and worse > limit:
                found.append(f"{TITLES[figure[0]]} {_percent(percent)} at concurrency {clients}")
    return found


def differences(record: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return what else than the speed is another thing than it was then."""
    found = []
    for key, (now, then) in {
        "vLLM": (record["vllm"], before["vllm"]),
        "image": (_image(record), _image(before)),
        "executor": (record["executor"], before["executor"]),
        "seed": (record.get("seed"), before.get("seed")),
        "nodes": (", ".join(record["nodes"]), ", ".join(map(str, before.get("nodes") or []))),
        **{f"{kind} parallel size": (record["sizes"][kind], before["sizes"].get(kind)) for kind in record["sizes"]},
        **{
            key: (record["server"].get(key), before["server"].get(key))
            for key in sorted({*record["server"], *before["server"]})
        },
    }.items():
        if now != then:
            found.append(f"{key} {'-' if then in (None, '') else then} → {'-' if now in (None, '') else now}")
    return found


def _image(record: Mapping[str, Any]) -> str:
    return str(record["image"].get("id", "")).removeprefix("sha256:")[:IMAGE_DIGITS]


# --- for a person ----------------------------------------------------------------------------------------------------


def heading(record: Mapping[str, Any]) -> str:
    """Return what was measured, in a line."""
    work = record["workload"]
    if work["dataset"] == "random":
        asked = f"random prompts of {work['input_tokens']} tokens, answers of {work['output_tokens']}"
    else:
        asked = f"conversations ({work['dataset']} {work['dataset_sha256'][:IMAGE_DIGITS]})"
        asked += f", answers of {work['output_tokens']} tokens" if work["output_tokens"] else ""
    sizes = [f"{short}={record['sizes'][kind]}" for kind, short in _SIZES.items() if record["sizes"][kind] > 1]
    how = [f"vLLM {record['vllm']}", f"image {_image(record)}", *sizes, *_executor(record)]
    return f"{asked}; {', '.join(how)}, on {', '.join(record['nodes'])}"


_SIZES = {"tensor": "TP", "pipeline": "PP", "data": "DP"}


def _executor(record: Mapping[str, Any]) -> list[str]:
    return [f"executor {record['executor']}"] if record["executor"] != "none" else []


def tables(
    record: Mapping[str, Any], changed: Mapping[int, Mapping[Figure, float | None]] | None
) -> list[tuple[str, list[list[str]]]]:
    """Return titles and rows of the tables, the header first; with changes where they are given."""
    made = []
    for title, figures, counted in (
        ("throughput, and median latency", (*THROUGHPUT, *MEDIANS), True),
        ("99th percentile of latency", NINETY_NINTH, False),
    ):
        header = ["concurrency", *(["requests", "failed"] if counted else [])]
        for figure in figures:
            header += [TITLES[figure[0]], *(["change"] if changed is not None else [])]
        rows = [header]
        for step in record["steps"]:
            row = [str(step["concurrency"])]
            row += [str(step["completed"] + step["failed"]), str(step["failed"])] if counted else []
            for figure in figures:
                row.append(_number(value(step, figure)))
                if changed is not None:
                    row.append(_percent(changed.get(step["concurrency"], {}).get(figure)))
            rows.append(row)
        made.append((title, rows))
    return made


def _number(figure: float | None) -> str:
    """Return a figure with about three digits that matter."""
    if figure is None:
        return "-"
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


def _percent(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:+.1f} %"


def compared_text(record: Mapping[str, Any], filename: str, before: Mapping[str, Any] | None) -> list[str]:
    """Return with what was compared, and what was another thing then."""
    if before is None:
        return ["No earlier run to compare with."]
    lines = [f"Compared with the last run, {moment(before)} ({filename})."]
    other = differences(record, before)
    return lines + ([f"Different since then: {'; '.join(other)}."] if other else [])


def text(
    record: Mapping[str, Any],
    filename: str,
    before: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> list[str]:
    """Return a record as lines for a terminal."""
    lines = [f"{record['cluster']}: {record['model']}: {heading(record)}"]
    for title, rows in tables(record, None if before is None else changes(record, before)):
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += ["", f"{title}:"]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [*lines, "", *compared_text(record, filename, before), *notes]


def markdown(
    record: Mapping[str, Any],
    filename: str,
    before: Mapping[str, Any] | None,
    notes: Sequence[str],
    picture: str,
) -> str:
    """Return a record as a page in Markdown that shows the picture of this name."""
    what = _escape(heading(record))
    lines = [f"# {_escape(record['cluster'])}: {_escape(record['model'])}, {moment(record)}", ""]
    lines.append(f"{what[0].upper()}{what[1:]}.")
    for title, rows in tables(record, None if before is None else changes(record, before)):
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in rows[:1]]
        lines += ["|" + "---:|" * len(rows[0])]
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    lines += ["", "TTFT: first token. TPOT: each further token. ITL: between two tokens. E2E: the whole answer."]
    lines += ["", *(f"- {_escape(line)}" for line in (*compared_text(record, filename, before), *notes))]
    lines += ["", f"![Throughput and latency over concurrency]({picture})"]
    return "\n".join(lines) + "\n"


def _escape(line: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
