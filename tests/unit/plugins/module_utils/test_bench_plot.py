# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plot of a bench, read back as XML."""

from __future__ import annotations

import itertools
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bench_plot
from ansible_collections.sparkfleet.vllm.tests.unit.bench_records import record
from hypothesis import given
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"
MARKS = (f"{SVG}circle", f"{SVG}polygon")


def drawn(*records: dict[str, Any] | None) -> ElementTree.Element:
    return ElementTree.fromstring(_bench_plot.draw(*records))  # type: ignore[arg-type]


def texts(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def told(picture: ElementTree.Element) -> list[str]:
    """Return what the marks say when they are pointed at."""
    return [str(mark.findtext(f"{SVG}title")) for mark in picture.iter() if mark.tag in MARKS and len(mark)]


def with_steps(*clients: int) -> dict[str, Any]:
    made = record()
    made["steps"] = [{**made["steps"][0], "concurrency": count} for count in clients]
    return made


def test_every_figure_has_a_mark() -> None:
    found = told(drawn(record()))
    assert len(found) == 3 * 7
    step = record()["steps"][2]
    assert f"concurrency 16, all: {step['output_tokens_per_s']:,.2f}" in found
    assert f"concurrency 16, 99th percentile: {step['ttft_ms']['p99']:,.2f}" in found


def test_axes_have_titles_and_units() -> None:
    found = texts(drawn(record()))
    assert found.count("concurrency (requests at the same time), log2") == 4
    assert found.count("milliseconds") == 3 and found.count("output tokens per second") == 1
    for title in ("Throughput", "Time to first token", "Time per further token", "Time to the whole answer"):
        assert title in found


def test_the_last_run_is_behind_and_hollow() -> None:
    picture = drawn(record(), record("2026-11-23T09:00:00Z", 0.5))
    groups = [group.get("class") for group in picture.iter(f"{SVG}g")]
    assert groups == ["before"] + ["before", None] * 4, "the legend, and in each panel first the last run"
    hollow = [mark for mark in picture.iter() if mark.tag in MARKS and "hollow" in str(mark.get("class"))]
    assert len(hollow) == 1 + 3 * 7
    assert "paler and hollow: the last run, 2026-11-23 09:00 UTC" in texts(picture)
    assert sum(line.startswith("last run, ") for line in told(picture)) == 3 * 7


def test_concurrency_is_on_a_scale_of_doublings() -> None:
    picture = drawn(record())
    at = {text.text: float(str(text.get("x"))) for text in picture.iter(f"{SVG}text") if text.text in ("1", "4", "16")}
    assert at["16"] - at["4"] == pytest.approx(at["4"] - at["1"])


def test_labels_of_many_steps_do_not_overlap() -> None:
    clients = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)
    places = [
        (float(str(text.get("x"))), len(str(text.text)) * _bench_plot._LABEL_PX)
        for text in drawn(with_steps(*clients)).iter(f"{SVG}text")
        if str(text.text).isdigit() and text.get("text-anchor") == "middle" and float(str(text.get("x"))) < 440
    ][: len(clients)]
    row = sorted(set(places))
    assert len(row) > 6
    assert texts(drawn(with_steps(*clients))).count("4096") == 4, "the most clients always have one"
    for (left, wide), (right, other) in itertools.pairwise(row):
        assert left + wide / 2 < right - other / 2


def test_a_figure_that_is_missing_is_a_gap() -> None:
    made = with_steps(1, 2, 4, 8, 16)
    made["steps"][2] = {**made["steps"][2], "tpot_ms": {"median": None, "p99": None}}
    assert len(told(drawn(made))) == 5 * 7 - 2
    pieces = [line for line in drawn(made).iter(f"{SVG}polyline") if "line" in str(line.get("class"))]
    assert len(pieces) == 2 + 7 + 2, "legend, lines, and two in two pieces"


def test_one_step_is_drawn_as_well() -> None:
    assert len(told(drawn(with_steps(8)))) == 7


def test_a_step_without_an_answer_is_no_point_at_zero() -> None:
    made = record()
    made["steps"][0].update(completed=0, output_tokens_per_s=0.0)
    assert not [line for line in told(drawn(made)) if line.startswith("concurrency 1,")]


def test_names_are_escaped() -> None:
    made = {**record(), "model": "<b>&\"'\x1b"}
    assert "atlas: <b>&\"'\N{REPLACEMENT CHARACTER}" in texts(drawn(made))


def test_everything_is_inside_the_picture() -> None:
    made = record()
    made["nodes"] = [f"spark-{number:02}" for number in range(40)]
    picture = drawn(made, record("2026-11-23T09:00:00Z", 0.2))
    wide, high = (float(str(picture.get(side))) for side in ("width", "height"))
    for text in picture.iter(f"{SVG}text"):
        x, y = float(str(text.get("x"))), float(str(text.get("y")))
        assert 0 < x < wide and 0 < y < high
    for line in picture.iter(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in str(line.get("points")).split()]
        assert all(0 < x < wide and 0 < y < high for x, y in points)


def test_it_follows_a_dark_page_and_touches_nothing_else_on_it() -> None:
    style = _bench_plot.styles()
    assert "@media screen and (prefers-color-scheme:dark)" in style
    rules = style.replace("@media screen and (prefers-color-scheme:dark){", "").replace("}}", "}").split("}")
    assert all(rule.startswith(".bench ") for rule in rules if rule)


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_axes_are_divided_as_a_person_would(top: float) -> None:
    marks = _bench_plot.ticks(top)
    assert marks[0] == 0 and marks[-1] >= top * (1 - 1e-6) and 3 <= len(marks) <= 7
    assert marks[-1] < top * 2 + 1e-9 or len(marks) <= 3
    step = marks[1]
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step) + 1e-9), n, rel_tol=1e-3) for n in (1, 2, 2.5, 5))
