# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bench as a picture (SVG): throughput and latency over concurrency, with an earlier run paler behind it.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

Written here and not by a plotting library: four panels of lines are little code, nobody has to install anything on the
controller, and the picture follows the page that it stands in, light or dark. Colours are from the palette of Okabe and
Ito, which colour-blind people can tell apart; median and 99th percentile differ in marks and dashes as well.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._bench_report import Figure, heading, moment, value
from ._drawing import clean, width
from ._drawing_svg import SANS

WIDE, MARGIN, TOP, LEGEND = 880, 24, 146, 102
PANEL, TALL, GAP_X, GAP_Y, AXIS = 330, 190, 104, 100, 68
LEFT = MARGIN + AXIS
HIGH = TOP + 2 * TALL + GAP_Y + 62

_TICKS = 5
"""Lines of the grid that a panel has at most, besides that of 0."""
_LABEL_PX = 7.4
"""About how wide a digit of a tick's label is."""


@dataclass(frozen=True)
class Line:
    """A line of a panel: its figure, and how it looks."""

    figure: Figure
    name: str
    style: str
    mark: str


@dataclass(frozen=True)
class Panel:
    """A pair of axes: a title, the unit of what goes up, and its lines."""

    title: str
    unit: str
    lines: tuple[Line, ...]


def _latency(title: str, key: str) -> Panel:
    lines = (
        Line((f"{key}_ms", "p99"), "99th percentile", "tail", "diamond"),
        Line((f"{key}_ms", "median"), "median", "middle", "circle"),
    )
    return Panel(title, "milliseconds", lines)


PANELS = (
    Panel("Throughput", "output tokens per second", (Line(("output_tokens_per_s", ""), "all", "rate", "square"),)),
    _latency("Time to first token", "ttft"),
    _latency("Time per further token", "tpot"),
    _latency("Time to the whole answer", "e2e"),
)

# Light and dark: ink, muted ink, page, grid, throughput, median, 99th percentile.
_LOOKS = (
    ("#1f2328", "#59636e", "#ffffff", "#dfe4e9", "#00795a", "#0072b2", "#c24e00"),
    ("#e6edf3", "#9aa6b2", "#0f141a", "#2c3640", "#2cc79b", "#56b4e9", "#f0a030"),
)


def styles() -> str:
    """Return the style sheet of the pictures."""
    sheets = []
    for ink, muted, page, grid, *lines in _LOOKS:
        rules = f".bench text{{fill:{ink}}}.bench .muted{{fill:{muted}}}.bench .page{{fill:{page}}}"
        rules += f".bench .grid{{stroke:{grid}}}.bench .axis{{stroke:{muted}}}.bench .hollow{{fill:{page}}}"
        for name, colour in zip(("rate", "middle", "tail"), lines, strict=True):
            rules += f".bench .{name}{{stroke:{colour}}}.bench .{name}-fill{{fill:{colour}}}"
        sheets.append(rules)
    shape = (
        f".bench text{{font-family:{SANS};font-size:12px}}.bench .name{{font-size:19px;font-weight:600}}"
        ".bench .bold{font-size:14px;font-weight:600}.bench .line{fill:none;stroke-width:2.4;stroke-linejoin:round}"
        ".bench .before{opacity:.6}.bench .before .line{stroke-width:1.5}.bench .tail.line{stroke-dasharray:6 4}"
    )
    return f"{shape}{sheets[0]}@media screen and (prefers-color-scheme:dark){{{sheets[1]}}}"


def draw(record: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """Return the picture of a record, with that of an earlier one behind it."""
    title = f"{record['cluster']}: {record['model']}"
    items = [
        f'<rect class="page" width="{WIDE}" height="{HIGH}"/>',
        _text(MARGIN, 36, title, "name"),
        *(_text(MARGIN, 58 + 16 * index, line, "muted") for index, line in enumerate(_wrapped(heading(record)))),
        *_legend(before),
    ]
    for index, panel in enumerate(PANELS):
        x, y = LEFT + (index % 2) * (PANEL + GAP_X), TOP + (index // 2) * (TALL + GAP_Y)
        items.append(_panel(panel, record, before, x, y))
    label = f"Benchmark of {title}: throughput and latency over concurrency"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bench" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" '
        f'height="{HIGH}" role="img" aria-label="{_escape(label)}"><style>{styles()}</style>{"".join(items)}</svg>\n'
    )


def ticks(top: float) -> list[float]:
    """Return the marks of an axis from 0 to at least ``top``, as a person would choose them."""
    if not top > 0:
        return [0, 1]
    rough = top / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    count = math.ceil(top / step - 1e-9)
    return [round(step * index, 10) for index in range(count + 1)]


def _legend(before: Mapping[str, Any] | None) -> list[str]:
    y = LEGEND
    items, x = [], float(MARGIN)
    for name, style, mark in (("median", "middle", "circle"), ("99th percentile", "tail", "diamond")):
        items += [_path([(x, y - 4), (x + 34, y - 4)], style), _mark(x + 17, y - 4, style, mark)]
        items.append(_text(x + 42, y, name))
        x += 42 + width(name) * 6.4 + 28
    if before is not None:
        items.append('<g class="before">')
        items += [
            _path([(x, y - 4), (x + 34, y - 4)], "middle"),
            _mark(x + 17, y - 4, "middle", "circle", True),
            "</g>",
        ]
        items.append(_text(x + 42, y, f"paler and hollow: the last run, {moment(before)}"))
    return items


def _panel(panel: Panel, record: Mapping[str, Any], before: Mapping[str, Any] | None, x: float, y: float) -> str:
    runs = [record] if before is None else [before, record]
    clients = sorted({step["concurrency"] for run in runs for step in run["steps"]})
    figures = [value(step, line.figure) or 0 for run in runs for step in run["steps"] for line in panel.lines]
    marks = ticks(max(figures, default=0))

    def across(count: int) -> float:
        low, high = math.log2(clients[0]), math.log2(clients[-1])
        share = (math.log2(count) - low) / (high - low) if high > low else 0.5
        return x + 14 + share * (PANEL - 28)

    def up(figure: float) -> float:
        return y + TALL - figure / marks[-1] * TALL

    items = [_text(x - AXIS, y - 16, panel.title, "bold")]
    for mark in marks:
        items.append(_stroke(x, up(mark), x + PANEL, up(mark), "grid" if mark else "axis"))
        items.append(_text(x - 8, up(mark) + 4, f"{mark:,g}", "muted", "end"))
    labelled = _labelled([(count, across(count)) for count in clients])
    for count in clients:
        items.append(_stroke(across(count), y + TALL, across(count), y + TALL + 5, "axis"))
        if count in labelled:
            items.append(_text(across(count), y + TALL + 20, str(count), "muted", "middle"))
    items.append(
        _text(x + PANEL / 2, y + TALL + 40, "concurrency (requests at the same time), log2", "muted", "middle")
    )
    side = f'transform="rotate(-90 {_at(x - AXIS + 10)} {_at(y + TALL / 2)})"'
    items.append(_text(x - AXIS + 10, y + TALL / 2, panel.unit, "muted", "middle", side))
    for run in runs:
        old = run is before
        items.append('<g class="before">' if old else "<g>")
        for line in panel.lines:
            items += _line(line, run["steps"], across, up, old)
        items.append("</g>")
    return "".join(items)


def _labelled(places: Sequence[tuple[int, float]]) -> set[int]:
    """Return the numbers that have room for a label where they are: the last one, and from the left what else fits."""
    chosen: dict[int, tuple[float, float]] = {}
    for count, x in [*places[-1:], *places[:-1]]:
        half = (len(str(count)) * _LABEL_PX + 7) / 2
        if all(x + half <= left or right <= x - half for left, right in chosen.values()):
            chosen[count] = (x - half, x + half)
    return set(chosen)


def _line(line: Line, steps: Sequence[Mapping[str, Any]], across: Any, up: Any, old: bool) -> list[str]:
    """Return a line with its marks; a step without the figure is a gap."""
    pieces: list[list[tuple[float, float]]] = [[]]
    marks = []
    for step in sorted(steps, key=lambda one: one["concurrency"]):
        figure = value(step, line.figure) if step["completed"] else None
        if figure is None:
            pieces.append([])
            continue
        point = (across(step["concurrency"]), up(figure))
        pieces[-1].append(point)
        told = f"{'last run, ' if old else ''}concurrency {step['concurrency']}, {line.name}: {figure:,.2f}"
        marks.append(_mark(*point, line.style, line.mark, old, told))
    return [_path(piece, line.style) for piece in pieces if len(piece) > 1] + marks


# --- elements --------------------------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    return html.escape(clean(text), quote=True)


def _at(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, classes: str = "", anchor: str = "", more: str = "") -> str:
    named = f' class="{classes}"' if classes else ""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_at(x)}" y="{_at(y)}"{named}{where}{f" {more}" if more else ""}>{_escape(text)}</text>'


def _stroke(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    return f'<line x1="{_at(x1)}" y1="{_at(y1)}" x2="{_at(x2)}" y2="{_at(y2)}" class="{classes}"/>'


def _path(points: Sequence[tuple[float, float]], style: str) -> str:
    way = " ".join(f"{_at(x)},{_at(y)}" for x, y in points)
    return f'<polyline points="{way}" class="{style} line"/>'


def _mark(x: float, y: float, style: str, shape: str, hollow: bool = False, told: str = "") -> str:
    look = f'class="{style} hollow" stroke-width="1.5"' if hollow else f'class="{style}-fill"'
    inside = f"<title>{_escape(told)}</title>" if told else ""
    if shape == "circle":
        return f'<circle cx="{_at(x)}" cy="{_at(y)}" r="4.2" {look}>{inside}</circle>'
    r = 5.4 if shape == "diamond" else 4.0
    corners = [(0, -r), (r, 0), (0, r), (-r, 0)] if shape == "diamond" else [(-r, -r), (r, -r), (r, r), (-r, r)]
    way = " ".join(f"{_at(x + dx)},{_at(y + dy)}" for dx, dy in corners)
    return f'<polygon points="{way}" {look}>{inside}</polygon>'


def _wrapped(text: str) -> list[str]:
    """Divide a line that is wider than the picture, into two at most."""
    columns = int((WIDE - 2 * MARGIN) / 6.1)
    lines, words = [""], clean(text).split(" ")
    for word in words:
        if lines[-1] and width(lines[-1]) + 1 + width(word) > columns:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if len(lines) < 3 else [lines[0], lines[1][: columns - 1] + "…"]
