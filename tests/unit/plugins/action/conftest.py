# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our action plugins as Ansible runs them: a real inventory and real variables, without a playbook around."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultSecretsContext
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils import _variables

ROLES = {
    "host": (
        {"host_max_clock_skew_s": {"type": "float"}},
        {"host_max_clock_skew_s": 2},
    ),
    "fabric": (
        {
            "fabric_topology": {"choices": ["auto", "pair"]},
            "fabric_debug": {"choices": ["", "INFO"]},
            "fabric_node": {"type": "dict", "options": {"address": {"required": True}}},
        },
        {"fabric_topology": "auto", "fabric_debug": "", "fabric_node": {}},
    ),
    "image": ({"image_variant": {"choices": ["cuda", "cpu"]}}, {"image_variant": "cuda"}),
    "model": ({"model_source": {}, "model_path": {}}, {"model_source": "", "model_path": ""}),
    "ray": (
        {
            "ray_port": {"type": "int"},
            "ray_auth_token": {"no_log": True},
            "ray_extra": {"type": "dict", "no_log": True},
            "ray_num_gpus": {"type": "int"},
            "image_ref": {"required": True},
            "ray_only_later": {},
        },
        {"ray_port": 6379, "ray_auth_token": "", "ray_num_gpus": 1, "ray_only_later": "{{ not_defined_yet }}"},
    ),
    "serve": (
        {
            "serve_port": {"type": "int"},
            "serve_executor": {"choices": ["ray"]},
            "serve_tensor_parallel_size": {"type": "int"},
            "serve_model": {},
            "serve_api_key": {"no_log": True},
            "serve_must": {"required": True},
        },
        {
            "serve_port": 8888,
            "serve_executor": "ray",
            "serve_tensor_parallel_size": "{{ _serve_nodes | length }}",
            "serve_model": "",
            "serve_api_key": "",
        },
    ),
}


@pytest.fixture(name="roles", autouse=True)
def fixture_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Roles with few variables, so that no change of a real role breaks these tests."""
    directory = tmp_path / "roles"
    for role, (spec, defaults) in ROLES.items():
        for path, content in {
            "meta/argument_specs.yml": {"argument_specs": {"main": {"options": spec}}},
            "defaults/main.yml": defaults,
        }.items():
            (directory / role / path).parent.mkdir(parents=True)
            (directory / role / path).write_text(yaml.safe_dump(content))
    (directory / "serve" / "vars").mkdir()
    (directory / "serve" / "vars" / "main.yml").write_text(
        "_serve_nodes: \"{{ ansible_facts['spark_cluster'].nodes }}\"\n"
    )
    monkeypatch.setattr(_variables, "ROLE_DIRECTORY", directory)
    # As ansible-playbook sets it up where no vault password is given.
    monkeypatch.setattr(VaultSecretsContext, "_current", VaultSecretsContext([]))
    return directory


@dataclass
class Controller:
    """What an ansible-playbook process knows: the inventory and its variables."""

    inventory: InventoryManager
    loader: DataLoader
    facts: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    """What tasks registered, by host."""

    def run(
        self,
        action: type[ActionBase],
        host: str,
        play: str = "sparks",
        arguments: dict[str, t.Any] | None = None,
        gone: t.Collection[str] = (),
        execute: t.Callable[..., dict[str, t.Any]] | None = None,
    ) -> dict[str, t.Any]:
        """Run an action plugin on `host` in a play on the pattern `play`; `gone` hosts failed earlier."""
        manager = VariableManager(self.loader, self.inventory)
        for name, facts in self.facts.items():
            manager.set_nonpersistent_facts(name, facts)
        hostvars = HostVars(self.inventory, manager, self.loader)
        names = [found.name for found in self.inventory.get_hosts(play)]
        task_vars = {
            **manager.get_vars(play=Play(), host=self.inventory.get_host(host)),
            "hostvars": hostvars,
            "ansible_play_hosts_all": names,
            "ansible_play_hosts": [name for name in names if name not in gone],
        }
        task = Task()
        task.args = dict(arguments or {})
        connection = SimpleNamespace(
            _shell=SimpleNamespace(tmpdir=None), get_option=lambda name: "nvidia", transport="ssh"
        )
        plugin = action(
            task=task,
            connection=connection,
            play_context=SimpleNamespace(check_mode=False, diff=False, remote_user="nvidia"),
            loader=self.loader,
            templar=Templar(self.loader, task_vars),
            shared_loader_obj=None,
        )
        if execute is not None:
            plugin._execute_module = execute
        return plugin.run(None, task_vars)


@pytest.fixture(name="controller")
def fixture_controller(tmp_path: Path) -> t.Callable[..., Controller]:
    def make(inventory: dict[str, t.Any] | str, limit: str = "") -> Controller:
        file = tmp_path / "inventory.yml"
        file.write_text(inventory if isinstance(inventory, str) else yaml.safe_dump(inventory))
        loader = DataLoader()
        loader.set_basedir(str(tmp_path))
        manager = InventoryManager(loader, [str(file)])
        if limit:
            manager.subset(limit)
        return Controller(manager, loader)

    return make
