# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New secrets come by a run that says as much as it can, and none of them shows anywhere but in its own file."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.scenario import ansible_playbook, api_key, ask, on_node, site

NODES = ("spark-01", "spark-02")
ETC = "/etc/sparkfleet/atlas"
HOLDERS = {
    "spark-01": {f"{ETC}/tiny.api-key", f"{ETC}/ray-token", f"{ETC}/group-token"},
    "spark-02": {f"{ETC}/ray-token", f"{ETC}/group-token"},
}
KEY = "a-new-key-of-the-test-0123456789"
SHOWN = {
    "units": "systemctl cat 'spark-*'; systemctl show 'spark-*'",
    "process lists": "ps -eo args",
    "inspect": "docker ps --all --quiet | xargs docker inspect; docker image ls --quiet | xargs docker image inspect",
    "journal": "journalctl --no-pager --output json",
}
# Grep reads the secrets from its input: an argument would be in the process list that is searched.
PLACES = "/etc /home /opt /root /run /srv /tmp /usr/local /var/lib/sparkfleet /var/log /var/tmp"
SEARCH = f"grep -rlaF -f - --devices=skip {PLACES}; true"


class Run(NamedTuple):
    """The run that brought new secrets."""

    said: str
    log: Path
    facts: Path
    secrets: dict[str, str]
    old: dict[str, str]


def tokens() -> dict[str, str]:
    return {kind: on_node("spark-01", f"cat {ETC}/{kind}-token").strip() for kind in ("ray", "group")}


@pytest.fixture(name="run", scope="module")
def fixture_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    directory = tmp_path_factory.mktemp("secrets")
    old = {"key": api_key(), **tokens()}
    environment = {
        "ANSIBLE_LOG_PATH": str(directory / "log"),
        "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(directory / "facts"),
    }
    done = ansible_playbook(
        "site.yml", "--diff", "-vvv", environment=environment, serve_api_key=KEY, ray_rotate_token=True
    )
    assert done.returncode == 0, done.stdout
    yield Run(done.stdout + done.stderr, directory / "log", directory / "facts", {"key": KEY, **tokens()}, old)
    # The rest of the scenario asks with the inventory's key.
    site()


def shows(text: str, run: Run) -> list[str]:
    """Return which secrets, new or old, a text shows."""
    return [kind for known in (run.secrets, run.old) for kind, secret in known.items() if secret in text]


def test_the_secrets_are_new(run: Run) -> None:
    assert run.secrets["ray"] != run.old["ray"]
    assert all(len(secret) >= 32 for secret in run.secrets.values())
    assert ask("spark-01", KEY) > 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("spark-01", run.old["key"])
    assert refused.value.code == 401


def test_the_run_shows_none(run: Run) -> None:
    log = run.log.read_text(encoding="utf-8")
    assert "no_log" in log and f"{ETC}/tiny.api-key" in log, "the run said nothing of the key: the test saw nothing"
    assert shows(run.said + log, run) == []


def test_the_fact_cache_holds_none(run: Run) -> None:
    facts = {file.name: file.read_text(encoding="utf-8") for file in run.facts.iterdir()}
    assert {name.rpartition("_")[2] for name in facts} >= set(NODES), "the cache is empty: the test saw nothing"
    assert {name: found for name, text in facts.items() if (found := shows(text, run))} == {}


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("place", SHOWN)
def test_a_node_shows_none(run: Run, node: str, place: str) -> None:
    text = on_node(node, SHOWN[place])
    assert len(text) > 100, "the test saw nothing"
    assert shows(text, run) == []


@pytest.mark.parametrize("node", NODES)
def test_a_nodes_files_hold_none_but_their_own(run: Run, node: str) -> None:
    known = [*run.secrets.values(), *run.old.values()]
    found = set(on_node(node, SEARCH, stdin="\n".join(known) + "\n").split("\n")) - {""}
    assert found == HOLDERS[node]
