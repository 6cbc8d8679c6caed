# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The drawing shows what is there and, above all, what is wrong; nothing in it overlaps, and no input breaks it."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _drawing, _drawing_svg, _topology
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import fabric_examples as ex
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.module_utils import fabric_hosts
from hypothesis import given, settings
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"


def draw(hosts: ex.Hosts, count: int, name: str = "atlas") -> _drawing.Drawing:
    return _drawing.draw(ex.cluster(count, name), hosts)


def text(hosts: ex.Hosts, count: int) -> str:
    return "\n".join(_drawing.render(draw(hosts, count)))


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "count", "shape"),
    [
        (ex.fleet("single", 1, []), 1, "single"),
        (ex.pair(), 2, "pair"),
        (ex.pair(2), 2, "pair"),
        (ex.fleet("ring", 3, ex.ring(3)), 3, "ring"),
        (ex.fleet("ring", 9, ex.ring(9)), 9, "ring"),
        (ex.missing(5), 5, "chain"),
        (ex.fleet("switch", 4, ex.switch(4)), 4, "switch"),
        (ex.fleet("switch", 2, ex.switch(2)), 2, "switch"),
        (ex.fleet("", 4, ex.ring(4)[::2]), 4, "graph"),
    ],
)
def test_the_shape_follows_the_cables(hosts: ex.Hosts, count: int, shape: str) -> None:
    assert draw(hosts, count)["shape"] == shape


def test_a_ring_is_walked_along_its_cables_from_the_head_through_p0() -> None:
    cables = [[("spark-01", "p0"), ("spark-03", "p1")], [("spark-03", "p0"), ("spark-02", "p1")],
              [("spark-02", "p0"), ("spark-04", "p1")], [("spark-04", "p0"), ("spark-01", "p1")]]  # fmt: skip
    drawing = draw(ex.fleet("ring", 4, cables), 4)
    assert drawing["order"] == ["spark-01", "spark-03", "spark-02", "spark-04"]


def test_a_healthy_pair_shows_everything_once_for_each_direction() -> None:
    shown = text(ex.pair(), 2)
    for wanted in (
        "spark-01 (head)", "management 10.0.0.11 enP7s7", "enP2p1s0f0np0", "roceP2p1s0f0", "192.168.178.12/24",
        "MTU 9000", "200 Gb/s", "92.7 Gb/s", "97.5 Gb/s", "p1  no cable", "gate passed 2026-11-23",
    ):  # fmt: skip
        assert wanted in shown, wanted
    assert "problem" not in shown
    assert len(re.findall(r"rail 0 ↓", shown)) == 1 and shown.count("↑") == 2


def test_a_slow_rail_marks_its_cable_and_no_other_one() -> None:
    drawing = draw(ex.slow(), 3)
    assert [wire["state"] for wire in drawing["wires"]].count(_drawing.SLOW) == 1
    rails = {rail["network"]: rail["state"] for wire in drawing["wires"] for rail in wire["rails"]}
    assert [network for network, state in rails.items() if state != _drawing.GOOD] == ["192.168.179.0/24"]
    shown = text(ex.slow(), 3)
    assert "13.1 Gb/s, below 90" in shown and "BELOW THE THRESHOLD" in shown
    assert "gate failed 2026-11-23; see the problems" in shown and "problem: spark-02: enp1s0f0np0" in shown


def test_a_figure_below_the_threshold_is_slow_whatever_the_lines_say() -> None:
    hosts = ex.slow()
    for facts in hosts.values():
        facts["gate"]["problems"] = []
    assert [wire["state"] for wire in draw(hosts, 3)["wires"]].count(_drawing.SLOW) == 1


def test_a_failed_ping_is_not_good() -> None:
    hosts = ex.pair()
    for facts in hosts.values():
        for link in facts["gate"]["links"]:
            link |= {"gbps": None, "tool": "", "mtu_ok": link["host"] != "spark-01"}
    drawing = draw(hosts, 2)
    assert drawing["wires"][0]["state"] == _drawing.SLOW
    assert "no ping" in text(hosts, 2) and "ping ok" in text(hosts, 2)


def test_a_rail_whose_measuring_failed_is_not_good() -> None:
    """The record has no figure then, only the line that says why."""
    hosts = ex.pair()
    for facts in hosts.values():
        facts["gate"] |= {"passed": False, "problems": ["spark-01: enp1s0f0np0 to spark-02's enp1s0f0np0: broke; mend"]}
        for link in facts["gate"]["links"]:
            if link["host"] == "spark-01" and link["interface"] == "enp1s0f0np0":
                link["gbps"] = None
    assert draw(hosts, 2)["wires"][0]["rails"][0]["state"] == _drawing.SLOW
    assert draw(hosts, 2)["wires"][0]["rails"][1]["state"] == _drawing.GOOD


def test_a_twin_that_is_down_is_said_at_its_own_end() -> None:
    drawing = draw(ex.twin_down(), 2)
    assert [rail["state"] for rail in drawing["wires"][0]["rails"]] == [_drawing.UNMEASURED, _drawing.DOWN]
    shown = text(ex.twin_down(), 2)
    assert shown.count("no carrier") == 1 and shown.count("the other end is down") == 1


def test_an_interface_that_is_down_is_not_said_to_lack_a_cable() -> None:
    hosts = ex.twin_down()
    for item in ex.of(hosts["spark-02"], "enP2p1s0f0np0"):
        item["carrier"] = None
    assert "interface is down" in text(hosts, 2) and "no carrier" not in text(hosts, 2)


def test_a_missing_cable_is_drawn_between_the_ports_that_lack_it() -> None:
    drawing = draw(ex.missing(), 3)
    assert drawing["missing"] == [["spark-03", "spark-01"]]
    ports = {(node["name"], port["name"]): port["state"] for node in drawing["nodes"] for port in node["ports"]}
    assert ports["spark-01", "p1"] == ports["spark-03", "p0"] == _drawing.DOWN
    assert ports["spark-02", "p0"] == _drawing.UNMEASURED
    assert "CABLE MISSING" in text(ex.missing(), 3) and "p1  NO CARRIER" in text(ex.missing(), 3)


def test_the_far_port_of_a_missing_cable_is_marked_though_only_one_node_says_so() -> None:
    hosts = ex.missing()
    hosts["spark-01"]["problems"] = []
    hosts["spark-03"]["problems"] = ["no cable from p0 to spark-01 p1, which a ring needs; plug one in"]
    drawing = draw(hosts, 3)
    ports = {(node["name"], port["name"]): port["state"] for node in drawing["nodes"] for port in node["ports"]}
    assert ports["spark-01", "p1"] == ports["spark-03", "p0"] == _drawing.DOWN


def test_without_a_problem_nothing_is_missing() -> None:
    hosts = ex.missing()
    for facts in hosts.values():
        facts["problems"] = []
    assert draw(hosts, 3)["missing"] == []
    assert "MISSING" not in text(hosts, 3)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("spark-03", "spark-03 p1 is cabled to spark-01 p1; a ring needs p0-p1: move the plug at spark-03 to p0"),
        ("spark-03", "p1 is cabled to spark-01 p1; a ring needs p1 cabled to spark-02 p0"),
        ("spark-01", "spark-03 p1 is cabled to spark-01 p1; move it"),
    ],
)
def test_the_cable_that_a_refusal_names_is_marked_and_no_other(host: str, line: str) -> None:
    hosts = ex.miscabled()
    hosts["spark-03"]["problems"] = []
    hosts[host]["problems"] = [line]
    wires = draw(hosts, 3)["wires"]
    wrong = [{(end["host"], end["port"]) for end in w["ends"]} for w in wires if w["state"] == _drawing.WRONG]
    assert wrong == [{("spark-03", "p1"), ("spark-01", "p1")}]
    assert "CABLED WRONGLY" in text(hosts, 3)


RING = fabric_hosts.ring(1, 2, 3)


@pytest.mark.parametrize(
    ("groups", "wrong", "missing"),
    [
        (RING, [], []),
        (RING[:2], [], [["spark-03", "spark-01"]]),
        ([*RING[:2], ["spark-03:p0", "spark-09:p0"]], [["spark-03:p0", "spark-09:p0"]], [["spark-03", "spark-01"]]),
        ([*RING[:1], ["spark-02:p0", "spark-03:p0"], ["spark-03:p1", "spark-01:p1"]], None, []),
    ],
    ids=["right", "one cable short", "one leads elsewhere", "one node the wrong way round"],
)
def test_what_is_said_of_real_cables_is_drawn(
    groups: list[list[str]], wrong: list[list[str]] | None, missing: list[list[str]]
) -> None:
    """The lines are those of _topology: the drawing has to find the cables in them."""
    nodes = fabric_hosts.names(1, 2, 3)
    hosts = fabric_hosts.cable({"atlas": nodes, "boreas": fabric_hosts.names(9, 10)}, groups)
    wires = _topology.find_wires(hosts)
    cabling = fabric_hosts.find_cabling(hosts, wires, nodes)
    preflights = {
        name: {
            "roce": hosts[name]["roce"],
            "wires": [wire for wire in wires if name in {end["host"] for end in wire["ends"]}],
            "problems": cabling["problems"].get(name, []),
            "topology": cabling["topology"],
        }
        for name in nodes
    }
    drawing = _drawing.draw({"name": "atlas", "head": "spark-01", "nodes": nodes}, preflights)
    found = [
        sorted(f"{end['host']}:{end['port']}" for end in wire["ends"])
        for wire in drawing["wires"]
        if wire["state"] == _drawing.WRONG
    ]
    assert found == wrong if wrong is not None else found, drawing["problems"]
    assert drawing["missing"] == missing
    assert bool(drawing["problems"]) == (groups != RING)


def test_a_cable_into_another_cluster_says_where_it_leads() -> None:
    shown = text(ex.swapped(), 2)
    assert "p0  cabled to spark-05 p0, not in this cluster" in shown
    assert {wire["state"] for wire in draw(ex.swapped(), 2)["wires"]} == {_drawing.WRONG}
    picture = _drawing_svg.svg([draw(ex.swapped(), 2)])
    assert "spark-05 p0" in picture and "not in this cluster" in picture


def test_a_node_that_could_not_be_read_is_drawn_with_what_others_see_of_it() -> None:
    drawing = draw(ex.off_switch(), 4)
    assert drawing["nodes"][1]["ports"][0]["name"] == "p0"
    shown = text(ex.off_switch(), 4)
    assert "could not be read" in shown and "problem: spark-02: unreachable over SSH" in shown
    assert drawing["missing"] == [["spark-04", ""]]


def test_a_node_without_facts_could_not_be_read_and_says_why_once() -> None:
    hosts = ex.pair(measured=False)
    hosts["spark-02"] = {"roce": {}, "problems": [], "refusal": "spark-02: the fabric could not be read; check"}
    assert text(hosts, 2).count("the fabric could not be read; check") == 1
    assert "could not be read" in text({}, 2) and "no ConnectX port" not in text({}, 2)


def test_a_port_without_a_cable_is_no_fault_unless_the_node_has_no_other() -> None:
    assert "NO CARRIER" not in text(ex.pair(), 2)
    assert text(ex.no_carrier(), 2).count("NO CARRIER") == 4
    assert "NO CARRIER" not in text(ex.fleet("single", 1, []), 1)


def test_what_is_planned_is_told_from_what_is_set() -> None:
    shown = text(ex.unaddressed(), 2)
    assert "192.168.177.11/24*" in shown and "MTU 1500, 9000*" in shown and "* not set yet" in shown
    assert "*" not in text(ex.pair(), 2)


def test_a_switch_names_who_else_is_on_it() -> None:
    hosts = ex.fleet("switch", 2, ex.switch(4))
    assert "also on it: spark-03, spark-04" in text(hosts, 2)
    assert "also on it" in _drawing_svg.svg([draw(hosts, 2)])


def test_without_cables_the_addresses_say_who_is_joined() -> None:
    hosts = ex.pair(measured=False)
    for name, facts in hosts.items():
        facts["wires"] = []
        peer = "spark-02" if name == "spark-01" else "spark-01"
        facts["links"] = [{"interface": i, "peer": peer, "peer_interface": i} for i in ex.interfaces("p0")]
    (wire,) = draw(hosts, 2)["wires"]
    assert wire["kind"] == "cable" and {end["host"] for end in wire["ends"]} == {"spark-01", "spark-02"}
    assert len(wire["rails"]) == 2


def test_addresses_of_four_nodes_in_one_network_are_a_switch() -> None:
    hosts = ex.fleet("switch", 4, ex.switch(4), measured=False)
    for name, facts in hosts.items():
        facts["wires"] = []
        facts["links"] = [
            {"interface": "enp1s0f0np0", "peer": peer, "peer_interface": "enp1s0f0np0"}
            for peer in hosts
            if peer != name
        ]
    (wire,) = draw(hosts, 4)["wires"]
    assert wire["kind"] == "switch" and len(wire["ends"]) == 4


def test_a_gate_from_before_a_change_is_not_shown_as_the_present() -> None:
    hosts = ex.pair()
    for facts in hosts.values():
        facts["gate_due"] = True
    assert "changed since" in text(hosts, 2)


def test_the_model_is_json_and_is_the_same_each_time() -> None:
    for hosts, count in ex.EXAMPLES.values():
        first = json.dumps(draw(hosts, count))
        assert json.loads(first) == json.loads(json.dumps(draw(hosts, count)))


# --- the drawings ---------------------------------------------------------------------------------


def test_boxes_in_text_have_straight_sides() -> None:
    hosts = ex.fleet("switch", 3, ex.switch(3))
    hosts["spark-02"]["roce"]["interfaces"][0]["addresses"] = []
    for fabric, count in [*ex.EXAMPLES.values(), (hosts, 3), (ex.off_switch(), 4), (ex.unaddressed(), 2)]:
        lines = _drawing.render(draw(fabric, count))
        right = [len(line) for line in lines if line.endswith(("┐", "┘", "│")) and not line.endswith(("━┛", "╌┘"))]
        assert len(set(right)) == 1, "\n".join(lines)


def everything() -> dict[str, tuple[ex.Hosts, int]]:
    found = dict(ex.EXAMPLES)
    found |= {f"ring{n}": (ex.fleet("ring", n, ex.ring(n)), n) for n in (4, 5, 6, 7, 8, 12)}
    found |= {f"switch{n}": (ex.fleet("switch", n, ex.switch(n)), n) for n in (2, 3, 8, 16)}
    both = ex.fleet("switch", 4, [*ex.switch(4), *ex.switch(4, "p1")])
    crossed = ex.fleet("", 4, [[("spark-01", "p0"), ("spark-04", "p0")], [("spark-02", "p0"), ("spark-03", "p0")]])
    found |= {"switches": (both, 4), "crossed": (crossed, 4), "unaddressed": (ex.unaddressed(), 2)}
    found |= {"miscabled": (ex.miscabled(), 3), "swapped": (ex.swapped(), 2), "no carrier": (ex.no_carrier(), 2)}
    found |= {"off": (ex.off_switch(), 4), "twin": (ex.twin_down(), 2), "nothing": ({}, 3)}
    return found


def boxes(root: ElementTree.Element, kind: str) -> list[tuple[float, float, float, float]]:
    found = []
    for rect in root.iter(f"{SVG}rect"):
        if kind in (rect.get("class") or "").split():
            x, y, w, h = (float(rect.get(key, "0")) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + w, y + h))
    return found


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("name", list(everything()))
def test_no_label_or_box_covers_another_one(name: str) -> None:
    hosts, count = everything()[name]
    root = ElementTree.fromstring(_drawing_svg.svg([draw(hosts, count)]))
    cards, labels = boxes(root, "card"), boxes(root, "label")
    assert len(cards) >= count
    _x, _y, across, _tall = (float(part) for part in root.get("viewBox", "").split())
    for index, one in enumerate([*cards, *labels]):
        assert one[0] >= 0 and one[2] <= across, f"{one} is outside"
        for other in [*cards, *labels][:index]:
            assert not overlap(one, other), f"{one} covers {other}"


@pytest.mark.parametrize("name", list(everything()))
def test_no_text_leaves_its_box(name: str) -> None:
    """Text in a row of a node must end before the next one starts, by the widths that a usual font has."""
    hosts, count = everything()[name]
    root = ElementTree.fromstring(_drawing_svg.svg([draw(hosts, count)]))
    rows: dict[tuple[str, int], list[tuple[float, float, str]]] = {}
    group = next(root.iter(f"{SVG}g"))
    cards = boxes(root, "card")
    for element in group.findall(f"{SVG}text"):
        shown = "".join(element.itertext())
        if "name" in (element.get("class") or "") or element.find(f"{SVG}tspan") is not None:
            continue
        x, y = float(element.get("x", "0")), float(element.get("y", "0"))
        mono = "mono" in (element.get("class") or "")
        size = _drawing.width(shown) * (6.63 if mono else 6.2)
        left = x - {"end": size, "middle": size / 2}.get(element.get("text-anchor", ""), 0)
        card = next((c for c in cards if c[0] <= x <= c[2] and c[1] <= y <= c[3]), None)
        if card:
            assert left >= card[0] and left + size <= card[2], shown
            rows.setdefault((str(card), round(y)), []).append((left, left + size, shown))
    for row in rows.values():
        row.sort()
        for (_a, end, one), (start, _b, other) in itertools.pairwise(row):
            assert end <= start, f"{one!r} runs into {other!r}"


EVIL = "</text><script>alert(1)</script>&\"'\x1b[31m\x00\u202e"


def evil() -> ex.Hosts:
    hosts = ex.pair()
    hosts["spark-01"]["problems"] = [EVIL]
    hosts["spark-02"]["notes"] = [EVIL]
    hosts["spark-01"]["roce"]["devices"][0]["name"] = EVIL
    return {EVIL if name == "spark-02" else name: facts for name, facts in hosts.items()}


def test_names_are_text_and_nothing_else() -> None:
    drawing = _drawing.draw({"name": EVIL, "head": "spark-01", "nodes": ["spark-01", EVIL]}, evil())
    for document in (_drawing_svg.svg([drawing]), _drawing_svg.page([drawing], EVIL)):
        assert "<script" not in document
        assert not set(document) & set("\x1b\x00\u202e")
    ElementTree.fromstring(_drawing_svg.svg([drawing]))
    assert not set("\n".join(_drawing.render(drawing))) & set("\x1b\x00\u202e")


class Page(HTMLParser):
    """Collects what a page would load, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "image", "use"):
            self.loads.append(tag)
        self.loads += [name for name, _value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_is_well_formed() -> None:
    drawings = [draw(hosts, count, name) for name, (hosts, count) in everything().items()]
    document = _drawing_svg.page(drawings, "2026-11-23")
    page = Page()
    page.feed(document)
    page.close()
    assert page.loads == [] and page.open == []
    assert "url(" not in document and "@import" not in document and "http" not in document
    assert "prefers-color-scheme:dark" in document and "@media print" in document
    assert document.count("<section>") == len(drawings)


def test_the_page_says_what_is_wrong_in_plain_words() -> None:
    document = _drawing_svg.page([draw(ex.slow(), 3)])
    assert "1 problem" in document and "13.1 Gb/s to spark-03, below 90" in document
    assert "no problem" in _drawing_svg.page([draw(ex.pair(), 2)])


def test_every_state_differs_by_more_than_its_colour() -> None:
    """In print, and for who cannot tell green from red."""
    dashes = {state: dash for state, (_light, _dark, dash) in _drawing_svg._STATES.items()}
    solid = [state for state, dash in dashes.items() if not dash]
    assert set(solid) == {_drawing.GOOD, _drawing.UNMEASURED}
    broken = [dash for dash in dashes.values() if dash]
    assert len(set(broken)) == len(broken)


@pytest.mark.parametrize("file", list(ex.pictures()))
def test_the_pictures_in_the_documentation_are_what_is_drawn_now(file: str) -> None:
    assert (ex.IMAGES / file).read_text(encoding="utf-8") == ex.pictures()[file], (
        "renew them: python -m tests.unit.plugins.module_utils.fabric_examples"
    )


# --- whatever comes -------------------------------------------------------------------------------

_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(
    ["spark-01", "spark-02", "p0", "p1", "enp1s0f0np0", "192.168.1.1/24", "ring", "switch"]
)  # fmt: skip
_KEYS = st.sampled_from(
    ["ends", "host", "port", "interfaces", "links", "gbps", "peer", "peer_interface", "interface", "devices", "name",
     "netdev", "carrier", "addresses", "problems", "notes", "mtu", "rail", "kept", "physical_port", "thresholds"]
)  # fmt: skip
_ANY = st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5))


@st.composite
def broken(draw_from: Any) -> tuple[ex.Hosts, int]:
    """Return a fabric with some of its parts replaced by anything."""
    name = draw_from(st.sampled_from(["fabric-pair", "fabric-ring3", "fabric-switch4", "fabric-ring3-slow"]))
    hosts, count = json.loads(json.dumps(ex.EXAMPLES[name]))
    for _time in range(draw_from(st.integers(1, 4))):
        place: Any = hosts
        key: Any = draw_from(st.sampled_from(sorted(hosts)))
        for _depth in range(draw_from(st.integers(0, 6))):
            below = place[key]
            if isinstance(below, dict) and below:
                place, key = below, draw_from(st.sampled_from(sorted(below)))
            elif isinstance(below, list) and below:
                place, key = below, draw_from(st.integers(0, len(below) - 1))
        place[key] = draw_from(_ANY)
    return hosts, count


@settings(max_examples=300, deadline=None)
@given(broken())
def test_no_input_breaks_a_drawing(fabric: tuple[ex.Hosts, int]) -> None:
    drawing = draw(*fabric)
    json.dumps(drawing)
    assert all(node["name"] in "\n".join(_drawing.render(drawing)) for node in drawing["nodes"])
    ElementTree.fromstring(_drawing_svg.svg([drawing]))
    _drawing_svg.page([drawing])
