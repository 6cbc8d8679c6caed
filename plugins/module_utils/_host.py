# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read everything about a host that the preflight judges, with the standard library only.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import http.client
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import typing as t

OUR_LABEL: t.Final = "io.sparkfleet.cluster"
"""Label of every container and image that this collection makes."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONTAINERD_ROOT = "/var/lib/containerd"
_LISTEN = "0A"
_SIOCGIFADDR = 0x8915
_RTF_UP = 0x1
_TIMEOUT_S = 20

Facts = dict[str, t.Any]


def read(paths: t.Sequence[str], docker_socket: str) -> Facts:
    """Return all facts of this host.

    `paths` are our own directories, present or not, whose file system is looked at. A part that cannot be
    read is empty or None; only a broken /proc raises.
    """
    clock = time.time()
    docker, containers, image_bytes = read_docker(docker_socket)
    disks = [disk(path, tree_bytes(path)) for path in paths]
    units = services()
    if docker["image_root"]:
        disks.append(disk(docker["image_root"], image_bytes))
    return {
        "clock": clock,
        "root": os.geteuid() == 0,
        "os": os_release(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "machine_id": _first_line("/etc/machine-id"),
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "python": {
            "executable": sys.executable,
            "version": platform.python_version(),
            # Looking is enough: importing it would cost more than all the rest of this module.
            "requests": importlib.util.find_spec("requests") is not None,
        },
        "rsync": which("rsync") is not None,
        "apt": which("apt-get") is not None,
        "earlyoom": which("earlyoom") is not None,
        "firewall": firewall(units),
        "memory": memory(),
        "disks": disks,
        "docker": docker,
        "gpu": gpu(),
        "firmware": firmware(),
        "listeners": listeners(containers),
        "ssh_ports": ssh_ports(units),
        "management": management(),
    }


def os_release(path: str = "/etc/os-release") -> Facts:
    """Return id, version and a name for people; `unknown` where the file does not tell."""
    fields: dict[str, str] = {}
    for line in _lines(path):
        key, separator, value = line.partition("=")
        if separator:
            fields[key.strip()] = value.strip().strip("\"'")
    name = fields.get("PRETTY_NAME") or fields.get("ID") or "unknown"
    return {"id": fields.get("ID", "unknown"), "version": fields.get("VERSION_ID", ""), "name": name}


def memory(path: str = "/proc/meminfo") -> Facts:
    """Return total and available memory in bytes."""
    kib = {}
    for line in _lines(path):
        key, _colon, value = line.partition(":")
        if value.split():
            kib[key] = int(value.split()[0])
    return {"total_bytes": kib.get("MemTotal", 0) * 1024, "available_bytes": kib.get("MemAvailable", 0) * 1024}


def disk(path: str, ours_bytes: int) -> Facts:
    """Return size and free space (bytes) of the file system that `path` is or will be on."""
    existing = os.path.abspath(path)
    while not os.path.isdir(existing) and existing != "/":
        existing = os.path.dirname(existing)
    system = os.statvfs(existing)
    return {
        "path": path,
        "device": os.stat(existing).st_dev,
        "free_bytes": system.f_bavail * system.f_frsize,
        "total_bytes": system.f_blocks * system.f_frsize,
        "ours_bytes": ours_bytes,
    }


def tree_bytes(root: str) -> int:
    """Return the space in bytes that the files below `root` occupy; what cannot be read counts nothing."""
    total = 0
    for directory, _directories, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except OSError:
                continue
    return total


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def _get(path: str, resource: str) -> t.Any:
    """Return the decoded answer of the Docker Engine. Raises OSError, HTTPException, ValueError."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", resource)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"GET {resource.partition('?')[0]} gives {answer.status}")
        return json.loads(body)
    finally:
        connection.close()


def read_docker(socket_path: str) -> tuple[Facts, list[Facts], int]:
    """Return what Docker is, its running containers, and the bytes of our images.

    `error` is empty, or `missing`, `stopped`, `permission`, or the reason in words.
    """
    cli = which("docker")
    found: Facts = {
        "error": "",
        "cli_version": _version_of([cli, "--version"]) if cli else "",
        "buildx_version": _version_of([cli, "buildx", "version"]) if cli else "",
        "engine_version": "",
        "api_version": "",
        "image_root": "",
        "storage_driver": "",
        "runtimes": [],
        "cdi_nvidia": _cdi_files(),
    }
    containers: list[Facts] = []
    image_bytes = 0
    try:
        version = _get(socket_path, "/version")
        info = _get(socket_path, "/info")
        containers = _get(socket_path, "/containers/json")
        images = _get(socket_path, f"/images/json?filters=%7B%22label%22%3A%5B%22{OUR_LABEL}%22%5D%7D")
        image_bytes = sum(int(image.get("Size") or 0) for image in images)
        found.update(_engine(version, info))
        found["cdi_nvidia"] = found["cdi_nvidia"] or _cdi_devices(info)
    except FileNotFoundError:
        found["error"] = "stopped" if cli or which("dockerd") else "missing"
    except ConnectionRefusedError:
        found["error"] = "stopped"
    except PermissionError:
        found["error"] = "permission"
    except (OSError, ValueError, http.client.HTTPException) as error:
        found["error"] = str(error) or type(error).__name__
    return found, containers, image_bytes


def _engine(version: Facts, info: Facts) -> Facts:
    root = info.get("DockerRootDir") or ""
    # With the containerd image store, images are not below Docker's own directory.
    if "io.containerd.snapshotter" in json.dumps(info.get("DriverStatus")):
        root = _CONTAINERD_ROOT
    return {
        "engine_version": version.get("Version") or "",
        "api_version": version.get("ApiVersion") or "",
        "image_root": root,
        "storage_driver": info.get("Driver") or "",
        "runtimes": sorted(info.get("Runtimes") or {}),
    }


def _cdi_files() -> bool:
    return any(glob.glob(f"{directory}/*nvidia*") for directory in ("/etc/cdi", "/var/run/cdi"))


def _cdi_devices(info: Facts) -> bool:
    devices = info.get("DiscoveredDevices") or []
    return any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in devices)


def gpu(root: str = "/") -> Facts:
    """Return the NVIDIA driver, its devices, and whether the container toolkit is installed, with its version."""
    banner = _first_line(os.path.join(root, "proc/driver/nvidia/version"))
    version = re.search(r"\s(\d+\.\d+[.\d]*)", banner)
    toolkit = which("nvidia-ctk")
    return {
        "driver_version": version.group(1) if version else "",
        "devices": sorted(glob.glob(os.path.join(root, "dev/nvidia[0-9]*"))),
        "container_toolkit": any(
            which(tool) for tool in ("nvidia-container-runtime-hook", "nvidia-container-runtime", "nvidia-ctk")
        ),
        "toolkit_version": _version_of([toolkit, "--version"]) if toolkit else "",
    }


def firmware(root: str = "/") -> dict[str, str]:
    """Return the firmware of the RDMA network cards by board, empty where there is none.

    The functions of a card say the same. Where two cards of one board differ, their versions stand side by side.
    """
    found: dict[str, set[str]] = {}
    for device in glob.glob(os.path.join(root, "sys/class/infiniband/*")):
        version = _first_line(os.path.join(device, "fw_ver"))
        if version:
            found.setdefault(_first_line(os.path.join(device, "board_id")) or "unknown", set()).add(version)
    return {board: ", ".join(sorted(versions)) for board, versions in sorted(found.items())}


def listeners(containers: t.Sequence[Facts], proc: str = "/proc") -> list[Facts]:
    """Return every listening TCP port once per owner, with its process or container.

    `containers` is the engine's list of running containers. A published port counts even where no process
    holds it (Docker without its userland proxy).
    """
    names = {str(entry.get("Id", "")): _container(entry) for entry in containers}
    published = {
        int(port["PublicPort"]): _container(entry)
        for entry in containers
        for port in entry.get("Ports") or []
        if port.get("PublicPort") and port.get("Type") == "tcp"
    }
    sockets = _listening_sockets(proc)
    owners = _socket_owners(set(sockets), proc)
    found: dict[tuple[int, int, str], Facts] = {}
    for inode, port in sockets.items():
        pid = owners.get(inode, 0)
        process = _first_line(f"{proc}/{pid}/comm") if pid else ""
        container = names.get(_container_id(pid, proc)) if pid else None
        if container is None and process == "docker-proxy":
            container = published.get(port)
        entry = _listener(port, pid, process, container)
        # The image's share has no container. A second run meets it only while a first one copies.
        entry["ours"] = entry["ours"] or (pid > 0 and _in_our_unit(pid, proc))
        found[port, pid, entry["container"]] = entry
    for port, container in published.items():
        if not any(port == key[0] for key in found):
            found[port, 0, container[0]] = _listener(port, 0, "", container)
    return [found[key] for key in sorted(found)]


def _listener(port: int, pid: int, process: str, container: tuple[str, bool] | None) -> Facts:
    name, ours = container or ("", False)
    return {"port": port, "pid": pid, "process": process, "container": name, "ours": ours}


def _container(entry: Facts) -> tuple[str, bool]:
    name = (entry.get("Names") or [str(entry.get("Id", ""))[:12]])[0].lstrip("/")
    return name, OUR_LABEL in (entry.get("Labels") or {})


def _listening_sockets(proc: str) -> dict[str, int]:
    """Return the ports of all listening TCP sockets by inode."""
    found: dict[str, int] = {}
    for table in ("net/tcp", "net/tcp6"):
        for line in _lines(f"{proc}/{table}")[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def _socket_owners(inodes: t.Collection[str], proc: str) -> dict[str, int]:
    """Return the lowest process id that holds each socket; other users' are seen by root only."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, int] = {}
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        try:
            descriptors = os.listdir(f"{proc}/{pid}/fd")
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                target = os.readlink(f"{proc}/{pid}/fd/{descriptor}")
            except OSError:
                continue
            if target in wanted:
                found.setdefault(wanted[target], pid)
    return found


def _container_id(pid: int, proc: str) -> str:
    """Return the id of the innermost container that a process runs in, empty for none."""
    for line in _lines(f"{proc}/{pid}/cgroup"):
        ids = re.findall(r"[0-9a-f]{64}", line)
        if ids:
            return str(ids[-1])
    return ""


def _in_our_unit(pid: int, proc: str) -> bool:
    """Whether a process belongs to one of our systemd units, whose names all begin alike."""
    return any(re.search(r"/spark-[^/]+\.service(?:/|$)", line) for line in _lines(f"{proc}/{pid}/cgroup"))


def services() -> dict[str, dict[str, list[str]]]:
    """Return some properties of the services that we look at by unit, empty where systemd does not answer.

    A property may have several values, or none.
    """
    names = ("ssh.service", "sshd.service", "ssh.socket", "sshd.socket", "firewalld.service")
    command = ["systemctl", "show", "--property=Id,ActiveState,MainPID,Listen", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_services(done.stdout)


def parse_services(text: str) -> dict[str, dict[str, list[str]]]:
    """Return the properties by unit from what `systemctl show` says of several units; aliases are one unit."""
    found: dict[str, dict[str, list[str]]] = {}
    for block in text.split("\n\n"):
        properties: dict[str, list[str]] = {}
        for line in block.splitlines():
            name, separator, value = line.partition("=")
            if separator:
                properties.setdefault(name, []).append(value)
        for unit in properties.get("Id", ())[:1]:
            found[unit] = properties
    return found


def firewall(units: t.Mapping[str, t.Mapping[str, t.Sequence[str]]], root: str = "/") -> Facts:
    """Return whether nftables can be used, which other firewall is on, and whether ours has been here."""
    others = []
    if any(line.strip().lower() == "enabled=yes" for line in _lines(os.path.join(root, "etc/ufw/ufw.conf"))):
        others.append("ufw")
    if "active" in units.get("firewalld.service", {}).get("ActiveState", ()):
        others.append("firewalld")
    ours = ("etc/sparkfleet/firewall.nft", "etc/systemd/system/spark-firewall.service")
    return {
        "nft": which("nft") is not None,
        "others": others,
        "ours": any(os.path.exists(os.path.join(root, path)) for path in ours),
    }


def ssh_ports(
    units: t.Mapping[str, t.Mapping[str, t.Sequence[str]]], proc: str = "/proc", process: int | None = None
) -> list[int]:
    """Return the TCP ports that one can log in by, sorted.

    They are those of sshd itself, those that systemd listens on for it, and the one that we came by ourselves. A port
    that a session forwards is none of them.
    """
    found: set[int] = set()
    sockets = {f"socket:[{inode}]": port for inode, port in _listening_sockets(proc).items()}
    for unit, properties in units.items():
        if not unit.startswith("ssh") or "active" not in properties.get("ActiveState", ()):
            continue
        for pid in properties.get("MainPID", ()):
            found.update(sockets[target] for target in _descriptors(pid, proc) if target in sockets)
        listens = (re.search(r":(\d+) \(Stream\)\Z", value) for value in properties.get("Listen", ()))
        found.update(int(match[1]) for match in listens if match)
    own = _own_ssh_port(os.getpid() if process is None else process, proc)
    return sorted(found | ({own} if own else set()))


def _descriptors(pid: str, proc: str) -> list[str]:
    """Return what the open files of a process are; one that is closed meanwhile counts nothing."""
    found = []
    for path in glob.glob(f"{proc}/{pid}/fd/*"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return found


def _own_ssh_port(process: int, proc: str) -> int:
    """Return the node's port of the SSH connection that a process came by, 0 if there is none."""
    for _generation in range(32):
        environment = _text(f"{proc}/{process}/environ")
        for variable in environment.split("\0"):
            words = variable.split()
            if variable.startswith("SSH_CONNECTION=") and len(words) == 4 and words[3].isdigit():
                return int(words[3])
        # "pid (name) state ppid ...", and the name may hold anything
        stat = _text(f"{proc}/{process}/stat").rpartition(")")[2].split()
        if len(stat) < 2 or not stat[1].isdigit() or stat[1] in ("0", "1"):
            return 0
        process = int(stat[1])
    return 0


def management(proc: str = "/proc") -> Facts:
    """Return interface and IPv4 address of the default route, empty where there is none."""
    routes: list[tuple[int, str]] = []
    for line in _lines(f"{proc}/net/route")[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and int(fields[3], 16) & _RTF_UP:
            routes.append((int(fields[6]), fields[0]))
    interface = min(routes)[1] if routes else ""
    return {"interface": interface, "address": _address(interface) if interface else ""}


def _address(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def which(program: str) -> str | None:
    """Return the path of a program, also where sudo or a bare environment hides the system directories."""
    return shutil.which(program, path=_PATH)


def _version_of(command: t.Sequence[str]) -> str:
    """Return the first version number that a command prints, empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+\.\d+[.\d]*", done.stdout)
    return match.group(0) if match and done.returncode == 0 else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _lines(path: str) -> list[str]:
    return _text(path).splitlines()


def _first_line(path: str) -> str:
    return next(iter(_lines(path)), "").strip()
