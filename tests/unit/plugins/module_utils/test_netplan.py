# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our netplan file, what other files say, and the way back of a change that nobody confirms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _netplan, _netplan_guard
from ansible_collections.sparkfleet.vllm.plugins.module_utils._netplan_guard import Done, Goal, Link, Paths, Pending
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["network", "ethernets", "bonds", "a", "match", "name", "addresses", "mtu", "set-name"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)


def setting(interface: str = "enp1s0f0np0", number: int = 177, mtu: int = 9000, kept: bool = False) -> dict[str, Any]:
    """As `_addressing` makes it."""
    return {"interface": interface, "address": f"192.168.{number}.11/24", "mtu": mtu, "kept": kept}


def test_the_file_is_what_netplan_reads() -> None:
    text = _netplan.render([setting("enp1s0f0np0", 177), setting("enP2p1s0f0np0", 178)], None)
    assert text.startswith("# Managed by sparkfleet.vllm")
    ethernet = {"dhcp4": False, "dhcp6": False, "accept-ra": False, "link-local": [], "optional": True, "mtu": 9000}
    assert yaml.safe_load(text) == {
        "network": {
            "version": 2,
            "ethernets": {
                "enp1s0f0np0": {**ethernet, "addresses": ["192.168.177.11/24"]},
                "enP2p1s0f0np0": {**ethernet, "addresses": ["192.168.178.11/24"]},
            },
        }
    }


def test_the_order_of_the_settings_does_not_matter() -> None:
    both = [setting("b", 1), setting("a", 2)]
    assert _netplan.render(both, None) == _netplan.render(both[::-1], None)


def test_what_is_right_without_us_stays_out_and_what_we_made_stays_in() -> None:
    first, second = setting("a", 177), setting("b", 178, kept=True)
    text = _netplan.render([first, second], None)
    assert [own["interface"] for own in _netplan.parse(text)] == ["a"]
    assert _netplan.render([{**first, "kept": True}, second], text) == text
    assert _netplan.render([{**first, "kept": True}, second], None) == ""
    assert _netplan.render([], text) == ""


@given(st.from_regex(r"\A[A-Za-z0-9_.:-]{1,15}\Z"), st.integers(1, 254), st.integers(1280, 9600))
def test_what_is_written_can_be_read_back(name: str, number: int, mtu: int) -> None:
    text = _netplan.render([setting(name, number, mtu)], None)
    assert _netplan.parse(text) == [{"interface": name, "addresses": [f"192.168.{number}.11/24"], "mtu": mtu}]
    assert list(yaml.safe_load(text)["network"]["ethernets"]) == [name]


@given(st.text(alphabet='ab:"\\ -/0\nmtu', max_size=200))
def test_no_text_upsets_the_parser(text: str) -> None:
    _netplan.parse(text)
    _netplan.parse(_netplan.render([setting()], None) + text)


def test_a_file_that_hides_another_configures_nothing() -> None:
    assert yaml.safe_load(_netplan.nothing()) == {"network": {"version": 2}}
    assert _netplan.parse(_netplan.nothing()) == []


@pytest.mark.parametrize(
    ("definition", "found"),
    [
        ("enp1s0f0np0: {addresses: [1.2.3.4/24], mtu: 1500}", {"enp1s0f0np0": (["1.2.3.4/24"], 1500)}),
        ("enp1s0f0np0: {dhcp4: true}", {"enp1s0f0np0": ([], None)}),
        ("enp1s0f0np0: {addresses: [{1.2.3.4/24: {label: x}}]}", {"enp1s0f0np0": (["1.2.3.4/24"], None)}),
        ("fabric: {match: {name: 'enp1s0f*'}, mtu: 9000}", {"enp1s0f0np0": ([], 9000), "enp1s0f1np1": ([], 9000)}),
        ("x: {match: {macaddress: '4C:BB:47:00:01:01'}, mtu: 9000}", {"enp1s0f1np1": ([], 9000)}),
        ("x: {match: {driver: mlx5_core}, mtu: 9000}", {}),
        ("x: {match: {name: nope}, set-name: enp1s0f0np0, mtu: 9000}", {"enp1s0f0np0": ([], 9000)}),
        ("other0: {mtu: 9000}", {}),
        ("enp1s0f0np0: nonsense", {}),
        ("enp1s0f0np0: {addresses: nonsense, mtu: yes}", {"enp1s0f0np0": ([], None)}),
    ],
)
def test_other_files_are_understood(definition: str, found: dict[str, tuple[list[str], int | None]]) -> None:
    interfaces = {"enp1s0f0np0": "4c:bb:47:00:01:00", "enp1s0f1np1": "4c:bb:47:00:01:01", "enP7s7": None}
    document = yaml.safe_load(f"network:\n  ethernets:\n    {definition}\n")
    assert _netplan.entries(document, interfaces) == {
        name: {"addresses": addresses, "mtu": mtu} for name, (addresses, mtu) in found.items()
    }


@given(JSON)
def test_no_document_upsets_the_reader(document: object) -> None:
    _netplan.entries(document, {"a": None, "b": "4c:bb:47:00:01:00"})


def test_a_file_in_run_hides_the_one_of_the_same_name(tmp_path: Path) -> None:
    for directory, number in (("run", 1), ("etc", 2), ("lib", 3)):
        (tmp_path / directory / "netplan").mkdir(parents=True)
        for name in (f"only-{directory}.yaml", *(["all.yaml"]), *(["two.yaml"] if directory != "run" else [])):
            path = tmp_path / directory / "netplan" / name
            path.write_text(f"network: {{ethernets: {{a: {{mtu: {number}000}}}}}}\n")
    own = _netplan.render([setting()], None)
    (tmp_path / "etc/netplan/95-sparkfleet.yaml").write_text(own)
    (tmp_path / "etc/netplan/99-bad.yaml").write_text("network: [\n")
    (tmp_path / "etc/netplan/98-worse.yaml").write_bytes(b"\xff\xfe\0")
    (tmp_path / "etc/netplan/97-deep.yaml").write_text("[" * 100000)
    (tmp_path / "etc/netplan/96-directory.yaml").mkdir()
    (tmp_path / "etc/netplan/README").write_text("network: [\n")
    files = _netplan.read_files(str(tmp_path), {"a": None})
    assert {path: entry["a"]["mtu"] for path, entry in files["files"].items()} == {
        "/run/netplan/all.yaml": 1000,
        "/run/netplan/only-run.yaml": 1000,
        "/etc/netplan/two.yaml": 2000,
        "/etc/netplan/only-etc.yaml": 2000,
        "/lib/netplan/only-lib.yaml": 3000,
    }
    assert files["own"] == own
    assert [note.split()[0] for note in files["notes"]] == [
        f"/etc/netplan/{name}.yaml" for name in ("96-directory", "97-deep", "98-worse", "99-bad")
    ]


def test_a_host_without_netplan_has_no_files(tmp_path: Path) -> None:
    assert _netplan.read_files(str(tmp_path), {}) == {"own": None, "files": {}, "notes": []}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"addresses": ["192.168.5.2/24"], "mtu": None}, "gives it 192.168.5.2/24; it should be 192.168.177.11/24"),
        ({"addresses": ["192.168.177.11/16"], "mtu": None}, "gives it 192.168.177.11/16;"),
        ({"addresses": [], "mtu": 1500}, "gives it MTU 1500; it should be 192.168.177.11/24, MTU 9000"),
        ({"addresses": ["1.1.1.1/8"], "mtu": 1500}, "gives it 1.1.1.1/8, MTU 1500;"),
        ({"addresses": ["192.168.177.11/24", "1.1.1.1/8"], "mtu": 9000}, ""),
        ({"addresses": ["fe80::1/64", "junk"], "mtu": None}, ""),
        ({"addresses": None, "mtu": None}, ""),
    ],
)
def test_what_other_files_say_against_us(entry: dict[str, Any], said: str) -> None:
    files = {"/etc/netplan/40-cx7.yaml": {"enp1s0f0np0": entry, "other": {"addresses": ["9.9.9.9/8"], "mtu": 1}}}
    lines = _netplan.conflicts([setting()], files)
    assert len(lines) == bool(said)
    assert not said or lines[0].startswith(f"enp1s0f0np0: /etc/netplan/40-cx7.yaml {said}")
    assert not said or lines[0].endswith("take it out there, or set fabric_configure: keep")


# --- the way back ---------------------------------------------------------------------------------------------------

IP_ADDRESSES = json.dumps(
    [
        {
            "ifname": "enP7s7",
            "flags": ["BROADCAST", "UP", "LOWER_UP"],
            "mtu": 1500,
            "addr_info": [
                {"family": "inet", "local": "10.0.0.11", "prefixlen": 24, "scope": "global", "dynamic": True},
                {"family": "inet6", "local": "fd00::11", "prefixlen": 64, "scope": "global"},
                {"family": "inet6", "local": "fd00::22", "prefixlen": 64, "scope": "global", "dynamic": True},
                {"family": "inet6", "local": "fe80::11", "prefixlen": 64, "scope": "link"},
            ],
        },
        {},
        {"ifname": "enp1s0f0np0", "flags": ["BROADCAST"], "mtu": 9000, "addr_info": []},
    ]
)
IP_ROUTES = {
    "-4": "default via 10.0.0.1 dev enP7s7 proto dhcp src 10.0.0.11 metric 100 \n"
    "10.0.0.0/24 dev enP7s7 proto kernel scope link src 10.0.0.11 \n"
    "10.9.0.0/16 dev enP7s7 scope link linkdown \n"
    "default metric 5 \n\tnexthop via 10.0.0.2 dev enP7s7 weight 1 \n"
    "blackhole 10.8.0.0/16 \n",
    "-6": "fd00::/64 dev enP7s7 proto kernel metric 256 pref medium\n"
    "fd01::/64 via fd00::1 dev enP7s7 metric 1024 expires 99sec pref medium\n"
    "default via fe80::1 dev enP7s7 proto ra metric 100 pref medium\n",
}


def test_what_does_not_come_back_by_itself_is_kept() -> None:
    links = _netplan_guard.parse_links(IP_ADDRESSES, IP_ROUTES)
    assert links["enp1s0f0np0"] == Link(False, 9000)
    assert links["enP7s7"] == Link(
        True,
        1500,
        ("10.0.0.11/24", "fd00::11/64"),
        (
            ("-4", "10.9.0.0/16 dev enP7s7 scope link"),
            ("-4", "default via 10.0.0.1 dev enP7s7 proto dhcp src 10.0.0.11 metric 100"),
            ("-6", "fd01::/64 via fd00::1 dev enP7s7 metric 1024 pref medium"),
        ),
    )


@given(st.text(max_size=100))
def test_no_route_upsets_the_parser(text: str) -> None:
    _netplan_guard.parse_routes({"-4": text})


def test_only_what_differs_is_done_and_in_an_order_that_works() -> None:
    link = Link(False, 9000, ("192.168.177.11/24",))
    route = ("-4", "default via 10.0.0.1 dev a")
    goal = Goal(True, 1500, ("10.0.0.11/24",), ("192.168.177.11/24", "1.1.1.1/8"), (route,))
    assert [" ".join(command) for command in _netplan_guard.steps({"a": goal, "gone": goal}, {"a": link})] == [
        "ip link set dev a mtu 1500",
        "ip addr del 192.168.177.11/24 dev a",
        "ip link set dev a up",
        "ip addr add 10.0.0.11/24 dev a brd +",
        "ip -4 route replace default via 10.0.0.1 dev a",
    ]
    assert _netplan_guard.steps({"a": goal}, {"a": Link(True, 1500, ("10.0.0.11/24",), (route,))}) == []
    assert _netplan_guard.steps({"a": Goal()}, {"a": link}) == []
    assert _netplan_guard.steps({"a": Goal(up=False)}, {"a": Link(True, 1)}) == [
        ["ip", "link", "set", "dev", "a", "down"]
    ]


class Host:
    """Interfaces that commands change, and that somebody else changes back for a while."""

    def __init__(self, meddle: int = 0, netplan_rc: int = 0) -> None:
        self.up, self.meddle, self.netplan_rc = False, meddle, netplan_rc
        self.commands: list[str] = []
        self.now = 0.0

    def __call__(self, command: Sequence[str], timeout: float) -> Done:
        """Run a command."""
        text = " ".join(command)
        if text == "ip -j addr show":
            flags = ["UP"] if self.up else []
            return Done(0, json.dumps([{"ifname": "enP7s7", "flags": flags, "mtu": 1500, "addr_info": []}]), "")
        if "route show" in text:
            return Done(0, "", "")
        self.commands.append(text)
        if text == "netplan apply":
            return Done(self.netplan_rc, "", "first\nthe last line\n" if self.netplan_rc else "")
        if text.endswith(" up"):
            self.up = self.meddle <= 0
            self.meddle -= 1
        return Done(0, "", "")

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def clock(self) -> float:
        """Return the time."""
        return self.now


def test_somebody_who_meddles_is_outlasted() -> None:
    host = Host(meddle=3)
    did = _netplan_guard.settle({"enP7s7": Goal(up=True)}, host, clock=host.clock, sleep=host.sleep)
    assert (host.up, host.commands) == (True, ["ip link set dev enP7s7 up"] * 4)
    assert did == ["ip link set dev enP7s7 up"]
    assert 5 <= host.now < 10


def test_somebody_who_never_stops_is_left_alone_in_the_end() -> None:
    host = Host(meddle=10**6)
    _netplan_guard.settle({"enP7s7": Goal(up=True)}, host, clock=host.clock, sleep=host.sleep)
    assert 40 < host.now < 60


OWN = _netplan.render([setting()], None)


@pytest.fixture(name="paths")
def fixture_paths(tmp_path: Path) -> Paths:
    paths = Paths(str(tmp_path))
    for path in (paths.own, paths.staged, paths.pending):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    return paths


def pend(paths: Paths, own: str | None = None, **more: Any) -> Pending:
    """Leave a change pending."""
    management = {"enP7s7": Link(True, 1500, ("10.0.0.11/24",), (("-4", "default via 10.0.0.1 dev enP7s7"),))}
    fabric = {"enp1s0f0np0": Link(True, 1500, ("169.254.1.2/16",))}
    pending = Pending(own, OWN, fabric, management, **more)
    _netplan_guard.write(paths.pending, pending.to_json())
    _netplan_guard.write(paths.staged, OWN)
    return pending


def test_a_pending_change_survives_its_file(paths: Paths) -> None:
    pending = pend(paths, OWN, goals={"a": Goal(None, None, ("1.1.1.1/8",), ("2.2.2.2/8",))}, deadline=5.0, forget=True)
    assert _netplan_guard.load(paths) == pending
    assert (os.stat(paths.pending).st_mode & 0o777) == 0o600


def quick(goals: dict[str, Goal], runner: Host, quiet: float = 5.0) -> list[str]:
    """Settle in no time."""
    return _netplan_guard.settle(goals, runner, quiet, clock=runner.clock, sleep=runner.sleep)


@pytest.mark.parametrize("own", [None, "# before\n"])
@pytest.mark.parametrize("netplan_rc", [0, 1])
def test_going_back_restores_files_and_interfaces(paths: Paths, own: str | None, netplan_rc: int) -> None:
    pend(paths, own)
    _netplan_guard.write(paths.own, OWN)  # a confirmation that was cut off in the middle
    host = Host(netplan_rc=netplan_rc)
    assert _netplan_guard.revert(paths, host, quick)
    assert _netplan_guard.read(paths.own) == own
    assert not os.path.exists(paths.staged) and not os.path.exists(paths.pending)
    assert host.up
    assert host.commands.index("ip link set dev enP7s7 up") < host.commands.index("netplan apply")
    assert "ip -4 route replace default via 10.0.0.1 dev enP7s7" in host.commands
    did = json.loads(_netplan_guard.read(paths.reverted) or "")["did"]
    assert ("netplan apply: the last line" if netplan_rc else "netplan apply") in did


def test_nothing_goes_back_when_nothing_is_pending(paths: Paths) -> None:
    _netplan_guard.write(paths.own, OWN)
    host = Host()
    assert not _netplan_guard.revert(paths, host, quick)
    assert (host.commands, _netplan_guard.read(paths.own), os.path.exists(paths.reverted)) == ([], OWN, False)


def test_addresses_that_came_with_the_change_go_with_it() -> None:
    pending = Pending(None, OWN, {"enp1s0f0np0": Link(True, 1500, ("169.254.1.2/16",))}, {})
    goal = _netplan_guard.goals_back(pending)["enp1s0f0np0"]
    assert (goal.addresses, goal.without, goal.mtu) == (("169.254.1.2/16",), ("192.168.177.11/24",), 1500)
    same = Pending(OWN, OWN, {"enp1s0f0np0": Link(True, 9000, ("192.168.177.11/24",))}, {})
    assert _netplan_guard.goals_back(same)["enp1s0f0np0"].without == ()


def test_management_only_gets_what_it_lacks() -> None:
    pending = Pending(None, OWN, {}, {"a": Link(True, 1500, ("10.0.0.1/8",)), "b": Link(False, 1500)})
    goals = _netplan_guard.goals_back(pending)
    assert (goals["a"].up, goals["a"].without, goals["b"].up) == (True, (), None)


@pytest.mark.parametrize(("rc", "said"), [(0, ""), (1, "the last line")])
def test_what_netplan_says_to_the_change_is_kept(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, rc: int, said: str
) -> None:
    monkeypatch.setattr(_netplan_guard.time, "sleep", lambda _seconds: None)
    pend(paths)
    assert _netplan_guard.apply(paths, Host(netplan_rc=rc)) is (rc == 0)
    assert json.loads(_netplan_guard.read(paths.applied) or "")["said"] == said


def test_the_lock_is_held_by_one_at_a_time(paths: Paths) -> None:
    with _netplan_guard.locked(paths, wait=False) as first, _netplan_guard.locked(paths, wait=False) as second:
        assert (first, second) == (True, False)
    with _netplan_guard.locked(paths, wait=False) as third:
        assert third


def test_a_command_that_is_missing_fails_or_hangs_is_only_that() -> None:
    assert _netplan_guard.run(["/nowhere/at/all"]).rc == 127
    assert _netplan_guard.run([sys.executable, "-c", "import sys; sys.exit('no')"]) == Done(1, "", "no\n")
    assert _netplan_guard.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2).rc == 124


def test_the_guard_runs_without_anything_else(tmp_path: Path) -> None:
    program = tmp_path / "guard.py"
    program.write_text(Path(_netplan_guard.__file__).read_text())
    done = subprocess.run(
        [sys.executable, "-I", str(program)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (2, "use: guard.py apply|revert\n")
