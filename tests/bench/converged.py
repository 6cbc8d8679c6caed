# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of a converged run on the demo's fleet: counts first, then ratios of times taken in the same session.

``make bench`` prints them. They are no test: this machine's clock says little about a Spark's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "sim"
FLEET = "demo"
NODES = ("spark-01", "spark-02")
COMPLETION_TIMEOUT_S = 600


def run(*argv: str) -> tuple[str, float]:
    """Run a command; return what it printed and the seconds that it took. Ends the program when it fails."""
    began = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(argv)} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return done.stdout, time.monotonic() - began


def simulator(*argv: str) -> str:
    """Run the simulator's command line."""
    return run(sys.executable, "-m", "simulator", *argv)[0]


def on_node(node: str, command: str) -> str:
    """Run a command on a node as root."""
    return simulator("ssh", "--name", FLEET, node, f"sudo sh -c {shlex.quote(command)}")


def site() -> tuple[str, float]:
    """Run site.yml on the fleet."""
    return run("ansible-playbook", "site.yml", "-i", str(INVENTORY))


def become_sessions(node: str) -> int:
    """How often sudo was used on a node since it booted: with pipelining, once for each module call."""
    # The reading itself is one more each time, and so cancels out between two readings but for one.
    return int(on_node(node, "journalctl --boot --quiet --no-pager _COMM=sudo --grep COMMAND= | wc -l"))


def calls_of(*argv: str) -> tuple[dict[str, int], float]:
    """Run a playbook on the converged fleet; return how many modules it ran on each node, and the seconds."""
    before = {node: become_sessions(node) for node in NODES}
    output, seconds = run("ansible-playbook", *argv, "-i", str(INVENTORY))
    if output.count("changed=0") < len(NODES):
        sys.exit(f"the fleet was not converged:\n{output[-2000:]}")
    return {node: become_sessions(node) - before[node] - 1 for node in NODES}, seconds


def available_bytes() -> int:
    """This machine's memory that is free for others; the whole fleet lives on it."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    return int(text.split("MemAvailable:", maxsplit=1)[1].split()[0]) * 1024


def completes(url: str, key: str) -> bool:
    """Whether the model answers with a token."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(json.load(answer)["usage"]["completion_tokens"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def container_of(node: str, unit: str) -> str:
    """The command that starts a unit's container, as one line, without its supervisor."""
    text = on_node(node, f"cat /etc/systemd/system/{unit}").replace("\\\n", " ")
    match = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    if match is None:
        sys.exit(f"{node}: {unit} has no ExecStart")
    return match[1].partition(" -- ")[2].strip()


def by_hand(url: str, key: str) -> float:
    """Start the same containers with the same commands over ssh; return the seconds until the first completion."""
    commands = {node: container_of(node, "spark-ray.service") for node in NODES}
    serve = container_of(NODES[0], "spark-vllm@tiny.service")
    began = time.monotonic()
    for node, command in commands.items():
        on_node(
            node, f"nohup {command} >/dev/null 2>&1 & until docker top spark-ray >/dev/null 2>&1; do sleep 0.2; done"
        )
    on_node(NODES[0], f"nohup {serve} >/dev/null 2>&1 &")
    while not completes(url, key):
        if time.monotonic() - began > COMPLETION_TIMEOUT_S:
            sys.exit("the containers started by hand gave no completion")
        time.sleep(0.5)
    took = time.monotonic() - began
    on_node(NODES[0], "docker stop -t 30 spark-vllm-tiny")
    for node in NODES:
        on_node(node, "docker stop -t 35 spark-ray")
    return took


def main() -> None:
    """Measure and print."""
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    simulator("up", "--name", FLEET, "--nodes", "2", "--topology", "pair", "--no-addresses", "--rate", "1gbit")
    simulator("inventory", "--name", FLEET, "--output", str(INVENTORY / "nodes.yml"))
    site()

    calls, converged = calls_of("site.yml")
    fabric, _seconds = calls_of("tests/bench/fabric.yml")
    ping = min(run("ansible", "-i", str(INVENTORY), "sparks", "-m", "ansible.builtin.ping")[1] for _turn in range(3))
    serving = available_bytes()

    hosts = yaml.safe_load((INVENTORY / "nodes.yml").read_text(encoding="utf-8"))["all"]["hosts"]
    url = f"http://{hosts[NODES[0]]['ansible_host']}:8888"
    key = (ROOT / ".cache" / "api-key").read_text(encoding="utf-8").splitlines()[0]
    stop = ("ansible-playbook", "playbooks/stop.yml", "-i", str(INVENTORY))
    run(*stop)
    memory = available_bytes() - serving
    manual = by_hand(url, key)
    started = site()[1]

    print("converged site.yml, module calls:", ", ".join(f"{node} {count}" for node, count in calls.items()))
    print("role fabric alone, module calls:", ", ".join(f"{node} {count}" for node, count in fabric.items()))
    print(f"converged site.yml / ansible -m ping: {converged / ping:.1f} ({converged:.1f} s / {ping:.1f} s)")
    print(f"stopped to first completion, site.yml / by hand: {started / manual:.2f} ({started:.1f} s / {manual:.1f} s)")
    print(f"memory that serving takes on both nodes (MemAvailable, stopped less serving): {memory / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
