# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the firewall: what they say, that nft understands them, and that it loads what was meant."""

from __future__ import annotations

import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _firewall
from ansible_collections.sparkfleet.vllm.plugins.module_utils._firewall import (
    Inputs,
    Opening,
    fabric_addresses,
    fabric_interfaces,
    is_loaded,
    option_problems,
    parse_allow,
    ruleset,
)
from hypothesis import given
from hypothesis import strategies as st

RAILS = ("enp1s0f0np0", "enP2p1s0f0np0")
PAIR = Inputs((22,), (8888,), RAILS, ("192.168.177.12", "192.168.178.12"))
ALONE = Inputs((22,), (8888,), ("enP7s7",), ())
NFT = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""


def why_no_nft() -> str:
    """Why rules cannot be loaded here, into a network namespace of their own; empty where they can."""
    if not NFT:
        return "nft is not installed"
    try:
        done = subprocess.run(["unshare", "--net", NFT, "list", "tables"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"unshare: {error}"
    return f"no network namespace of our own: {done.stderr.strip()}" if done.returncode else ""


WHY_NO_NFT = why_no_nft()
with_nft = pytest.mark.skipif(bool(WHY_NO_NFT), reason=WHY_NO_NFT or "there is one")


def rules(inputs: Inputs) -> list[str]:
    """The rules, without what is around them."""
    return [line.strip() for line in ruleset(inputs).partition("policy drop;")[2].splitlines() if line.strip(" \t}")]


def loaded(text: str, tmp_path: Path, *commands: str) -> str:
    """What nft lists after it has loaded a file and run commands, in a network namespace that nobody else is in."""
    file = tmp_path / "rules.nft"
    file.write_text(text)
    script = " && ".join([f"{NFT} -f {file}", *commands, f"{NFT} list ruleset"])
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what the rules say


def test_a_node_of_a_pair() -> None:
    found = rules(PAIR)
    assert 'tcp dport { 22 } accept comment "ssh"' in found
    assert 'tcp dport { 8888 } accept comment "API of a model"' in found
    assert (
        'iifname { "enP2p1s0f0np0", "enp1s0f0np0" } ip saddr { 192.168.177.12, 192.168.178.12 } accept '
        'comment "nodes of the cluster"'
    ) in found
    assert [rule for rule in found if "8888" in rule or "6379" in rule] == [
        'tcp dport { 8888 } accept comment "API of a model"'
    ]


def test_what_is_not_accepted_is_dropped_and_counted() -> None:
    text = ruleset(PAIR)
    assert text.count("policy drop;") == 1
    assert rules(PAIR)[-1].startswith('counter comment "sparkfleet ')
    assert all(" accept" in rule for rule in rules(PAIR)[:-1])
    # Only what comes in: neither what the node sends nor what it forwards for its containers.
    assert [line.split()[1] for line in text.splitlines() if line.strip().startswith("chain ")] == ["input"]


@pytest.mark.parametrize(
    "needed",
    ['iif "lo" accept', "ct state established,related accept", "udp dport 5353", "udp sport 67 udp dport 68", "igmp"],
)
def test_the_network_itself_goes_on(needed: str) -> None:
    assert [rule for rule in rules(ALONE) if needed in rule]


def test_no_rule_is_for_ipv4_alone_but_those_that_name_addresses() -> None:
    for rule in rules(PAIR):
        assert "ip saddr" not in rule or "nodes of the cluster" in rule
        assert not rule.startswith(("ip protocol", "ip version", "meta nfproto"))


def test_a_node_alone_trusts_nobody() -> None:
    assert not [rule for rule in rules(ALONE) if "nodes of the cluster" in rule]


def test_a_worker_opens_no_api() -> None:
    assert not [rule for rule in rules(Inputs((22,), (), RAILS, PAIR.peers)) if "API" in rule]


def test_several_ports_and_peers_are_one_rule_each_and_have_an_order() -> None:
    many = Inputs((2222, 22, 22), (8889, 8888), RAILS[::-1], ("10.0.0.10", "10.0.0.9", "fd00::2", "10.0.0.9"))
    found = rules(many)
    assert 'tcp dport { 22, 2222 } accept comment "ssh"' in found
    assert 'tcp dport { 8888, 8889 } accept comment "API of a model"' in found
    assert [rule.partition(" } ")[2] for rule in found if "nodes of the cluster" in rule] == [
        'ip saddr { 10.0.0.9, 10.0.0.10 } accept comment "nodes of the cluster"',
        'ip6 saddr { fd00::2 } accept comment "nodes of the cluster"',
    ]
    assert ruleset(many) == ruleset(Inputs((22, 2222), (8888, 8889), RAILS, ("fd00::2", "10.0.0.9", "10.0.0.10")))


def test_the_owners_ports() -> None:
    texts = [
        "60000-61000/udp",
        "3000/tcp",
        "9100/tcp from 10.0.0.0/24",
        "9100/tcp from fd00::/64",
        "22/udp from 10.0.0.5",
    ]
    found = rules(Inputs((22,), (), (), (), tuple(map(parse_allow, texts))))
    assert [rule for rule in found if "host_firewall_allow" in rule] == [
        'ip saddr 10.0.0.5/32 udp dport 22 accept comment "host_firewall_allow"',
        'tcp dport 3000 accept comment "host_firewall_allow"',
        'ip saddr 10.0.0.0/24 tcp dport 9100 accept comment "host_firewall_allow"',
        'ip6 saddr fd00::/64 tcp dport 9100 accept comment "host_firewall_allow"',
        'udp dport 60000-61000 accept comment "host_firewall_allow"',
    ]


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs((22,), (), ('eth0" accept; drop',), ("10.0.0.2",)),
        Inputs((22,), (), ("",), ("10.0.0.2",)),
        Inputs((22,), (), RAILS, ("10.0.0.300",)),
        Inputs((22,), (), RAILS, ("10.0.0.2 } accept",)),
    ],
)
def test_nothing_else_gets_into_the_rules(inputs: Inputs) -> None:
    with pytest.raises(ValueError):
        ruleset(inputs)


# --- the owner's list


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("3000/tcp", Opening(3000, 3000)),
        (" 1-65535/udp ", Opening(1, 65535, "udp")),
        ("9100/tcp   from 10.0.0.5", Opening(9100, 9100, "tcp", "10.0.0.5/32")),
        ("9100/tcp from fd00::/8", Opening(9100, 9100, "tcp", "fd00::/8")),
    ],
)
def test_a_port_of_the_owner(text: str, opening: Opening) -> None:
    assert parse_allow(text) == opening


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3000", "opens no port; write it like 3000/tcp"),
        ("", "opens no port"),
        ("http", "opens no port"),
        ("3000/sctp", "opens no port"),
        ("3000/tcp for me", "opens no port"),
        ("3000/tcp from", "opens no port"),
        ("0/tcp", "has no sensible ports; give 1 to 65535"),
        ("70000/tcp", "has no sensible ports"),
        ("4000-3000/tcp", "has no sensible ports"),
        ("3000/tcp from lan", "names no network; write it like 10.0.0.0/24"),
        ("3000/tcp from 10.0.0.1/24", "names no network"),
        ("٣000/tcp", "opens no port"),
    ],
)
def test_a_wrong_line_is_named(text: str, said: str) -> None:
    [problem] = option_problems({"host_firewall_allow": ["22/tcp", text]})
    assert problem.startswith(f"host_firewall_allow: {text!r} {said}")
    assert "; " in problem and "\n" not in problem


def test_a_wrong_port_of_the_api_is_named() -> None:
    assert option_problems({"host_firewall_api_ports": [8888, 0, 70000]}) == [
        "host_firewall_api_ports: 0 is no port; give 1 to 65535",
        "host_firewall_api_ports: 70000 is no port; give 1 to 65535",
    ]
    assert option_problems({}) == []


@given(st.text())
def test_whatever_is_written_it_is_a_port_or_a_line(text: str) -> None:
    try:
        opening = parse_allow(text)
    except ValueError as error:
        assert "; " in str(error)
    else:
        assert 1 <= opening.first <= opening.last <= 65535


# --- the fabric


def fabric(**changed: t.Any) -> dict[str, t.Any]:
    """What role fabric's preflight registers, as far as it is looked at."""
    node = {"address": "192.168.177.12", "interface": RAILS[0], "interfaces": list(RAILS)}
    interfaces = [
        {"name": "enP7s7", "addresses": ["10.0.0.12/24", "fe80::1/64"]},
        {"name": RAILS[0], "addresses": ["192.168.177.12/24", "fe80::2/64"]},
        {"name": RAILS[1], "addresses": ["192.168.178.12/24", "169.254.3.4/16"]},
        {"name": "enp1s0f1np1", "addresses": ["172.16.0.1/24"]},
    ]
    return {"node": node, "settings": [], "roce": {"interfaces": interfaces}, **changed}


def test_a_peer_has_the_addresses_of_its_rails() -> None:
    assert fabric_addresses(fabric()) == ["192.168.177.12", "192.168.178.12"]
    assert fabric_interfaces(fabric()) == sorted(RAILS)


def test_addresses_that_are_to_be_set_count_already() -> None:
    settings = [
        {"interface": RAILS[0], "address": "192.168.177.12/24"},
        {"interface": RAILS[1], "address": "192.168.179.12/24"},
        {"interface": "enp1s0f1np1", "address": "192.168.180.12/24"},
    ]
    assert fabric_addresses(fabric(settings=settings)) == ["192.168.177.12", "192.168.179.12", "192.168.180.12"]
    assert fabric_interfaces(fabric(settings=settings)) == sorted([*RAILS, "enp1s0f1np1"])


def test_the_nodes_of_a_ring_meet_on_management() -> None:
    node = {"address": "10.0.0.12", "interface": "enP7s7", "interfaces": ["enP7s7", *RAILS]}
    assert fabric_addresses(fabric(node=node)) == ["10.0.0.12", "192.168.177.12", "192.168.178.12"]
    assert "enP7s7" in fabric_interfaces(fabric(node=node))


def test_a_given_address_is_enough() -> None:
    node = {"address": "10.9.9.9", "interface": "bond0", "interfaces": ["bond0"]}
    assert fabric_addresses({"node": node}) == ["10.9.9.9"]


# --- what nft makes of it

MANY = Inputs(
    (22, 2222),
    (8888, 8889),
    RAILS,
    ("192.168.177.12", "192.168.177.13", "fd00::2", "fe80::1"),
    (parse_allow("3000/tcp"), parse_allow("60000-61000/udp from 10.0.0.0/8"), parse_allow("1/tcp from fd00::/64")),
)


@with_nft
@pytest.mark.parametrize("inputs", [PAIR, ALONE, MANY, Inputs((), (), (), ())], ids=["pair", "alone", "many", "empty"])
def test_nft_loads_the_rules_and_they_are_recognised(inputs: Inputs, tmp_path: Path) -> None:
    text = ruleset(inputs)
    listing = loaded(text, tmp_path, f"{NFT} -f {tmp_path}/rules.nft")
    assert is_loaded(listing, text)
    assert listing.count("table inet") == 1, "loaded twice is loaded once"
    assert not is_loaded(listing, ruleset(Inputs((23,), (), (), ())))


@with_nft
@pytest.mark.parametrize(
    "command",
    [
        f"{NFT} add rule inet sparkfleet input tcp dport 1 accept",
        f"{NFT} flush chain inet sparkfleet input",
        f"{NFT} delete table inet sparkfleet",
        f"{NFT} flush ruleset",
    ],
)
def test_what_somebody_changed_is_not_recognised(command: str, tmp_path: Path) -> None:
    text = ruleset(PAIR)
    assert not is_loaded(loaded(text, tmp_path, command), text)


@with_nft
def test_other_tables_are_left_alone(tmp_path: Path) -> None:
    theirs = "table inet theirs { chain c { tcp dport 1 accept; }; }\n"
    assert "table inet theirs" in loaded(theirs + ruleset(PAIR) + ruleset(ALONE), tmp_path)
    alone = loaded(theirs + ruleset(PAIR) + _firewall.NOTHING, tmp_path)
    assert "table inet theirs" in alone and "sparkfleet" not in alone


@with_nft
def test_nothing_can_be_removed_twice(tmp_path: Path) -> None:
    assert loaded(_firewall.NOTHING + _firewall.NOTHING, tmp_path) == ""


def test_a_unit_loads_the_file_before_the_network_is_up() -> None:
    lines = _firewall.UNIT_TEXT.splitlines()
    assert f"ExecStart=/usr/sbin/nft -f {_firewall.FILE}" in lines
    assert "Before=network-pre.target" in lines and "DefaultDependencies=no" in lines
    # The file of that unit begins with a flush.
    assert "After=nftables.service" in lines
