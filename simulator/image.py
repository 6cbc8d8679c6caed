# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images: a Debian base that debootstrap makes (or a registry has), and the node image on top of it."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from docker import DockerClient
from docker.errors import APIError, ImageNotFound

from simulator.errors import SimulatorError
from simulator.report import say, step
from simulator.state import STATE_ROOT, lock

SUITE = "trixie"
BASE_PACKAGES = ("ca-certificates", "python3")
NODE_DIRECTORY = Path(__file__).parent / "node"
PACKAGE_FILES = ("__init__.py", "hardware.py", "node/__init__.py", "node/rdma_sysfs.py")
"""What of this package is installed on the nodes."""
LABEL = "io.sparksim.image"
WAIT = "another process builds a simulator image; waiting for it …"


def apt_mirror() -> str:
    """URL of the package mirror that this machine's apt uses, or nothing."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"]
    try:
        # not one of the security or updates repositories, if that can be told
        codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
        for only in ([f"Release: {codename}"], []):
            found = subprocess.run([*command, *only], check=True, capture_output=True, text=True).stdout.split()
            if found:
                return found[0]
    except (OSError, subprocess.CalledProcessError):
        pass
    return ""


def mirror_for(base_image: str) -> str:
    """URL of the package mirror that the node image is built with; empty for the base image's own source."""
    return "" if base_image else apt_mirror()


def apt_proxy() -> str:
    """URL of the proxy that this machine's apt uses, or nothing."""
    try:
        command = ["apt-config", "dump", "Acquire::http::Proxy"]
        text = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    except OSError:
        return ""
    match = re.search(r'^Acquire::http::Proxy "(.+)";$', text, re.MULTILINE)
    return match[1] if match else ""


def fingerprint(*parts: bytes | str) -> str:
    """A short digest of an image's inputs, for its tag."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def base_tag(mirror: str) -> str:
    """Tag of the base image that debootstrap makes from a mirror."""
    return f"sparksim/base:{SUITE}-{fingerprint(SUITE, *BASE_PACKAGES, platform.machine(), mirror)}"


def context_files() -> dict[str, bytes]:
    """Everything that goes into the node image, by its path in the build context."""
    files = {path.name: path.read_bytes() for path in NODE_DIRECTORY.iterdir() if path.is_file()}
    for name in PACKAGE_FILES:
        files[f"simulator/{name}"] = (NODE_DIRECTORY.parent / name).read_bytes()
    return files


def node_tag(base_id: str, mirror: str, files: dict[str, bytes]) -> str:
    """Tag of the node image: the same inputs give the same tag."""
    parts = [part for name in sorted(files) for part in (name, files[name])]
    return f"sparksim/node:{fingerprint(base_id, mirror, *parts)}"


def image_id(client: DockerClient, reference: str) -> str | None:
    """Id of a local image, or None."""
    try:
        return client.images.get(reference).id
    except ImageNotFound:
        return None


def debootstrap(mirror: str, target: str) -> None:
    """Install a minimal Debian into a directory, in a mount namespace of its own.

    :raises SimulatorError: debootstrap is missing or failed.
    """
    if shutil.which("debootstrap") is None:
        raise SimulatorError(
            "debootstrap is missing; install it (apt-get install debootstrap) or give --base-image IMAGE"
        )
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
    command += [SUITE, target, mirror]
    environment = {**os.environ, **({"http_proxy": apt_proxy()} if apt_proxy() else {})}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            output, _none = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        last = output.strip().splitlines()[-1] if output.strip() else "no output"
        raise SimulatorError(f"debootstrap {SUITE} from {mirror} failed ({last}); give --base-image IMAGE instead")


def import_tree(client: DockerClient, directory: str, tag: str) -> None:
    """Make an image of a directory.

    :raises SimulatorError: tar or the engine failed.
    """
    leave_out = ("./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*", "./var/log/*.log")
    command = ["tar", "-C", directory, *(f"--exclude={pattern}" for pattern in leave_out), "-c", "."]
    repository, _sep, name = tag.partition(":")
    changes = ["CMD /bin/bash", f"LABEL {LABEL}=base"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        client.api.import_image_from_stream(tar.stdout, repository=repository, tag=name, changes=changes)
    if tar.returncode or image_id(client, tag) is None:
        raise SimulatorError(f"could not make {tag}; see the engine's log")


def ensure_base(client: DockerClient, given: str = "") -> str:
    """Name of a base image that is there: the given one, pulled if need be, or our own, built if need be.

    :raises SimulatorError: it cannot be had.
    """
    if given:
        if image_id(client, given) is None:
            with step(f"pulling {given}"):
                try:
                    client.images.pull(given)
                except APIError as error:
                    raise SimulatorError(f"--base-image {given}: {error.explanation}; check its name") from error
        return given
    mirror = apt_mirror()
    if not mirror:
        raise SimulatorError("apt has no package mirror set up here; give --base-image IMAGE (Debian 13)")
    tag = base_tag(mirror)
    with lock("image", WAIT):
        if image_id(client, tag) is None:
            cache = STATE_ROOT / ".cache"
            cache.mkdir(parents=True, exist_ok=True)
            with (
                step(f"base image: debootstrap {SUITE}, about a minute"),
                tempfile.TemporaryDirectory(prefix="debootstrap-", dir=cache) as directory,
            ):
                debootstrap(mirror, directory)
                import_tree(client, directory, tag)
    return tag


def context_archive(files: dict[str, bytes]) -> io.BytesIO:
    """A build context as a tar; the same files give the same archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    buffer.seek(0)
    return buffer


def build(client: DockerClient, base: str, files: dict[str, bytes], tag: str, mirror: str) -> None:
    """Build the node image with the engine's classic builder.

    :raises SimulatorError: a step failed; its last lines are printed.
    """
    arguments = {"BASE": base, "APT_MIRROR": mirror, "APT_SUITE": SUITE}
    if apt_proxy():
        arguments["http_proxy"] = apt_proxy()
    output: list[str] = []
    events: Iterator[dict[str, str]] = client.api.build(
        fileobj=context_archive(files),
        custom_context=True,
        encoding=None,
        tag=tag,
        rm=True,
        forcerm=True,
        decode=True,
        buildargs=arguments,
        labels={LABEL: "node"},
    )
    for event in events:
        output += event.get("stream", "").splitlines()
        if "error" in event:
            for line in output[-20:]:
                say(f"  {line}")
            raise SimulatorError(f"node image: {event['error'].strip()}")


def ensure_node(client: DockerClient, base: str, mirror: str) -> str:
    """Tag of the node image for a base image that is there, built if need be.

    :param mirror: package mirror to use in the build; empty for the base image's own.
    :raises SimulatorError: the build failed.
    """
    files = context_files()
    tag = node_tag(image_id(client, base) or base, mirror, files)
    with lock("image", WAIT):
        if image_id(client, tag) is None:
            with step("node image: systemd, sshd, Docker Engine and the simulated hardware, about a minute"):
                build(client, base, files, tag, mirror)
    return tag


def ensure(client: DockerClient, base_image: str = "") -> tuple[str, str]:
    """Base and node image, both there.

    :param base_image: a registry's Debian 13 image; empty to make one with debootstrap.
    :raises SimulatorError: one cannot be had.
    """
    base = ensure_base(client, base_image)
    return base, ensure_node(client, base, mirror_for(base_image))
