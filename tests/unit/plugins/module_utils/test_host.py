# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a host, from files as a kernel writes them and from an engine that answers on a real socket."""

from __future__ import annotations

import http.server
import json
import os
import socket
import socketserver
import threading
import typing as t
from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _host

OURS = "a" * 64
THEIRS = "b" * 64
CONTAINERS = [
    {"Id": OURS, "Names": ["/spark-ray"], "Labels": {"io.sparkfleet.cluster": "atlas"}, "Ports": []},
    {
        "Id": THEIRS,
        "Names": ["/web"],
        "Labels": {},
        "Ports": [
            {"PublicPort": 8888, "PrivatePort": 80, "Type": "tcp"},
            {"PublicPort": 9999, "PrivatePort": 81, "Type": "tcp"},
            {"PublicPort": 53, "PrivatePort": 53, "Type": "udp"},
        ],
    },
]
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def tcp_line(port: int, inode: int, state: str = "0A") -> str:
    return f"   0: 00000000:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0 0 {inode} 1\n"


class FakeProc:
    """A /proc with processes that hold sockets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "net").mkdir(parents=True)
        self.tcp = HEAD
        self.tcp6 = HEAD

    def process(self, pid: int, name: str, inode: int, cgroup: str = "0::/system.slice/x.service") -> None:
        directory = self.root / str(pid)
        (directory / "fd").mkdir(parents=True)
        (directory / "comm").write_text(f"{name}\n")
        (directory / "cgroup").write_text(f"{cgroup}\n")
        (directory / "fd" / "3").symlink_to(f"socket:[{inode}]")
        (directory / "fd" / "4").symlink_to("/dev/null")

    def path(self) -> str:
        (self.root / "net" / "tcp").write_text(self.tcp)
        (self.root / "net" / "tcp6").write_text(self.tcp6)
        return str(self.root)


@pytest.fixture(name="proc")
def fixture_proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def test_a_listener_has_its_process(proc: FakeProc) -> None:
    proc.tcp += tcp_line(22, 100) + tcp_line(5000, 101, state="01")
    proc.tcp6 += tcp_line(22, 102)
    proc.process(261, "sshd", 100)
    assert _host.listeners([], proc.path()) == [
        {"port": 22, "pid": 0, "process": "", "container": "", "ours": False},
        {"port": 22, "pid": 261, "process": "sshd", "container": "", "ours": False},
    ]


@pytest.mark.parametrize(
    "cgroup",
    [f"0::/system.slice/docker-{OURS}.scope", f"4:memory:/docker/{THEIRS}/docker/{OURS}", f"1:x:/docker/{OURS}"],
)
def test_a_listener_on_the_host_network_has_its_container(proc: FakeProc, cgroup: str) -> None:
    proc.tcp += tcp_line(6379, 100)
    proc.process(77, "gcs_server", 100, cgroup)
    assert _host.listeners(CONTAINERS[:1], proc.path()) == [
        {"port": 6379, "pid": 77, "process": "gcs_server", "container": "spark-ray", "ours": True}
    ]


@pytest.mark.parametrize(
    ("unit", "ours"), [("spark-image-share.service", True), ("sparkline.service", False), ("nginx.service", False)]
)
def test_a_listener_of_our_units_is_ours(proc: FakeProc, unit: str, ours: bool) -> None:
    proc.tcp += tcp_line(6390, 100)
    proc.process(9, "python3", 100, f"0::/system.slice/{unit}")
    [listener] = _host.listeners(CONTAINERS[:1], proc.path())
    assert listener["ours"] is ours


def test_a_container_that_this_engine_does_not_know_is_a_process(proc: FakeProc) -> None:
    proc.tcp += tcp_line(22, 100)
    proc.process(5, "sshd", 100, f"1:x:/docker/{'c' * 64}")
    [listener] = _host.listeners(CONTAINERS[:1], proc.path())
    assert (listener["process"], listener["container"]) == ("sshd", "")


def test_a_published_port_is_its_containers_with_and_without_a_proxy(proc: FakeProc) -> None:
    proc.tcp += tcp_line(8888, 100)
    proc.process(9, "docker-proxy", 100)
    assert _host.listeners(CONTAINERS, proc.path()) == [
        {"port": 8888, "pid": 9, "process": "docker-proxy", "container": "web", "ours": False},
        {"port": 9999, "pid": 0, "process": "", "container": "web", "ours": False},
    ]


def test_a_real_listener_of_this_process_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [listener] = [found for found in _host.listeners([]) if found["port"] == port]
    assert listener["pid"] == os.getpid()


def test_os_release(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    file.write_text('PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\n# comment\nVERSION_ID="24.04"\n')
    assert _host.os_release(str(file)) == {"id": "ubuntu", "version": "24.04", "name": "Ubuntu 24.04.3 LTS"}
    assert _host.os_release(str(tmp_path / "none")) == {"id": "unknown", "version": "", "name": "unknown"}


def test_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16 kB\nMemFree: 1 kB\nMemAvailable:    8 kB\nHugePages_Total:       0\n")
    assert _host.memory(str(file)) == {"total_bytes": 16384, "available_bytes": 8192}


def test_a_disk_is_measured_where_the_path_will_be(tmp_path: Path) -> None:
    found = _host.disk(str(tmp_path / "not" / "there" / "yet"), 5)
    assert found["path"] == str(tmp_path / "not" / "there" / "yet")
    assert found["device"] == tmp_path.stat().st_dev
    assert found["ours_bytes"] == 5
    assert 0 < found["free_bytes"] < found["total_bytes"]


def test_the_space_of_a_tree(tmp_path: Path) -> None:
    assert _host.tree_bytes(str(tmp_path / "none")) == 0
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert 100_000 <= _host.tree_bytes(str(tmp_path)) < 200_000


def test_gpu(tmp_path: Path) -> None:
    assert _host.gpu(str(tmp_path))["driver_version"] == ""
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build\nGCC version: 13\n"
    )
    (tmp_path / "dev").mkdir()
    for device in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / device).touch()
    found = _host.gpu(str(tmp_path))
    assert found["driver_version"] == "580.95.05"
    assert found["devices"] == [str(tmp_path / "dev/nvidia0")]


def test_the_container_toolkit_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "_PATH", str(tmp_path))
    assert _host.gpu(str(tmp_path))["toolkit_version"] == ""
    (tmp_path / "nvidia-ctk").write_text(
        "#!/bin/sh\necho NVIDIA Container Toolkit CLI version 1.17.8; echo commit: f2\n"
    )
    (tmp_path / "nvidia-ctk").chmod(0o755)
    assert _host.gpu(str(tmp_path))["toolkit_version"] == "1.17.8"


def test_firmware_is_told_by_board_once_for_all_functions_of_a_card(tmp_path: Path) -> None:
    assert _host.firmware(str(tmp_path)) == {}
    for device, board, version in (
        ("a", "NVD1", "28.45"),
        ("b", "NVD1", "28.45"),
        ("c", "NVD2", "9"),
        ("d", "NVD2", "8"),
    ):
        (tmp_path / "sys/class/infiniband" / device).mkdir(parents=True)
        (tmp_path / "sys/class/infiniband" / device / "board_id").write_text(f"{board}\n")
        (tmp_path / "sys/class/infiniband" / device / "fw_ver").write_text(f"{version}\n")
    (tmp_path / "sys/class/infiniband" / "no-firmware").mkdir()
    assert _host.firmware(str(tmp_path)) == {"NVD1": "28.45", "NVD2": "8, 9"}


def test_the_default_route_with_the_lowest_metric_is_the_management(proc: FakeProc) -> None:
    title = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    routes = (
        "eth9\t00000000\t01\t0003\t0\t0\t600\t00000000\t0\t0\t0\nlo\t00000000\t01\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    )
    others = (
        "eth8\t0000A8C0\t00\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\neth7\t00000000\t01\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    (proc.root / "net" / "route").write_text(title + others + routes)
    assert _host.management(str(proc.root)) == {"interface": "lo", "address": "127.0.0.1"}
    (proc.root / "net" / "route").write_text(title)
    assert _host.management(str(proc.root)) == {"interface": "", "address": ""}


class Engine(socketserver.ThreadingUnixStreamServer):
    """A Docker Engine as far as the module asks."""

    def __init__(self, path: str, answers: dict[str, t.Any]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path.partition("?")[0])
                body = json.dumps(answer).encode()
                self.send_response(200 if answer is not None else 500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_message: t.Any) -> None:
                return

        super().__init__(path, Handler)


ANSWERS: dict[str, t.Any] = {
    "/version": {"Version": "28.3.3", "ApiVersion": "1.51"},
    "/info": {
        "DockerRootDir": "/srv/docker",
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "extfs"]],
        "Runtimes": {"runc": {}, "nvidia": {}},
        "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}],
    },
    "/containers/json": CONTAINERS,
    "/images/json": [{"Size": 5}, {"Size": 7}],
}


def ask(tmp_path: Path, answers: dict[str, t.Any]) -> tuple[dict[str, t.Any], list[dict[str, t.Any]], int]:
    path = str(tmp_path / "docker.sock")
    with Engine(path, answers) as engine:
        thread = threading.Thread(target=engine.serve_forever, args=(0.01,))
        thread.start()
        try:
            return _host.read_docker(path)
        finally:
            engine.shutdown()
            thread.join()


def test_an_engine_that_answers(tmp_path: Path) -> None:
    docker, containers, image_bytes = ask(tmp_path, ANSWERS)
    assert docker["error"] == ""
    assert docker["engine_version"] == "28.3.3"
    assert docker["api_version"] == "1.51"
    assert docker["image_root"] == "/srv/docker"
    assert docker["runtimes"] == ["nvidia", "runc"]
    assert docker["cdi_nvidia"] is True
    assert containers == CONTAINERS
    assert image_bytes == 12


def test_the_containerd_image_store_is_elsewhere(tmp_path: Path) -> None:
    info = {**ANSWERS["/info"], "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    docker, _containers, _bytes = ask(tmp_path, {**ANSWERS, "/info": info})
    assert docker["image_root"] == "/var/lib/containerd"


def test_an_engine_that_fails_says_where(tmp_path: Path) -> None:
    docker, _containers, _bytes = ask(tmp_path, {"/version": {}})
    assert docker["error"] == "GET /info gives 500"


def test_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "which", lambda program: None)
    assert _host.read_docker(str(tmp_path / "none"))[0]["error"] == "missing"


def test_an_engine_that_is_installed_but_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "which", lambda program: "/bin/false")
    assert _host.read_docker(str(tmp_path / "none"))[0]["error"] == "stopped"
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert _host.read_docker(str(path))[0]["error"] == "stopped"


def test_an_engine_that_we_may_not_talk_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: t.Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_host._UnixConnection, "connect", refuse)
    assert _host.read_docker(str(tmp_path / "x"))[0]["error"] == "permission"


def test_versions_of_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Docker version 28.2.2, build 1" && exit\n'
        "echo \"docker: 'buildx' is not a docker command.\" >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(_host, "_PATH", str(tmp_path))
    docker = _host.read_docker(str(tmp_path / "none"))[0]
    assert (docker["cli_version"], docker["buildx_version"]) == ("28.2.2", "")


SHOWN = """MainPID=261
Id=ssh.service
ActiveState=active

MainPID=261
Id=ssh.service
ActiveState=active

Listen=[::]:2022 (Stream)
Listen=0.0.0.0:2023 (Stream)
Listen=/run/ssh.sock (Stream)
Id=ssh.socket
ActiveState=inactive

MainPID=0
Id=firewalld.service
ActiveState=inactive
"""


def shown(unit: str, state: str) -> dict[str, dict[str, list[str]]]:
    """What systemd says, with a unit in another state."""
    found = _host.parse_services(SHOWN)
    found[unit]["ActiveState"] = [state]
    return found


def test_services_are_told_apart() -> None:
    found = _host.parse_services(SHOWN)
    assert set(found) == {"ssh.service", "ssh.socket", "firewalld.service"}
    assert found["ssh.service"] == {"MainPID": ["261"], "Id": ["ssh.service"], "ActiveState": ["active"]}
    assert found["ssh.socket"]["Listen"][0] == "[::]:2022 (Stream)"
    assert _host.parse_services("") == {}


def listening(proc: FakeProc) -> None:
    """An sshd on two ports, a session of it that forwards one, and somebody else."""
    proc.tcp += tcp_line(22, 100) + tcp_line(6010, 102) + tcp_line(8888, 103) + tcp_line(40000, 104, state="01")
    proc.tcp6 += tcp_line(2222, 101)
    proc.process(261, "sshd", 100)
    (proc.root / "261" / "fd" / "5").symlink_to("socket:[101]")
    (proc.root / "261" / "fd" / "6").symlink_to("socket:[104]")
    proc.process(300, "sshd-session", 102)
    proc.process(400, "nginx", 103)


def test_the_ports_of_sshd_are_those_of_the_listener_and_not_of_a_session(proc: FakeProc) -> None:
    listening(proc)
    assert _host.ssh_ports(_host.parse_services(SHOWN), proc.path(), process=1) == [22, 2222]
    assert _host.ssh_ports(shown("ssh.service", "inactive"), proc.path(), process=1) == []
    other = shown("firewalld.service", "active")
    other["firewalld.service"]["MainPID"] = ["400"]
    assert _host.ssh_ports(other, proc.path(), process=1) == [22, 2222]


def test_systemd_may_listen_for_it(proc: FakeProc) -> None:
    assert _host.ssh_ports(shown("ssh.socket", "active"), proc.path(), process=1) == [2022, 2023]


def test_the_port_that_we_came_by_counts_whoever_listens(proc: FakeProc) -> None:
    for pid, parent, environment in ((50, 40, "A=b\0"), (40, 30, "SSH_CONNECTION=10.0.0.1 5000 10.0.0.2 2200\0X=y\0")):
        (proc.root / str(pid)).mkdir()
        (proc.root / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 1 1\n")
        (proc.root / str(pid) / "environ").write_text(environment)
    assert _host.ssh_ports({}, proc.path(), process=50) == [2200]
    assert _host.ssh_ports({}, proc.path(), process=99) == []


@pytest.mark.parametrize(
    ("text", "others"), [("ENABLED=no\n", []), ("# ENABLED=yes\n", []), ("ENABLED=yes\n", ["ufw"]), (None, [])]
)
def test_other_firewalls_are_found(text: str | None, others: list[str], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "etc/ufw").mkdir(parents=True)
        (tmp_path / "etc/ufw/ufw.conf").write_text(text)
    assert _host.firewall(_host.parse_services(SHOWN), str(tmp_path))["others"] == others
    active = shown("firewalld.service", "active")
    assert _host.firewall(active, str(tmp_path))["others"] == [*others, "firewalld"]


@pytest.mark.parametrize("path", ["etc/sparkfleet/firewall.nft", "etc/systemd/system/spark-firewall.service"])
def test_what_is_left_of_our_firewall_is_found(path: str, tmp_path: Path) -> None:
    assert _host.firewall({}, str(tmp_path))["ours"] is False
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert _host.firewall({}, str(tmp_path))["ours"] is True
