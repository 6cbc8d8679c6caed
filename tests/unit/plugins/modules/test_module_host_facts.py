# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time

import yaml
from ansible_collections.sparkfleet.vllm.plugins.modules import host_facts
from ansible_collections.sparkfleet.vllm.tests.unit.plugins.modules.run_module import run_module


def test_this_machine_is_read_as_documented(tmp_path: object) -> None:
    before = time.time()
    answer = run_module("host_facts", {"paths": [str(tmp_path)], "docker_socket": f"{tmp_path}/none"})
    assert answer["changed"] is False
    facts = answer["facts"]
    documented = yaml.safe_load(host_facts.RETURN)["facts"]["contains"]
    assert set(facts) == set(documented)
    assert before <= facts["clock"] <= time.time()
    assert facts["cpus"] > 0
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert [disk["path"] for disk in facts["disks"]] == [str(tmp_path)]
    assert facts["docker"]["error"] in ("missing", "stopped")
