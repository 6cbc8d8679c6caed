# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input to the command line: one line that says what to do, and no engine is asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from simulator import cli, state
from simulator.plan import Spec
from simulator.state import Node, State, Store


@pytest.fixture(autouse=True)
def nothing_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(state.Store.__init__, "__defaults__", (tmp_path,))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine")


@pytest.fixture
def up(tmp_path: Path) -> Store:
    """A fleet that the state directory says is up."""
    store = Store("demo")
    store.directory.mkdir()
    nodes = [Node(f"spark-{n:02d}", f"10.77.0.{10 + n}", "ssh-ed25519 AAAA") for n in (1, 2)]
    store.save(State(Spec("demo", 2, "pair"), "10.77.0.0/24", nodes, "b", "n"))
    return store


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up", "--nodes", "1"], "a pair has exactly 2 nodes"),
        (["up", "--nodes", "2", "--topology", "ring"], "a ring has at least 3 nodes"),
        (["up", "--topology", "star"], "choose from 'pair', 'ring', 'switch'"),
        (["up", "--nodes", "two"], "invalid int value: 'two'"),
        (["up", "--rate", "1"], "--rate 1"),
        (["up", "--name", "No_Name"], "--name No_Name"),
        (["up"], "no Docker Engine answers at unix:///"),
        (["down", "--name", "/etc"], "--name /etc"),
        (["status"], "no Docker Engine answers"),
        (["inventory", "--name", "nix"], "fleet 'nix' is not up; start it with: up --name nix"),
        (["ssh", "--name", "nix", "spark-01"], "fleet 'nix' is not up"),
        (["plug"], "CABLE"),
        (["up", "--renderer", "ifupdown"], "choose from 'NetworkManager', 'networkd'"),
        (["cable", "--name", "nix", "ring"], "fleet 'nix' is not up"),
        (["cable", "star"], "choose from 'pair', 'ring', 'switch'"),
        (["cable", "--ends"], "--ends: expected at least one argument"),
        (["limit", "c1"], "RATE"),
        (["limit", "c1", "fast"], "RATE fast: write it as tc does"),
        (["limit", "c1", ""], "RATE is empty: write it as tc does"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(arguments)
    except SystemExit as error:  # argparse's way
        status = int(str(error.code))
    said = capfd.readouterr().err
    assert status in (1, 2)
    assert says in said
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "pair, ring, switch, or --ends"),
        (["ring"], "a ring has at least 3 nodes, not 2"),
        (["pair", "--nodes", "1,3"], "no node '3'"),
        (["pair", "--cables", "3"], "--cables 3"),
        (["--ends", "1:p0=2:p0", "1:p0=2:p1"], "spark-01:p0 is used twice"),
        (["pair", "--ends", "1:p0=2:p0"], "leave out topology"),
        (["--nodes", "1,2", "--ends", "1:p0=2:p0"], "leave out topology"),
        (["--cables", "2", "--ends", "1:p0=2:p0"], "leave out topology"),
        (["--ends", "1:p0=2:p1"], "no Docker Engine answers"),
        (["pair"], "no Docker Engine answers"),
    ],
)
def test_bad_cabling_is_one_line(up: Store, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = up.file.read_text()
    assert cli.main(["cable", *arguments]) == 1
    said = capfd.readouterr().err
    assert says in said and said.startswith("error: ") and said.count("\n") == 1
    assert up.file.read_text() == before


def test_not_root_is_told_about_sudo(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["up", "--name", "x"]) == 1
    assert capfd.readouterr().err == (
        f"error: network namespaces need root; run: sudo {sys.executable} -m simulator up --name x\n"
    )


def test_engine_of_another_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
    assert cli.main(["up"]) == 1
    assert "DOCKER_HOST=tcp://far:2375" in capfd.readouterr().err


def test_unknown_node_lists_those_that_exist(up: Store, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ssh", "spark-09"]) == 1
    assert capfd.readouterr().err == "error: no node 'spark-09' in 'demo'; there are: spark-01, spark-02\n"


@pytest.mark.parametrize("node", ["2", "spark-02"])
def test_ssh_takes_a_name_or_a_number(up: Store, monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    called: list[list[str]] = []

    def become(_program: str, command: list[str]) -> None:
        called.append(command)
        raise InterruptedError  # the real one does not return either

    monkeypatch.setattr(os, "execvp", become)
    with pytest.raises(InterruptedError):
        cli.main(["ssh", node, "uname", "-a"])
    assert called[0][-3:] == ["nvidia@10.77.0.12", "uname", "-a"]


def test_inventory_goes_to_a_file(up: Store, tmp_path: Path) -> None:
    target = tmp_path / "new" / "nodes.yml"
    assert cli.main(["inventory", "--output", str(target)]) == 0
    assert "spark-02:" in target.read_text()


def test_inventory_that_cannot_be_written_says_so(up: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inventory", "--output", str(tmp_path)]) == 1
    assert capfd.readouterr().err == f"error: --output {tmp_path}: Is a directory\n"
