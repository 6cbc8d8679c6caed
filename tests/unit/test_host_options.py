# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line."""

from __future__ import annotations

import pytest

from files.host.sparkfleet_host.cli import main, unit_name
from files.host.sparkfleet_host.options import UsageError, parse

RUN = ["--", "/usr/bin/docker", "run", "--name", "spark-vllm-tiny", "--", "image"]
ONE = ["--name", "vllm-tiny", "--container", "spark-vllm-tiny"]
KEY = ["--key-file", "/etc/sparkfleet/atlas/group-token"]
LEAD = ["--listen", "192.168.177.11:6400", "--members", "spark-02,spark-03", *KEY]
FOLLOW = ["--leader", "192.168.177.11:6400", "--member", "spark-02", *KEY]
PROBE = ["--probe-url", "http://127.0.0.1:8888/", "--probe-model", "tiny"]


def test_a_single_node() -> None:
    options = parse([*ONE, *PROBE, *RUN], "spark-01")
    assert (options.role, options.node, options.command) == ("single", "spark-01", tuple(RUN[1:]))
    assert (options.restart_limit, options.restart_window, options.probe_url) == (5, 1800, "http://127.0.0.1:8888")


def test_a_leader() -> None:
    options = parse([*ONE, *LEAD, *PROBE, "--heartbeat=0.5", *RUN], "spark-01")
    assert (options.role, options.node, options.members) == ("leader", "spark-01", ("spark-02", "spark-03"))
    assert (options.host, options.port, options.address) == ("192.168.177.11", 6400, "192.168.177.11:6400")
    assert options.heartbeat == 0.5


def test_a_member() -> None:
    options = parse([*ONE, *FOLLOW, *RUN], "gx10-4711")
    assert (options.role, options.node, options.member) == ("member", "spark-02", "spark-02")
    assert parse([*ONE, "--leader=[fd00::1]:6400", "--member=b", *KEY, *RUN], "x").address == "[fd00::1]:6400"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([*RUN], "required"),
        ([*ONE], "no container to run"),
        ([*ONE, "--"], "no container to run"),
        ([*ONE, *LEAD, *FOLLOW, *RUN], "exclude each other"),
        ([*ONE, *LEAD[:2], *KEY, *RUN], "--listen and --members"),
        ([*ONE, *LEAD[2:], *RUN], "--listen and --members"),
        ([*ONE, *FOLLOW[:2], *KEY, *RUN], "--leader and --member"),
        ([*ONE, *LEAD[:4], *RUN], "--key-file is missing"),
        ([*ONE, *FOLLOW, *PROBE, *RUN], "a member does not ask"),
        ([*ONE, *PROBE[:2], *RUN], "--probe-model is missing"),
        ([*ONE, "--probe-url=ftp://x", "--probe-model=tiny", *RUN], "no http or https URL"),
        ([*ONE, "--probe-url=http://x:99999", "--probe-model=tiny", *RUN], "no http or https URL"),
        ([*ONE, "--probe-failures=0", *RUN], "--probe-failures"),
        ([*ONE, "--heartbeat=5", "--heartbeat-timeout=9", *RUN], "two heartbeats"),
        ([*ONE, "--heartbeat=0", *RUN], "--heartbeat"),
        ([*ONE, "--stop-timeout=-1", *RUN], "--stop-timeout"),
        ([*ONE, "--stop-timeout=nan", *RUN], "--stop-timeout"),
        ([*ONE, "--restart-limit=1.5", *RUN], "--restart-limit"),
        ([*ONE, "--listen=192.168.177.11", "--members=b", *KEY, *RUN], "no ADDRESS:PORT"),
        ([*ONE, "--listen=spark-01:6400", "--members=b", *KEY, *RUN], "no ADDRESS:PORT"),
        ([*ONE, "--listen=192.168.177.11:0", "--members=b", *KEY, *RUN], "no ADDRESS:PORT"),
        ([*ONE, "--listen=1.2.3.4:5", "--members=b,b", *KEY, *RUN], "names a node twice"),
        ([*ONE, "--listen=1.2.3.4:5", "--members=b,", *KEY, *RUN], "is no name"),
        ([*ONE, "--listen=1.2.3.4:5", "--members=here", *KEY, *RUN], "leads the group and is in --members"),
        ([*ONE, "--name=../x", *RUN], "is no name"),
        ([*ONE, "--unknown", *RUN], "unrecognized arguments"),
        ([*ONE, "--heart=1", *RUN], "unrecognized arguments"),
        ([*ONE, "extra", *RUN], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=text):
        parse(arguments, "here")
    if text != "leads the group and is in --members":
        assert main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("sparkfleet: ") and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-spark\\x2dvllm.slice/spark-vllm@tiny.service\n", "spark-vllm@tiny"),
        ("12:pids:/system.slice/spark-ray.service\n0::/system.slice/spark-ray.service\n", "spark-ray"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("", ""),
    ],
)
def test_the_unit_is_known(cgroup: str, unit: str) -> None:
    assert unit_name(cgroup) == unit
