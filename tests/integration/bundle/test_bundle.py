# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An installation from an offline bundle, with the network cut off on the nodes and on the controller.

The bundle is made before the cut, from the simulation's wheels; its base image comes from a node, on the simulation's,
which has the packages already. The controller is a process in the first node's network: it has what that node has, the
management network and the fabric, and no way out. Routes stay as they are; policy routing refuses whatever would take
the default route.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from tests.integration.bad_input.fleet import Node
from tests.integration.bad_input.playbook import FAILURE, RECAP, REPO
from tests.integration.fleets import skipped_without, succeed

pytestmark = skipped_without()

FLEET = "bdltest"
NODES = ("spark-01", "spark-02")
ASSETS = REPO / ".cache"
BIN = Path(sys.executable).parent
BASE = "sparkfleet/base:bookworm"
BUILDX = "/usr/libexec/docker/cli-plugins/docker-buildx"
CUT = "ip rule add pref 100 lookup main suppress_prefixlength 0; ip rule add pref 101 unreachable"
CONNECT = "exec 3<>/dev/tcp/{}/{}"


@dataclass
class Site:
    """The nodes, and the directory that everything is made in."""

    nodes: dict[str, Node]
    directory: Path
    bundle: Path

    @property
    def inventory(self) -> str:
        return str(self.directory / "sparks.yml")

    @property
    def environment(self) -> dict[str, str]:
        """What an owner's shell has: no configuration of the checkout, and no collection but the installed ones."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHONPATH"))}
        ours |= {"ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"), "ANSIBLE_NOCOLOR": "1"}
        return {**ours, "PATH": f"{BIN}:{os.environ['PATH']}", "PWD": str(self.bundle)}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program on the controller, in the bundle's directory."""
        pid = self.nodes["spark-01"].container.attrs["State"]["Pid"]
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
        return subprocess.run(
            inside,
            cwd=self.bundle,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the site playbook of the installed collection as far as the image."""
        line = ["ansible-playbook", "sparkfleet.vllm.site", "-i", self.inventory, "-e", "@vars.yml"]
        return self.run(*line, "--tags", "host,fabric,image", *more)

    def image(self, node: Node) -> dict[str, Any]:
        """What a node says of the image."""
        [found] = json.loads(node.run("docker image inspect sparkfleet/vllm:cpu-0.32.0"))
        return dict(found)

    def reaches_out(self) -> list[bool]:
        """Whether each node, and the controller, reach an address for which they need a way out."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but says which address this machine goes out with
            outside = probe.getsockname()[0]
        with socket.create_server((outside, 0)) as server:
            connect = CONNECT.format(outside, server.getsockname()[1])
            nodes = [node.holds(connect) for node in self.nodes.values()]
            return [*nodes, self.run("bash", "-c", connect).returncode == 0]


def reasons(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The messages of the tasks that failed."""
    assert done.returncode != 0, done.stdout
    return [str(yaml.safe_load(block).get("msg", "")).strip() for block in FAILURE.findall(done.stdout)]


@contextmanager
def with_base(node: Node) -> Iterator[None]:
    """Give a node the simulation's base image, in place of a registry."""
    with (ASSETS / "base-bookworm.tar").open("rb") as archive:
        load = ["docker", "exec", "--interactive", str(node.container.name), "docker", "load", "--quiet"]
        subprocess.run(load, stdin=archive, stdout=subprocess.DEVNULL, check=True)
    yield
    node.run(f"docker image rm {BASE}")


def bundle(site: Site, directory: Path, base: str = BASE) -> subprocess.CompletedProcess[str]:
    """Run the playbook that makes a bundle, with the base image from the second node."""
    line = [str(BIN / "ansible-playbook"), "playbooks/bundle.yml", "-i", site.inventory, "-e", "bundle_variant=cpu"]
    line += ["-e", f"bundle_file={directory / 'bundle.tar'}", "-e", f"bundle_wheelhouse={ASSETS / 'wheelhouse'}"]
    line += ["-e", f"image_base={base}", "-e", "bundle_host=spark-02"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(line, cwd=REPO, env=environment, capture_output=True, text=True, check=False)


def make(site: Site) -> None:
    """Make a bundle twice, and unpack it."""
    site.bundle.mkdir()
    with with_base(site.nodes["spark-02"]):
        for again in (False, True):
            done = bundle(site, site.bundle)
            assert done.returncode == 0, done.stdout
            changed = dict(RECAP.findall(done.stdout))
            assert changed["localhost"] == ("0" if again else "1"), done.stdout
            assert (changed["spark-02"] == "0") == again, done.stdout
    assert [path.name for path in site.bundle.iterdir()] == ["bundle.tar"]
    subprocess.run(["tar", "--extract", "--strip-components=1", "--file", "bundle.tar"], cwd=site.bundle, check=True)
    (site.bundle / "bundle.tar").unlink()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The bundle, and a fleet that has nothing else."""
    directory = tmp_path_factory.mktemp("bundle")
    client = docker.from_env()
    try:
        succeed("up", "--name", FLEET, "--nodes", "2", "--topology", "pair")
        succeed("inventory", "--name", FLEET, "--output", str(directory / "nodes.yml"))
        reached = yaml.safe_load((directory / "nodes.yml").read_text())
        cluster = {
            "hosts": dict.fromkeys(NODES),
            "vars": {
                "fabric_gate": "ping",
                "host_min_disk_gb": 8,
                "host_min_memory_gb": 4,
                "serve_model": str(ASSETS / "tiny-model"),
                "serve_name": "tiny",
                "serve_kv_cache_memory_bytes": "64M",
                "serve_api_key": "0123456789abcdef",
            },
        }
        (directory / "sparks.yml").write_text(yaml.safe_dump({"sparks": {"children": {"atlas": cluster}}, **reached}))
        nodes = {node: Node(node, client.containers.get(f"sparksim-{FLEET}-{node}")) for node in NODES}
        made = Site(nodes, directory, directory / "unpacked")
        make(made)
        yield made
    finally:
        client.close()
        succeed("down", "--name", FLEET)


def left_over(node: Node) -> str:
    """What the making of a base image may leave on a node."""
    return node.run("docker image ls --quiet; docker container ls --all --quiet; find /tmp -name 'sparkfleet-*'")


def test_nothing_stays_where_the_base_image_was_made(site: Site) -> None:
    assert not any(left_over(node) for node in site.nodes.values())


def test_the_cut_leaves_no_way_out(site: Site) -> None:
    assert site.reaches_out() == [True, True, True]
    for node in site.nodes.values():
        node.run(CUT)
    assert site.reaches_out() == [False, False, False]


def test_no_base_image_is_made_without_buildx(site: Site, tmp_path: Path) -> None:
    node = site.nodes["spark-02"]
    with node.without(BUILDX):
        done = bundle(site, tmp_path)
    assert [line.partition(";")[0] for line in reasons(done)] == ["bundle: docker buildx is missing on spark-02"]
    assert {count for _host, count in RECAP.findall(done.stdout)} == {"0"}, done.stdout
    assert not [*tmp_path.iterdir(), *left_over(node)]


def test_a_base_image_that_cannot_be_had_is_named(site: Site, tmp_path: Path) -> None:
    node = site.nodes["spark-02"]
    done = bundle(site, tmp_path, "registry.invalid/none:1")
    line = reasons(done)[-1]
    assert line.startswith("bundle: no base image from spark-02 (failed to solve: registry.invalid/none:1: "), line
    assert line.endswith(
        "; correct that, image_base, or the proxies (image_proxy, and those of its Docker), or give bundle_base_archive"
    )
    assert not [*tmp_path.iterdir(), *left_over(node)]


def test_the_bundle_is_what_its_sums_say(site: Site) -> None:
    done = site.run("sha256sum", "--check", "--quiet", "SHA256SUMS")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_collections_are_installed(site: Site) -> None:
    packed = sorted(map(str, (site.bundle / "collections").iterdir()))
    done = site.run("ansible-galaxy", "collection", "install", "--offline", "--force", *packed)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("sparkfleet/vllm", "community/docker", "ansible/posix"):
        assert (site.directory / "collections" / "ansible_collections" / name / "MANIFEST.json").is_file()


def test_a_damaged_wheel_is_found_before_anything_is_changed(site: Site) -> None:
    wheel = min((site.bundle / "wheels").iterdir(), key=lambda path: path.stat().st_size)
    whole = wheel.read_bytes()
    wheel.write_bytes(whole + b"x")
    try:
        sums = site.run("sha256sum", "--check", "--quiet", "SHA256SUMS")
        assert (sums.returncode, sums.stdout) == (1, f"wheels/{wheel.name}: FAILED\n")
        done = site.install()
    finally:
        wheel.write_bytes(whole)
    assert done.returncode != 0, done.stdout
    assert f"has {wheel.name} with a hash other than the lock's; replace it" in done.stdout
    assert {count for _host, count in RECAP.findall(done.stdout)} == {"0"}, done.stdout


def test_every_node_gets_the_image(site: Site) -> None:
    assert site.reaches_out() == [False, False, False]
    done = site.install()
    assert done.returncode == 0, done.stdout + done.stderr
    head, worker = (site.image(node) for node in site.nodes.values())
    assert head["RootFS"] == worker["RootFS"]
    again = site.install()
    assert again.returncode == 0, again.stdout
    assert {count for _host, count in RECAP.findall(again.stdout)} == {"0"}
    assert site.reaches_out() == [False, False, False]
