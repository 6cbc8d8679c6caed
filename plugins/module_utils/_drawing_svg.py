# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The drawing of a fabric as a picture (SVG) and as a page (HTML) that needs nothing else.

Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.

What is drawn is `_drawing`'s model. Colours are in a style sheet with a light and a dark half; a state has a dash
pattern as well as a colour, so that it can be told apart in print. All texts are the owner's and are escaped.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from ._drawing import (
    DOWN,
    EMPTY,
    GOOD,
    MISSING,
    PLANNED,
    SLOW,
    UNMEASURED,
    WORDS,
    WRONG,
    Drawing,
    Face,
    Node,
    Port,
    Rail,
    Wire,
    clean,
    face_state,
    figure_text,
    gate_text,
    gbps,
    sent,
    telling,
    title,
    width,
)

Point = tuple[float, float]

BOX, PAD, HEAD, TITLE, ROW, SLIM = 444, 14, 48, 24, 18, 26
MARGIN, STUB, REACH = 34, 200, 206
SOCKET = (32.0, 18.0)

SANS = "system-ui, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

# Light and dark: ink, muted ink, page, card, border, panel, the sheath of a cable, the text on a coloured ground.
_GROUNDS = (
    ("#1f2328", "#59636e", "#ffffff", "#ffffff", "#c8d1da", "#f4f6f8", "#e4e8ed", "#ffffff"),
    ("#e6edf3", "#9aa6b2", "#0f141a", "#171e26", "#3a4552", "#1e2731", "#2a333e", "#0f141a"),
)
_STATES = {
    GOOD: ("#1a7f37", "#46c05f", ""),
    UNMEASURED: ("#5b7083", "#93a5b8", ""),
    PLANNED: ("#7a45d1", "#b18cf5", "7 5"),
    SLOW: ("#b25000", "#f29742", "12 4"),
    DOWN: ("#c8202c", "#ff6b64", "2 6"),
    EMPTY: ("#8c959f", "#6e7a87", "3 4"),
    WRONG: ("#c8202c", "#ff6b64", "12 4 2 4"),
    MISSING: ("#c8202c", "#ff6b64", "3 8"),
}
_ARROWS = "→↘↓↙←↖↑↗"


def styles() -> str:
    """Return the style sheet of the pictures."""
    sheets = []
    for half in (0, 1):
        ink, muted, page, card, border, panel, sheath, ground = _GROUNDS[half]
        rules = [
            f".fabric text{{fill:{ink}}}",
            f".fabric .muted{{fill:{muted}}}",
            f".fabric .page{{fill:{page}}}",
            f".fabric .card{{fill:{card};stroke:{border}}}",
            f".fabric .panel{{fill:{panel}}}",
            f".fabric .sheath{{stroke:{sheath}}}",
            f".fabric .label{{fill:{card}}}",
        ]
        for state, colours in _STATES.items():
            colour = colours[half]
            rules.append(f".fabric .{state}-line{{stroke:{colour}}}")
            rules.append(f".fabric .{state}-fill{{fill:{colour}}}")
            rules.append(f".fabric .{state}-text{{fill:{colour}}}")
        rules.append(f".fabric .ground{{fill:{ground}}}")
        sheets.append("".join(rules))
    shape = (
        f".fabric text{{font-family:{SANS};font-size:12px}}"
        f".fabric .mono{{font-family:{MONO};font-size:11px}}"
        ".fabric .small{font-size:11px}.fabric .bold{font-weight:600}"
        ".fabric .name{font-size:15px;font-weight:600}.fabric .title{font-size:20px;font-weight:600}"
        ".fabric .wire{fill:none;stroke-linecap:round}"
    )
    shape += "".join(f".fabric .{s}-line{{stroke-dasharray:{dash[2]}}}" for s, dash in _STATES.items() if dash[2])
    return f"{shape}{sheets[0]}@media screen and (prefers-color-scheme:dark){{{sheets[1]}}}"


# --- elements -------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    return html.escape(clean(text), quote=True)


def _size(text: str, pixels: float, mono: bool = False) -> float:
    """Return about how wide a text is drawn; no font is at hand to ask."""
    return width(clean(text)) * pixels * (0.605 if mono else 0.56)


def _cut(text: str, columns: int) -> str:
    """Shorten a text that would not fit."""
    text = clean(text)
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass
class _Canvas:
    """Elements that are drawn over each other in the order of the layers."""

    wires: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def free(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Tell whether nothing is in this place yet."""
        return not any(a < right and left < c and b < bottom and top < d for a, b, c, d in self.taken)


def _text(x: float, y: float, text: str, classes: str = "", anchor: str = "", columns: int = 0) -> str:
    shown = _cut(text, columns) if columns else clean(text)
    whole = f"<title>{_escape(text)}</title>" if shown != clean(text) else ""
    where = f' text-anchor="{anchor}"' if anchor else ""
    named = f' class="{classes}"' if classes else ""
    return f'<text x="{_number(x)}" y="{_number(y)}"{where}{named}>{html.escape(shown)}{whole}</text>'


def _rect(x: float, y: float, w: float, h: float, radius: float, classes: str, more: str = "") -> str:
    return (
        f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(w)}" height="{_number(h)}" rx="{_number(radius)}" '
        f'class="{classes}"{more}/>'
    )


def _dot(x: float, y: float, state: str) -> str:
    """Return the mark of a state: a full dot, or a ring for what is not there."""
    if state in (EMPTY, DOWN, MISSING, PLANNED):
        return (
            f'<circle cx="{_number(x)}" cy="{_number(y)}" r="3.6" fill="none" stroke-width="2" '
            f'stroke-dasharray="none" class="{state}-line" style="stroke-dasharray:none"/>'
        )
    return f'<circle cx="{_number(x)}" cy="{_number(y)}" r="4.2" class="{state}-fill"/>'


# --- a node ---------------------------------------------------------------------------------------


@dataclass
class _Placed:
    """A node with its place, and its ports from top to bottom."""

    node: Node
    x: float = 0
    y: float = 0
    column: float = 0
    row: int = 0
    ports: list[Port] = field(default_factory=list)

    @property
    def height(self) -> float:
        """How tall the node's box is."""
        lines = sum(_port_height(port) + 6 for port in self.ports)
        return HEAD + lines + (SLIM if _remark(self.node) else 0) + 6

    def middle(self, name: str) -> float:
        """Return where on the side of the box a port is."""
        top = self.y + HEAD
        for port in self.ports:
            if port["name"] == name:
                return top + _port_height(port) / 2
            top += _port_height(port) + 6
        return self.y + self.height / 2


def _remark(node: Node) -> str:
    if node["error"]:
        return "could not be read"
    return "" if node["ports"] else "no ConnectX port"


def _port_height(port: Port) -> float:
    return SLIM if port["state"] == EMPTY or not port["faces"] else TITLE + ROW * len(port["faces"]) + 6


def _draw_node(placed: _Placed, drawing: Drawing) -> list[str]:
    node, x, y = placed.node, placed.x, placed.y
    bad = bool(node["problems"])
    border = f"card {DOWN}-line" if bad else "card"
    more = ' stroke-width="2" style="stroke-dasharray:none"' if bad and not node["error"] else ' stroke-width="1.5"'
    items = [_rect(x, y, BOX, placed.height, 12, border, more)]
    room = BOX - 2 * PAD - _size(node["management"], 11, True) - (56 if node["head"] else 8)
    name = _cut(node["name"], max(8, int(room / 9)))
    items.append(_text(x + PAD, y + 30, node["name"], "name", columns=width(name)))
    if node["head"]:
        left = x + PAD + _size(name, 15) + 14
        items.append(_rect(left, y + 17, 42, 18, 9, f"{UNMEASURED}-fill"))
        items.append(_text(left + 21, y + 30, "head", "small bold ground", "middle"))
    if node["management"]:
        items.append(_text(x + BOX - PAD, y + 30, node["management"], "mono muted", "end"))
    top = y + HEAD
    for port in placed.ports:
        items += _draw_port(port, x, top, drawing, node)
        top += _port_height(port) + 6
    if _remark(node):
        items.append(_text(x + PAD + 8, top + 17, _remark(node), f"bold {DOWN}-text"))
    return items


def _draw_port(port: Port, x: float, top: float, drawing: Drawing, node: Node) -> list[str]:
    height = _port_height(port)
    items = [_rect(x + 8, top, BOX - 16, height, 7, "panel")]
    items.append(_text(x + PAD + 6, top + 17, port["name"], "bold", columns=14))
    said = WORDS[port["state"]]
    if port["state"] == EMPTY and any(face["carrier"] for face in port["faces"]):
        said = "carries, but no node answers"
    elif port["state"] == DOWN and not any(face["carrier"] for face in port["faces"]):
        said = "no carrier"
    items.append(_text(x + BOX - PAD - 6, top + 17, said, f"small {port['state']}-text", "end"))
    far = _far(port, drawing, node)
    rate = f"{gbps(port['rate_gbps'])} Gb/s" if port["rate_gbps"] else ""
    about = ", ".join(part for part in (rate, far) if part)
    if about:
        items.append(_text(x + PAD + 30, top + 17, about, "small muted", columns=36))
    if height == SLIM:
        return items
    for index, face in enumerate(port["faces"]):
        items += _draw_face(face, x, top + TITLE + ROW * index + 12)
    return items


def _far(port: Port, drawing: Drawing, node: Node) -> str:
    """Return what a port is cabled to."""
    if port["wire"] is None:
        return ""
    wire = drawing["wires"][port["wire"]]
    if wire["kind"] == "switch":
        return "to the switch"
    own = (node["name"], port["name"])
    ends = [f"{end['host']} {end['port']}" for end in wire["ends"] if (end["host"], end["port"]) != own]
    return f"to {', '.join(ends)}"


def _draw_face(face: Face, x: float, y: float) -> list[str]:
    trouble = f"{DOWN}-text" if face["state"] == DOWN else ""
    address = (face["address"] or "no address") + ("*" if face["planned"] else "")
    planned = f"{PLANNED}-text" if face["planned"] else ("muted" if not face["address"] else "")
    mtu = f"MTU {face['mtu'] or '?'}"
    if face["planned_mtu"] is not None:
        mtu = f"{face['mtu'] or '?'}→{face['planned_mtu']}*"
    words = face_state(face, None)
    if words:
        address, planned = (f"{words}" if not face["address"] else address), trouble
    items = [
        _dot(x + PAD + 9, y - 3.8, face["state"]),
        _text(x + PAD + 20, y, face["interface"] or "-", f"mono {trouble}".strip(), columns=15),
        _text(x + PAD + 118, y, face["device"], "mono muted", columns=14),
        _text(x + PAD + 210, y, address, f"mono {planned}".strip(), columns=19),
        _text(x + BOX - PAD - 6, y, mtu, f"mono {PLANNED}-text" if face["planned_mtu"] else "mono muted", "end"),
    ]
    return items


# --- cables ---------------------------------------------------------------------------------------


@dataclass
class _Plug:
    """Where a cable meets a box: a point on its edge, and the direction away from it."""

    at: Point
    out: Point
    port: str


def _curve(near: _Plug, far: _Plug) -> tuple[Point, Point, Point, Point]:
    start = (near.at[0] + near.out[0] * 16, near.at[1] + near.out[1] * 16)
    end = (far.at[0] + far.out[0] * 16, far.at[1] + far.out[1] * 16)
    distance = abs(start[0] - end[0]) + abs(start[1] - end[1])
    reach = min(max(distance * 0.45, 20), 160)
    if near.out == far.out:
        reach = 90  # both on one side: bulge out into the gap
    return (
        start,
        (start[0] + near.out[0] * reach, start[1] + near.out[1] * reach),
        (end[0] + far.out[0] * reach, end[1] + far.out[1] * reach),
        end,
    )


def _on(curve: Sequence[Point], t: float) -> Point:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    return (
        sum(w * p[0] for w, p in zip(weights, curve, strict=True)),
        sum(w * p[1] for w, p in zip(weights, curve, strict=True)),
    )


def _path(curve: Sequence[Point], first: Point, last: Point, aside: float, classes: str, stroke: float) -> str:
    """Return a curve, shifted sideways; `first` and `last` are its directions at its ends."""
    shifts = ((-first[1] * aside, first[0] * aside), (-last[1] * aside, last[0] * aside))
    moved = [(p[0] + shifts[i // 2][0], p[1] + shifts[i // 2][1]) for i, p in enumerate(curve)]
    points = [f"{_number(x)} {_number(y)}" for x, y in moved]
    return (
        f'<path d="M{points[0]} C{points[1]}, {points[2]}, {points[3]}" class="wire {classes}" '
        f'stroke-width="{_number(stroke)}"/>'
    )


def _draw_curve(canvas: _Canvas, near: _Plug, far: _Plug, states: Sequence[str]) -> tuple[Point, ...]:
    """Draw a cable with a line for each of its rails; return its curve."""
    curve = _curve(near, far)
    first, last = near.out, (-far.out[0], -far.out[1])
    sheath = 7 * len(states) + 5
    if MISSING not in states:
        canvas.wires.append(_path(curve, first, last, 0, "sheath", sheath))
    for index, state in enumerate(states):
        aside = 7 * (index - (len(states) - 1) / 2)
        canvas.wires.append(_path(curve, first, last, aside, f"{state}-line", 3.4))
    return curve


def _draw_plug(canvas: _Canvas, plug: _Plug, state: str) -> None:
    """Draw the plug in its socket."""
    across = plug.out[0] != 0
    w, h = SOCKET
    x = plug.at[0] + (plug.out[0] * w / 2 if across else 0)
    y = plug.at[1] + (plug.out[1] * h / 2 if not across else 0)
    canvas.labels.append(_rect(x - w / 2, y - h / 2, w, h, 5, f"{state}-fill"))
    canvas.labels.append(_text(x, y + 4, plug.port, "small bold ground", "middle", columns=4))


Line = list[tuple[str, str]]  # pieces of text with their classes


def _label(canvas: _Canvas, curve: Sequence[Point], lines: Sequence[Line], state: str) -> None:
    """Write on a cable, at a place along it that is still free."""
    w = max(sum(_size(text, 11, "mono" in c) + 6 for text, c in line) for line in lines) + 16
    h = 15 * len(lines) + 9
    places = [_on(curve, t) for t in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)]
    middle = places[0]
    places += [(middle[0], middle[1] + step * side) for step in range(20, 400, 20) for side in (1, -1)]
    x, y = next(
        ((a, b) for a, b in places if canvas.free(a - w / 2 - 3, b - h / 2 - 3, a + w / 2 + 3, b + h / 2 + 3)), middle
    )
    canvas.taken.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    edge = ' stroke-width="1.4" style="stroke-dasharray:none"'
    canvas.labels.append(_rect(x - w / 2, y - h / 2, w, h, 7, f"label {state}-line", edge))
    for index, line in enumerate(lines):
        left, base = x - w / 2 + 9, y - h / 2 + 17 + 15 * index - 1
        pieces = []
        for text, classes in line:
            pieces.append(f'<tspan class="{classes}">{html.escape(clean(text))}</tspan>')
        joined = "\u2002".join(pieces)
        canvas.labels.append(
            f'<text x="{_number(left)}" y="{_number(base)}" xml:space="preserve" class="small">{joined}</text>'
        )


def _arrow(start: Point, end: Point) -> str:
    """Return the arrow that points most nearly from one point to the other."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    return _ARROWS[round(angle / (math.pi / 4)) % 8]


def _rail_lines(rail: Rail, ends: Sequence[tuple[str, str]]) -> list[Line]:
    """Return what is written on a cable about a rail; `ends` are the hosts, each with the arrow away from it."""
    line: Line = [(f"rail {rail['rail']}", "bold")]
    figures = [(sent(rail, host), arrow) for host, arrow in ends]
    known = [(figure, arrow) for figure, arrow in figures if figure is not None]
    if rail["state"] == DOWN:
        line.append(("down", f"bold {DOWN}-text"))
    elif not known:
        line.append((figure_text(None, rail["state"]), f"{rail['state']}-text"))
    else:
        for figure, arrow in known:
            value = gbps(figure["gbps"]) if figure["gbps"] is not None else figure_text(figure, rail["state"])
            line.append((f"{arrow} {value}", f"bold {GOOD if figure['ok'] else SLOW}-text"))
        if any(figure["gbps"] is not None for figure, _arrow in known):
            line.append(("Gb/s", "muted"))
    return [line, *([[(rail["network"], "mono muted")]] if rail["network"] else [])]


def _cable(canvas: _Canvas, wire: Wire, near: _Plug, far: _Plug, hosts: tuple[str, str]) -> None:
    states = [rail["state"] if wire["state"] != WRONG else WRONG for rail in wire["rails"]] or [wire["state"]]
    curve = _draw_curve(canvas, near, far, states)
    for plug in (near, far):
        _draw_plug(canvas, plug, wire["state"])
    ends = [(hosts[0], _arrow(near.at, far.at)), (hosts[1], _arrow(far.at, near.at))]
    lines = [line for rail in wire["rails"] for line in _rail_lines(rail, ends)]
    if wire["state"] == WRONG or not lines:
        lines.insert(0, [(WORDS[wire["state"]], f"bold {wire['state']}-text")])
    _label(canvas, curve, lines, wire["state"])


# --- places ---------------------------------------------------------------------------------------


def _places(drawing: Drawing) -> list[_Placed]:
    """Give each node a column (0 left, 0.5 middle, 1 right) and a row."""
    nodes = {node["name"]: node for node in drawing["nodes"]}
    placed = [_Placed(nodes[name]) for name in drawing["order"]]
    count = len(placed)
    for index, item in enumerate(placed):
        if drawing["shape"] not in ("ring", "chain"):
            item.column, item.row = index % 2, index // 2
        elif count % 2 and index == count // 2 + 1:
            item.column, item.row = 0.5, count // 2
        elif index == 0:
            item.column, item.row = 0, 0
        elif index <= count // 2:
            item.column, item.row = 1, index - 1
        else:
            item.column, item.row = 0, count - index
    if count == 1 and drawing["shape"] != "switch":
        placed[0].column = 0.5
    return placed


def _side(own: _Placed, other: _Placed) -> Point:
    """Return on which side of a box the cable to another one leaves."""
    if own.row == other.row:
        return (1, 0) if own.column < other.column else (-1, 0)
    if own.column == 0.5:
        return (1, 0) if other.column > 0.5 else (-1, 0)
    if abs(own.row - other.row) == 1 and (own.column == other.column or other.column == 0.5):
        return (0, 1) if own.row < other.row else (0, -1)
    return (1, 0) if own.column < 0.5 else (-1, 0)


def _order_ports(item: _Placed, drawing: Drawing, by_name: dict[str, _Placed]) -> None:
    """Put a node's ports in the order in which their cables leave, those that lead up first."""

    def key(port: Port) -> tuple[int, int]:
        index = item.node["ports"].index(port)
        if port["wire"] is None:
            return (5, index)
        wire = drawing["wires"][port["wire"]]
        others = [
            by_name[end["host"]] for end in wire["ends"] if end["host"] in by_name and by_name[end["host"]] != item
        ]
        if wire["kind"] == "switch" or not others:
            return (2, index)
        side = _side(item, others[0])
        return ({(0, -1): 0, (0, 1): 3}.get((int(side[0]), int(side[1])), 2), index)

    item.ports = sorted(item.node["ports"], key=key)
    if drawing["shape"] == "pair" and item.column == 1:
        # The cables of a pair do not cross if the second node follows the order of the first.
        first = [port["wire"] for port in by_name[drawing["order"][0]].node["ports"]]
        item.ports.sort(key=lambda port: first.index(port["wire"]) if port["wire"] in first else len(first))


def _plug_of(item: _Placed, port: str, side: Point, shift: float = 0) -> _Plug:
    if side[0]:
        x = item.x + (BOX if side[0] > 0 else 0)
        return _Plug((x, item.middle(port)), side, port)
    return _Plug((item.x + BOX / 2 + shift, item.y + (item.height if side[1] > 0 else 0)), side, port)


def _picture(drawing: Drawing) -> tuple[list[str], float, float]:
    """Return the elements of a cluster's picture, its width and its height."""
    canvas = _Canvas()
    placed = _places(drawing)
    by_name = {item.node["name"]: item for item in placed}
    for item in placed:
        _order_ports(item, drawing, by_name)
    bars = [wire for wire in drawing["wires"] if wire["kind"] == "switch"]
    gap = 2 * REACH + len(bars) * 164 + (len(bars) - 1) * 20 if bars else 330
    strangers = any(w["kind"] == "cable" and any(end["foreign"] for end in w["ends"]) for w in drawing["wires"])
    edge = MARGIN + (STUB if strangers else 0)
    columns = 1 if len(placed) == 1 and not bars else 2
    total = 2 * edge + (BOX if columns == 1 else 2 * BOX + gap)
    between = 26 if bars else 40 if drawing["shape"] == "graph" else 148
    tops = [MARGIN * 0.5]
    for row in range(max((item.row for item in placed), default=-1) + 1):
        tall = max((item.height for item in placed if item.row == row), default=0)
        tops.append(tops[-1] + tall + between)
    for item in placed:
        item.x = edge + item.column * (BOX + gap) if columns == 2 else edge
        item.y = tops[item.row]
        canvas.taken.append((item.x, item.y, item.x + BOX, item.y + item.height))
        canvas.boxes += _draw_node(item, drawing)
    bottom = max((item.y + item.height for item in placed), default=0)
    for wire in drawing["wires"]:
        inside = [end for end in wire["ends"] if end["host"] in by_name]
        if wire["kind"] == "cable" and len(inside) == 2 and inside[0]["host"] != inside[1]["host"]:
            near, far = (by_name[end["host"]] for end in inside)
            plugs = (
                _plug_of(near, inside[0]["port"], _side(near, far)),
                _plug_of(far, inside[1]["port"], _side(far, near)),
            )
            _cable(canvas, wire, *plugs, (inside[0]["host"], inside[1]["host"]))
        elif wire["kind"] == "cable" and inside:
            _stub(canvas, wire, by_name)
    if bars:
        _draw_bars(canvas, drawing, by_name, bars, edge + BOX + REACH, (tops[0], bottom))
    for a, b in drawing["missing"]:
        if a in by_name and b in by_name:
            _draw_missing(canvas, by_name[a], by_name[b])
    lowest = max((box[3] for box in canvas.taken), default=bottom)
    return [*canvas.wires, *canvas.boxes, *canvas.labels], total, lowest + MARGIN * 0.5


def _stub(canvas: _Canvas, wire: Wire, by_name: dict[str, _Placed]) -> None:
    """Draw a cable that leads out of the cluster, or back to its own node."""
    for end in wire["ends"]:
        item = by_name.get(end["host"])
        if item is None:
            continue
        side = (-1.0 if item.column < 1 else 1.0, 0.0)
        plug = _plug_of(item, end["port"], side)
        x = plug.at[0] + side[0] * 60
        far = _Plug((x + side[0] * 16, plug.at[1]), (-side[0], 0), "")
        curve = _draw_curve(canvas, plug, far, [wire["state"]])
        _draw_plug(canvas, plug, wire["state"])
        others = [e for e in wire["ends"] if e is not end]
        where = ", ".join(_cut(f"{e['host']} {e['port']}", 20) for e in others)
        note = "not in this cluster" if any(e["foreign"] for e in others) else "of the same node"
        lines: list[Line] = [[(where, "bold")], [(note, f"{wire['state']}-text")]]
        w = max(_size(line[0][0], 11) for line in lines) + 28
        at = (curve[-1][0] + side[0] * (w / 2 - 10), plug.at[1])
        _label(canvas, [at, at, at, at], lines, wire["state"])


def _free(item: _Placed) -> tuple[str, str]:
    """Return the port that lacks a cable, and the one that has the wrong one; "" for none."""
    free = [port["name"] for port in item.ports if port["wire"] is None and port["state"] == DOWN]
    wrong = [port["name"] for port in item.ports if port["state"] == WRONG]
    return (free or [""])[0], (wrong or [""])[0]


def _draw_missing(canvas: _Canvas, near: _Placed, far: _Placed) -> None:
    """Draw a cable that ought to be there, from a free port to a free port."""

    def plug(item: _Placed, other: _Placed) -> _Plug:
        free, wrong = _free(item)
        found = _plug_of(item, free or wrong, _side(item, other))
        return found if free else _Plug(found.at, found.out, "")

    plugs = (plug(near, far), plug(far, near))
    curve = _draw_curve(canvas, *plugs, [MISSING])
    for end in plugs:
        if end.port:
            _draw_plug(canvas, end, MISSING)
    _label(canvas, curve, [[(WORDS[MISSING], f"bold {MISSING}-text")]], MISSING)


def _draw_bars(
    canvas: _Canvas,
    drawing: Drawing,
    by_name: dict[str, _Placed],
    bars: Sequence[Wire],
    left: float,
    span: tuple[float, float],
) -> None:
    """Draw the switches as upright bars, and the cables to them."""
    missing = [name for name, switch in drawing["missing"] if not switch]
    for number, wire in enumerate(bars):
        x = left + number * 184
        lines: list[Line] = [[("switch" if len(bars) == 1 else f"switch {number + 1}", "name")]]
        for rail in wire["rails"]:
            lines += [[], [(f"rail {rail['rail']}", "small muted")]]
            lines += [[(part, "mono")] for part in (rail["network"] or "no network").split(" / ")]
        strangers = sorted({end["host"] for end in wire["ends"] if end["foreign"]})
        if strangers:
            lines += [[], [("also on it", "small muted")], *([(_cut(name, 20), "small")] for name in strangers[:12])]
            lines += [[(f"and {len(strangers) - 12} more", "small muted")]] if len(strangers) > 12 else []
        tall = max(span[1] - span[0], 16 * len(lines) + 30)
        canvas.taken.append((x, span[0], x + 164, span[0] + tall))
        middle: list[str] = [_rect(x, span[0], 164, tall, 12, "card", ' stroke-width="1.5"')]
        middle.append(_rect(x + 7, span[0] + 7, 150, tall - 14, 7, "panel"))
        # A tall switch says more than once what it is.
        times = max(1, int(tall // 640))
        for repeat in range(times):
            base = span[0] + tall * (repeat + 0.5) / times - 8 * len(lines) + 12
            for index, line in enumerate(lines):
                for text, classes in line:
                    middle.append(_text(x + 82, base + 16 * index, text, classes, "middle", columns=22))
        canvas.boxes += middle
        for end in wire["ends"]:
            item = by_name.get(end["host"])
            if item is None:
                continue
            side: Point = (1, 0) if item.column < 0.5 else (-1, 0)
            plug = _plug_of(item, end["port"], side)
            edge = x if side[0] > 0 else x + 164
            far = _Plug((edge + side[0] * 16, plug.at[1]), (-side[0], 0), "")
            port = next((port for port in item.ports if port["name"] == end["port"]), None)
            _switch_cable(canvas, wire, item, port, plug, far)
    for name in missing:
        item = by_name[name]
        side = (1, 0) if item.column < 0.5 else (-1, 0)
        plug = _plug_of(item, _free(item)[0], side)
        edge = left if side[0] > 0 else left + 164
        curve = _draw_curve(canvas, plug, _Plug((edge + side[0] * 16, plug.at[1]), (-side[0], 0), ""), [MISSING])
        if plug.port:
            _draw_plug(canvas, plug, MISSING)
        _label(canvas, curve, [[(WORDS[MISSING], f"bold {MISSING}-text")]], MISSING)


def _switch_cable(canvas: _Canvas, wire: Wire, item: _Placed, port: Port | None, plug: _Plug, far: _Plug) -> None:
    """Draw a node's cable to a switch, with what the node sends."""
    state = port["state"] if port else wire["state"]
    faces = port["faces"] if port else []
    curve = _draw_curve(canvas, plug, far, [face["state"] for face in faces] or [state])
    _draw_plug(canvas, plug, state)
    lines: list[Line] = []
    receiver = ""
    for face in faces:
        rail = next((rail for rail in wire["rails"] if rail["rail"] == face["rail"]), None)
        own = (
            [f for f in rail["figures"] if (f["sender"], f["interface"]) == (item.node["name"], face["interface"])]
            if rail
            else []
        )
        figure = telling(own)
        words = face_state(face, None)
        if words:
            lines.append([(f"rail {face['rail']}", "bold"), (words, f"{DOWN}-text")])
        elif figure is None:
            lines.append(
                [(f"rail {face['rail']}", "bold"), (figure_text(None, face["state"]), f"{face['state']}-text")]
            )
        else:
            receiver = figure["receiver"] if figure["gbps"] is not None else receiver
            value = f"{gbps(figure['gbps'])} Gb/s" if figure["gbps"] is not None else figure_text(figure, face["state"])
            lines.append([(f"rail {face['rail']}", "bold"), (value, f"bold {GOOD if figure['ok'] else SLOW}-text")])
    if receiver:
        lines.insert(0, [(f"→ {_cut(receiver, 18)}", "muted")])
    # Labels sit near the node: with two switches, the cable to the farther one passes behind the nearer one.
    start = plug.at[0] + plug.out[0] * 16
    near = [start, curve[0], curve[0], start]
    place = (plug.at[0] + plug.out[0] * 104, plug.at[1])
    if lines:
        _label(canvas, [place] * len(near), lines, state)


# --- whole pictures -------------------------------------------------------------------------------


def states(drawing: Drawing) -> list[str]:
    """Return the states that occur, in the order of the legend."""
    found = {face["state"] for node in drawing["nodes"] for port in node["ports"] for face in port["faces"]}
    found |= {port["state"] for node in drawing["nodes"] for port in node["ports"]}
    found |= {wire["state"] for wire in drawing["wires"]}
    found |= {rail["state"] for wire in drawing["wires"] for rail in wire["rails"]}
    found |= {MISSING} if drawing["missing"] else set()
    return [state for state in _STATES if state in found]


def _legend(drawing: Drawing, x: float, y: float) -> list[str]:
    items = []
    for state in states(drawing):
        items.append(f'<path d="M{_number(x)} {_number(y - 4)} h30" class="wire {state}-line" stroke-width="3.4"/>')
        items.append(_text(x + 38, y, WORDS[state], "small"))
        x += 62 + _size(WORDS[state], 11)
    return items


def _description(drawing: Drawing) -> str:
    return f"Fabric of {drawing['name']}: {title(drawing)}. {gate_text(drawing)}"


def svg(drawings: Sequence[Drawing]) -> str:
    """Return one picture of all clusters, with their problems and notes, as a file of its own."""
    elements: list[str] = []
    pictures = [_picture(drawing) for drawing in drawings]
    total = max((across for _items, across, _tall in pictures), default=2.0 * MARGIN + BOX)
    total = max(total, 560)
    y = 0.0
    for drawing, (items, across, tall) in zip(drawings, pictures, strict=True):
        elements.append(_text(MARGIN, y + 40, drawing["name"], "title", columns=40))
        elements.append(_text(MARGIN, y + 62, title(drawing), "muted"))
        state = {"passed": GOOD, "failed": DOWN}.get(drawing["gate"]["state"], UNMEASURED)
        elements.append(_text(MARGIN, y + 82, gate_text(drawing), f"{state}-text", columns=int(total / 6.6)))
        y += 100
        elements.append(f'<g transform="translate({_number((total - across) / 2)} {_number(y)})">')
        elements += [*items, "</g>"]
        y += tall + 18
        elements += _legend(drawing, MARGIN, y)
        y += 14
        for word, state, lines in (("problem", DOWN, drawing["problems"]), ("note", PLANNED, drawing["notes"])):
            for line in lines:
                for index, part in enumerate(textwrap.wrap(clean(line), max(40, int((total - 150) / 6.9))) or [""]):
                    y += 18
                    if not index:
                        elements.append(_text(MARGIN, y, word, f"bold {state}-text"))
                    elements.append(_text(MARGIN + 66, y, part))
        y += 26
    names = ", ".join(drawing["name"] for drawing in drawings)
    about = " ".join(_description(drawing) for drawing in drawings)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(total)} {_number(y)}" '
        f'width="{_number(total)}" height="{_number(y)}" role="img" class="fabric">\n'
        f"<title>{_escape('Fabric of ' + names)}</title>\n<desc>{_escape(about)}</desc>\n"
        f"<style>{styles()}</style>\n"
        f"{_rect(0, 0, total, y, 0, 'page')}\n" + "\n".join(elements) + "\n</svg>\n"
    )


_PAGE = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 24px 48px;max-width:1440px;font:15px/1.5 %(sans)s;color:#1f2328;background:#f3f5f7}
h1{font-size:22px;margin:0 0 4px}
h2{font-size:20px;margin:0}
h3{font-size:15px;margin:20px 0 6px}
.sub{color:#59636e;margin:2px 0 14px}
section{background:#fff;border:1px solid #d4dbe2;border-radius:14px;padding:20px 22px;margin:22px 0}
figure{margin:0;overflow-x:auto}
figure svg{display:block;margin:0 auto;max-width:100%%;height:auto;min-width:640px}
.gate{display:inline-block;margin:10px 0 14px;padding:3px 12px;border-radius:99px;font-size:14px;background:#eceff3}
.gate.passed{background:#dcf3e1;color:#116329}
.gate.failed{background:#ffe2e0;color:#a40e1a}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;margin:6px 0 0;padding:0;font-size:13px}
ul.legend svg{vertical-align:middle;margin-right:8px}
.lines{margin:6px 0 0;padding:10px 16px 10px 34px;border-radius:10px;background:#eef1f4;overflow-wrap:anywhere}
.lines.problems{background:#fff0ef;border-left:4px solid #c8202c}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%%;font-size:13px}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid #e2e7ec;white-space:nowrap}
th{font-weight:600;color:#59636e}
td.number{text-align:right;font-variant-numeric:tabular-nums}
code{font-family:%(mono)s;font-size:12.5px}
@media screen and (prefers-color-scheme:dark){
body{color:#e6edf3;background:#0b0f14}
section{background:#0f141a;border-color:#2b3540}
.sub,th{color:#9aa6b2}
.gate{background:#222c36}
.gate.passed{background:#12361f;color:#7ee2a0}
.gate.failed{background:#4a1619;color:#ffb3ae}
.lines{background:#171e26}
.lines.problems{background:#2a1517;border-color:#ff6b64}
th,td{border-color:#26303a}
}
@media print{
@page{margin:12mm}
body{background:#fff;padding:0;max-width:none;font-size:12px}
section{border:0;padding:0;margin:0 0 12mm}
section+section{break-before:page}
figure,tr,.lines li{break-inside:avoid}
figure svg{min-width:0;max-height:230mm}
.scroll{overflow:visible}
table{font-size:8.5px}
th,td{padding:2px 5px 2px 0;white-space:normal}
code{font-size:8px}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""


def page(drawings: Sequence[Drawing], made: str = "") -> str:
    """Return a page about all clusters that needs no other file.

    Args:
        drawings: the clusters.
        made: when, in words; empty leaves it out.
    """
    sections = [_section(drawing) for drawing in drawings]
    problems = sum(len(drawing["problems"]) for drawing in drawings)
    count = "1 cluster" if len(drawings) == 1 else f"{len(drawings)} clusters"
    news = "no problem" if not problems else "1 problem" if problems == 1 else f"{problems} problems"
    when = f", {_escape(made)}" if made else ""
    css = _PAGE % {"sans": SANS, "mono": MONO}
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Fabric: {_escape(', '.join(drawing['name'] for drawing in drawings))}</title>\n"
        f"<style>{css}{styles()}</style>\n</head>\n<body>\n"
        f'<h1>The fabric</h1>\n<p class="sub">{count}, {news}{when}</p>\n' + "".join(sections) + "</body>\n</html>\n"
    )


def _section(drawing: Drawing) -> str:
    items, across, tall = _picture(drawing)
    gate = {"passed": "gate passed", "failed": "gate failed"}.get(drawing["gate"]["state"], "gate")
    parts = [
        f'<section>\n<h2>{_escape(drawing["name"])}</h2>\n<p class="sub">{_escape(title(drawing))}</p>\n',
        f'<p class="{gate}">{_escape(gate_text(drawing))}</p>\n',
        f'<figure><svg viewBox="0 0 {_number(across)} {_number(tall)}" width="{_number(across)}" role="img" '
        f'aria-label="{_escape(_description(drawing))}" class="fabric">\n',
        "\n".join(items),
        "\n</svg></figure>\n",
        '<ul class="legend">',
    ]
    for state in states(drawing):
        stroke = f'<path d="M2 5 h30" class="wire {state}-line" stroke-width="3.4"/>'
        mark = f'<svg width="34" height="10" class="fabric" aria-hidden="true">{stroke}</svg>'
        parts.append(f"<li>{mark}{WORDS[state]}</li>")
    faces = [face for node in drawing["nodes"] for port in node["ports"] for face in port["faces"]]
    if any(face["planned"] or face["planned_mtu"] is not None for face in faces):
        parts.append("<li>* not set yet</li>")
    parts.append("</ul>\n")
    for heading, kind, lines in (
        ("Problems", "lines problems", drawing["problems"]),
        ("Notes", "lines", drawing["notes"]),
    ):
        if lines:
            listed = "".join(f"<li>{_escape(line)}</li>" for line in lines)
            parts.append(f'<h3>{heading}</h3>\n<ul class="{kind}">{listed}</ul>\n')
    return "".join([*parts, _table(drawing), "</section>\n"])


def _table(drawing: Drawing) -> str:
    """Return all interfaces as a table: what the picture has, to be copied and read aloud."""
    rows = []
    for node in drawing["nodes"]:
        for port in node["ports"]:
            wire = drawing["wires"][port["wire"]] if port["wire"] is not None else None
            for face in port["faces"]:
                rail = next((r for r in wire["rails"] if r["rail"] == face["rail"]), None) if wire else None
                own = (node["name"], face["interface"])
                figure = telling([f for f in (rail["figures"] if rail else []) if (f["sender"], f["interface"]) == own])
                cells = [
                    node["name"],
                    f"{port['name']}, rail {face['rail']}",
                    f"<code>{_escape(face['interface'] or '-')}</code>",
                    f"<code>{_escape(face['device'])}</code>",
                    f"<code>{_escape(face['address'] or '-')}{'*' if face['planned'] else ''}</code>",
                    f"{face['mtu'] or '-'}",
                    f"{gbps(face['rate_gbps']) or '-'}" if face["carrier"] else "-",
                    _far(port, drawing, node).removeprefix("to ") or "-",
                    "" if figure is None else figure_text(figure, face["state"], figure["receiver"]),
                    "" if figure is None else figure["tool"],
                    WORDS[face["state"]],
                ]
                html_cells = [cell if cell.startswith("<code>") else _escape(cell) for cell in cells]
                rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in html_cells) + "</tr>")
    if not rows:
        return ""
    names = (
        "node",
        "port",
        "interface",
        "RDMA device",
        "address",
        "MTU",
        "link Gb/s",
        "cabled to",
        "sends",
        "by",
        "state",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        '<h3>Interfaces</h3>\n<div class="scroll"><table>\n<thead><tr>'
        f"{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>\n"
    )
