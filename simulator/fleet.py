# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of simulated Sparks: its containers, networks and volumes, from start to removal.

A node is two containers. The *holder* does nothing but keep a network namespace, so that a node's links survive its
reboot; the *node* runs systemd in that namespace and is started again whenever it ends.
"""

from __future__ import annotations

import io
import ipaddress
import json
import os
import signal
import socket
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

from simulator import image, plan
from simulator.errors import SimulatorError
from simulator.fabric import Fabric, interfaces_of, ipv4_addresses, name_management_port, run
from simulator.hardware import FUNCTIONS, MANAGEMENT
from simulator.plan import Cable, Spec
from simulator.report import say, step
from simulator.state import STATE_ROOT, USER, Node, State, Store, lock, make_key

LABEL_FLEET = "io.sparksim.fleet"
LABEL_STATE = "io.sparksim.state"
LABEL_ROLE = "io.sparksim.role"
SHM_SIZE = "4g"
READY_TIMEOUT_S = 180
BOOT_LOOK_S = 20
CARRIER_TIMEOUT_S = 20
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
ENOUGH_INOTIFY = 1024
"""A machine that allows fewer inotify instances than this does not carry many nodes."""
POLL_S = 0.25
PARALLEL = 4
REMOVE_ATTEMPTS = 3
ENDED = {"exited", "dead"}
"""States of a container that does not come back by itself."""
NEVER = ("SYS_MODULE", "SYS_TIME")
"""Capabilities that no node gets: kernel modules and the clock are the machine's."""
UNCONFINED = ("seccomp=unconfined", "apparmor=unconfined", "label=disable")

Item = TypeVar("Item")
Result = TypeVar("Result")


def connect() -> docker.DockerClient:
    """The local Docker Engine.

    :raises SimulatorError: there is none, or it is another machine's.
    """
    host = os.environ.get("DOCKER_HOST", "")
    if host and not host.startswith("unix://"):
        raise SimulatorError(f"DOCKER_HOST={host}: nodes are cabled on this machine; use its own engine")
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException as error:
        where = host or "unix:///var/run/docker.sock"
        raise SimulatorError(f"no Docker Engine answers at {where}; install or start it") from error
    return client


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let no impatient second Ctrl-C stop a cleaning up half-way."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def nameservers() -> list[str]:
    """Name servers of this machine that a container can reach, so none on a loopback address."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        try:
            words = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
        usable = [server for server in found if not ipaddress.ip_address(server.split("%")[0]).is_loopback]
        if usable:
            return usable
    return []


def allowed_inotify() -> int:
    """How many inotify instances this machine allows a user; as many as we need where that cannot be read."""
    try:
        return int(INOTIFY.read_text())
    except (OSError, ValueError):
        return ENOUGH_INOTIFY


def make_room() -> None:
    """Allow more inotify instances where this machine allows few: a node without one does not boot."""
    allowed = allowed_inotify()
    if allowed < ENOUGH_INOTIFY:
        with suppress(OSError):  # overload() says what to do then
            INOTIFY.write_text(f"{ENOUGH_INOTIFY}\n")
            say(f"raised fs.inotify.max_user_instances from {allowed} to {ENOUGH_INOTIFY}, until this machine restarts")


def overload() -> str:
    """What may be wrong with this machine where nodes do not boot."""
    allowed = allowed_inotify()
    if allowed < ENOUGH_INOTIFY:
        name = "fs.inotify.max_user_instances"
        return f"end other fleets, or raise {name} (it is {allowed}, and a node takes about 7)"
    return "is this machine overloaded?"


def archive(files: dict[str, tuple[str, int, int]]) -> bytes:
    """A tar of files by path.

    :param files: text, mode and uid (which is also the gid) of each.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (text, mode, uid) in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode, member.uid, member.gid = len(text.encode()), mode, uid, uid
            member.mtime = int(time.time())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def answers_ssh(address: str) -> bool:
    """Whether an SSH server greets at this address."""
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


class Fleet:
    """One fleet by its name, whether it is up or not."""

    def __init__(self, name: str, client: docker.DockerClient | None = None) -> None:
        plan.check_name(name)
        self.name = name
        self.store = Store(name)
        self.fabric = Fabric(name)
        self.client = client or connect()
        self.prefix = f"sparksim-{name}"
        self.labels = {LABEL_FLEET: name, LABEL_STATE: str(self.store.directory)}
        self._given_up = threading.Event()

    def _each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call a function for all items, a few at a time.

        After a failure or Ctrl-C those not begun are dropped, those that wait are told to end, and the others are
        waited for. So Ctrl-C never cuts a request to the engine in two, whose outcome nobody would know then.
        """
        if self._given_up.is_set():
            raise SimulatorError("given up")
        with ThreadPoolExecutor(PARALLEL) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._given_up.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    # -- what is there ------------------------------------------------------------------------------------------

    def _filter(self) -> dict[str, Any]:
        return {"label": f"{LABEL_FLEET}={self.name}"}

    def check_owner(self) -> None:
        """See that nobody else's fleet has this name; one that an engine's or machine's restart ended may be removed.

        :raises SimulatorError: a fleet of another state directory has it.
        """
        found = self.client.api.containers(all=True, filters=self._filter())
        states: dict[str, set[str]] = {}
        for entry in found:
            states.setdefault(entry["Labels"].get(LABEL_STATE, ""), set()).add(entry["State"])
        for where in sorted(states.keys() - {self.labels[LABEL_STATE]}):
            if not states[where] <= ENDED:
                raise SimulatorError(
                    f"a fleet '{self.name}' of {where} is there already; choose another --name or end it there"
                )
            say(f"fleet '{self.name}' of {where} runs no more; removing what is left of it")

    def container(self, node: str, holder: bool = False) -> Container:
        """Container of a node, or its holder.

        :raises NotFound: there is none.
        """
        return self.client.containers.get(self._container_name(node, holder))

    def _container_name(self, node: str, holder: bool = False) -> str:
        return f"{self.prefix}-{node}{'-net' if holder else ''}"

    def _pid(self, node: str) -> int:
        """A process in a node's network namespace; 0 where its holder does not run."""
        try:
            return int(self.container(node, holder=True).attrs["State"]["Pid"])
        except NotFound:
            return 0

    def broken(self, state: State) -> list[str]:
        """What is missing in a way that waiting or starting does not repair, each in a few words."""
        found = []
        for node in state.nodes:
            pid = self._pid(node.name)
            if not pid:
                found.append(f"{node.name}: its network namespace is gone")
                continue
            missing = {MANAGEMENT, *(f.netdev for f in FUNCTIONS)} - set(interfaces_of(pid))
            if missing:
                found.append(f"{node.name}: {', '.join(sorted(missing))} missing")
            if self._node_container_status(node) == "missing":
                found.append(f"{node.name}: its container is gone")
        return found + self.fabric.missing(state.cables)

    def asleep(self, state: State) -> list[Node]:
        """Nodes that are stopped, or do not answer SSH at the moment."""
        return [n for n in state.nodes if self._node_container_status(n) != "running" or not answers_ssh(n.address)]

    def _node_container_status(self, node: Node) -> str:
        try:
            return self.container(node.name).status
        except NotFound:
            return "missing"

    # -- start --------------------------------------------------------------------------------------------------

    def up(self, spec: Spec, base_image: str = "") -> State:
        """Start the fleet; where it is up already, leave or repair it.

        :param base_image: a registry's Debian 13 image; empty to make one with debootstrap.
        :raises SimulatorError: it cannot be started; nothing of it is left then.
        """
        spec.check()
        make_room()
        with self._locked():
            self.check_owner()
            state = self.store.load()
            if state is not None:
                kept = self._keep(state, spec, base_image)
                if kept is not None:
                    return kept
            if state is not None or self._leftovers():
                say(f"fleet '{self.name}' is half up; removing it to start again")
                self._remove()
            base, node_image = image.ensure(self.client, base_image)
            try:
                with step(f"starting {spec.nodes} nodes"):
                    self._given_up.clear()
                    [state] = self._each(lambda _: self._start(spec, base, node_image), [None])
            except BaseException:
                with uninterrupted():
                    say("cleaning up …")
                    self._remove()
                raise
            return state

    def _keep(self, state: State, spec: Spec, base_image: str) -> State | None:
        """The state of a fleet that is up, after a repair if need be; None where it has to be started anew.

        :raises SimulatorError: it is up with other options.
        """
        found = self.broken(state)
        for problem in found:
            say(f"  {problem}")
        if found:
            return None
        if state.spec != spec:
            other = describe(state.spec)
            raise SimulatorError(
                f"fleet '{self.name}' is up with other options ({other}); run first: down --name {self.name}"
            )
        asleep = self.asleep(state)
        if asleep:
            say(f"waiting for {', '.join(node.name for node in asleep)}")
            for node in asleep:
                self.container(node.name).start()  # does nothing where it runs
            try:
                self._each(lambda node: self._wait(node, {}), asleep)
            except SimulatorError as error:
                say(f"  {error}")
                return None
        say(f"fleet '{self.name}' is up already: {describe(spec)}")
        if state.recabled:
            say(f"  it was re-cabled and stays so: {plan.drawing(state.cables)}")
        base_id = image.image_id(self.client, state.base_image) or ""
        if state.node_image != image.node_tag(base_id, image.mirror_for(base_image), image.context_files()):
            say(f"  its node image is not the newest; to renew it: down --name {self.name}, then up")
        return state

    def _start(self, spec: Spec, base: str, node_image: str) -> State:
        self.store.prepare()
        numbers = range(1, spec.nodes + 1)
        subnet = self._create_network()
        self.fabric.create()
        can_raise = self._can_raise_limits(node_image)

        pids = self._each(lambda number: self._start_holder(number, subnet, node_image), numbers)
        for number, pid in zip(numbers, pids, strict=True):
            self.fabric.add_node(number, pid, spec.rate)
        self.fabric.add_cables(plan.cables(spec))
        nodes = self._each(lambda number: self._start_node(spec, number, subnet, node_image, can_raise), numbers)
        self._each(lambda number: self._wait(nodes[number - 1], plan.addresses(spec, number)), numbers)

        state = State(spec=spec, subnet=subnet, nodes=nodes, base_image=base, node_image=node_image)
        self.store.save(state)
        return state

    def _create_network(self) -> str:
        """Make the management network on the first free subnet.

        Another fleet may take it between looking and making, and the engine then refuses: look again.
        """
        refused: list[str] = []
        while True:
            used = [
                config["Subnet"]
                for network in self.client.networks.list()
                for config in (network.attrs.get("IPAM") or {}).get("Config") or []
                if config.get("Subnet")
            ]
            routes = json.loads(run("ip", "-j", "-4", "route"))
            used += [route["dst"] for route in routes if route.get("dst", "default") != "default"]
            subnet = plan.free_subnet([*used, *refused])
            pool = docker.types.IPAMPool(subnet=subnet)
            try:
                self.client.networks.create(
                    self.prefix, driver="bridge", ipam=docker.types.IPAMConfig(pool_configs=[pool]), labels=self.labels
                )
            except APIError as error:
                if "overlap" not in str(error.explanation):
                    raise
                refused.append(subnet)
            else:
                return subnet

    def _security(self, can_raise: bool) -> dict[str, Any]:
        """Settings under which systemd and an engine run in a container, here and where --privileged is refused."""
        return {
            "cap_add": ["ALL"],
            "cap_drop": [*NEVER, *([] if can_raise else ["SYS_RESOURCE"])],
            "security_opt": list(UNCONFINED),
            "device_cgroup_rules": ["a *:* rwm"],
            "cgroupns": "private",
        }

    def _can_raise_limits(self, node_image: str) -> bool:
        """Whether this engine can give CAP_SYS_RESOURCE; inside a sandbox it often cannot."""
        for can_raise in (True, False):
            created = self.client.api.create_container(
                node_image,
                entrypoint=["true"],
                labels=self.labels,
                host_config=self.client.api.create_host_config(network_mode="none", **self._security(can_raise)),
            )
            try:
                self.client.api.start(created["Id"])
            except APIError as error:
                refusal = str(error.explanation)
            else:
                return can_raise
            finally:
                self.client.api.remove_container(created["Id"], force=True, v=True)
        raise SimulatorError(f"the engine cannot run a node: {refusal}")

    def _start_holder(self, number: int, subnet: str, node_image: str) -> int:
        """Start the container that keeps a node's network namespace.

        :returns: its process.
        """
        name = plan.node_name(number)
        api = self.client.api
        address = plan.management_address(subnet, number)
        endpoint = api.create_endpoint_config(ipv4_address=address)
        created = api.create_container(
            node_image,
            command=["sleep", "infinity"],
            name=self._container_name(name, holder=True),
            hostname=name,
            labels={**self.labels, LABEL_ROLE: "holder"},
            host_config=api.create_host_config(network_mode=self.prefix),
            # the stub is wrong: it wants networks by name
            networking_config=docker.types.NetworkingConfig({self.prefix: endpoint}),  # type: ignore[arg-type]
        )
        api.start(created["Id"])
        pid = int(api.inspect_container(created["Id"])["State"]["Pid"])
        name_management_port(pid)
        return pid

    def _start_node(self, spec: Spec, number: int, subnet: str, node_image: str, can_raise: bool) -> Node:
        """Start a node in its holder's network namespace."""
        name = plan.node_name(number)
        api = self.client.api
        mounts = []
        for directory in ("docker", "containerd"):
            volume = f"{self._container_name(name)}-{directory}"
            self.client.volumes.create(volume, labels=self.labels)
            mounts.append(docker.types.Mount(f"/var/lib/{directory}", volume))
        host_config = api.create_host_config(
            network_mode=f"container:{self._container_name(name, holder=True)}",
            restart_policy={"Name": "always"},
            tmpfs={"/run": "exec,mode=755", "/run/lock": "", "/tmp": "exec"},
            shm_size=SHM_SIZE,
            mounts=mounts,
            **self._security(can_raise),
        )
        # what `--security-opt systempaths=unconfined` means; the SDK has no name for it
        host_config["MaskedPaths"] = []
        host_config["ReadonlyPaths"] = []
        created = api.create_container(
            node_image,
            name=self._container_name(name),
            labels={**self.labels, LABEL_ROLE: "node"},
            host_config=host_config,
        )
        host_key = self._furnish(created["Id"], spec, number)
        api.start(created["Id"])
        return Node(name=name, address=plan.management_address(subnet, number), host_key=host_key)

    def _furnish(self, container: str, spec: Spec, number: int) -> str:
        """Put a node's own files into its container before the first boot.

        :returns: its public host key.
        """
        with tempfile.TemporaryDirectory(dir=self.store.directory) as directory:
            key = Path(directory) / "key"
            make_key(key, f"root@{plan.node_name(number)}")
            private, public = key.read_text(), key.with_suffix(".pub").read_text()
        files = {
            "etc/ssh/ssh_host_ed25519_key": (private, 0o600, 0),
            "etc/ssh/ssh_host_ed25519_key.pub": (public, 0o644, 0),
            f"home/{USER}/.ssh/authorized_keys": (self.store.key.with_suffix(".pub").read_text(), 0o600, 1000),
            # systemd would take the machine's DMI UUID, and then all nodes had the same
            "etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444, 0),
            "etc/sparksim/resolv.conf": ("".join(f"nameserver {server}\n" for server in nameservers()), 0o644, 0),
        }
        name, text = plan.netplan_default(spec)
        files[f"etc/netplan/{name}"] = (text, 0o600, 0)
        files["etc/sparksim/renderer"] = (f"{spec.renderer}\n", 0o644, 0)
        netplan = plan.netplan(spec, number)
        if netplan:
            files["etc/netplan/40-cx7.yaml"] = (netplan, 0o600, 0)
        self.client.api.put_archive(container, "/", archive(files))
        return public

    def _wait(self, node: Node, addresses: dict[str, str]) -> None:
        """Wait until a node has booted, answers SSH and has these addresses on its netdevs.

        :raises SimulatorError: that takes too long (says what is missing), or another node failed.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        missing = self._not_ready(node, addresses)
        while missing:
            if time.monotonic() > deadline:
                raise SimulatorError(f"{node.name}: {missing} after {READY_TIMEOUT_S} s; {overload()}")
            if self._given_up.wait(POLL_S):
                raise SimulatorError(f"{node.name}: no longer waited for")
            missing = self._not_ready(node, addresses)

    def _on_node(self, node: Node, *command: str) -> str:
        """What a command prints when it is run on a node, through the engine and as root."""
        output = self.container(node.name).exec_run(list(command)).output
        return output.decode(errors="replace").strip() if isinstance(output, bytes) else ""

    def _not_ready(self, node: Node, addresses: dict[str, str]) -> str:
        """What a node is still waiting for; empty when it is ready."""
        try:
            # a boot that hangs must not hang us beyond the deadline
            booted = self._on_node(node, "timeout", str(BOOT_LOOK_S), "systemctl", "is-system-running", "--wait")
            if booted not in ("running", "degraded"):
                return f"still booting ({booted or 'starting'})"
            if not answers_ssh(node.address):
                return f"no SSH server at {node.address}"
            interfaces = interfaces_of(self._pid(node.name))
            for netdev, address in addresses.items():
                if address not in ipv4_addresses(interfaces[netdev]):
                    return f"{netdev} has no address {address}"
            if booted == "degraded":
                failed = self._on_node(node, "systemctl", "--failed", "--plain", "--no-legend")
                say(f"  {node.name}: failed units: {' '.join(failed.split())}")
        except APIError as error:  # between two starts of the container
            return str(error.explanation)
        return ""

    # -- end ----------------------------------------------------------------------------------------------------

    def _leftovers(self) -> bool:
        """Whether anything of this fleet is there."""
        return bool(
            self.client.api.containers(all=True, filters=self._filter())
            or self.client.networks.list(filters=self._filter())
            or self.client.volumes.list(filters=self._filter())
            or self.fabric.exists()
        )

    def down(self) -> bool:
        """Remove the fleet and everything that was made for it.

        :returns: whether there was anything to remove.
        :raises SimulatorError: it belongs to another state directory.
        """
        with self._locked():
            self.check_owner()
            there = self._leftovers() or self.store.directory.exists()
            with uninterrupted():
                self._remove()
            return there

    def _remove(self) -> None:
        """Remove all there is; again where the engine was still busy with a request that we gave up on."""
        self._given_up.clear()
        for _attempt in range(REMOVE_ATTEMPTS):
            named = self._filter()
            found = self.client.api.containers(all=True, filters=named)
            # nodes first: they live in their holders' namespaces
            for role in ("node", "holder", ""):
                self._each(self._remove_container, [c["Id"] for c in found if c["Labels"].get(LABEL_ROLE, "") == role])
            self.fabric.remove()
            for volume in self.client.volumes.list(filters=named):
                volume.remove(force=True)
            for network in self.client.networks.list(filters=named):
                network.remove()
            if not self._leftovers():
                break
        self.store.remove()

    def _remove_container(self, container: str) -> None:
        try:
            self.client.api.remove_container(container, force=True, v=True)
        except NotFound:
            pass
        except APIError as error:
            if "already in progress" not in str(error.explanation):
                raise
            self.client.api.wait(container, condition="removed")

    # -- while it is up -----------------------------------------------------------------------------------------

    def set_plugged(self, name: str, plugged: bool) -> bool:
        """Plug a cable in or pull it out.

        :returns: whether anything had to be changed.
        :raises SimulatorError: no such cable.
        """
        with self._locked():
            state = self.store.require()
            changed = self.fabric.set_plugged(self._cable(state, name), plugged)
            self._wait_for_carrier(state)
        return changed

    def recable(self, cables: list[Cable]) -> bool:
        """Pull all cables out and plug these in instead. Addresses on the nodes are not touched.

        :returns: whether anything had to be changed.
        :raises SimulatorError: part of the fleet is missing.
        """
        with self._locked():
            state = self.store.require()
            pids = self._pids(state)
            plugged = {port for port, up in self.fabric.ports().items() if up}
            wanted = {port for cable in cables for port in plan.fabric_ports(cable)}
            same = plan.wiring(cables) == plan.wiring(state.cables) and not self.fabric.missing(cables)
            if same and wanted <= plugged:
                return False
            with uninterrupted():
                self.fabric.take_out_cables()
                # or the nodes would not see that there was no carrier for a moment
                self._wait_for_carrier(state)
                for pid in pids.values():
                    self.fabric.set_sending(pid, FUNCTIONS, state.spec.rate)
                self.fabric.add_cables(cables)
                self.store.save(replace(state, cabling=cables))
                self._wait_for_carrier(state)
        return True

    def set_rate(self, name: str, rate: str) -> bool:
        """Limit what the ends of a cable send and receive.

        :param rate: as tc writes it; empty to lift the limit.
        :returns: whether it had another limit before.
        :raises SimulatorError: no such cable.
        """
        with self._locked():
            state = self.store.require()
            before = self._cable(state, name)
            cabling = plan.with_rate(state.cables, name, rate)
            [after] = [cable for cable in cabling if cable.name == name]
            self.fabric.set_rate(after, self._pids(state))
            self.store.save(replace(state, cabling=cabling))
        return before.rate != rate

    def set_power(self, name: str, on: bool) -> bool:
        """Cut a node's power, without a word to what runs on it, or switch it on and wait until it answers.

        :param name: the node's name or number.
        :returns: whether anything had to be changed.
        :raises SimulatorError: no such node, or it does not come up.
        """
        with self._locked():
            node = self.store.node(name)
            running = self._node_container_status(node) == "running"
            if running != on:
                container = self.container(node.name)
                # The engine does not restart what it was told to kill.
                if on:
                    container.start()
                else:
                    container.kill()
            if on:
                self._wait(node, {})
        return running != on

    def _locked(self) -> AbstractContextManager[None]:
        return lock(f"fleet-{self.name}", f"another process works on fleet '{self.name}'; waiting for it …")

    def _cable(self, state: State, name: str) -> Cable:
        cables = {cable.name: cable for cable in state.cables}
        if name not in cables:
            raise SimulatorError(f"no cable '{name}' in fleet '{self.name}'; there are: {', '.join(cables)}")
        return cables[name]

    def _pids(self, state: State) -> dict[int, int]:
        """A process in the network namespace of each node, by the node's number.

        :raises SimulatorError: a namespace is gone.
        """
        pids = {number: self._pid(node.name) for number, node in enumerate(state.nodes, start=1)}
        gone = [node.name for number, node in enumerate(state.nodes, start=1) if not pids[number]]
        if gone or not self.fabric.exists():
            what = f"network namespace of {', '.join(gone)}" if gone else "fabric"
            raise SimulatorError(f"fleet '{self.name}': the {what} is gone; repair it with: up --name {self.name}")
        return pids

    def _wait_for_carrier(self, state: State) -> None:
        """Wait until every node's kernel has noticed which ports have carrier; it looks about once a second.

        :raises SimulatorError: that takes too long.
        """
        ports = self.fabric.ports()
        deadline = time.monotonic() + CARRIER_TIMEOUT_S
        for number, pid in self._pids(state).items():
            while True:
                links = interfaces_of(pid)
                wrong = [
                    function.netdev
                    for function in FUNCTIONS
                    # one that somebody set down or renamed on the node shows nothing
                    if "UP" in links.get(function.netdev, {"flags": ()})["flags"]
                    and (links[function.netdev]["operstate"] == "UP")
                    != ports.get(plan.fabric_port(number, function), False)
                ]
                if not wrong:
                    break
                if time.monotonic() > deadline:
                    name = plan.node_name(number)
                    raise SimulatorError(f"{name}: the carrier of {', '.join(wrong)} did not follow the cable")
                time.sleep(POLL_S)

    def status(self) -> dict[str, Any]:
        """All there is to know about the fleet, for JSON."""
        state = self.store.require()
        spec = state.spec
        ports = self.fabric.ports() if self.fabric.exists() else {}
        return {
            "name": self.name,
            "topology": spec.topology,
            "rate": spec.rate,
            "renderer": spec.renderer,
            "recabled": state.recabled,
            "problems": [*self.broken(state), *(f"{n.name}: does not answer SSH" for n in self.asleep(state))],
            "management_subnet": state.subnet,
            "state_directory": str(self.store.directory),
            "base_image": state.base_image,
            "node_image": state.node_image,
            "nodes": [self._node_status(node) for node in state.nodes],
            "cables": [
                {
                    "name": cable.name,
                    "plugged": all(ports.get(port, False) for port in plan.fabric_ports(cable)),
                    "ends": [f"{plan.node_name(end.node)} p{end.port}" for end in cable.ends],
                    "switch": cable.bridge if cable.bridge != cable.name else None,
                    "rate": cable.rate,
                }
                for cable in state.cables
            ],
        }

    def _node_status(self, node: Node) -> dict[str, Any]:
        pid = self._pid(node.name)
        interfaces = interfaces_of(pid) if pid else {}
        try:
            container = self.container(node.name)
            status, started = container.status, container.attrs["State"]["StartedAt"]
        except NotFound:
            status, started = "missing", ""
        return {
            "name": node.name,
            "address": node.address,
            "container": self._container_name(node.name),
            "status": status,
            "started": started,
            "interfaces": {
                function.netdev: {
                    "carrier": "LOWER_UP" in interfaces[function.netdev]["flags"],
                    "mtu": interfaces[function.netdev]["mtu"],
                    "addresses": ipv4_addresses(interfaces[function.netdev]),
                }
                for function in FUNCTIONS
                if function.netdev in interfaces
            },
        }


def describe(spec: Spec) -> str:
    """A fleet's options in a few words."""
    words = [f"{spec.nodes} nodes", spec.topology]
    if spec.cables > 1:
        words.append(f"{spec.cables} cables")
    words.append(spec.rate or "no rate limit")
    if not spec.addresses:
        words.append("no fabric addresses")
    if spec.renderer != plan.RENDERERS[0]:
        words.append(spec.renderer)
    return ", ".join(words)


def ours(client: docker.DockerClient) -> list[str]:
    """Names of this checkout's fleets, also of those whose state directory somebody removed."""
    names = set()
    if STATE_ROOT.is_dir():
        names |= {path.name for path in STATE_ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    for entry in client.api.containers(all=True, filters={"label": LABEL_FLEET}):
        if Path(entry["Labels"].get(LABEL_STATE, "")).parent == STATE_ROOT:
            names.add(entry["Labels"][LABEL_FLEET])
    return sorted(names)
