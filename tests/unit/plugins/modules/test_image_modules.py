# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_state and image_share against a docker and a systemd that the tests provide."""

from __future__ import annotations

import hashlib
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
    return {"Id": image_id, "RepoTags": list(tags), "Config": {"Labels": labels}}


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
        script = f"""
case "$1 $2" in
"image ls") cat {self.tmp_path}/ids ;;
"image inspect") cat {self.tmp_path}/inspect; exit {0 if found else 1} ;;
"image save") printf archive > "$4" ;;
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
    assert (answer["image"], answer["ours"], answer["tagged"]) == ("", [ID], False)


def test_a_given_image_is_looked_up_by_its_reference(node: Node) -> None:
    node.images([image(ID, None, "vllm:1")])
    assert node.state(reference="vllm:1", key="")["image"] == ID


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


def test_the_image_is_saved_and_its_directory_alone_is_served(node: Node, share: Any) -> None:
    answer = share(image="vllm:1", address="127.0.0.1", port=6390)
    assert answer["url"] == "http://127.0.0.1:6390/image.tar"
    assert answer["sha256"] == hashlib.sha256(b"archive").hexdigest()
    assert (node.root / "transfer" / "image.tar").read_bytes() == b"archive"
    assert "--property=DynamicUser=yes" in answer["log"]
    assert f"http.server --bind 127.0.0.1 --directory {node.root}/transfer 6390" in answer["log"]


def test_nothing_stays_when_it_is_not_served(node: Node, share: Any) -> None:
    share(image="vllm:1", address="127.0.0.1")
    program(node.bin, "systemctl", 'echo LoadState=loaded; echo "$*" >> ' + str(node.tmp_path / "systemd.log"))
    answer = share(state="absent")
    assert answer["changed"] is True
    assert answer["removed"] == ["spark-image-share.service", str(node.root / "transfer")]
    assert "stop spark-image-share.service" in answer["log"]
    assert not (node.root / "transfer").exists()


def test_nothing_to_remove_is_no_change(share: Any) -> None:
    assert share(state="absent")["changed"] is False


def test_check_mode_changes_nothing(node: Node, share: Any) -> None:
    answer = share(check=True, image="vllm:1", address="127.0.0.1")
    assert (answer["changed"], answer["log"]) == (True, "")
    assert not node.root.exists()


def test_a_port_that_is_taken_is_one_line(share: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = share(image="vllm:1", address="127.0.0.1", port=port)
    assert answer["msg"] == f"port {port} of 127.0.0.1 is taken; stop what uses it or set image_share_port"


def test_an_address_that_is_not_here_is_one_line(share: Any) -> None:
    assert "check the fabric address" in share(image="vllm:1", address="192.0.2.1")["msg"]


def test_an_image_that_cannot_be_saved_is_one_line(node: Node, share: Any) -> None:
    program(node.bin, "docker", "echo 'no such image' >&2; exit 1")
    assert share(image="vllm:1", address="127.0.0.1")["msg"] == "docker image save vllm:1 failed: no such image"
