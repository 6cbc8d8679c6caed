# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same pair without Ray: tensors, layers and copies over both nodes, by changed variables and a run.

Ray with two tensor ranks is what the rest of the scenario used.
"""

from __future__ import annotations

import datetime
import ipaddress
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.scenario import address, ansible_playbook, api_key, ask, on_node, site

RECIPE = """
recipe_version: "1"
model: example-lab/Tiny
container: vllm-node
defaults: {tensor_parallel: 2, tokens: 640}
env: {VLLM_LOGGING_LEVEL: WARNING}
command: |
  vllm serve {model} -tp {tensor_parallel} --distributed-executor-backend mp \\
    --max-num-batched-tokens {tokens} --max-model-len 99
"""
# The CPU's model runner has no buffer for what another stage sends while compilation is off altogether.
LAYERS: dict[str, Any] = {
    "serve_executor": "mp",
    "serve_tensor_parallel_size": 1,
    "serve_pipeline_parallel_size": 2,
    "serve_extra_args": ["-cc.mode=1", "-cc.backend=eager"],
    "serve_extra_env": {"TORCHDYNAMO_DISABLE": "0"},
}
COPIES = {"serve_executor": "mp", "serve_tensor_parallel_size": 1, "serve_data_parallel_size": 2}


def switched_by(**variables: Any) -> None:
    """Switch to an executor without Ray by changed variables and a run, and see that it serves."""
    site(**variables)
    assert ask("spark-01", api_key()) > 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("spark-01", "")
    assert refused.value.code == 401
    for node in ("spark-01", "spark-02"):
        assert on_node(node, "docker ps --format '{{.Names}}'").split() == ["spark-vllm-tiny"], "and no Ray"
    ended = on_node("spark-02", "ss -Htn state established")
    assert "192.168.177.11:" in ended, "over the fabric"
    assert set(site(**variables).values()) == {0}


def test_a_recipe_and_a_run_switch_the_executor(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    switched_by(serve_recipe=str(recipe))
    for node in ("spark-01", "spark-02"):
        running = on_node(node, "ps -eo args; docker inspect spark-vllm-tiny")
        assert "--tensor-parallel-size=2" in running and "--max-num-batched-tokens=640" in running
        assert "--max-model-len=99" not in running, "the inventory says 512"
        assert "VLLM_LOGGING_LEVEL=WARNING" in running
    shown = ansible_playbook("playbooks/recipe.yml", serve_recipe=str(recipe)).stdout
    assert "--max-num-batched-tokens=640" in shown and "container vllm-node is left out" in shown


def test_changed_variables_and_a_run_switch_the_executor() -> None:
    switched_by(**LAYERS)


def self_signed(target: Path) -> str:
    """Write a certificate for the head's management address; return its key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "atlas")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address("spark-01")))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    target.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def test_copies_answer_over_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    key = self_signed(certificate)
    variables = {**COPIES, "serve_tls_certificate": certificate.read_text(), "serve_tls_key": key}
    site(**variables)
    assert ask("spark-01", api_key(), ca=certificate) > 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("spark-01", "", ca=certificate)
    assert refused.value.code == 401
    with pytest.raises(OSError):
        ask("spark-01", api_key())
    for node in ("spark-01", "spark-02"):
        assert on_node(node, "docker ps --format '{{.Names}}'").split() == ["spark-vllm-tiny"], "and no Ray"
    shown = on_node("spark-01", "ps -eo args; docker ps -q | xargs docker inspect; systemctl cat 'spark-*'")
    assert key.splitlines()[1] not in shown
    status = ansible_playbook("playbooks/status.yml", **variables)
    assert status.returncode == 0, status.stdout
    assert set(site(**variables).values()) == {0}


def test_ray_comes_back_the_same_way() -> None:
    site()
    assert ask("spark-01", api_key()) > 0
    assert on_node("spark-02", "docker ps --format '{{.Names}}'").split() == ["spark-ray"]
