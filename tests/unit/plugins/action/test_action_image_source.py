# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role image hands to image_state of a build from source, and of mods."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible_collections.sparkfleet.vllm.plugins.action import image_state

NODE: dict[str, Any] = {
    **image_state.NOTHING,
    "machine": "x86_64",
    "docker_root": "/var/lib/docker",
    "free_bytes": 10**12,
    "pull_error": "",
}
SOURCE = {"build": "source", "vllm_ref": "v0.20.2", "vllm_repository": "https://example.org/vllm.git"}


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Return an image directory whose lock is empty."""
    directory = tmp_path / "image"
    (directory / "cpu").mkdir(parents=True)
    (directory / "Dockerfile").write_text("FROM scratch\n")
    (directory / "cpu" / "requirements-x86_64.lock").write_text("")
    return directory


def build(context: Path, source: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the result for a node that would build."""
    given = {"directory": str(context), "variant": "cpu", "base": "debian:12", "builds": True, "source": source}
    task = MagicMock(args={**given, **options}, async_val=0, check_mode=False, diff=False)
    plugin = image_state.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    plugin._execute_module = MagicMock(return_value=NODE)
    result: dict[str, Any] = plugin.run(task_vars={})
    return result


def mod(directory: Path, text: str = "true\n") -> str:
    """Write a mod; return its path."""
    directory.mkdir(exist_ok=True)
    (directory / "run.sh").write_text(text)
    return str(directory)


def test_what_is_built_is_in_the_key(context: Path) -> None:
    plain, source = build(context, {})["plan"], build(context, SOURCE)["plan"]
    assert "BUILD" not in plain["args"]
    assert (source["args"]["BUILD"], source["args"]["VLLM_REF"]) == ("source", "v0.20.2")
    assert source["labels"]["org.opencontainers.image.version"] == "v0.20.2"
    assert source["key"] != plain["key"]
    assert build(context, SOURCE | {"vllm_prs": [7]})["plan"]["key"] != source["key"]


def test_how_it_is_built_is_not(context: Path) -> None:
    given = SOURCE | {"build_jobs": "4", "rebuild": ["vllm"]}
    one, two = build(context, given)["plan"], build(context, given)["plan"]
    assert one["args"]["BUILD_JOBS"] == "4"
    assert one["args"]["REBUILD_VLLM"] != two["args"]["REBUILD_VLLM"]
    assert one["key"] == two["key"] == build(context, SOURCE)["plan"]["key"]


def test_what_is_wrong_is_said_at_once(context: Path) -> None:
    result = build(context, SOURCE | {"vllm_ref": "", "build_jobs": -1, "mods": ["/nowhere"]})
    assert [line.split(" ")[0] for line in result["problems"]] == ["image_build", "image_build_jobs", "image_mods:"]
    assert result["plan"] == {}


def test_none_needs_an_image(context: Path) -> None:
    assert "give it as image_ref" in build(context, {"build": "none"})["problems"][0]
    assert build(context, {"build": "none"}, reference="vllm:1")["problems"] == []


def test_a_wheelhouse_without_the_release(context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    release = SOURCE | {"vllm_ref": "0.20.2"}
    assert build(context, release, wheelhouse=str(wheels))["problems"] == [
        f"the wheelhouse {wheels} lacks vllm-0.20.2.tar.gz; put the release's source distribution there"
    ]
    (wheels / "vllm-0.20.2.tar.gz").touch()
    assert build(context, release, wheelhouse=str(wheels))["problems"] == []


def test_mods_are_in_the_key_with_their_order(context: Path, tmp_path: Path) -> None:
    mods = [mod(tmp_path / "one"), mod(tmp_path / "two", "echo two\n")]
    plan = build(context, {"mods": mods})["plan"]
    assert (plan["args"]["MODS"], plan["mods"]) == ("some", ["01-one", "02-two"])
    keys = {plan["key"], build(context, {"mods": mods[::-1]})["plan"]["key"], build(context, {})["plan"]["key"]}
    mod(tmp_path / "two", "echo other\n")
    keys.add(build(context, {"mods": mods})["plan"]["key"])
    assert len(keys) == 4
