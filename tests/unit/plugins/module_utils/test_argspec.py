# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.sparkfleet.vllm.plugins.module_utils._argspec import (
    Option,
    PortUse,
    mistyped,
    options,
    port_problems,
    port_uses,
)
from hypothesis import given
from hypothesis import strategies as st


def port_options(*names: str, role: str = "ray") -> dict[str, Option]:
    return {name: Option(name, role, {"type": "int"}) for name in names}


def test_options_of_all_entry_points_are_found_and_main_decides() -> None:
    specs = {
        "serve": {
            "argument_specs": {
                "another": {"options": {"serve_port": {"type": "str"}, "serve_other": {}}},
                "main": {"options": {"serve_port": {"type": "int"}}},
                "bare": None,
            }
        },
        "host": {},
    }
    found = options(specs)
    assert found["serve_port"].type == "int"
    assert found["serve_other"].type == "str"
    assert set(found) == {"serve_port", "serve_other"}


def test_secrets_are_known_by_name_and_by_no_log() -> None:
    assert Option("serve_api_key", "serve", {}).secret
    assert Option("ray_auth_token", "ray", {}).secret
    assert Option("serve_x", "serve", {"no_log": True}).secret
    assert not Option("serve_port", "serve", {}).secret


def test_a_near_name_is_named() -> None:
    known = {"serve_port", "serve_model", "host_min_disk_gb"}
    assert mistyped(["serve_prot", "host_min_disk"], known) == {
        "serve_prot": "serve_port",
        "host_min_disk": "host_min_disk_gb",
    }


def test_names_of_the_owner_and_of_ansible_are_left_alone() -> None:
    known = {"serve_port", "host_min_disk_gb"}
    assert mistyped(["serve_port", "host_rack", "my_serve_prot", "hostvars", "serve", "__serve_port"], known) == {}


def test_what_roles_hand_on_is_known_without_a_spec() -> None:
    assert mistyped(["fabric_node", "serve_url"], {"fabric_mode", "serve_urls"}) == {}
    assert mistyped(["model_paths", "model_path"], {"model_path"}) == {}
    assert mistyped(["model_patsh"], {"serve_port"}) == {"model_patsh": "model_paths"}


@given(st.lists(st.text(max_size=20)), st.sets(st.text(min_size=1, max_size=20)))
def test_mistyped_never_accuses_a_known_name(names: list[str], known: set[str]) -> None:
    found = mistyped([*names, *known], known)
    assert not set(found) & known


def test_ports_and_ranges_are_found() -> None:
    known = {
        **port_options("ray_port", "ray_min_worker_port", "ray_max_worker_port", "ray_off_port"),
        "serve_name_port": Option("serve_name_port", "serve", {"type": "str"}),
        "serve_workers": Option("serve_workers", "serve", {"type": "int"}),
    }
    values = {
        "ray_port": 6379,
        "ray_min_worker_port": 20000,
        "ray_max_worker_port": 20099,
        "ray_off_port": 0,
        "serve_name_port": "8888",
        "serve_workers": 4,
    }
    assert port_uses(values, known) == [
        PortUse(6379, 6379, "ray_port"),
        PortUse(20000, 20099, "ray_min_worker_port..ray_max_worker_port"),
    ]


def test_what_each_model_takes_the_next_port_of_is_a_range_for_all_of_them() -> None:
    known = port_options("serve_port", "serve_group_port", "serve_rendezvous_port", "serve_dp_port", role="serve")
    values = {"serve_port": 8888, "serve_group_port": 6400, "serve_rendezvous_port": 29510, "serve_dp_port": 0}
    assert port_uses(values, known) == [
        PortUse(6400, 6409, "serve_group_port"),
        PortUse(8888, 8888, "serve_port"),
        PortUse(29510, 29519, "serve_rendezvous_port"),
    ]
    [line] = port_problems(port_uses({**values, "serve_port": 6409}, known))
    assert line.startswith("serve_group_port (6400-6409) and serve_port (6409) use the same port; ")


def test_a_role_whose_result_is_given_opens_no_port() -> None:
    known = port_options("ray_port")
    assert port_uses({"ray_port": 6379, "ray_address": ""}, known)
    assert port_uses({"ray_port": 6379, "ray_address": "10.0.0.1:6379"}, known) == []
    assert port_uses({"ray_port": 6379, "serve_url": "http://10.0.0.1:8888", "model_paths": {"tiny": "/m"}}, known)


def test_one_port_for_two_purposes_is_found_in_a_range_too() -> None:
    uses = sorted([PortUse(20000, 20099, "a..b"), PortUse(20050, 20050, "serve_port"), PortUse(6379, 6379, "ray_port")])
    assert port_problems(uses) == [
        "a..b (20000-20099) and serve_port (20050) use the same port; give each its own",
    ]


def test_impossible_ports_are_found() -> None:
    lines = port_problems([PortUse(-1, -1, "a_port"), PortUse(70000, 70000, "b_port"), PortUse(9, 5, "c_port")])
    assert [line.split()[0] for line in lines] == ["a_port", "b_port", "c_port"]


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 300)), max_size=8))
def test_overlaps_are_found_exactly(ranges: list[tuple[int, int]]) -> None:
    uses = sorted(PortUse(first, min(first + extra, 65535), f"p{i}") for i, (first, extra) in enumerate(ranges))
    overlapping = sum(
        bool(set(range(a.first, a.last + 1)) & set(range(b.first, b.last + 1)))
        for i, a in enumerate(uses)
        for b in uses[i + 1 :]
    )
    assert len(port_problems(uses)) == overlapping
