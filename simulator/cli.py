# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``python -m simulator up | down | cable | plug | unplug | limit | status | inventory | ssh``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from docker.errors import APIError, DockerException
from rich.console import Console
from rich.table import Table

from simulator import plan
from simulator.errors import SimulatorError
from simulator.fleet import Fleet, connect, describe, ours
from simulator.plan import Spec
from simulator.report import say, step
from simulator.state import Store

NAME = "demo"
PROGRAM = f"{Path(sys.executable).name} -m simulator"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    named = Parser(add_help=False)
    named.add_argument("--name", default=NAME, help=f"the fleet (default: {NAME})")
    top = Parser(prog="simulator", description="Simulated DGX Sparks on this machine's Docker Engine.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    up = commands.add_parser("up", parents=[named], help="start a fleet, or see that it is up")
    up.add_argument("--nodes", type=int, default=2, metavar="N", help="how many (default: 2)")
    up.add_argument("--topology", choices=plan.TOPOLOGIES, default="pair", help="how they are cabled (default: pair)")
    up.add_argument("--cables", type=int, default=1, metavar="1|2", help="between the nodes of a pair (default: 1)")
    up.add_argument("--rate", default="", help="limit of each fabric port, like 1gbit (default: none)")
    up.add_argument("--no-addresses", action="store_true", help="leave the fabric ports without addresses")
    up.add_argument(
        "--renderer",
        choices=plan.RENDERERS,
        default=plan.RENDERERS[0],
        help=f"what netplan leaves the work to (default: {plan.RENDERERS[0]})",
    )
    up.add_argument("--base-image", default="", metavar="IMAGE", help="a Debian 13 image, instead of debootstrap")

    down = commands.add_parser("down", parents=[named], help="remove a fleet and all that belongs to it")
    down.add_argument("--all", action="store_true", help="all fleets of this checkout")

    cable = commands.add_parser("cable", parents=[named], help="pull all cables out and plug others in")
    cable.add_argument("topology", nargs="?", choices=plan.TOPOLOGIES, help="how the nodes are to be cabled")
    cable.add_argument("--nodes", default="", metavar="1,2,…", help="which, in the order of a ring (default: all)")
    cable.add_argument("--cables", type=int, default=1, metavar="1|2", help="between the nodes of a pair (default: 1)")
    cable.add_argument(
        "--ends",
        nargs="+",
        metavar="END=END",
        help="instead: each cable, like spark-01:p0=spark-02:p1; a switch: A=B=C…",
    )

    for command, text in (("plug", "plug a cable in"), ("unplug", "pull a cable out")):
        cable = commands.add_parser(command, parents=[named], help=text)
        cable.add_argument("cable", metavar="CABLE", help="its name, as status shows it")

    for command, text in (("off", "cut a node's power"), ("on", "switch a node on and wait until it is up")):
        power = commands.add_parser(command, parents=[named], help=text)
        power.add_argument("node", metavar="NODE", help="its name or number")

    limit = commands.add_parser("limit", parents=[named], help="limit how fast a cable is")
    limit.add_argument("cable", metavar="CABLE", help="its name, as status shows it")
    limit.add_argument("rate", metavar="RATE", help="of each interface in each direction, like 1gbit; or none")

    status = commands.add_parser("status", parents=[named], help="show nodes and cables")
    status.add_argument("--json", action="store_true", help="for programs")

    inventory = commands.add_parser("inventory", parents=[named], help="print an Ansible inventory of the nodes")
    inventory.add_argument("--output", type=Path, metavar="FILE", help="write it to a file")

    ssh = commands.add_parser("ssh", parents=[named], help="log in to a node, or run a command on it")
    ssh.add_argument("node", metavar="NODE", help="its name or number")
    ssh.add_argument("arguments", nargs=argparse.REMAINDER, metavar="cmd", help="what to run")
    return top


def need_root(arguments: list[str]) -> None:
    """See that network namespaces can be made.

    :raises SimulatorError: we are not root.
    """
    if os.geteuid() != 0:
        command = " ".join([sys.executable, "-m", "simulator", *arguments])
        raise SimulatorError(f"network namespaces need root; run: sudo {command}")


def up(options: argparse.Namespace) -> int:
    """Start a fleet and say how to reach it."""
    spec = Spec(
        name=options.name,
        nodes=options.nodes,
        topology=options.topology,
        cables=options.cables,
        rate=options.rate,
        addresses=not options.no_addresses,
        renderer=options.renderer,
    )
    spec.check()
    state = Fleet(options.name).up(spec, options.base_image)
    name = "" if options.name == NAME else f" --name {options.name}"
    say(f"fleet '{options.name}': {describe(spec)}; {', '.join(f'{n.name} {n.address}' for n in state.nodes)}")
    say(f"log in with: {PROGRAM} ssh{name} {state.nodes[0].name}")
    return 0


def down(options: argparse.Namespace) -> int:
    """Remove one fleet, or all of this checkout."""
    client = connect()
    names = ours(client) if options.all else [options.name]
    for name in names:
        with step(f"removing fleet '{name}'"):
            there = Fleet(name, client).down()
        if not there:
            say(f"fleet '{name}' was not up")
    if not names:
        say("no fleet is up")
    return 0


def move_cable(options: argparse.Namespace) -> int:
    """Plug or unplug."""
    plugged = options.command == "plug"
    changed = Fleet(options.name).set_plugged(options.cable, plugged)
    say(f"{options.cable} is {'' if changed else 'already '}{'plugged in' if plugged else 'unplugged'}")
    return 0


def switch(options: argparse.Namespace) -> int:
    """Switch a node on or off."""
    changed = Fleet(options.name).set_power(options.node, options.command == "on")
    say(f"{options.node} is {'' if changed else 'already '}{options.command}")
    return 0


def cable(options: argparse.Namespace) -> int:
    """Re-cable a fleet.

    :raises SimulatorError: it cannot be cabled so.
    """
    spec = Store(options.name).require().spec
    if options.ends:
        if options.topology or options.nodes or options.cables != 1:
            raise SimulatorError("--ends says all there is to cable; leave out topology, --nodes and --cables")
        cables = plan.cable_ends(spec, options.ends)
    elif options.topology:
        cables = plan.cable_topology(spec, options.topology, options.nodes, options.cables)
    else:
        raise SimulatorError(f"cable: say how; {', '.join(plan.TOPOLOGIES)}, or --ends END=END …")
    changed = Fleet(options.name).recable(cables)
    say(f"fleet '{options.name}' is {'' if changed else 'already '}cabled so: {plan.drawing(cables)}")
    return 0


def limit(options: argparse.Namespace) -> int:
    """Limit a cable's rate."""
    rate = "" if options.rate == "none" else options.rate
    if options.rate != "none":
        plan.check_rate(rate, "RATE")
    changed = Fleet(options.name).set_rate(options.cable, rate)
    say(f"{options.cable} has {'' if changed else 'already '}{f'a limit of {rate}' if rate else 'no limit'}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Show a fleet; 1 where it has problems."""
    found = Fleet(options.name).status()
    if options.json:
        print(json.dumps(found, indent=2))
        return 1 if found["problems"] else 0
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    nodes = Table(
        "node", "status", "management", "netdev", "carrier", "mtu", "addresses", box=None, title_justify="left"
    )
    for node in found["nodes"]:
        first = [node["name"], node["status"], node["address"]]
        for netdev, link in node["interfaces"].items():
            carrier = "up" if link["carrier"] else "down"
            nodes.add_row(*first, netdev, carrier, str(link["mtu"]), " ".join(link["addresses"]) or "-")
            first = ["", "", ""]
        if not node["interfaces"]:
            nodes.add_row(*first, "-", "-", "-", "-")
    cables = Table("cable", "plugged", "limit", "between", box=None)
    for cable in found["cables"]:
        ends = [*cable["ends"], *([f"switch {cable['switch']}"] if cable["switch"] else [])]
        plugged = "yes" if cable["plugged"] else "no"
        cables.add_row(cable["name"], plugged, cable["rate"] or "-", " and ".join(ends))
    words = [found["topology"], *(["re-cabled"] if found["recabled"] else []), found["rate"] or "no rate limit"]
    console.print(f"fleet '{found['name']}': {', '.join(words)}, {found['renderer']}")
    console.print(nodes)
    console.print(cables)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", markup=False)
    return 1 if found["problems"] else 0


def inventory(options: argparse.Namespace) -> int:
    """Print or write the inventory."""
    store = Store(options.name)
    text = store.inventory(store.require())
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    except OSError as error:
        raise SimulatorError(f"--output {options.output}: {error.strerror}") from error
    return 0


def ssh(options: argparse.Namespace) -> NoReturn:
    """Become ssh.

    :raises SimulatorError: no such node.
    """
    store = Store(options.name)
    node = store.node(options.node)
    words = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    command = store.ssh_command(node, words)
    os.execvp(command[0], command)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM clean up as Ctrl-C does."""
    del number, frame
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    :returns: the exit status.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    signal.signal(signal.SIGTERM, interrupt)
    commands = {
        "up": up,
        "down": down,
        "cable": cable,
        "plug": move_cable,
        "unplug": move_cable,
        "limit": limit,
        "on": switch,
        "off": switch,
        "status": status,
        "inventory": inventory,
        "ssh": ssh,
    }
    try:
        plan.check_name(options.name)
        if options.command not in ("inventory", "ssh"):
            need_root(given)
        return commands[options.command](options)
    except SimulatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (APIError, DockerException) as error:
        said = getattr(error, "explanation", None) or error
        print(f"error: Docker Engine: {' '.join(str(said).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
