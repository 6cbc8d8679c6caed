# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to bring the image to other nodes: seconds, and bytes on each link, against ``docker save | ssh``.

Four simulated nodes on a switch of 1 Gb/s. The image is the real one of the CPU variant with two layers on top: one
stands for a changed kernel wheel, one for a changed megabyte. All methods are measured in one run and compared as
ratios; the raw figures go to ``tests/bench/results``. Before that, what a build takes, the first one and one after a
changed entrypoint. The nodes share the machine's cores, so that what is done on
several of them at once takes longer here than on machines of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"
FLEET = "dlvbench"
NODES = [f"spark-0{number}" for number in range(1, 5)]
HEAD, WORKERS = NODES[0], NODES[1:]
ADDRESSES = {node: f"192.168.177.{11 + number}" for number, node in enumerate(NODES)}
INTERFACE = "enp1s0f0np0"
RATE_BITS = 10**9
BASE, IMAGE = "sparkfleet/vllm:cpu-0.32.0", "sparkfleet/bench:1"
WHEEL_BYTES, TOP_BYTES = 10_000_000, 1_000_000
PLAYBOOK = ROOT / "tests" / "integration" / "delivery" / "deliver.yml"
COST = re.compile(r"made ready in ([\d.]+) s,\s+([\d.]+) MB fetched in ([\d.]+)\s+s")


@dataclass
class Case:
    """One delivery by one method."""

    what: str
    method: str
    workers: int
    seconds: float
    """From the start until the last node can run the image. Ours: making ready and fetching."""
    sent_bytes: int
    """Out of the head's fabric interface."""
    received_bytes: list[int]
    """Into each worker's."""
    busy: float
    """Share of this machine's cores that was in use."""
    playbook_seconds: float = 0
    """The same with everything that Ansible does around it; 0 for other methods."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of which it consists."""

    @property
    def link(self) -> float:
        """Share of the time for which the head's link would have been full."""
        return self.sent_bytes * 8 / RATE_BITS / self.seconds if self.seconds else 0


def run(*argv: str) -> str:
    """Run a command; return what it printed. Ends the program when it fails."""
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(argv)} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return done.stdout


def simulator(command: str, *argv: str) -> str:
    """Run the simulator's command line."""
    return run(sys.executable, "-m", "simulator", command, "--name", FLEET, *argv)


def on_node(node: str, command: str) -> str:
    """Run a shell command on a node as root, without a login that would be counted."""
    return run("docker", "exec", f"sparksim-{FLEET}-{node}", "bash", "-euc", command)


def counter(node: str, name: str) -> int:
    """Read a counter of a node's fabric interface."""
    return int(on_node(node, f"cat /sys/class/net/{INTERFACE}/statistics/{name}_bytes"))


def ticks() -> tuple[int, int]:
    """Return the time that the machine's cores were busy, and all of it."""
    values = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


class Bench:
    """The fleet, and what was measured on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cases: list[Case] = []
        self.builds: dict[str, float] = {}
        """Seconds that a run with a build took."""

    def site(self, workers: Sequence[str], playbook: Path, *options: str, **variables: object) -> str:
        """Run a playbook on a cluster of the head and some workers."""
        nodes = yaml.safe_load((self.directory / "nodes.yml").read_text(encoding="utf-8"))
        hosts = {node: {"fabric_node": {"address": ADDRESSES[node]}} for node in (HEAD, *workers)}
        cluster = {"hosts": hosts, "vars": {"image_variant": "cpu", **variables}}
        content = {"sparks": {"children": {"atlas": cluster}}, **nodes}
        inventory = self.directory / "sparks.yml"
        inventory.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return run("ansible-playbook", str(playbook), "-i", str(inventory), *options)

    def prepare(self, assets: Path) -> None:
        """Start the fleet, let its nodes log in to each other, and build the image on the head."""
        simulator("up", "--nodes", str(len(NODES)), "--topology", "switch", "--rate", "1gbit")
        simulator("inventory", "--output", str(self.directory / "nodes.yml"))
        on_node(HEAD, "[ -f /root/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
        key = on_node(HEAD, "cat /root/.ssh/id_ed25519.pub").strip()
        for worker in WORKERS:
            on_node(worker, f"mkdir -p -m 700 /root/.ssh; echo '{key}' > /root/.ssh/authorized_keys")
            on_node(HEAD, f"ssh -o StrictHostKeyChecking=accept-new {ADDRESSES[worker]} true")
        given = {"image_wheelhouse": f"{assets}/wheelhouse", "image_base_archive": f"{assets}/base-bookworm.tar"}
        changed = self.directory / "image"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(ROOT / "files" / "image", changed)
        with (changed / "entrypoint.py").open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        for what, options in [
            ("first build, wheel route", ()),
            ("build after a changed entrypoint", ("-e", f"_image_directory={changed}")),
        ]:
            began = time.monotonic()
            self.site([], PLAYBOOK, *options, **given)
            self.builds[what] = time.monotonic() - began
            print(f"{what}: {self.builds[what]:.0f} s", file=sys.stderr)
        self.build(wheel=True)

    def build(self, wheel: bool) -> None:
        """Give the image on the head a new top layer, and another wheel."""
        on_node(
            HEAD,
            f"mkdir -p /root/bench; cd /root/bench; head -c {TOP_BYTES} /dev/urandom > top; "
            + (f"head -c {WHEEL_BYTES} /dev/urandom > wheel; " if wheel else "")
            + f"printf 'FROM {BASE}\\nCOPY wheel /wheel\\nCOPY top /top\\n' > Dockerfile; "
            f"docker build --quiet --tag {IMAGE} . >/dev/null",
        )

    def forget(self, head: bool = True) -> None:
        """Remove the image from the workers, and the layers that the head made ready for them."""
        for worker in WORKERS:
            on_node(worker, "docker images -aq | sort -u | xargs -r docker image rm -f >/dev/null")
        if head:
            on_node(HEAD, "rm -rf /var/lib/sparkfleet/image/stream /var/lib/sparkfleet/image/registry")
            on_node(HEAD, "rm -rf /var/lib/private/sparkfleet")

    def measure(self, what: str, method: str, workers: Sequence[str]) -> Case:
        """Deliver once, and keep the figures."""
        sent, received = counter(HEAD, "tx"), [counter(worker, "rx") for worker in workers]
        busy, total = ticks()
        began = time.monotonic()
        output = ""
        if method.startswith("save"):
            self.save(workers, parallel="parallel" in method)
        else:
            output = self.site(workers, PLAYBOOK, image_ref=IMAGE, image_delivery=method)
        seconds = time.monotonic() - began
        busy_after, total_after = ticks()
        case = Case(
            what,
            method,
            len(workers),
            seconds,
            counter(HEAD, "tx") - sent,
            [counter(worker, "rx") - before for worker, before in zip(workers, received, strict=True)],
            (busy_after - busy) / (total_after - total),
        )
        if output:
            found = [tuple(map(float, one)) for one in COST.findall(output)]
            ready, fetched = max((one[0] for one in found), default=0), max((one[2] for one in found), default=0)
            case.playbook_seconds, case.seconds = seconds, ready + fetched
            case.parts = {"ready": ready, "fetch": fetched}
        self.cases.append(case)
        print(
            f"{what}, {method}, {len(workers)} workers: {case.seconds:.2f} s, {case.sent_bytes / 1e6:.1f} MB sent, "
            f"cores {case.busy:.0%} busy",
            file=sys.stderr,
        )
        return case

    def save(self, workers: Sequence[str], parallel: bool) -> None:
        """Copy as scripts do: the whole image through ssh."""
        one = [f"docker save {IMAGE} | ssh {ADDRESSES[worker]} docker load >/dev/null" for worker in workers]
        on_node(HEAD, " & ".join([*one, "wait"]) if parallel else "; ".join(one))

    def measure_all(self, most: int) -> None:
        """Measure every case; the order gives each the state that it needs."""
        for count in range(1, most + 1):
            self.forget()
            self.measure("first delivery", "save | ssh, one after another", WORKERS[:count])
        self.build(wheel=False)
        self.measure("update, 1 MB", "save | ssh, one after another", WORKERS[:1])
        self.measure("no change", "save | ssh, one after another", WORKERS[:1])
        self.build(wheel=True)
        self.measure("update, wheel", "save | ssh, one after another", WORKERS[:1])
        for count in range(2, most + 1):
            self.forget()
            self.measure("first delivery", "save | ssh, parallel", WORKERS[:count])
        for method, counts in (("registry", range(1, most + 1)), ("stream", sorted({1, most}))):
            for count in counts:
                self.forget()
                self.measure("first delivery", method, WORKERS[:count])
            for count in sorted({1, most}):
                # Those that the last turn left out are behind by more than one change.
                self.site(WORKERS[:count], PLAYBOOK, image_ref=IMAGE, image_delivery=method)
                self.build(wheel=False)
                self.measure("update, 1 MB", method, WORKERS[:count])
                self.build(wheel=True)
                self.measure("update, wheel", method, WORKERS[:count])
                self.measure("no change", method, WORKERS[:count])

    def find(self, what: str, method: str, workers: int) -> Case:
        """Return a case that was measured."""
        return next(one for one in self.cases if (one.what, one.method, one.workers) == (what, method, workers))

    def targets(self, most: int) -> list[tuple[str, float, str, bool]]:
        """Return what was aimed at: what, the figure, the limit, and whether it holds."""
        default = "save | ssh, one after another"
        first, ours = self.find("first delivery", default, 1), self.find("first delivery", "registry", 1)
        many, ours_many = self.find("first delivery", default, most), self.find("first delivery", "registry", most)
        update, ours_update = self.find("update, 1 MB", default, 1), self.find("update, 1 MB", "registry", 1)
        nothing = self.find("no change", "registry", 1)
        rows = [
            ("first delivery to 1 worker, seconds", ours.seconds / first.seconds, "<=", 1.0),
            ("first delivery to 1 worker, bytes", ours.sent_bytes / first.sent_bytes, "<=", 0.4),
            (f"first delivery to {most} workers, seconds", ours_many.seconds / many.seconds, "<=", 0.5),
            ("update of 1 MB, times faster", update.seconds / ours_update.seconds, ">=", 100.0),
            ("update of 1 MB, bytes to the changed ones", ours_update.received_bytes[0] / TOP_BYTES, "<=", 1.1),
            ("no change, bytes", float(nothing.sent_bytes), "<=", 10_000.0),  # no layer; ARP asks now and then
        ]
        return [
            (what, value, f"{sign} {limit:g}", value <= limit if sign == "<=" else value >= limit)
            for what, value, sign, limit in rows
        ]

    def table(self, most: int) -> str:
        """Return the figures in Markdown."""
        lines = [
            "| what | method | workers | seconds | with Ansible | MB from the head | MB to each worker | CPU | link |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for one in self.cases:
            each = ", ".join(f"{value / 1e6:.1f}" for value in one.received_bytes)
            parts = f" ({one.parts['ready']:g} + {one.parts['fetch']:g})" if one.parts else ""
            method = one.method.replace("|", "\\|")
            whole = f"{one.playbook_seconds:.0f}" if one.playbook_seconds else ""
            lines.append(
                f"| {one.what} | {method} | {one.workers} | {one.seconds:.2f}{parts} | {whole} "
                f"| {one.sent_bytes / 1e6:.1f} | {each} | {one.busy:.0%} | {one.link:.0%} |"
            )
        lines += ["", "| target, against `save \\| ssh` one after another | measured | wanted | |", "|---|---|---|---|"]
        lines += [
            f"| {what} | {value:.2f} | {limit} | {'met' if good else 'missed'} |"
            for what, value, limit, good in self.targets(most)
        ]
        return "\n".join(lines)


def processor() -> str:
    """Return the name of this machine's processor."""
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip() if match else os.uname().machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", type=Path, default=ROOT / ".cache", help="what `make assets` made (.cache)")
    parser.add_argument("--workers", type=int, default=len(WORKERS), choices=range(1, len(WORKERS) + 1))
    parser.add_argument("--keep", action="store_true", help="leave the fleet up")
    given = parser.parse_args()
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    directory = ROOT / "build" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(directory)
    try:
        bench.prepare(given.assets.resolve())
        bench.measure_all(given.workers)
        image = json.loads(on_node(HEAD, f"docker image inspect {IMAGE}"))[0]
    finally:
        if not given.keep:
            simulator("down")
    RESULTS.mkdir(exist_ok=True)
    name = "-".join(re.findall(r"[a-z0-9]+", processor().lower()))[:60]
    result = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "link_bits_per_second": RATE_BITS,
        "image_bytes": image["Size"],
        "image_layers": len(image["RootFS"]["Layers"]),
        "builds": bench.builds,
        "cases": [asdict(one) for one in bench.cases],
        "targets": [
            {"what": what, "measured": value, "wanted": limit, "met": good}
            for what, value, limit, good in bench.targets(given.workers)
        ],
    }
    (RESULTS / f"delivery-{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{processor()}, {os.cpu_count()} cores for all nodes; image {image['Size'] / 1e9:.2f} GB")
    for what, seconds in bench.builds.items():
        print(f"{what}, with everything that Ansible does around it: {seconds:.0f} s")
    print(bench.table(given.workers))


if __name__ == "__main__":
    main()
