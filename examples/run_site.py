# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ``sparkfleet.vllm.site`` from Python and watch the hosts go through the roles.

    python examples/run_site.py -i inventories/sim

The part that thinks is :class:`Progress`: it takes ansible-runner's events and knows nothing of terminals.
The rest starts the run, draws, and turns the outcome into an exit status. ansible-playbook's environment
variables work here too, for example ``ANSIBLE_VAULT_PASSWORD_FILE``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import ansible_runner  # type: ignore[import-untyped]
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

CHECKOUT = Path(__file__).resolve().parent.parent
PREFLIGHT = "preflight"
PHASES = (PREFLIGHT, "host", "fabric", "image", "model", "ray", "serve")
# They speak for the whole fleet: their lines already name the host or cluster that they are about.
JUDGES = frozenset({"sparkfleet.vllm.fleet", "sparkfleet.vllm.verdict"})
EXIT_CANCELLED = 130
GRACE_S = 10.0

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_WRAPPERS = re.compile(r"^(?:(?:Task|Action|Module) failed: )+")
_COMPLAINT = re.compile(r"^(?:\[ERROR\]: |ERROR! |ansible-playbook: error: )(?P<text>.+)")


class State(Enum):
    """Where one host stands in one phase."""

    PENDING = "pending"
    ACTIVE = "active"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Cell:
    """Finished tasks of one host in one phase; ``ok`` counts the changed ones too, as Ansible's recap does."""

    ok: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Failure:
    """One failed task: the phase that it was in (empty: none), and why, one reason a line."""

    phase: str
    reasons: list[str]


@dataclass
class Host:
    """What is known of one host; ``phase`` and ``task`` are where it is (empty: nowhere)."""

    # The tasks outside of every phase are counted under the empty name.
    cells: dict[str, Cell] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    phase: str = ""
    task: str = ""

    def cell(self, phase: str) -> Cell:
        """Return the counters for ``phase``."""
        return self.cells.setdefault(phase, Cell())

    def state(self, phase: str) -> State:
        """Return where the host stands in ``phase``."""
        if any(failure.phase == phase for failure in self.failures):
            return State.FAILED
        if self.task and self.phase == phase:
            return State.ACTIVE
        return State.DONE if phase in self.begun else State.PENDING


@dataclass(frozen=True)
class Row:
    """One line of the display; ``cells`` has one entry for each of PHASES."""

    host: str
    cells: tuple[tuple[State, Cell], ...]
    task: str
    ok: int
    changed: int
    failed: int


class Progress:
    """The state of a run, fed with ansible-runner's events in their order."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.urls: list[str] = []
        self.pid: int | None = None
        self._play = ""
        self._preflight_plays: set[str] = set()
        self._said: list[str] = []

    def feed(self, event: Mapping[str, Any]) -> list[str]:
        """Take one event and return the lines that a log without a terminal should show for it."""
        # Each event of ansible-playbook's callback carries its process; lines of plain output do not.
        self.pid = event.get("pid", self.pid)
        kind: str = event["event"]
        data: Mapping[str, Any] = event.get("event_data") or {}
        if kind in ("verbose", "error", "warning"):
            self._said += [line.strip() for line in _ANSI.sub("", event.get("stdout", "")).splitlines() if line.strip()]
        elif kind == "playbook_on_play_start":
            self._play = data.get("play_uuid", "")
        elif kind == "playbook_on_stats":
            self._finish(data)
        elif kind == "runner_on_start":
            return self._start(data)
        elif kind in ("runner_on_ok", "runner_item_on_ok"):
            # The play that includes preflights is the one that judges; what its roles do counts as preflight.
            if _result(data).get("include_args", {}).get("tasks_from") == PREFLIGHT:
                self._preflight_plays.add(self._play)
            return self._end(kind, data) if kind == "runner_on_ok" else []
        elif kind in ("runner_on_skipped", "runner_on_failed", "runner_on_unreachable"):
            return self._end(kind, data)
        return []

    def _start(self, data: Mapping[str, Any]) -> list[str]:
        host, phase = self._host(data), self._phase(data)
        host.task = str(data.get("task", ""))
        if not phase or phase == host.phase:
            return []
        host.phase = phase
        begins = phase not in host.begun
        host.begun.add(phase)
        return [f"{data['host']}: {phase}: begins"] if begins else []

    def _host(self, data: Mapping[str, Any]) -> Host:
        return self.hosts.setdefault(str(data["host"]), Host())

    def _phase(self, data: Mapping[str, Any]) -> str:
        if self._play in self._preflight_plays or data.get("resolved_action", data.get("task_action")) in JUDGES:
            return PREFLIGHT
        role = str(data.get("resolved_role") or data.get("role") or "").rpartition(".")[2]
        return role if role in PHASES else ""

    def _end(self, kind: str, data: Mapping[str, Any]) -> list[str]:
        host, name, result, phase = self._host(data), str(data["host"]), _result(data), self._phase(data)
        cell = host.cell(phase)
        where = ": ".join(part for part in (name, phase, str(data.get("task", ""))) if part)
        if kind == "runner_on_skipped":
            return []
        if kind == "runner_on_ok" or data.get("ignore_errors"):
            cell.ok += 1
            url = (result.get("ansible_facts") or {}).get("serve_url")
            if url and url not in self.urls:
                self.urls.append(str(url))
            if result.get("changed"):
                cell.changed += 1
                return [f"{where}: changed"]
        else:
            complete = data.get("resolved_action", data.get("task_action")) in JUDGES
            reasons = [
                line if complete or self._names_host(line) else f"{name}: {line}"
                for line in reasons_of(result, str(data.get("task", "")))
            ]
            host.failures.append(Failure(phase, reasons))
            return [f"{where}: {'unreachable' if kind == 'runner_on_unreachable' else 'failed'}"]
        return []

    def _names_host(self, line: str) -> bool:
        return any(line.startswith(f"{name}: ") for name in self.hosts)

    def _finish(self, stats: Mapping[str, Any]) -> None:
        for name, host in self.hosts.items():
            host.task = ""
            failed = stats.get("failures", {}).get(name, 0) + stats.get("dark", {}).get(name, 0)
            # The earlier failures were rescued, or the host would not have come to the later ones.
            del host.failures[: max(0, len(host.failures) - failed)]

    def rows(self) -> list[Row]:
        """Return the display's rows: the hosts in the order in which they came, localhost only when it failed."""
        return [
            Row(
                host=name,
                cells=tuple((host.state(phase), host.cells.get(phase, Cell())) for phase in PHASES),
                task=host.task,
                ok=sum(cell.ok for cell in host.cells.values()),
                changed=sum(cell.changed for cell in host.cells.values()),
                failed=len(host.failures),
            )
            for name, host in self.hosts.items()
            if name != "localhost" or host.failures
        ]

    def reasons(self) -> list[str]:
        """Return why the run failed, one line each; when no task failed, what ansible-playbook complained of."""
        lines = [line for host in self.hosts.values() for failure in host.failures for line in failure.reasons]
        if not lines:
            lines = [match["text"] for line in self._said if (match := _COMPLAINT.match(line))] or self._said[-1:]
        return list(dict.fromkeys(lines))


def _result(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return data.get("res") or {}


def reasons_of(result: Mapping[str, Any], task: str) -> list[str]:
    """Return the lines that say why ``task`` failed with ``result``; never empty, never a traceback."""
    items = [item for item in result.get("results", []) if item.get("failed") or item.get("unreachable")]
    if items:
        return [line for item in items for line in reasons_of(item, task)]
    if "censored" in result:
        return [f"task '{task}' failed; its output is hidden by no_log"]
    lines: list[str] = [str(error) for error in result.get("argument_errors", [])]
    if not lines:
        lines = [line.strip() for line in _WRAPPERS.sub("", str(result.get("msg", ""))).splitlines() if line.strip()]
    if not lines or lines == ["non-zero return code"]:
        last = [line for line in str(result.get("stderr", "")).splitlines() if line.strip()][-1:]
        lines = [f"task '{task}' failed with status {result.get('rc', '?')}" + "".join(f": {line}" for line in last)]
    return lines


# --- drawing ---------------------------------------------------------------------------------------------------------

_LOOK = {
    State.PENDING: ("·", "dim"),
    State.ACTIVE: ("▶", "bold cyan"),
    State.DONE: ("✓", "green"),
    State.FAILED: ("✗", "bold red"),
}


def table(rows: Sequence[Row], elapsed_s: float) -> Table:
    """Draw the rows for a terminal of 80 columns or more.

    One line per host, one column per phase (tasks done, and in yellow how many of them changed something), and
    under the table the tasks that are running.
    """
    minutes, seconds = divmod(int(elapsed_s), 60)
    drawn = Table(
        title=f"sparkfleet.vllm.site · {minutes}:{seconds:02d}",
        title_justify="left",
        caption=Text("\n".join(running(rows))),
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        min_width=76,
    )
    drawn.add_column("", no_wrap=True)
    for phase in PHASES:
        drawn.add_column(phase, no_wrap=True, min_width=max(6, len(phase)))
    drawn.add_column("ok/ch/fail", no_wrap=True, min_width=10)
    for row in rows:
        cells = []
        for state, done in row.cells:
            mark, style = _LOOK[state]
            cell = Text(mark if state is State.PENDING else f"{mark}{done.ok}", style)
            if done.changed:
                cell.append(f"~{done.changed}", "yellow")
            cells.append(cell)
        counts = Text(f"{row.ok}/{row.changed}/{row.failed}", "red" if row.failed else "")
        drawn.add_row(Text(row.host), *cells, counts)
    return drawn


def running(rows: Sequence[Row]) -> list[str]:
    """Return one line for each task that hosts are in, with those hosts."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        if row.task:
            tasks.setdefault(row.task, []).append(row.host)
    return [f"{task} ({hosts[0] if len(hosts) == 1 else f'{len(hosts)} hosts'})" for task, hosts in tasks.items()]


class View:
    """Shows a Progress: a live table on a terminal, plain lines elsewhere."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._started = time.monotonic()
        # The table is redrawn by a thread of its own while events come in.
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show the run as long as the context lasts."""
        if self._console.is_terminal:
            with Live(console=self._console, get_renderable=self._draw, refresh_per_second=4, transient=False):
                yield
            return
        yield
        for row in self._progress.rows():
            self._print(f"{row.host}: ok={row.ok} changed={row.changed} failed={row.failed}")

    def event_handler(self, event: Mapping[str, Any]) -> bool:
        """Take an event of ansible-runner; it wants True, or it drops the event and the run's statistics with it."""
        with self._lock:
            lines = self._progress.feed(event)
        if not self._console.is_terminal:
            for line in lines:
                self._print(line)
        return True

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> Table:
        with self._lock:
            return table(self._progress.rows(), time.monotonic() - self._started)


# --- running ---------------------------------------------------------------------------------------------------------


class Cancel:
    """Turns Ctrl-C and SIGTERM into an orderly end of the run.

    ansible-runner's own way is to kill ansible-playbook, which leaves its workers (sessions of their own)
    running tasks. So ansible-playbook gets a SIGINT first, which it passes on to them; it is killed only
    when GRACE_S have gone by, or at a second Ctrl-C.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._signals = 0
        self._asked_at: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether someone asked for the end."""
        return self._signals > 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals as long as the context lasts."""
        before = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def cancel_callback(self) -> bool:
        """Return whether ansible-runner is to kill the run now; it asks about once a second."""
        if not self.wanted:
            return False
        if self._asked_at is None and self._progress.pid is not None:
            self._asked_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._progress.pid, signal.SIGINT)
            return False
        return self._signals > 1 or self._asked_at is None or time.monotonic() - self._asked_at > GRACE_S


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(description="Run sparkfleet.vllm.site and watch it.")
    add = made.add_argument
    add("-i", "--inventory", action="append", required=True, help="inventory file or directory; may be repeated")
    add("--limit", help="only these hosts")
    add("--check", action="store_true", help="change nothing, say what would change")
    add("-e", "--extra-vars", action="append", default=[], metavar="KEY=VALUE", help="a variable; may be repeated")
    add("--tags", help="only the roles and tasks with these tags, comma-separated")
    add("--playbook", help="another playbook (default: the checkout's site.yml, else sparkfleet.vllm.site)")
    return made


def run_arguments(args: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what ansible_runner.run() is to be called with, apart from directories and callbacks."""
    in_checkout = (CHECKOUT / "ansible.cfg").is_file()
    playbook = args.playbook or (str(CHECKOUT / "site.yml") if in_checkout else "sparkfleet.vllm.site")
    if Path(playbook).is_file():
        playbook = str(Path(playbook).resolve())
    envvars = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"}
    # ansible-runner would switch host key checking off.
    envvars["ANSIBLE_HOST_KEY_CHECKING"] = environ.get("ANSIBLE_HOST_KEY_CHECKING", "True")
    if in_checkout and not Path("ansible.cfg").is_file():
        envvars["ANSIBLE_CONFIG"] = environ.get("ANSIBLE_CONFIG", str(CHECKOUT / "ansible.cfg"))
    options = ["--check"] if args.check else []
    for extra in args.extra_vars:
        options += ["-e", extra]
    return {
        "playbook": playbook,
        "inventory": [str(Path(path).resolve()) if Path(path).exists() else path for path in args.inventory],
        "limit": args.limit,
        "tags": args.tags,
        "cmdline": shlex.join(options) or None,
        "envvars": envvars,
        # Relative paths and ansible.cfg as ansible-playbook would take them here.
        "project_dir": str(Path.cwd()),
        # How long it may take until a Ctrl-C is noticed while the run is silent, in seconds.
        "settings": {"pexpect_timeout": 1},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the playbook and return its exit status; 130 when it was cancelled."""
    args = parser().parse_args(argv)
    progress = Progress()
    view = View(progress, Console())
    cancel = Cancel(progress)
    # The directory gets the environment and every event, so it is ours alone and goes away with the run.
    with tempfile.TemporaryDirectory(prefix="run_site-") as private, cancel.installed(), view.showing():
        run = ansible_runner.run(
            private_data_dir=private,
            quiet=True,
            event_handler=view.event_handler,
            cancel_callback=cancel.cancel_callback,
            **run_arguments(args, os.environ),
        )
        status = int(run.rc)
    if cancel.wanted:
        print("cancelled; the same command goes on where this run ended", file=sys.stderr)
        return EXIT_CANCELLED
    if status:
        for line in progress.reasons() or [f"ansible-playbook ended with status {status}"]:
            print(line, file=sys.stderr)
        return status
    for url in progress.urls:
        print(f"serve_url: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
