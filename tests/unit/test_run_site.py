# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""examples/run_site.py: what it makes of ansible-runner's events, and three real runs.

The events in data/run_site/ were recorded from the small collection that write_project() makes, by
``PYTHONPATH=. python tests/unit/test_run_site.py``; a test below holds them against a real run, so that they
cannot grow old.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples import run_site
from examples.run_site import PHASES, Cancel, Progress, State, View

REPOSITORY = Path(__file__).resolve().parents[2]

SCRIPT = REPOSITORY / "examples" / "run_site.py"
RECORDINGS = Path(__file__).parent / "data" / "run_site"

PROJECT = {
    "inventory.yml": """
        sparks:
          hosts:
            spark-01: {ansible_connection: local}
            spark-02: {ansible_connection: local}
          vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
        """,
    "unreachable.yml": """
        sparks:
          hosts:
            spark-01: {ansible_connection: local}
            # Nothing listens on port 1.
            spark-02: {ansible_host: 127.0.0.1, ansible_port: 1}
          vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
        """,
    "troubles.yml": """
        - hosts: sparks
          gather_facts: false
          tasks:
            - {name: Reach, ansible.builtin.ping: }
            - {name: Ignored, ansible.builtin.command: "false", ignore_errors: true}
            - name: Hidden
              ansible.builtin.fail: {msg: the password is secret}
              no_log: true
              when: hidden | default(false) | bool
            - name: Arguments
              ansible.builtin.import_role: {name: demo.fleet.ray}
              when: arguments | default(false) | bool
            - name: Each
              ansible.builtin.command: "sh -c 'echo broken {{ item }} >&2; exit {{ item }}'"
              loop: [0, 3, 4]
        """,
    "wait.yml": """
        - hosts: sparks
          gather_facts: false
          tasks:
            - name: Say who waits, and wait
              ansible.builtin.command: "sh -c 'echo $$ >{{ pipe }}; exec sleep 3600'"
        """,
    "{roles}/host/tasks/preflight.yml": """
        - name: Read the machine
          ansible.builtin.set_fact: {__host_preflight: {problems: []}}
        """,
    "{roles}/fabric/tasks/preflight.yml": """
        - name: Read the fabric
          ansible.builtin.set_fact: {__fabric_preflight: {problems: []}}
        """,
    "{roles}/host/handlers/main.yml": """
        - {name: Restart it, ansible.builtin.command: "true", changed_when: true}
        """,
    "{roles}/host/tasks/main.yml": """
        - name: Write it
          ansible.builtin.command: "true"
          changed_when: true
          notify: Restart it
        """,
    "{roles}/fabric/tasks/main.yml": """
        - {name: Include more, ansible.builtin.include_tasks: more.yml}
        - {name: Flush, ansible.builtin.meta: flush_handlers}
        """,
    "{roles}/fabric/tasks/more.yml": """
        - {name: Skipped, ansible.builtin.command: "true", when: false}
        - name: Each
          ansible.builtin.command: "echo {{ item }}"
          loop: [a, b]
          changed_when: item == 'b'
        - name: Try
          block:
            - {name: Fails and is rescued, ansible.builtin.fail: {msg: rescued}}
          rescue:
            - {name: Rescue, ansible.builtin.debug: {msg: all is well}}
        """,
    "{roles}/ray/meta/argument_specs.yml": """
        argument_specs:
          main:
            options:
              ray_port: {type: int, required: true}
              ray_mode: {type: str, choices: [a, b], default: c}
        """,
    "{roles}/ray/tasks/main.yml": """
        - {name: Never reached, ansible.builtin.debug: }
        """,
    "{roles}/serve/tasks/main.yml": """
        - name: Hand on
          ansible.builtin.set_fact: {serve_url: "http://10.0.0.1:8888"}
        - name: Stop where told
          ansible.builtin.fail:
            msg: "port 8888 is taken; stop what listens there"
          when: wrong | default(false) | bool and inventory_hostname == 'spark-02'
        """,
    "{collection}/playbooks/site.yml": """
        - name: Judge
          hosts: sparks
          gather_facts: false
          any_errors_fatal: true
          tasks:
            - name: Run each role's preflight
              ansible.builtin.include_role: {name: "demo.fleet.{{ role_name }}", tasks_from: preflight}
              loop: [host, fabric]
              loop_control: {loop_var: role_name}
        - name: Converge
          hosts: sparks
          gather_facts: false
          any_errors_fatal: true
          tasks:
            - {name: Host, ansible.builtin.import_role: {name: demo.fleet.host}}
            - {name: Fabric, ansible.builtin.import_role: {name: demo.fleet.fabric}}
            - {name: Serve, ansible.builtin.import_role: {name: demo.fleet.serve}}
        """,
}

RUNS = {
    "ok": ["demo.fleet.site", "-i", "inventory.yml"],
    "failed": ["demo.fleet.site", "-i", "inventory.yml", "-e", "wrong=true"],
    "troubles": ["troubles.yml", "-i", "unreachable.yml"],
    "hidden": ["troubles.yml", "-i", "inventory.yml", "--limit", "spark-01", "-e", "hidden=true"],
    "arguments": ["troubles.yml", "-i", "inventory.yml", "--limit", "spark-01", "-e", "arguments=true"],
    "refused": ["demo.fleet.nothing", "-i", "inventory.yml"],
}


# Of the events' data.
UNUSED = {"uuid", "task_uuid", "task_path", "start", "end", "duration", "remote_addr", "event_loop"}


def write_project(directory: Path) -> None:
    collection = "ansible_collections/demo/fleet"
    for name, text in PROJECT.items():
        path = directory / name.format(collection=collection, roles=f"{collection}/roles")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")


def record() -> None:
    """Write data/run_site/*.jsonl anew: the parts of the events that run_site.py may look at."""
    import ansible_runner  # type: ignore[import-untyped]

    RECORDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        write_project(Path(directory))
        for name, (playbook, *options) in RUNS.items():
            events: list[dict[str, Any]] = []
            private = Path(directory, f"private-{name}")
            private.mkdir()
            ansible_runner.run(
                private_data_dir=str(private),
                project_dir=directory,
                playbook=playbook,
                cmdline=" ".join(options),
                envvars={
                    "ANSIBLE_COLLECTIONS_PATH": directory,
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                },
                quiet=True,
                event_handler=lambda event, events=events: events.append(event) or True,
            )
            with (RECORDINGS / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for event in events:
                    print(json.dumps(shortened(event)).replace(directory, "/project"), file=file)


def shortened(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event without what differs from run to run and is of no use here."""
    if event["event"] in ("verbose", "error", "warning"):
        return {"event": event["event"], "stdout": event["stdout"]}
    data = event["event_data"]
    kept = {key: value for key, value in data.items() if key not in UNUSED and not key.startswith("playbook")}
    results = [kept.get("res") or {}]
    for result in [*results, *results[0].get("results", [])]:
        result.pop("invocation", None)
    return {"event": event["event"], "pid": event["pid"], "event_data": kept}


def replay(name: str) -> tuple[Progress, list[str]]:
    """Feed a recording to a Progress and return it with the lines that a log would have."""
    progress = Progress()
    lines: list[str] = []
    for line in (RECORDINGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        lines += progress.feed(json.loads(line))
    return progress, lines


def states(progress: Progress) -> dict[str, dict[str, State]]:
    return {
        row.host: {phase: state for phase, (state, _cell) in zip(PHASES, row.cells, strict=True)}
        for row in progress.rows()
    }


# --- events to state -------------------------------------------------------------------------------------------------


def test_a_good_run_fills_the_phases_that_had_tasks() -> None:
    progress = replay("ok")[0]
    done = {"preflight", "host", "fabric", "serve"}
    expected = {phase: State.DONE if phase in done else State.PENDING for phase in PHASES}
    assert states(progress) == {"spark-01": expected, "spark-02": expected}
    assert progress.reasons() == []


def test_a_role_included_as_preflight_is_not_taken_for_the_role() -> None:
    progress, lines = replay("ok")
    first = next(index for index, line in enumerate(lines) if line == "spark-01: host: begins")
    assert "spark-01: preflight: begins" in lines[:first]
    host = progress.hosts["spark-01"].cells["host"]
    # The task and its handler; the preflight's set_fact is elsewhere.
    assert (host.ok, host.changed) == (2, 2)


def test_counts_and_the_url() -> None:
    progress = replay("ok")[0]
    row = progress.rows()[0]
    assert (row.changed, row.failed, row.task) == (3, 0, "")
    assert progress.urls == ["http://10.0.0.1:8888"]


def test_the_reason_of_a_failure_names_its_host_and_rescued_ones_are_gone() -> None:
    progress = replay("failed")[0]
    assert progress.reasons() == ["spark-02: port 8888 is taken; stop what listens there"]
    assert states(progress)["spark-02"]["serve"] is State.FAILED
    assert states(progress)["spark-02"]["fabric"] is State.DONE
    assert states(progress)["spark-01"]["serve"] is State.DONE
    assert [row.failed for row in progress.rows()] == [0, 1]


def test_loops_unreachable_hosts_and_ignored_errors() -> None:
    progress, lines = replay("troubles")
    assert "spark-02: Reach: unreachable" in lines
    assert "spark-01: Ignored: changed" in lines and "spark-01: Ignored: failed" not in lines
    reasons = progress.reasons()
    assert reasons[:2] == [
        "spark-01: task 'Each' failed with status 3: broken 3",
        "spark-01: task 'Each' failed with status 4: broken 4",
    ]
    assert len(reasons) == 3
    assert reasons[2].startswith("spark-02: ") and "Connection refused" in reasons[2]


def test_nothing_hidden_is_shown() -> None:
    assert replay("hidden")[0].reasons() == ["spark-01: task 'Hidden' failed; its output is hidden by no_log"]


def test_wrong_role_arguments_are_one_line_each() -> None:
    reasons = replay("arguments")[0].reasons()
    assert len(reasons) == 2
    assert all(line.startswith("spark-01: ") for line in reasons)
    assert any("ray_port" in line for line in reasons) and any("ray_mode" in line for line in reasons)


def test_a_run_that_never_began_says_what_ansible_complained_of() -> None:
    assert replay("refused")[0].reasons() == ["the playbook: demo.fleet.nothing could not be found"]


def verdict(action: str, message: str) -> Progress:
    """Return what becomes of the recorded failure when ``action`` fails with ``message``."""
    progress = Progress()
    for line in (RECORDINGS / "failed.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        data = event["event_data"]
        if data.get("task") == "Stop where told":
            data["resolved_action"] = action
            if "res" in data:
                data["res"]["msg"] = message
        progress.feed(event)
    return progress


def test_the_verdict_speaks_for_all_hosts() -> None:
    message = "spark-09: no Docker; install it\nclocks differ by 9 s; start chrony\n"
    progress = verdict("sparkfleet.vllm.verdict", message)
    assert progress.reasons() == message.splitlines()
    assert states(progress)["spark-02"]["preflight"] is State.FAILED
    prefixed = [f"spark-02: {line}" for line in message.splitlines()]
    assert verdict("ansible.builtin.fail", message).reasons() == prefixed


def test_a_line_that_names_its_host_is_not_prefixed_again() -> None:
    assert verdict("ansible.builtin.fail", "spark-01: full; make room").reasons() == ["spark-01: full; make room"]


def test_the_phase_in_progress_is_active() -> None:
    progress = Progress()
    for line in (RECORDINGS / "ok.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        progress.feed(event)
        if event["event"] == "runner_on_start" and event["event_data"]["task"] == "Each":
            break
    row = progress.rows()[0]
    assert row.task == "Each"
    assert [state for state, _cell in row.cells][:4] == [State.DONE, State.DONE, State.ACTIVE, State.PENDING]


def test_localhost_is_shown_only_when_it_fails() -> None:
    progress = Progress()
    data = {"host": "localhost", "task": "Refuse", "task_action": "sparkfleet.vllm.fleet", "res": {"msg": "no hosts"}}
    progress.feed({"event": "runner_on_start", "event_data": data})
    assert progress.rows() == []
    progress.feed({"event": "runner_on_failed", "event_data": data})
    assert [row.host for row in progress.rows()] == ["localhost"]
    assert progress.reasons() == ["no hosts"]


# --- drawing and arguments -------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_host_and_a_column_for_each_role_in_80_columns() -> None:
    progress = replay("failed")[0]
    out = io.StringIO()
    Console(file=out, width=80).print(run_site.table(progress.rows(), 75))
    text = out.getvalue()
    assert "1:15" in text
    head = next(line for line in text.splitlines() if "preflight" in line)
    assert all(phase in head for phase in PHASES)
    row = next(line for line in text.splitlines() if "spark-02" in line)
    assert row.count("✓") == 3 and row.count("✗") == 1 and row.count("·") == 3


def test_running_tasks_are_named_once() -> None:
    rows = [run_site.Row(name, (), task, 0, 0, 0) for name, task in [("a", "x"), ("b", "x"), ("c", "y"), ("d", "")]]
    assert run_site.running(rows) == ["x (2 hosts)", "y (c)"]


def test_a_terminal_gets_the_table_and_no_log_lines() -> None:
    out = io.StringIO()
    progress = Progress()
    view = View(progress, Console(file=out, force_terminal=True, width=160))
    with view.showing():
        for line in (RECORDINGS / "ok.jsonl").read_text(encoding="utf-8").splitlines():
            assert view.event_handler(json.loads(line)) is True
    assert "spark-02" in out.getvalue()
    assert "begins" not in out.getvalue()


def arguments(*argv: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    return run_site.run_arguments(run_site.parser().parse_args(argv), environ or {})


def test_arguments_reach_ansible_playbook_unharmed() -> None:
    made = arguments("-i", "a,", "-i", str(REPOSITORY), "--check", "-e", 'x={"a b": 1}', "--limit", "b", "--tags", "c")
    assert made["inventory"] == ["a,", str(REPOSITORY)]
    assert made["cmdline"] == """--check -e 'x={"a b": 1}'"""
    assert (made["limit"], made["tags"]) == ("b", "c")
    assert made["playbook"] == str(REPOSITORY / "site.yml")


def test_host_keys_are_checked_unless_the_user_said_otherwise() -> None:
    assert arguments("-i", "a,")["envvars"]["ANSIBLE_HOST_KEY_CHECKING"] == "True"
    environ = {"ANSIBLE_HOST_KEY_CHECKING": "False"}
    assert arguments("-i", "a,", environ=environ)["envvars"]["ANSIBLE_HOST_KEY_CHECKING"] == "False"


def test_an_inventory_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_site.main([])
    assert caught.value.code == 2
    assert "--inventory" in capsys.readouterr().err


def test_a_second_interrupt_kills_and_the_first_does_not() -> None:
    progress = Progress()
    cancel = Cancel(progress)
    # A process that has ended: the polite signal goes nowhere, which is no error.
    ended = subprocess.Popen(["true"])
    ended.wait()
    progress.pid = ended.pid
    with cancel.installed():
        assert not cancel.cancel_callback()
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.wanted
        assert not cancel.cancel_callback()
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.cancel_callback()


# --- real runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(name="project", scope="module")
def fixture_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("project")
    write_project(directory)
    (directory / "tmp").mkdir()
    return directory


def command(project: Path, run: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the command for ``run`` (a playbook and options), and the keywords for subprocess."""
    playbook, *options = run
    environ = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(project), "TMPDIR": str(project / "tmp")}
    return [sys.executable, str(SCRIPT), "--playbook", playbook, *options], {
        "cwd": project,
        "env": environ,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def left_behind(project: Path) -> list[str]:
    return [path.name for path in (project / "tmp").glob("run_site-*")]


def test_a_real_run_says_what_its_recording_says(project: Path) -> None:
    argv, keywords = command(project, RUNS["ok"])
    run = subprocess.run(argv, check=False, **keywords)
    assert (run.returncode, run.stderr) == (0, "")
    progress, lines = replay("ok")
    counts = [f"{row.host}: ok={row.ok} changed={row.changed} failed=0" for row in progress.rows()]
    # Which of two hosts reports first is chance.
    assert sorted(run.stdout.splitlines()) == sorted([*lines, *counts, "serve_url: http://10.0.0.1:8888"])
    assert left_behind(project) == []


def test_a_real_failure_is_one_line_and_the_runs_own_status(project: Path) -> None:
    argv, keywords = command(project, RUNS["failed"])
    run = subprocess.run(argv, check=False, **keywords)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["spark-02: port 8888 is taken; stop what listens there"]
    assert "serve_url" not in run.stdout
    assert left_behind(project) == []


def readable(descriptor: int) -> bool:
    """Wait until ``descriptor`` has something to read; a minute is far more than it takes."""
    return bool(select.select([descriptor], [], [], 60)[0])


def test_ctrl_c_ends_the_run_and_what_it_had_started(project: Path) -> None:
    os.mkfifo(project / "pipe")
    pipe = os.open(project / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    argv, keywords = command(
        project, ["wait.yml", "-i", "inventory.yml", "--limit", "spark-01", "-e", f"pipe={project}/pipe"]
    )
    with subprocess.Popen(argv, **keywords) as run:
        try:
            assert readable(pipe)
            task = os.pidfd_open(int(os.read(pipe, 32)))
            run.send_signal(signal.SIGINT)
            _out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == run_site.EXIT_CANCELLED
    assert err.startswith("cancelled") and "Traceback" not in err
    assert readable(task), "the task's process lives on"
    assert left_behind(project) == []
    os.close(task)
    os.close(pipe)


if __name__ == "__main__":
    record()
