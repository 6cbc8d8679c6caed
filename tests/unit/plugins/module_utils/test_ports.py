# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one table of ports: it agrees with the roles, with the documentation, and with itself."""

from __future__ import annotations

import re
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _ports
from ansible_collections.sparkfleet.vllm.plugins.module_utils._ports import ROWS, Row, open_to_everyone

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "ports.md"

sys.path.insert(0, str(ROOT / "docs"))

import port_table  # noqa: E402

VALUES = {"serve_port": 8888, "serve_host": "0.0.0.0", "serve_url": ""}
CLUSTER = {"name": "atlas", "head": "s1", "nodes": ["s1", "s2"]}


def defaults() -> dict[str, t.Any]:
    """The defaults of all roles."""
    found: dict[str, t.Any] = {}
    for path in sorted((ROOT / "roles").glob("*/defaults/main.yml")):
        found.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return found


def test_every_port_of_the_roles_has_a_row() -> None:
    ports = {name for name, value in defaults().items() if name.endswith("_port") and value}
    assert ports == {name for row in ROWS for name in row.variables if name.endswith("_port")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.ports)
def test_a_row_has_the_defaults_of_its_variables(row: Row) -> None:
    numbers = [value for value in map(defaults().get, row.variables) if isinstance(value, int)]
    expected = {0: [], 1: [row.first - row.offset], 2: [row.first, row.last]}[len(numbers)]
    assert numbers == expected
    assert numbers or row.variables == ("net.ipv4.ip_local_port_range",)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.ports)
def test_a_row_makes_sense(row: Row) -> None:
    assert 1 <= row.first <= row.last <= 65535
    assert set(row.bind) <= set(_ports.BINDS) and row.reach in _ports.REACHES and row.node in ("all", "head", "leader")
    # Nobody has to reach what listens on loopback only, and everything else is there to be reached.
    assert (row.reach == _ports.NOBODY) == (row.bind == (_ports.LOOPBACK,))
    # Only the API is for clients: whatever else is opened to everyone is a decision to be made here too.
    assert (row.reach == _ports.EVERYONE) == (row.variables == ("serve_port", "serve_host"))
    assert "|" not in row.what


def test_the_documentation_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert port_table.main(["--check"]) == 0, capsys.readouterr().err
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d", line)]
    assert len(shown) == len(ROWS)
    for line, row in zip(shown, ROWS, strict=True):
        # As the verifier of the site scenario reads it.
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (cells[0], cells[1].split(", "), cells[2]) == (row.ports, list(row.bind), row.reach)


def test_a_stale_page_is_noticed_and_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "ports.md"
    page.write_text("before\n<!-- ports -->\nold\n<!-- /ports -->\nafter\n")
    assert port_table.main(["--check"], page) == 1
    assert capsys.readouterr().err == "docs/ports.md: its table is stale; run: python docs/port_table.py\n"
    assert port_table.main([], page) == 0
    assert port_table.main(["--check"], page) == 0
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    page.write_text("no markers")
    assert port_table.main([], page) == 1


def test_the_variables_are_written_out() -> None:
    table = _ports.table()
    assert "| `serve_port`, `serve_host` |" in table
    assert "| 18516 | any | nodes | all | `ib_write_bw`, only while it measures | `fabric_gate_port` + 1 |" in table
    assert "| 6400-6409 |" in table and "| `serve_group_port` to + 9 |" in table


def model(leader: str, port: int, host: str = "0.0.0.0") -> dict[str, t.Any]:
    return {"name": f"m{port}", "leader": leader, "port": port, "host": host}


@pytest.mark.parametrize(
    ("values", "models", "expected"),
    [
        ({}, None, {"s1": [8888], "s2": []}),
        ({"serve_port": 9000}, None, {"s1": [9000], "s2": []}),
        ({}, [], {"s1": [], "s2": []}),
        ({}, [model("s1", 8888), model("s2", 8889)], {"s1": [8888], "s2": [8889]}),
        ({}, [model("s2", 8890), model("s2", 8889)], {"s1": [], "s2": [8889, 8890]}),
        # Behind a proxy on the node itself.
        ({"serve_host": "127.0.0.1"}, None, {"s1": [], "s2": []}),
        ({}, [model("s1", 8888, "::1"), model("s2", 8889, "10.0.0.2")], {"s1": [], "s2": [8889]}),
        ({"serve_url": "http://10.0.0.9:8000"}, [model("s1", 8888)], {"s1": [], "s2": []}),
    ],
)
def test_the_api_is_open_where_a_model_is_led(
    values: dict[str, t.Any], models: list[dict[str, t.Any]] | None, expected: dict[str, list[int]]
) -> None:
    cluster = {**CLUSTER, **({} if models is None else {"models": models})}
    assert {host: open_to_everyone({**VALUES, **values}, host, cluster) for host in expected} == expected


def test_a_row_that_is_opened_to_everyone_is_in_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(9400, 9400, (_ports.ANY,), _ports.EVERYONE, "head", "metrics", ("serve_metrics_port", "serve_host"))
    monkeypatch.setattr(_ports, "ROWS", (*ROWS, row))
    assert open_to_everyone({**VALUES, "serve_metrics_port": 9400}, "s1", CLUSTER) == [8888, 9400]
    monkeypatch.setattr(_ports, "ROWS", (row,))
    assert open_to_everyone({**VALUES, "serve_metrics_port": 9400}, "s1", CLUSTER) == [9400]
