# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plugin that leaves vLLM its handler of SIGTERM. It was run with the real Ray in the scenario `site`."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[3] / "files" / "image" / "site" / "sparkfleet_drain" / "__init__.py"


class FakeRay(ModuleType):
    """Changes the handler as ``ray.init`` does."""

    def __init__(self, error: str = "") -> None:
        super().__init__("ray")
        self.error, self.calls = error, 0
        self.init: Any = self._init

    def _init(self, address: str) -> str:
        self.calls += 1
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, raysown)
        if self.error:
            raise ConnectionError(self.error)
        return f"connected to {address}"


def raysown(_number: int, _frame: object) -> None:
    raise AssertionError("Ray's handler")


def vllms(_number: int, _frame: object) -> None:
    raise AssertionError("vLLM's handler")


@pytest.fixture(name="plugin")
def fixture_plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("EXECUTOR", "ray")
    spec = importlib.util.spec_from_file_location("sparkfleet_drain", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="ray")
def fixture_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.getsignal(signal.SIGTERM)
    yield ray
    signal.signal(signal.SIGTERM, before)


def test_vllms_handler_stays(plugin: ModuleType, ray: FakeRay) -> None:
    signal.signal(signal.SIGTERM, vllms)
    plugin.register()
    assert ray.init("auto") == "connected to auto"
    assert signal.getsignal(signal.SIGTERM) is vllms


def test_it_stays_where_ray_is_not_there_yet(plugin: ModuleType, ray: FakeRay) -> None:
    signal.signal(signal.SIGTERM, vllms)
    ray.error = "no Ray instance"
    plugin.register()
    with pytest.raises(ConnectionError):
        ray.init("auto")
    assert signal.getsignal(signal.SIGTERM) is vllms


def test_a_process_without_a_handler_gets_rays(plugin: ModuleType, ray: FakeRay) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    plugin.register()
    ray.init("auto")
    assert signal.getsignal(signal.SIGTERM) is raysown


def test_another_thread_changes_nothing(plugin: ModuleType, ray: FakeRay) -> None:
    signal.signal(signal.SIGTERM, vllms)
    plugin.register()
    thread = threading.Thread(target=ray.init, args=("auto",))
    thread.start()
    thread.join()
    assert ray.calls == 1
    assert signal.getsignal(signal.SIGTERM) is vllms


def test_it_wraps_once(plugin: ModuleType, ray: FakeRay) -> None:
    plugin.register()
    once = ray.init
    plugin.register()
    assert ray.init is once


@pytest.mark.parametrize("executor", ["", "mp"])
def test_without_ray_it_is_not_even_imported(
    plugin: ModuleType, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    monkeypatch.setenv("EXECUTOR", executor)
    plain = ray.init
    plugin.register()
    assert ray.init == plain
