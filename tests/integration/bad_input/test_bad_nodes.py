# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only nodes or files can show is said for all hosts at once, before anything is changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bad_input.fleet import Pair
from tests.integration.bad_input.playbook import (
    ASSETS,
    CONVERGE,
    Outcome,
    assert_refused,
    cluster,
    host,
    merged,
    site,
    write_inventory,
)

pytestmark = pytest.mark.usefixtures("untouched")

BUILDX = "/usr/libexec/docker/cli-plugins/docker-buildx"
SUDOERS = "/etc/sudoers.d/nvidia"
NO_BUILDX = "docker buildx is missing; install docker-buildx-plugin (docker-buildx on Debian and Ubuntu's docker.io)"

Run = Callable[..., Outcome]


@pytest.fixture
def run(pair: Pair, tmp_path: Path) -> Run:
    """Run site.yml on the pair with changes laid over its inventory."""

    def run_site(*changes: dict[str, Any]) -> Outcome:
        content: Any = pair.inventory
        for change in changes:
            content = merged(content, change)
        return site(write_inventory(tmp_path, content))

    return run_site


def test_control_without_fault_nothing_is_refused(pair: Pair, tmp_path: Path) -> None:
    outcome = site(write_inventory(tmp_path, pair.inventory), "--check", "--tags", "always", hold=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.converging, f"{CONVERGE} is not what it is called any more"


# --- the inventory against the nodes -------------------------------------------------------------------------------

INVENTORY_CASES = {
    "interface does not exist": (
        host("spark-02", fabric_interface="enp9s0"),
        "spark-02: fabric_interface: there is no interface enp9s0; this host has … enp1s0f0np0 …",
    ),
    "interface down": (
        host("spark-02", fabric_interface="enp1s0f1np1"),
        "spark-02: fabric_interface: enp1s0f1np1 has no carrier; plug its cable or name another interface",
    ),
    "HCA does not exist": (
        host("spark-01", fabric_hcas=["mlx5_9"]),
        "spark-01: fabric_hcas: there is no RDMA device mlx5_9; this host has … rocep1s0f0, rocep1s0f1",
    ),
    "HCA down": (
        host("spark-01", fabric_hcas=["rocep1s0f1"]),
        "spark-01: fabric_hcas: rocep1s0f1 is down (enp1s0f1np1); plug a QSFP cable, or name one of "
        "roceP2p1s0f0, rocep1s0f0",
    ),
    "disk too small": (
        host("spark-02", host_min_disk_gb=100000),
        # The simulated node has a file system of its own for Docker.
        "spark-02: disk has … GiB free for /var/lib/docker; make room for 100000 GiB or lower host_min_disk_gb",
        "spark-02: disk has … GiB free for /var/lib/sparkfleet; make room for 100000 GiB or lower host_min_disk_gb",
    ),
    "disk too small for the image": (
        host("spark-02", image_min_disk_gb=100000),
        "spark-02: disk too small for the image: … GB free in /var/lib/docker, 100000 GB needed; make room, or lower "
        "image_min_disk_gb",
    ),
    "model path missing on a node": (
        cluster(model_path="/srv/models/nothing"),
        "spark-01: model_path /srv/models/nothing is no directory on this node; put the model there or unset "
        "model_path",
        "spark-02: model_path /srv/models/nothing is no directory on this node; put the model there or unset "
        "model_path",
    ),
    "a model missing on the node that is to serve it": (
        cluster(
            serve_models=[
                {"name": "chat", "nodes": ["spark-01"]},
                {"name": "embed", "nodes": ["spark-02"], "path": "/srv/models/nothing"},
            ]
        ),
        "spark-02: model_path /srv/models/nothing is no directory on this node; put the model there or unset "
        "model_path",
    ),
}


@pytest.mark.parametrize(("change", "reasons"), [(c, r) for c, *r in INVENTORY_CASES.values()], ids=INVENTORY_CASES)
def test_inventory_that_does_not_fit_the_nodes(run: Run, change: dict[str, Any], reasons: list[str]) -> None:
    assert_refused(run(change), *reasons)


def test_cuda_image_without_gpu(run: Run) -> None:
    reason = "no NVIDIA GPU is there (driver or /dev/nvidia* missing); install the driver or set image_variant to cpu"
    outcome = run(cluster(image_variant="cuda"))
    # The CUDA image asks more of a node than a GPU: this one also has the wrong processor for it.
    assert_refused(outcome, f"spark-01: {reason}", f"spark-02: {reason}", among_others=True)


# --- nodes that are not as they should be --------------------------------------------------------------------------


def no_sudo(pair: Pair) -> AbstractContextManager[None]:
    # Membership in the group sudo is left: what is asked for then is a password.
    return pair.worker.without(SUDOERS)


def no_engine_installed(pair: Pair) -> AbstractContextManager[Any]:
    stack = ExitStack()
    stack.enter_context(pair.worker.without_engine())
    stack.enter_context(pair.worker.without("/usr/bin/docker", "/usr/sbin/dockerd", "/run/docker.sock"))
    return stack


NODE_CASES: dict[str, tuple[Callable[[Pair], AbstractContextManager[Any]], list[str]]] = {
    "no cable": (
        lambda pair: pair.unplugged(),
        [
            f"spark-0{node}: no cable of the cluster ends at this node; plug one into it and spark-0{3 - node}"
            for node in (1, 2)
        ],
    ),
    "Docker not running": (
        lambda pair: pair.worker.without_engine(),
        ["spark-02: Docker is not running; systemctl enable --now docker"],
    ),
    "Docker not installed": (
        no_engine_installed,
        ["spark-02: Docker is missing; install Docker Engine 24.0 or later with buildx"],
    ),
    "no buildx": (
        lambda pair: pair.head.without(BUILDX),
        [f"spark-01: {NO_BUILDX}"],
    ),
    "no permission": (
        no_sudo,
        ["spark-02: sudo asks nvidia for a password; allow sudo without one, or give --ask-become-pass"],
    ),
}


@pytest.mark.parametrize(("fault", "reasons"), NODE_CASES.values(), ids=NODE_CASES)
def test_node_that_is_not_fit(
    run: Run, pair: Pair, fault: Callable[[Pair], AbstractContextManager[Any]], reasons: list[str]
) -> None:
    with fault(pair):
        outcome = run()
    assert_refused(outcome, *reasons)


def test_ports_taken_by_someone_else(run: Run, pair: Pair) -> None:
    variables = {6379: "ray_port", 8265: "ray_dashboard_port", 8888: "serve_port"}
    with pair.head.listening(*variables) as pids:
        outcome = run()
    assert_refused(
        outcome,
        *(
            f"spark-01: port {port} is taken by python3 (pid {pids[port]}); stop it or set {variable}"
            for port, variable in variables.items()
        ),
    )


def test_ports_of_models_are_taken_on_their_leaders(run: Run, pair: Pair) -> None:
    entries = [{"name": "chat", "nodes": ["spark-01"], "port": 8890}, {"name": "embed", "nodes": ["spark-02"]}]
    # 8888 is embed's, on the other node, and no model needs Ray.
    with pair.head.listening(8888, 8890, 6379) as pids:
        outcome = run(cluster(serve_models=entries))
    assert_refused(outcome, f"spark-01: port 8890 is taken by python3 (pid {pids[8890]}); stop it or set serve_port")


def test_model_that_does_not_fit(run: Run) -> None:
    outcome = run(cluster(serve_kv_cache_memory_bytes="4000G"))
    assert_refused(
        outcome,
        "spark-01: tiny does not fit: the node lacks … GiB of memory, with what runs beside vLLM: it would freeze; "
        "kv_cache_memory_bytes …G fits",
        "    kv_cache_memory_bytes  …4000.0 GiB  enough",
        "    the node has … GiB  … GiB too little",
        among_others=True,  # the rest of the sum
    )


def test_reasons_of_all_hosts_are_shown_at_once(run: Run, pair: Pair) -> None:
    with pair.head.listening(8888) as pids, pair.worker.without(BUILDX):
        outcome = run(host("spark-02", host_min_memory_gb=100000))
    assert_refused(
        outcome,
        f"spark-01: port 8888 is taken by python3 (pid {pids[8888]}); stop it or set serve_port",
        f"spark-02: {NO_BUILDX}",
        "spark-02: memory is … GiB; use a machine with 100000 GiB or lower host_min_memory_gb",
    )


def test_unreachable_host_does_not_hide_the_others(run: Run) -> None:
    nobody_listens = host("spark-02", ansible_port=1)
    outcome = run(nobody_listens, host("spark-01", host_min_memory_gb=100000))
    assert_refused(
        outcome,
        "spark-01: memory is … GiB; use a machine with 100000 GiB or lower host_min_memory_gb",
        "spark-02: unreachable over SSH (…Connection refused); check ansible_host, the key, and that the machine is on",
    )


# --- files on the controller ---------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(ASSETS / "tiny-model", tmp_path / "tiny-model"))


def judged(model: Path, problem: str) -> list[str]:
    """Return the line for each node that would have got this model."""
    return [f"spark-0{node}: model {model}: {problem}; copy or download the model again" for node in (1, 2)]


def test_model_that_does_not_match_its_checksums(run: Run, model: Path) -> None:
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    (model / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {weights.name}\n")
    content[-1] ^= 1
    weights.write_bytes(content)
    outcome = run(cluster(serve_model=str(model)))
    assert_refused(outcome, *judged(model, "model.safetensors does not match SHA256SUMS"))


def test_one_of_two_models_that_does_not_match_its_checksums(run: Run, model: Path) -> None:
    other = model.rename(model.with_name("other-model"))
    (other / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    outcome = run(cluster(serve_models=[{"name": "chat"}, {"name": "embed", "model": str(other)}]))
    # It goes to the second node only.
    assert_refused(outcome, judged(other, "config.json does not match SHA256SUMS")[1])


def test_model_that_is_truncated(run: Run, model: Path) -> None:
    weights = model / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    outcome = run(cluster(serve_model=str(model)))
    problem = f"is truncated or damaged: its header asks for {size} bytes, the file has {size - 1}"
    assert_refused(outcome, *judged(model, f"model.safetensors {problem}"))


def test_wheelhouse_that_lacks_a_wheel(run: Run, tmp_path: Path) -> None:
    wheelhouse = tmp_path / "wheelhouse"
    wheelhouse.mkdir()
    for wheel in (ASSETS / "wheelhouse").iterdir():
        if not wheel.name.startswith("ray-"):
            (wheelhouse / wheel.name).symlink_to(wheel)
    outcome = run(cluster(image_wheelhouse=str(wheelhouse)))
    assert_refused(
        outcome, f"spark-01: the wheelhouse {wheelhouse} lacks ray 2.60.0; fill it from the lock of the variant"
    )
