# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state directory and the inventory."""

from __future__ import annotations

import fcntl
import json
import shlex
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from simulator import plan, state
from simulator.errors import SimulatorError
from simulator.plan import Spec
from simulator.state import Node, State, Store, lock, make_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("t", tmp_path)


@pytest.fixture
def fleet() -> State:
    nodes = [
        Node("spark-01", "10.77.3.11", "ssh-ed25519 AAAA1 root@x"),
        Node("spark-02", "10.77.3.12", "ssh-ed25519 AAAA2"),
    ]
    return State(Spec("t", 2, "pair"), "10.77.3.0/24", nodes, "base:1", "node:1")


def test_inventory_has_connection_variables_and_nothing_else(store: Store, fleet: State) -> None:
    inventory = yaml.safe_load(store.inventory(fleet))
    assert set(inventory) == {"all"} and set(inventory["all"]) == {"hosts"}
    assert list(inventory["all"]["hosts"]) == ["spark-01", "spark-02"]
    host = inventory["all"]["hosts"]["spark-02"]
    assert set(host) == {
        "ansible_host",
        "ansible_user",
        "ansible_ssh_private_key_file",
        "ansible_ssh_common_args",
        "ansible_control_path_dir",
        "ansible_python_interpreter",
    }
    assert host["ansible_host"] == "10.77.3.12"
    assert host["ansible_user"] == "nvidia"
    assert host["ansible_ssh_private_key_file"] == str(store.key)


def test_host_keys_stay_checked(store: Store, fleet: State) -> None:
    host = yaml.safe_load(store.inventory(fleet))["all"]["hosts"]["spark-01"]
    options = shlex.split(host["ansible_ssh_common_args"])
    assert "StrictHostKeyChecking=yes" in options
    assert f"UserKnownHostsFile={store.known_hosts}" in options
    assert "IdentitiesOnly=yes" in options


def test_blank_in_the_path_survives_ansible_and_ssh(tmp_path: Path, fleet: State) -> None:
    store = Store("t", tmp_path / "a b")
    host = yaml.safe_load(store.inventory(fleet))["all"]["hosts"]["spark-01"]
    assert f'UserKnownHostsFile="{store.known_hosts}"' in shlex.split(host["ansible_ssh_common_args"])


def test_control_path_is_short_enough(store: Store) -> None:
    assert len(str(Store("a" * 20).control_directory)) < 60


def test_state_is_read_back_as_it_was_written(store: Store, fleet: State) -> None:
    store.directory.mkdir()
    store.save(fleet)
    assert store.load() == fleet
    assert store.known_hosts.read_text().splitlines()[0] == "spark-01,10.77.3.11 ssh-ed25519 AAAA1"


def test_cabling_is_remembered(store: Store, fleet: State) -> None:
    store.directory.mkdir()
    cabling = plan.cable_ends(fleet.spec, ["1:p0=2:p1"])
    store.save(replace(fleet, cabling=plan.with_rate(cabling, "c1", "1gbit")))
    found = store.require()
    assert found.cables == plan.with_rate(cabling, "c1", "1gbit") and found.recabled


def test_limit_alone_is_no_other_cabling(store: Store, fleet: State) -> None:
    store.directory.mkdir()
    store.save(replace(fleet, cabling=plan.with_rate(fleet.cables, "c1", "1gbit")))
    found = store.require()
    assert [cable.rate for cable in found.cables] == ["1gbit"] and not found.recabled


def test_state_file_of_before_cables_could_be_moved_is_read(store: Store, fleet: State) -> None:
    store.directory.mkdir()
    content = fleet.as_json()
    del content["cabling"], content["spec"]["renderer"]
    store.file.write_text(json.dumps(content))
    found = store.require()
    assert found == fleet and found.cables == plan.cables(fleet.spec) and not found.recabled
    assert found.spec.renderer == "NetworkManager"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"spec": {"colour": 1}})])
def test_state_file_of_another_kind_is_no_state(store: Store, text: str) -> None:
    store.directory.mkdir()
    store.file.write_text(text)
    assert store.load() is None
    with pytest.raises(SimulatorError, match="not up"):
        store.require()


def test_keys_are_private_and_everything_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sockets = tmp_path / "sockets" / "t"
    monkeypatch.setattr(Store, "control_directory", sockets)
    store.prepare()
    assert stat.S_IMODE(store.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    store.remove()
    assert not store.directory.exists() and not sockets.parent.exists()


def test_control_directory_of_someone_else_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sockets").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(Store, "control_directory", tmp_path / "sockets" / "t")
    with pytest.raises(SimulatorError, match="someone else"):
        store.prepare()


def test_keys_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_key(tmp_path / name, name)
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()


def test_lock_excludes_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOCKS", tmp_path)
    with lock("x", "waiting"), open(tmp_path / "x.lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "x.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
