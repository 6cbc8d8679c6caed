# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated pair whose head has a small image, and the playbook that brings it to the other node."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.integration.bad_input.fleet import Node
from tests.integration.bad_input.playbook import FAILURE, RECAP, REPO
from tests.integration.fleets import succeed, until

FLEET = "dlvtest"
PLAYBOOK = Path(__file__).with_name("deliver.yml")
INTERFACE = "enp1s0f0np0"
ADDRESSES = {"spark-01": "192.168.177.11", "spark-02": "192.168.177.12"}
PORT = 6390
UNIT = "spark-image-share.service"
IMAGE = "small:1"
LONGEST_RUN_S = 300

LAYER_BYTES = 20_000_000
"""Of each random layer; four of them make a step."""
LAYERS = 8
TOP_BYTES = 1_000_000
SIZE = LAYERS * LAYER_BYTES + TOP_BYTES
"""Bytes of the image; random bytes cannot be compressed."""
PROGRAM = "/bin/sleep /lib/x86_64-linux-gnu/libc.so.6 /lib64/ld-linux-x86-64.so.2"
"""What an image needs to run."""


@dataclass(frozen=True)
class Run:
    """What a run of the playbook left behind."""

    returncode: int
    output: str

    @property
    def reasons(self) -> list[str]:
        """The messages of the tasks that failed."""
        return [str(yaml.safe_load(block).get("msg", "")).strip() for block in FAILURE.findall(self.output)]

    @property
    def changed(self) -> dict[str, int]:
        """Number of changes by host."""
        return {host: int(count) for host, count in RECAP.findall(self.output)}

    def assert_fine(self) -> None:
        """Make sure that it went through."""
        assert self.returncode == 0, self.output

    def assert_refused(self, pattern: str) -> None:
        """Make sure that it failed for one reason, in one line."""
        assert self.returncode != 0, self.output
        assert "Traceback" not in self.output
        assert len(set(self.reasons)) == 1 and "\n" not in self.reasons[0], self.output
        assert re.search(pattern, self.reasons[0]), f"{self.reasons[0]!r} is not {pattern!r}"


@dataclass
class Lab:
    """Both nodes, and how Ansible reaches them."""

    nodes: dict[str, Node]
    reached: dict[str, Any]
    directory: Path
    count: int = 0
    runs: list[subprocess.Popen[str]] = field(default_factory=list)
    """Those that were started."""

    @property
    def head(self) -> Node:
        return self.nodes["spark-01"]

    @property
    def worker(self) -> Node:
        return self.nodes["spark-02"]

    # --- images

    def build(self, fresh: bool = False, build: str = "") -> str:
        """Build the image on the head, with a new top layer or all layers new; return its ID."""
        self.count += 1
        if fresh:
            self.head.run(
                f"rm -rf /root/context; mkdir -p /root/context/base; cd /root/context; cp -L --parents {PROGRAM} base; "
                f"for i in $(seq {LAYERS}); do head -c {LAYER_BYTES} /dev/urandom > layer$i; done"
            )
        lines = ["FROM scratch", "COPY base /"]
        self.head.run(f"head -c {TOP_BYTES} /dev/urandom > /root/context/top")
        lines += [f"COPY layer{number} /" for number in range(1, LAYERS + 1)]
        lines += [f"LABEL io.sparkfleet.build={build or self.count}", "COPY top /", 'CMD ["/bin/sleep", "infinity"]']
        self.head.run("cat > /root/context/Dockerfile <<'END'\n" + "\n".join(lines) + "\nEND")
        return self.head.run(f"docker build --quiet --tag {IMAGE} /root/context").splitlines()[-1]

    def build_old(self, node: Node) -> None:
        """Give a node an image of its own under the name, to serve with."""
        node.run(
            f"rm -rf /root/old; mkdir -p /root/old/base; cd /root/old; cp -L --parents {PROGRAM} base; "
            'printf \'FROM scratch\\nCOPY base /\\nCMD ["/bin/sleep", "infinity"]\\n\' > Dockerfile; '
            f"docker build --quiet --tag {IMAGE} ."
        )

    def content(self, node: Node, name: str = IMAGE) -> str:
        """The layers of an image on a node, which no store may change."""
        return node.run(f"docker image inspect --format '{{{{json .RootFS.Layers}}}}' {name}")

    def clear(self, node: Node) -> None:
        """Remove all containers and images of a node, and what the role keeps there."""
        node.run("docker ps -aq | xargs -r docker rm -f; docker images -aq | sort -u | xargs -r docker image rm -f")
        node.run(
            f"systemctl stop {UNIT} 2>/dev/null || true; "
            "rm -rf /var/lib/sparkfleet/image /var/lib/private/sparkfleet /run/sparkfleet"
        )

    @contextmanager
    def containerd(self, node: Node) -> Iterator[None]:
        """Let a node's Docker use the containerd store, which has other images."""
        config = "/etc/docker/daemon.json"
        features = json.dumps({"features": {"containerd-snapshotter": True}})
        start = "systemctl reset-failed docker; systemctl restart docker"
        with node.broken(f"echo '{features}' > {config}; {start}", f"rm {config}; {start}"):
            self.clear(node)
            yield
            self.clear(node)

    # --- the link

    def received(self, node: Node) -> int:
        """Bytes that a node's fabric interface has received."""
        return int(node.run(f"cat /sys/class/net/{INTERFACE}/statistics/rx_bytes"))

    @contextmanager
    def limited(self, rate: str) -> Iterator[None]:
        """Make the cable slow, so that there is a middle to break off in."""
        try:
            succeed("limit", "--name", FLEET, "c1", rate)
            yield
        finally:
            succeed("limit", "--name", FLEET, "c1", "none")

    # --- runs

    def _command(self, variables: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
        inventory = self.directory / "sparks.yml"
        own = {name: {"fabric_node": {"address": address}} for name, address in ADDRESSES.items()}
        cluster = {
            "hosts": {name: {**own[name], **hosts.get(name, {})} for name in own},
            "vars": {"image_variant": "cpu", "image_ref": IMAGE, **variables},
        }
        inventory.write_text(yaml.safe_dump({"sparks": {"children": {"atlas": cluster}}, **self.reached}))
        return [str(Path(sys.executable).with_name("ansible-playbook")), str(PLAYBOOK), "-i", str(inventory)]

    def start(self, **variables: Any) -> subprocess.Popen[str]:
        """Start a run."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {"ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        hosts = variables.pop("hosts", {})
        run = subprocess.Popen(
            self._command(variables, hosts),
            cwd=REPO,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.runs.append(run)
        return run

    def end(self, run: subprocess.Popen[str]) -> Run:
        """Wait for a run."""
        try:
            output, _none = run.communicate(timeout=LONGEST_RUN_S)
        finally:
            self.kill(run)
        return Run(run.returncode, output)

    def kill(self, run: subprocess.Popen[str]) -> None:
        """End a run that still goes on; the next one takes its locks over."""
        self.runs.remove(run)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()

    def deliver(self, **variables: Any) -> Run:
        """Run the playbook to its end."""
        return self.end(self.start(**variables))

    def delivered(self, **variables: Any) -> int:
        """Run the playbook, which has to bring the head's image; return the bytes that the worker received."""
        before = self.received(self.worker)
        self.deliver(**variables).assert_fine()
        assert self.content(self.worker) == self.content(self.head)
        self.assert_tidy()
        return self.received(self.worker) - before

    def assert_tidy(self) -> None:
        """Make sure that nothing of a delivery is left running or named."""
        for node in self.nodes.values():
            assert not node.holds(f"systemctl is-active {UNIT}"), node.name
            assert not node.listens(PORT), node.name
            names = node.run("docker images --digests --format '{{.Repository}}@{{.Digest}}'")
            assert "127.0.0.1" not in names and "arrived" not in names, names
            assert not node.holds("ls -d /var/lib/sparkfleet/image/transfer /var/lib/sparkfleet/image/incoming")

    def middle(self, began: int, share: float, size: int) -> None:
        """Wait until a part of an image has come over the cable."""
        until(lambda: self.received(self.worker) - began > share * size, "the middle of the transfer")

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Let the worker serve with the image that it has; what is done meanwhile must not touch it."""
        old = self.worker.run(f"docker run --detach --name old {IMAGE}")
        image = self.worker.run(f"docker image inspect --format '{{{{.Id}}}}' {IMAGE}")
        try:
            yield image
            assert self.worker.run("docker inspect --format '{{.State.Running}} {{.Id}}' old") == f"true {old}"
        finally:
            self.worker.run("docker rm --force old")
