# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is cut off in the middle of the image's copy, and a second run that comes too early."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.scenario import ENVIRONMENT, INVENTORY, PROJECT, ansible_playbook, on_node

SITE = ["ansible-playbook", "site.yml", "-i", str(INVENTORY)]
COPY_TIMEOUT_S = 900


def sharing() -> bool:
    """Whether the head is handing its image out."""
    return on_node("spark-01", "systemctl is-active spark-image-share.service || true").strip() == "active"


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A run of site.yml that has built the image and is now copying it to the worker."""
    log = tmp_path_factory.mktemp("interrupt") / "log"
    with log.open("wb") as stream:
        run = subprocess.Popen(
            SITE, cwd=PROJECT, env=ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + COPY_TIMEOUT_S
    try:
        while not sharing():
            assert run.poll() is None, f"the run ended before it copied anything: {log.read_text()}"
            assert time.monotonic() < deadline, "the run did not come to the copy"
            time.sleep(0.5)
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_a_second_run_is_refused_with_one_line(copying: subprocess.Popen[bytes]) -> None:
    second = ansible_playbook("site.yml")
    assert second.returncode != 0
    assert "another run by" in second.stdout
    assert "changed=0" in second.stdout and "changed=1" not in second.stdout
    assert copying.poll() is None, "the first run must go on"


def test_ctrl_c_ends_the_run(copying: subprocess.Popen[bytes]) -> None:
    os.killpg(copying.pid, signal.SIGINT)
    assert copying.wait(timeout=120) != 0


def test_the_worker_has_no_half_image_under_a_name(copying: subprocess.Popen[bytes]) -> None:
    # Parts may stay, without a tag: the next run goes on from them.
    tags = on_node("spark-02", "docker images --format '{{.Tag}}'").split()
    assert set(tags) <= {"<none>"}
