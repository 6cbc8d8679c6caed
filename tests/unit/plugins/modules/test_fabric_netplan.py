# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a change of the fabric's addresses, on a host of files and commands that the test provides."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _netplan, _netplan_guard
from ansible_collections.sparkfleet.vllm.plugins.module_utils._netplan_guard import Link, Paths, Pending
from ansible_collections.sparkfleet.vllm.plugins.modules import fabric_netplan
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import run_module

SETTING = {"interface": "enp1s0f0np0", "address": "192.168.177.11/24", "mtu": 9000, "kept": False, "wire": 0}
OWN = _netplan.render([SETTING], None)
FABRIC, MANAGEMENT = "enp1s0f0np0", "enP7s7"


class Host:
    """A node: its interfaces, its files below a directory, and the commands that were run on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.links: dict[str, tuple[bool, int, list[str]]] = {
            FABRIC: (True, 1500, []),
            MANAGEMENT: (True, 1500, ["10.0.0.11/24"]),
        }
        self.default = MANAGEMENT
        self.commands: list[str] = []
        self.missing: set[str] = set()
        self.answers: dict[str, tuple[int, str, str]] = {"is-active": (3, "inactive\n", "")}
        (root / "etc/netplan").mkdir(parents=True)

    @property
    def paths(self) -> Paths:
        """Where things are."""
        return Paths(str(self.root))

    def get_bin_path(self, name: str, required: bool = False) -> str | None:
        """As AnsibleModule's."""
        return None if name in self.missing else f"/usr/sbin/{name}"

    def run_command(self, command: Sequence[str], **_given: Any) -> tuple[int, str, str]:
        """As AnsibleModule's."""
        text = " ".join(command)
        self.commands.append(text)
        for key, answer in self.answers.items():
            if key in text:
                return answer
        if text.endswith("-j addr show"):
            return 0, json.dumps([self.shown(name) for name in self.links]), ""
        if "route show" in text:
            return 0, f"default via 10.0.0.1 dev {self.default}\n" if "-4" in text else "", ""
        return 0, "", ""

    def shown(self, name: str) -> dict[str, Any]:
        """Return what ip shows of an interface."""
        up, mtu, addresses = self.links[name]
        split = [address.split("/") for address in addresses]
        info = [{"family": "inet", "local": local, "prefixlen": int(length)} for local, length in split]
        return {"ifname": name, "flags": ["UP"] if up else [], "mtu": mtu, "addr_info": info}

    def change(self, **given: Any) -> fabric_netplan.Change:
        """Return what the module would make of its parameters."""
        params = {
            "state": "present",
            "content": OWN,
            "settings": [SETTING],
            "directory": str(self.root / "etc/sparkfleet/atlas"),
            "confirm_timeout": 60,
            "wait": 0,
            **given,
        }
        module = SimpleNamespace(params=params, get_bin_path=self.get_bin_path, run_command=self.run_command)
        return fabric_netplan.Change(module, str(self.root))

    def settle(self) -> None:
        """Do what netplan does in the end."""
        self.links[FABRIC] = (True, 9000, ["192.168.177.11/24"])
        _netplan_guard.write(self.paths.applied, json.dumps({"said": ""}))

    @property
    def files(self) -> dict[str, str]:
        """Return all files."""
        found = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_text() for path in found}


@pytest.fixture(name="host")
def fixture_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(fabric_netplan, "_ssh_address", lambda _process: "")
    monkeypatch.setattr(fabric_netplan, "_STABLE_S", 0.0)
    return Host(tmp_path)


def test_a_comparison_changes_nothing_and_shows_what_would(host: Host) -> None:
    answer = host.change().check()
    assert answer["changed"] is True
    assert answer["missing"] == [
        "enp1s0f0np0 has no address 192.168.177.11/24",
        "enp1s0f0np0 has MTU 1500 instead of 9000",
    ]
    assert answer["diff"][0]["after"] == OWN
    assert answer["diff"][0]["before"] == ""
    assert host.files == {}


def test_what_is_as_wanted_is_left_alone(host: Host) -> None:
    _netplan_guard.write(host.paths.own, OWN)
    host.links[FABRIC] = (True, 9000, ["192.168.177.11/24"])
    answer = host.change().check()
    assert (answer["changed"], answer["missing"]) == (False, [])
    assert not any("netplan" in command for command in host.commands)


def test_nothing_wanted_and_nothing_there_is_no_change(host: Host) -> None:
    host.missing = {"netplan"}
    assert host.change(content="", settings=[SETTING]).check()["changed"] is False
    assert host.change(state="absent").check()["changed"] is False


@pytest.mark.parametrize(
    ("link", "carrier", "lacks"),
    [
        ((False, 9000, ["192.168.177.11/24"]), "", "enp1s0f0np0 is down"),
        ((True, 9000, ["192.168.177.11/24"]), "0\n", "enp1s0f0np0 has no carrier"),
        ((True, 9000, ["192.168.177.11/16"]), "1\n", "enp1s0f0np0 has no address 192.168.177.11/24"),
        ((True, 1500, ["192.168.177.11/24"]), "1\n", "enp1s0f0np0 has MTU 1500 instead of 9000"),
        (None, "", "enp1s0f0np0 does not exist"),
    ],
)
def test_a_file_that_is_not_in_force_is_a_change(host: Host, link: Any, carrier: str, lacks: str) -> None:
    _netplan_guard.write(host.paths.own, OWN)
    (host.root / "sys/class/net/enp1s0f0np0").mkdir(parents=True)
    (host.root / "sys/class/net/enp1s0f0np0/carrier").write_text(carrier)
    host.links.pop(FABRIC)
    if link:
        host.links[FABRIC] = link
    answer = host.change().check()
    assert (answer["changed"], answer["missing"]) == (True, [lacks])


def test_the_way_back_is_armed_before_anything_is_applied(host: Host) -> None:
    assert host.change().stage() == {"changed": True, "phase": "applying"}
    started = [command for command in host.commands if "systemd-run" in command]
    assert "--on-active=60s" in started[0] and started[0].endswith("guard.py revert")
    assert "--no-block" in started[1] and started[1].endswith("guard.py apply")
    assert _netplan_guard.read(host.paths.staged) == OWN
    assert not os.path.exists(host.paths.own)
    pending = _netplan_guard.load(host.paths)
    assert pending and (pending.own, pending.wanted, pending.forget) == (None, OWN, False)
    assert pending.fabric == {FABRIC: Link(True, 1500)}
    assert list(pending.management) == [MANAGEMENT]
    assert pending.management[MANAGEMENT].routes == (("-4", "default via 10.0.0.1 dev enP7s7"),)
    assert os.stat(host.paths.state).st_mode & 0o777 == 0o700
    assert os.stat(host.paths.staged).st_mode & 0o777 == 0o600
    compile(_netplan_guard.read(host.paths.guard) or "", "guard.py", "exec")


def test_a_confirmed_change_is_kept_and_leaves_nothing_else(host: Host) -> None:
    host.change().stage()
    assert host.change().wait()["phase"] == "applying"
    host.settle()
    assert host.change(wait=5).wait()["phase"] == "live"
    assert host.change().confirm()["phase"] == "confirmed"
    assert set(host.files) == {"etc/netplan/95-sparkfleet.yaml", "etc/sparkfleet/atlas/fabric-before.json"}
    assert host.files["etc/netplan/95-sparkfleet.yaml"] == OWN
    assert os.stat(host.paths.own).st_mode & 0o777 == 0o600
    assert "stop sparkfleet-fabric-revert.timer" in host.commands[-1]
    # The answer may get lost: asking again is answered the same.
    assert host.change().confirm()["phase"] == "confirmed"
    assert host.change().check()["changed"] is False


def test_it_is_not_confirmed_before_it_is_in_force(host: Host) -> None:
    host.change().stage()
    host.settle()
    host.links[FABRIC] = (True, 1500, ["192.168.177.11/24"])
    answer = host.change().confirm()
    assert (answer["phase"], answer["missing"]) == ("applying", ["enp1s0f0np0 has MTU 1500 instead of 9000"])
    assert not os.path.exists(host.paths.own)


def test_it_is_not_confirmed_too_late(host: Host) -> None:
    host.change().stage()
    host.settle()
    pending = _netplan_guard.load(host.paths)
    assert pending
    late = Pending(**{**pending.__dict__, "deadline": time.monotonic() + 1})
    _netplan_guard.write(host.paths.pending, late.to_json())
    with pytest.raises(fabric_netplan.Refusal, match="not confirmed in time"):
        host.change().confirm()
    assert not os.path.exists(host.paths.own)


def test_it_is_not_confirmed_while_it_goes_back(host: Host) -> None:
    host.change().stage()
    host.settle()
    with _netplan_guard.locked(host.paths, wait=False):
        assert host.change().confirm()["phase"] == "reverting"
        assert host.change().wait()["phase"] == "reverting"
        # It may begin to go back just after it was looked at.
        late = host.change()
        late.look = lambda: ("live", "", [])
        assert late.confirm()["phase"] == "reverting"
    os.rename(host.paths.pending, host.paths.reverted)
    assert host.change().confirm()["phase"] == "reverted"
    assert not os.path.exists(host.paths.own)


def test_what_netplan_said_is_passed_on(host: Host) -> None:
    host.change().stage()
    _netplan_guard.write(host.paths.applied, json.dumps({"said": "no good"}))
    answer = host.change().wait()
    assert (answer["phase"], answer["said"]) == ("failed", "no good")


def test_after_a_reboot_nothing_is_known_of_the_change(host: Host) -> None:
    assert host.change().wait()["phase"] == "none"


@pytest.mark.parametrize("unit", ["active", "activating"])
def test_a_second_change_waits_for_the_first(host: Host, unit: str) -> None:
    host.change().stage()
    before = host.files
    host.answers["is-active"] = (0, f"{unit}\n", "")
    with pytest.raises(fabric_netplan.Refusal, match=r"another change .* goes back by itself in \d+ s: run again"):
        host.change(confirm_timeout=30).stage()
    assert host.files == before


def test_a_change_whose_timer_was_lost_goes_back_first(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.change().stage()
    reverted: list[Any] = []
    monkeypatch.setattr(_netplan_guard, "revert", reverted.append)
    host.change().stage()
    assert reverted == [host.paths]


def test_management_is_never_changed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.default = FABRIC
    with pytest.raises(fabric_netplan.Refusal, match="enp1s0f0np0 carries management and is not changed"):
        host.change().stage()
    host.default = MANAGEMENT
    host.links[FABRIC] = (True, 1500, ["172.16.0.9/24"])
    monkeypatch.setattr(fabric_netplan, "_ssh_address", lambda _process: "172.16.0.9")
    with pytest.raises(fabric_netplan.Refusal, match="enp1s0f0np0 carries management"):
        host.change().stage()
    assert host.files == {}


@pytest.mark.parametrize("step", ["check", "stage"])
def test_a_broken_file_of_somebody_else_stops_everything(host: Host, step: str) -> None:
    (host.root / "etc/netplan/50-bad.yaml").write_text("network: [\n")

    def run_command(command: Sequence[str], **given: Any) -> tuple[int, str, str]:
        if "generate" not in command:
            return Host.run_command(host, command, **given)
        copy = Path(command[-1])
        assert (copy / "etc/netplan/50-bad.yaml").exists()
        assert (copy / "run/netplan/95-sparkfleet.yaml").read_text() == OWN
        said = f"\n** (generate:1): WARNING **: too open\n{copy}/etc/netplan/50-bad.yaml:3:1: Invalid YAML: oh:\n\n^\n"
        return 1, "", said

    change = host.change()
    change.module.run_command = run_command
    with pytest.raises(fabric_netplan.Refusal) as refusal:
        getattr(change, step)()
    said = "/etc/netplan/50-bad.yaml:3:1: Invalid YAML: oh"
    assert str(refusal.value) == f"netplan refuses its files, so nothing was changed: {said}; correct that"
    assert set(host.files) == {"etc/netplan/50-bad.yaml"}


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("netplan", "netplan is missing; apt-get install netplan.io, or set fabric_configure: keep"),
        ("systemd-run", "systemd-run is missing; the way back needs systemd"),
        ("ip", "the command ip is missing; apt-get install iproute2"),
    ],
)
def test_a_missing_program_is_one_line(host: Host, program: str, line: str) -> None:
    host.missing = {program}
    with pytest.raises(fabric_netplan.Refusal) as refusal:
        host.change().stage()
    assert str(refusal.value) == line
    assert host.files == {}


@pytest.mark.parametrize("unit", ["revert", "apply"])
def test_where_the_way_back_cannot_be_armed_nothing_is_changed(host: Host, unit: str) -> None:
    host.answers[f"guard.py {unit}"] = (1, "", "Failed to start transient unit\n")
    with pytest.raises(fabric_netplan.Refusal, match="systemd-run failed, so nothing was changed: Failed to start"):
        host.change().stage()
    assert not os.path.exists(host.paths.staged) and not os.path.exists(host.paths.pending)
    assert any("stop sparkfleet-fabric-revert.timer" in command for command in host.commands)


def confirmed(host: Host, **given: Any) -> None:
    """Go through a whole change."""
    host.change(**given).stage()
    _netplan_guard.write(host.paths.applied, json.dumps({"said": ""}))
    assert host.change(**given).confirm()["phase"] == "confirmed"


def test_taking_it_back_restores_what_was_before_the_first_change(host: Host) -> None:
    host.links[FABRIC] = (True, 1500, ["169.254.1.2/16"])
    host.change().stage()
    host.settle()
    assert host.change().confirm()["phase"] == "confirmed"
    assert host.change(state="absent").check()["changed"] is True
    host.change(state="absent").stage()
    assert _netplan.parse(_netplan_guard.read(host.paths.staged) or "x") == []
    pending = _netplan_guard.load(host.paths)
    assert pending and pending.goals[FABRIC] == _netplan_guard.Goal(
        True, 1500, ("169.254.1.2/16",), ("192.168.177.11/24",)
    )
    _netplan_guard.write(host.paths.applied, json.dumps({"said": ""}))
    assert host.change(state="absent").confirm()["phase"] == "confirmed"
    assert host.files == {}
    assert host.change(state="absent").check()["changed"] is False


def test_the_first_state_is_remembered_whatever_comes_later(host: Host) -> None:
    host.change().stage()
    host.settle()
    host.change().confirm()
    memory = host.files["etc/sparkfleet/atlas/fabric-before.json"]
    other = {**SETTING, "address": "192.168.200.11/24"}
    given = {"content": _netplan.render([other], OWN), "settings": [other]}
    host.change(**given).stage()
    host.links[FABRIC] = (True, 9000, ["192.168.200.11/24"])
    _netplan_guard.write(host.paths.applied, json.dumps({"said": ""}))
    assert host.change(**given).confirm()["phase"] == "confirmed"
    assert host.files["etc/sparkfleet/atlas/fabric-before.json"] == memory


def test_an_address_that_another_file_gives_stays(host: Host) -> None:
    _netplan_guard.write(host.paths.own, OWN)
    (host.root / "etc/netplan/40-cx7.yaml").write_text(
        "network: {ethernets: {enp1s0f0np0: {addresses: [192.168.177.11/24]}}}\n"
    )
    change = host.change(content="", settings=[])
    assert change.goals(change.links())[FABRIC].without == ()


def test_garbage_in_the_memory_is_no_memory(host: Host) -> None:
    _netplan_guard.write(host.paths.own, OWN)
    memory = host.root / "etc/sparkfleet/atlas/fabric-before.json"
    memory.parent.mkdir(parents=True)
    for text in ("", "[]", '{"a": 1}', '{"a": {"up": 1}}', "{"):
        memory.write_text(text)
        assert host.change(state="absent").remembered() == {}


def test_what_is_left_without_our_file_is_forgotten_at_once(host: Host) -> None:
    memory = host.root / "etc/sparkfleet/atlas/fabric-before.json"
    memory.parent.mkdir(parents=True)
    memory.write_text("{}")
    os.makedirs(host.paths.state)
    _netplan_guard.write(host.paths.reverted, "{}")  # what a change that went back leaves until the next boot
    assert host.change(state="absent").check()["changed"] is True
    assert host.change(state="absent").stage()["phase"] == "confirmed"
    assert host.files == {}
    assert host.change(state="absent").check()["changed"] is False


def test_a_change_that_is_pending_is_not_forgotten(host: Host) -> None:
    host.change().stage()
    host.answers["is-active"] = (0, "active\n", "")
    with pytest.raises(fabric_netplan.Refusal, match="another change"):
        host.change(state="absent").stage()
    assert _netplan_guard.load(host.paths)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {**SETTING, "interface": "../x"},
        {**SETTING, "address": "192.168.1.1"},
        {**SETTING, "address": "300.1.1.1/24"},
        {**SETTING, "mtu": "many"},
        {**SETTING, "mtu": 10},
    ],
)
def test_a_bad_setting_is_one_line(host: Host, bad: dict[str, Any]) -> None:
    with pytest.raises(fabric_netplan.Refusal, match="is no setting; give interface, address"):
        host.change(settings=[bad])


def test_a_bad_timeout_is_one_line(tmp_path: Path) -> None:
    answer = run_module("fabric_netplan", {"directory": str(tmp_path), "confirm_timeout": 5}, tmp_path)
    assert answer["failed"] is True
    assert answer["msg"] == "confirm_timeout is 5; give 20 to 3600 seconds"


def test_check_mode_only_compares(tmp_path: Path) -> None:
    arguments = {"directory": str(tmp_path), "step": "stage", "content": ""}
    answer = run_module("fabric_netplan", arguments, tmp_path, check=True)
    assert answer.get("changed") is False
    assert "phase" not in answer


def test_the_address_of_the_ssh_connection_is_found_in_a_process_above(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "/proc/30/stat": "30 (py) S (x) S 20 1",
        "/proc/30/environ": "A=b\0",
        "/proc/20/stat": "20 (sudo) S 10 1",
        "/proc/10/stat": "10 (sshd) S 1 1",
        "/proc/10/environ": "A=b\0SSH_CONNECTION=10.0.0.1 5000 10.0.0.11 22\0",
    }
    monkeypatch.setattr(_netplan_guard, "read", tree.get)
    monkeypatch.setattr(fabric_netplan, "_readable", lambda _process: True)
    assert fabric_netplan._ssh_address(30) == "10.0.0.11"
    assert fabric_netplan._ssh_address(99) == ""
