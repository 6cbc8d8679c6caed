# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the roofline of a recorded run as SVG and fills the tables of a document, without any package.

python files/kernels/bench/plot.py             write docs/images/kernels-roofline.svg and docs/kernels.md's blocks
python files/kernels/bench/plot.py --check     exit status 1 if they are not what the recorded runs say
python files/kernels/bench/plot.py --run FILE.json --svg FILE.svg     draw another run, nothing else
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import tables
import work

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "kernels.md"
PICTURE = ROOT / "docs" / "images" / "kernels-roofline.svg"

#: M -> colour, dark to light with growing M and distinct for colour-blind eyes; other M take the last.
COLOURS = {1: "#1b2a6b", 2: "#2372b5", 4: "#1a9988", 8: "#d98200", 16: "#b5243a"}
INK, MUTED, GRID, ROOF = "#1f2328", "#59636e", "#e4e8ed", "#3a4552"
QUANTIZE = "#7a45d1"
WIDTH, HEIGHT = 1120, 620
FONT = "'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif"

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!-- Copyright (c) 2026, the sparkfleet.vllm authors
     GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
     SPDX-License-Identifier: GPL-3.0-or-later
     Made by files/kernels/bench/plot.py; the card has a background of its own, for light and dark pages. -->
"""


@dataclass(frozen=True)
class Point:
    """One measurement; ``x`` and ``y`` in the units of its panel."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Series:
    """Measurements of one kind and M. ``shape``: circle, diamond or triangle."""

    name: str
    shape: str
    colour: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, drawn from pixel ``begin`` to pixel ``end``."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return the values that get a line: 1, 2 and 5 of every decade, or about six even steps."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            values = [digit * 10.0**exponent for exponent in range(first, last + 1) for digit in (1, 2, 5)]
            return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        step = _nice((self.high - self.low) / 6)
        return [step * index for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _nice(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value * 0.999)


def series(run: dict[str, Any], roofline: bool) -> list[Series]:
    """Return what a panel shows.

    :param roofline: operations per byte and TFLOP/s; otherwise megabytes of a call and GB/s, where quantizing is
        shown too. Quantizing out of the cache is not shown: its rate says nothing about DRAM.
    """
    result = []
    for kind, shape, flop in (("dense", "circle", _dense_flop), ("moe", "diamond", _moe_flop)):
        rows = run.get(kind, [])
        for m in sorted({row["m"] for row in rows}):
            points = []
            for row in rows:
                if row["m"] != m:
                    continue
                if roofline:
                    x, y = flop(row) / row["bytes"], flop(row) / row["us"] / 1e6
                else:
                    x, y = row["bytes"] / 1e6, row["gb_s"]
                label = f"{kind} {work.describe(row)}: {row['us']:.1f} µs, {row['gb_s']:.0f} GB/s"
                points.append(Point(x, y, f"{label}, {100 * row['read_fraction']:.0f} % of the read probe"))
            result.append(Series(f"{kind} M={m}", shape, COLOURS.get(m, COLOURS[16]), tuple(points)))
    if not roofline:
        points = [
            Point(
                row["bytes"] / 1e6,
                row["gb_s"],
                f"quantize {work.describe(row)}: {row['us']:.1f} µs, {100 * row['copy_fraction']:.0f} % of the copy",
            )
            for row in run.get("quantize", [])
            if not row["cached"]
        ]
        if points:
            result.append(Series("quantize", "triangle", QUANTIZE, tuple(points)))
    return result


def _dense_flop(row: dict[str, Any]) -> float:
    return work.dense_flop(row["n"], row["k"], row["m"])


def _moe_flop(row: dict[str, Any]) -> float:
    return work.moe_flop(row["topk"], row["h"], row["i"], row["m"])


class Drawing:
    """Collects the elements of the picture."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float, dash: str = "") -> None:
        """Draw a polyline."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}/>')

    def text(
        self, x: float, y: float, text: str, size: float = 12, colour: str = INK, anchor: str = "start", extra: str = ""
    ) -> None:
        """Write a line; ``anchor`` as SVG's text-anchor."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{extra}>'
            f"{escape(text)}</text>"
        )

    def halo(self, x: float, y: float, text: str, colour: str, anchor: str = "start", turn: float = 0) -> None:
        """Write a line that stays readable on top of others; ``turn`` in degrees, clockwise."""
        turned = f' transform="rotate({turn:.1f} {x:.1f} {y:.1f})"' if turn else ""
        self.text(x, y, text, 11.5, colour, anchor, f' stroke="#fff" stroke-width="4" paint-order="stroke"{turned}')

    def marker(self, x: float, y: float, shape: str, colour: str, title: str = "") -> None:
        """Draw one measurement, with a text that appears under the pointer."""
        inner = f"<title>{escape(title)}</title>" if title else ""
        style = f'fill="{colour}" stroke="#fff" stroke-width="1"'
        if shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.6" {style}>{inner}</circle>')
            return
        offsets = {
            "diamond": ((0, -6.2), (6.2, 0), (0, 6.2), (-6.2, 0)),
            "triangle": ((0, -5.8), (5.6, 4.2), (-5.6, 4.2)),
        }[shape]
        path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in offsets)
        self.parts.append(f'<polygon points="{path}" {style}>{inner}</polygon>')

    def series(self, all_series: Sequence[Series], x: Axis, y: Axis) -> None:
        """Draw measurements, each series in a group of its own."""
        for one in all_series:
            self.parts.append(f'<g data-series="{escape(one.name)}">')
            for point in one.points:
                self.marker(x.at(point.x), y.at(point.y), one.shape, one.colour, point.label)
            self.parts.append("</g>")

    def axes(self, x: Axis, y: Axis, title: str, x_name: str, y_name: str) -> None:
        """Draw the frame, the grid and the names of a panel."""
        self.text(x.begin, y.end - 18, title, 14.5, INK, extra=' font-weight="600"')
        for value in x.ticks():
            self.line([(x.at(value), y.begin), (x.at(value), y.end)], GRID, 1)
            self.text(x.at(value), y.begin + 17, f"{value:g}", 11.5, MUTED, "middle")
        for value in y.ticks():
            self.line([(x.begin, y.at(value)), (x.end, y.at(value))], GRID, 1)
            self.text(x.begin - 8, y.at(value) + 4, f"{value:g}", 11.5, MUTED, "end")
        self.line([(x.begin, y.end), (x.begin, y.begin), (x.end, y.begin)], ROOF, 1.2)
        middle = (y.begin + y.end) / 2
        self.text((x.begin + x.end) / 2, y.begin + 38, x_name, 12.5, INK, "middle")
        left = x.begin - 50
        self.text(left, middle, y_name, 12.5, INK, "middle", f' transform="rotate(-90 {left:.1f} {middle:.1f})"')


def draw(run: dict[str, Any]) -> str:
    """Return the roofline of a run as an SVG document."""
    probe, machine = run["probe"], run["machine"]
    drawing = Drawing()
    read, copy = probe["read_gb_s"], probe["copy_gb_s"]
    summary = f"{machine['gpu']}, {run['date']}: NVFP4 kernels against what the memory gives"
    drawing.text(32, 38, summary, 18, INK, extra=' font-weight="600"')
    _roofline_panel(drawing, series(run, roofline=True), read, probe["bf16_tflop_s"])
    _bandwidth_panel(drawing, series(run, roofline=False), read, copy, probe["curve"])
    _legend(drawing, series(run, roofline=False))
    description = (
        f"Left: TFLOP/s over FLOP per byte under a read rate of {read:.0f} GB/s. Right: GB/s over the megabytes of a "
        f"call. Copy {copy:.0f} GB/s."
    )
    body = "\n".join(drawing.parts)
    return (
        f'{_HEAD}<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" font-family="{FONT}">\n<title>{escape(summary)}</title>\n'
        f"<desc>{escape(description)}</desc>\n"
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" fill="#fff" stroke="#c8d1da"/>\n'
        f"{body}\n</svg>\n"
    )


def _roofline_panel(drawing: Drawing, shown: Sequence[Series], read: float, product: float) -> None:
    """Draw TFLOP/s over FLOP per byte, both logarithmic, under the two roofs."""
    points = [point for one in shown for point in one.points]
    ridge = product * 1e3 / read  # FLOP per byte where the roofs meet
    low_x = min([2.0, *(point.x * 0.8 for point in points)])
    low_y = min([low_x * read / 1e3 * 0.5, *(point.y * 0.7 for point in points)])
    x = Axis(low_x, max(ridge * 1.8, 1.2 * low_x), 86, 530, True)
    y = Axis(low_y, product * 2.2, 490, 96, True)
    drawing.axes(x, y, "Roofline", "arithmetic intensity, FLOP per byte moved", "TFLOP/s")
    start = max(x.low, y.low * 1e3 / read)
    roof = [(start, start * read / 1e3), (ridge, product), (x.high, product)]
    drawing.line([(x.at(a), y.at(b)) for a, b in roof], ROOF, 2)
    begin, end = ((x.at(a), y.at(b)) for a, b in roof[:2])
    slope = math.degrees(math.atan2(end[1] - begin[1], end[0] - begin[0]))
    along = 0.62
    drawing.halo(
        begin[0] + along * (end[0] - begin[0]) - 6,
        begin[1] + along * (end[1] - begin[1]) - 9,
        f"read probe {read:.0f} GB/s",
        ROOF,
        "middle",
        slope,
    )
    drawing.halo(x.end - 4, y.at(product) - 8, f"bf16 product {product:.0f} TFLOP/s", ROOF, "end")
    drawing.series(shown, x, y)


def _bandwidth_panel(
    drawing: Drawing, shown: Sequence[Series], read: float, copy: float, curve: Sequence[dict[str, Any]]
) -> None:
    """Draw GB/s over the megabytes of one call, with what reading alone reaches."""
    megabytes = [point.x for one in shown for point in one.points]
    low, high = min([2.0, *megabytes]) * 0.75, max([400.0, *megabytes]) * 1.35
    top = max([read, copy, *(point.y for one in shown for point in one.points)])
    x = Axis(low, high, 640, 1088, True)
    y = Axis(0, top * 1.1, 490, 96, False)
    drawing.axes(x, y, "Bandwidth of one call", "bytes that a call has to move, MB", "GB/s")
    for rate, name, place in ((read, "read probe", -8), (copy, "copy, read + written", 16)):
        drawing.line([(x.begin, y.at(rate)), (x.end, y.at(rate))], ROOF, 1.4, "6 4")
        drawing.halo(x.begin + 8, y.at(rate) + place, f"{name} {rate:.0f} GB/s", ROOF)
    inside = [(part["bytes"] / 1e6, part["gb_s"]) for part in curve if low <= part["bytes"] / 1e6 <= high]
    if inside:
        # Its rates may lie above the probe's by what repeated reading leaves in the cache.
        drawing.line([(x.at(a), y.at(min(b, y.high))) for a, b in inside], MUTED, 2.2)
    drawing.series(shown, x, y)


def _legend(drawing: Drawing, shown: Sequence[Series]) -> None:
    """Explain colours and marks, in two lines under the panels."""
    place, line = 86.0, 566.0
    names = {"circle": "dense (nvfp4_gemm_a16)", "diamond": "experts (nvfp4_moe_a16)", "triangle": "nvfp4_quantize"}
    for shape in dict.fromkeys(one.shape for one in shown):
        drawing.marker(place, line - 4, shape, QUANTIZE if shape == "triangle" else ROOF)
        drawing.text(place + 12, line, names[shape])
        place += 36 + 7.2 * len(names[shape])
    drawing.line([(place - 8, line - 4), (place + 12, line - 4)], MUTED, 2.2)
    drawing.text(place + 20, line, "right: one launch that only reads as much")
    place, line = 86.0, 592.0
    colours = {one.name.split("M=")[1]: one.colour for one in shown if "M=" in one.name}
    for m, colour in sorted(colours.items(), key=lambda item: int(item[0])):
        drawing.parts.append(
            f'<rect x="{place - 6:.1f}" y="{line - 10:.1f}" width="12" height="12" rx="3" fill="{colour}"/>'
        )
        drawing.text(place + 12, line, f"M={m}")
        place += 72
    drawing.text(place + 8, line, "rows of x (tokens)", 12, MUTED)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, metavar="FILE", help="draw this run instead of the recorded one")
    parser.add_argument("--svg", type=Path, metavar="FILE", help=f"picture; without --run {PICTURE.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parsed = parser.parse_args(argv)
    if parsed.run:
        if not parsed.svg or parsed.check:
            parser.error("--run needs --svg and has nothing to check")
        parsed.svg.write_text(draw(work.load(parsed.run)), encoding="utf-8")
        return 0
    try:
        run, sweep = tables.recorded()
    except FileNotFoundError as error:
        print(f"plot: {error.filename} is not recorded yet", file=sys.stderr)
        return 2
    picture: Path = parsed.svg or PICTURE
    wanted = {picture: draw(run), DOCUMENT: tables.fill(DOCUMENT.read_text(encoding="utf-8"), run, sweep)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if parsed.check:
            print(f"plot: {path} is not what the recorded runs say; run files/kernels/bench/plot.py", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if parsed.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
