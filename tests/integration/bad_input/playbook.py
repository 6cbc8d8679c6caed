# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the real site.yml and read what it told its user: exit status, reasons, recap."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[3]
ASSETS = REPO / ".cache"

CONVERGE = "PLAY [Converge]"
"""Header of the first play that may change anything; the control test makes sure that it is still called so."""

FAILURE = re.compile(r"^fatal: \[[^]]+\]: FAILED! =>\s*\n((?:[ ]{4}.*\n|\s*\n)+)", re.MULTILINE)
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run of site.yml left behind."""

    returncode: int
    stdout: str
    stderr: str
    converging: bool
    """Whether the run came to the play that changes nodes."""

    @property
    def reasons(self) -> list[str]:
        """Every line that the failed tasks gave as their message, each once."""
        messages = [yaml.safe_load(block).get("msg", "") for block in FAILURE.findall(self.stdout)]
        return list(dict.fromkeys(line for message in messages for line in str(message).splitlines()))

    @property
    def changed(self) -> dict[str, int]:
        """Number of changes by host, from the recap."""
        return {host: int(count) for host, count in RECAP.findall(self.stdout)}


def write_inventory(directory: Path, content: dict[str, Any]) -> Path:
    """Write an inventory file and return it."""
    file = directory / "sparks.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def merged(base: Any, change: Any) -> Any:
    """Return `base` with the nested dictionary `change` laid over it; neither is modified."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def cluster(**variables: Any) -> dict[str, Any]:
    """Return the change of an inventory that sets variables of the cluster."""
    return {"sparks": {"children": {"atlas": {"vars": variables}}}}


def host(name: str, **variables: Any) -> dict[str, Any]:
    """Return the change of an inventory that sets variables of one host."""
    return {"sparks": {"children": {"atlas": {"hosts": {name: variables}}}}}


def site(inventory: Path, *arguments: str, hold: bool = True) -> Outcome:
    """Run site.yml in the checkout, as a user does.

    With `hold`, a run that comes to the first task which may change anything is ended there: it would go on for
    minutes, and leave changed nodes to the next test.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [str(program), "site.yml", "-i", str(inventory), *arguments]
    header, converging, lines = False, False, []
    with TemporaryFile("w+") as errors:
        run = subprocess.Popen(
            command,
            cwd=REPO,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            for line in run.stdout or ():
                lines.append(line)
                header = header or line.startswith(CONVERGE)
                # The header alone is also printed for a play that has no host left.
                converging = converging or (header and line.startswith("TASK "))
                if converging and hold:
                    os.killpg(run.pid, signal.SIGTERM)
                    break
            returncode = run.wait()
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
            if run.stdout:
                run.stdout.close()
        errors.seek(0)
        return Outcome(returncode, "".join(lines), errors.read(), converging)


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern for a whole line, in which `…` stands for anything."""
    return re.compile(".+".join(re.escape(part) for part in text.split("…")))


def assert_refused(outcome: Outcome, *expected: str, among_others: bool = False) -> None:
    """Make sure that a run was refused for exactly these reasons, in one line each, and changed nothing.

    With `among_others`, there may be more reasons than these.
    """
    shown = f"{outcome.stdout}\n--- stderr ---\n{outcome.stderr}"
    assert not outcome.converging, f"the run was let through\n{shown}"
    assert outcome.returncode != 0, shown
    patterns = [_pattern(text) for text in expected]
    unexpected = [line for line in outcome.reasons if not any(pattern.fullmatch(line) for pattern in patterns)]
    assert among_others or not unexpected, shown
    for pattern in patterns:
        found = [line for line in outcome.reasons if pattern.fullmatch(line)]
        assert len(found) == 1, f"{pattern.pattern}: {len(found)} lines\n{shown}"
    assert outcome.changed, f"no recap\n{shown}"
    assert set(outcome.changed.values()) == {0}, shown
    assert "Traceback" not in shown
