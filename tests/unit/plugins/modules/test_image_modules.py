# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_state, image_share and image_fetch against a docker and a systemd that the tests provide."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sparkfleet.vllm.tests.unit.module_process import program, run_module

KEY, ID, OTHER, BASE = "k" * 64, "sha256:" + "1" * 64, "sha256:" + "2" * 64, "sha256:" + "3" * 64


def image(image_id: str, key: str | None, *tags: str) -> dict[str, Any]:
    """Return an image as the docker command shows it."""
    labels = {"io.sparkfleet.build": key} if key else None
    return {"Id": image_id, "RepoTags": list(tags), "Config": {"Labels": labels}, "Metadata": {"LastTagTime": image_id}}


class Node:
    """A node with a docker command that knows some images."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.bin = tmp_path / "bin"
        self.root = tmp_path / "image"
        self.images([])

    def images(self, images: list[dict[str, Any]], found: bool = True) -> None:
        """Let docker know these images."""
        listed = [one["Id"] for one in images if one["Config"]["Labels"]]
        (self.tmp_path / "ids").write_text("".join(f"{one}\n" for one in listed))
        (self.tmp_path / "inspect").write_text(json.dumps(images))
        (self.tmp_path / "containers").touch()
        script = f"""
case "$1 $2" in
"image ls") cat {self.tmp_path}/ids ;;
"image inspect") cat {self.tmp_path}/inspect; exit {0 if found else 1} ;;
"container ls") cat {self.tmp_path}/containers ;;
"container inspect") cat {self.tmp_path}/containers ;;
"info --format") echo {self.tmp_path} ;;
"manifest inspect") echo "no such manifest" >&2; exit 1 ;;
esac"""
        program(self.bin, "docker", script)

    def state(self, **arguments: Any) -> dict[str, Any]:
        """Run image_state."""
        path = f"{self.bin}:/usr/bin:/bin"
        given = {"root": str(self.root), "tag": "vllm:1", "key": KEY, **arguments}
        return run_module("image_state", given, self.tmp_path, path=path)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Return a node without images."""
    return Node(tmp_path)


def test_a_fresh_node_has_no_image_and_says_how_much_room_it_has(node: Node) -> None:
    answer = node.state()
    assert (answer["image"], answer["images"], answer["changed"]) == ("", [], False)
    assert answer["docker_root"] == str(node.tmp_path)
    assert answer["free_bytes"] > 0


def test_the_image_with_the_key_is_found_and_the_tagged_one_wins(node: Node) -> None:
    node.images([image(ID, KEY), image(OTHER, KEY, "vllm:1"), image(BASE, None, "base:1")])
    answer = node.state(base_id=BASE)
    assert (answer["image"], answer["images"]) == (OTHER, [OTHER, ID])
    assert answer["tagged"] is True
    assert answer["base_present"] is True


def test_an_image_with_another_key_is_ours_but_not_wanted(node: Node) -> None:
    node.images([image(ID, "x" * 64, "vllm:1")])
    answer = node.state()
    assert (answer["image"], answer["removable"], answer["tagged"]) == ("", [ID], False)


def test_a_given_image_is_looked_up_by_its_reference(node: Node) -> None:
    node.images([image(ID, None, "vllm:1")])
    answer = node.state(reference="vllm:1", key="")
    assert (answer["image"], answer["named"]) == (ID, True)
    assert list(answer["contents"]) == [ID]


def test_a_given_image_that_was_delivered_is_found_by_its_other_name(node: Node) -> None:
    node.images([image(ID, None)])
    text = (node.bin / "docker").read_text()
    (node.bin / "docker").write_text(
        text.replace('"image inspect")', '"image inspect") [ "$3" = sha256:9 ] && echo [] && exit 1;')
    )
    answer = node.state(reference="sha256:9", key="")
    assert (answer["image"], answer["named"]) == (ID, False)


def test_old_images_are_surplus_unless_a_container_uses_them(node: Node) -> None:
    node.images([image(ID, KEY, "vllm:1"), image(OTHER, "x"), image(BASE, "y")])
    assert node.state(keep=0)["surplus"] == [BASE, OTHER]
    (node.tmp_path / "containers").write_text(f"{OTHER}\n")
    assert node.state(keep=0)["surplus"] == [BASE]
    assert node.state(keep=2)["surplus"] == []


def test_the_registrys_packages_are_missing_where_its_programs_are(node: Node) -> None:
    for name in ("docker-registry", "zstd"):
        program(node.bin, name, "")
    assert node.state()["packages"] == ["tar-split"]


@pytest.mark.parametrize(("reference", "reason"), [(ID, "an ID cannot be pulled"), ("vllm:1", "no such manifest")])
def test_a_given_image_that_is_nowhere_is_said_so(node: Node, reference: str, reason: str) -> None:
    assert node.state(reference=reference, key="")["pull_error"] == reason


def test_an_engine_that_does_not_answer_is_no_failure(node: Node) -> None:
    program(node.bin, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    answer = node.state()
    assert answer["engine_error"] == "Cannot connect to the Docker daemon"
    assert not answer.get("failed")


def test_what_an_interrupted_run_left_is_found(node: Node) -> None:
    (node.root / "transfer").mkdir(parents=True)
    assert node.state()["leftovers"] == [str(node.root / "transfer")]


@pytest.fixture
def share(node: Node) -> Any:
    """Return a function that runs image_share with a systemd that writes down what it is asked."""
    log = node.tmp_path / "systemd.log"
    program(node.bin, "systemctl", f'[ "$1" = show ] && echo LoadState=not-found || echo "systemctl $*" >> {log}')
    program(node.bin, "systemd-run", f'echo "systemd-run $*" >> {log}')

    def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {"root": str(node.root), **arguments}
        path = f"{node.bin}:{os.environ['PATH']}"
        answer = run_module("image_share", given, node.tmp_path, check=check, path=path)
        return {**answer, "log": log.read_text() if log.exists() else ""}

    return run


OFFERED = {"image": "vllm:1", "content": "sha256:c", "address": "127.0.0.1"}


def test_nothing_but_the_store_stays_when_it_is_not_served(node: Node, share: Any) -> None:
    for name in ("transfer", "registry"):
        (node.root / name).mkdir(parents=True)
    program(node.bin, "systemctl", 'echo LoadState=loaded; echo "$*" >> ' + str(node.tmp_path / "systemd.log"))
    answer = share(state="absent")
    assert answer["changed"] is True
    assert answer["removed"] == ["spark-image-share.service", str(node.root / "transfer")]
    assert "stop spark-image-share.service" in answer["log"]
    assert [path.name for path in node.root.iterdir()] == ["registry"]


def test_the_stores_go_with_a_purge(node: Node, share: Any) -> None:
    (node.tmp_path / "real").mkdir()
    node.root.mkdir()
    (node.root / "registry").symlink_to(node.tmp_path / "real")
    (node.root / "stream").mkdir()
    answer = share(state="absent", purge=True, check=True)
    assert answer["removed"] == [str(node.root / "registry"), str(node.root / "stream")]
    assert (node.root / "stream").exists()
    assert share(state="absent", purge=True)["removed"] == answer["removed"]
    assert not list(node.root.iterdir()) and not (node.tmp_path / "real").exists()


def test_nothing_to_remove_is_no_change(share: Any) -> None:
    assert share(state="absent")["changed"] is False


def test_check_mode_changes_nothing(node: Node, share: Any) -> None:
    answer = share(check=True, **OFFERED)
    assert (answer["changed"], answer["log"]) == (True, "")
    assert not node.root.exists()


def test_a_port_that_is_taken_is_one_line(share: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = share(**OFFERED, port=port)
    assert answer["msg"] == f"port {port} of 127.0.0.1 is taken; stop what uses it or set image_share_port"


def test_an_address_that_is_not_here_is_one_line(share: Any) -> None:
    assert "check the fabric address" in share(**{**OFFERED, "address": "192.0.2.1"})["msg"]


def test_an_engine_that_is_away_is_one_line(node: Node, share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{node.tmp_path}/none")
    assert share(**OFFERED)["msg"].startswith(f"Docker does not answer on {node.tmp_path}/none")
    offer = {"delivery": "registry", "address": "192.0.2.1", "port": 1, "content": "", "diff_ids": [], "layers": []}
    offer |= {"steps": ["sha256:1"], "config": {"digest": "sha256:1", "size": 0, "type": ""}}
    answer = run_module("image_fetch", {"offer": offer, "names": ["vllm:1"], "root": str(node.root)}, node.tmp_path)
    assert "what was here stays; start Docker and run site.yml again" in answer["msg"]
    assert answer["corrupted"] is False
    given = {"offer": offer, "names": ["vllm:1"]}
    assert run_module("image_fetch", given, node.tmp_path, check=True)["changed"] is True
