# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift: where the nodes of a cluster differ from each other, from their locks, and from the inventory.

What a node has is seen as fields, each with a value that is compared and a text that is shown. A lock is seen in the
same way, so that both are compared alike.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import typing as t
from dataclasses import asdict, dataclass, field

from ._fleet_lock import HIDDEN, settings, short
from ._model import shorten

HOST_FIELDS: t.Final[t.Mapping[str, str]] = {
    "os": "operating system",
    "kernel": "kernel",
    "architecture": "architecture",
    "driver": "NVIDIA driver",
    "toolkit": "NVIDIA container toolkit",
    "docker": "Docker Engine",
    "firmware": "network card firmware",
}
"""Fields of a host, by what they are called."""
FROM_IMAGE: t.Final = ("vLLM", "NCCL", "kernels", "patches")
"""Fields that follow from the image."""
ABSENT: t.Final = "absent"

OF_A_RANK: t.Final = frozenset(
    {
        "--data-parallel-address",
        "--data-parallel-rpc-port",
        "--data-parallel-size",
        "--headless",
        "--master-addr",
        "--nnodes",
        "--node-rank",
    }
)
"""Options of vllm serve that may differ between the nodes of a model."""

_Known = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Cell:
    """What a node has in a field."""

    value: str
    """What is compared, empty where it is not known."""
    shown: str


View = dict[str, Cell]


@dataclass
class Difference:
    """A field of a node that is not as others say."""

    cluster: str
    node: str
    field: str
    has: str
    cure: str
    nodes: str = ""
    """What other nodes have."""
    lock: str = ""
    """What the lock has."""
    inventory: str = ""
    """What the inventory has."""
    text: str = ""
    """All of it in one line."""

    def as_dict(self) -> dict[str, t.Any]:
        """Return plain data."""
        return asdict(self)


@dataclass
class ClusterDrift:
    """One cluster: what its nodes have, and where that differs."""

    name: str
    nodes: list[str]
    views: dict[str, View]
    differences: list[Difference] = field(default_factory=list)

    def differs(self, node: str, name: str) -> bool:
        """Say whether a field of a node differs."""
        return any((one.node, one.field) == (node, name) for one in self.differences)


# --- what a node has ------------------------------------------------------------------------------------------------


def firmware_text(firmware: _Known) -> str:
    """Return the firmware of the network cards in one line; the board matters only where there are several."""
    if len(firmware) == 1:
        return str(next(iter(firmware.values())))
    return ", ".join(f"{board} {versions}" for board, versions in sorted(firmware.items()))


def host_view(host: _Known) -> View:
    """Return the fields of a host's versions; what is absent has no value."""
    texts = {name: str(host.get(name) or "") for name in HOST_FIELDS if name != "firmware"}
    texts["firmware"] = firmware_text(host.get("firmware") or {})
    return {HOST_FIELDS[name]: Cell(texts[name], texts[name] or "-") for name in HOST_FIELDS}


def image_view(description: _Known) -> View:
    """Return the fields that follow from what an image says of itself."""
    versions: _Known = description.get("versions") or {}
    kernels: _Known = description.get("kernels") or {}
    patches: _Known = description.get("patches") or {}
    view = {
        "vLLM": Cell(str(versions.get("vllm") or ""), str(versions.get("vllm") or "-")),
        "NCCL": Cell(str(versions.get("nccl") or ""), str(versions.get("nccl") or "-")),
        "kernels": Cell(str(kernels.get("sha256") or ""), str(kernels.get("version") or "-")),
        "patches": Cell("", "-"),
    }
    if patches.get("sha256"):
        view["patches"] = Cell(
            str(patches["sha256"]), f"{len(patches.get('applied') or [])} ({short(patches['sha256'])})"
        )
    return view


def tag_of(lock: _Known) -> str:
    """Return the name that a lock's image has, empty where it is known by its id alone."""
    image: _Known = lock.get("image") or {}
    reference = str(image.get("reference") or "")
    return str(image.get("tag") or "") or ("" if reference.startswith("sha256:") else reference)


def model_cell(model: _Known) -> Cell:
    """Return what a model's directory has. A look at it and hashes of all of it cannot be compared."""
    if model.get("error"):
        return Cell(ABSENT, "unreadable")
    for kind, key in (("manifest", "manifest"), ("look", "quick")):
        digest = model.get(key) or model.get(f"{key}_sha256")
        if digest:
            return Cell(f"{kind}:{digest}", short(digest))
    return Cell("", "-")


def arguments_cell(arguments: t.Sequence[str] | None) -> Cell:
    """Return the arguments of a server as one field."""
    if not arguments:
        return Cell("", "-")
    digest = hashlib.sha256("\0".join(arguments).encode()).hexdigest()
    return Cell(digest, f"{len(arguments)} ({digest[:8]})")


def now(found: _Known, lock: _Known) -> View:
    """Return what a node has now.

    :param found: what ``_node_state.read`` returned.
    :param lock: the node's lock, empty for none; it says which names of images count.
    """
    containers: _Known = found["containers"]
    images: _Known = found["images"]
    view = host_view(found["host"])
    # What runs, and where nothing runs what would.
    running = {str(one["content"] or one["image"]): str(one["image"]) for one in containers.values()}
    described: list[_Known] = [one["description"] for one in containers.values() if one["description"]]
    if not running:
        image: _Known = images.get(str((lock.get("image") or {}).get("reference"))) or {}
        running = {str(image["content"]): str(image["id"])} if image else {}
        described = [image["description"]] if image.get("description") else []
    view["image"] = Cell(" ".join(sorted(running)), " ".join(sorted(map(short, running.values()))) or "-")
    tag = tag_of(lock)
    if tag:
        named: _Known = images.get(tag) or {}
        view["image by name"] = Cell(named["content"], short(named["id"])) if named else Cell(ABSENT, "none")
    view.update(image_view(described[0] if described else {}))
    for name, model in sorted(found["models"].items()):
        view[f"model {name}"] = model_cell(model)
    for name, container in sorted(containers.items()):
        if name.startswith("spark-vllm-"):
            view[f"arguments {name.removeprefix('spark-vllm-')}"] = arguments_cell(container["arguments"])
    return view


def noted(lock: _Known) -> View:
    """Return what a lock says in the fields of ``now``."""
    image: _Known = lock.get("image") or {}
    view = host_view(lock.get("host") or {})
    cell = Cell(str(image.get("content") or ""), short(str(image.get("id") or "")))
    view["image"] = cell
    if tag_of(lock):
        view["image by name"] = cell
    view.update(image_view(image))
    for model in lock.get("models") or []:
        view[f"model {model['name']}"] = model_cell(model)
        view[f"arguments {model['name']}"] = arguments_cell(model.get("arguments"))
    return view


# --- comparing ------------------------------------------------------------------------------------------------------


def differ(mine: Cell | None, other: Cell | None) -> bool:
    """Say whether two cells surely differ: both are known, and where they are digests, of the same kind."""
    if mine is None or other is None or not mine.value or not other.value or mine.value == other.value:
        return False
    kinds = {cell.value.partition(":")[0] for cell in (mine, other) if cell.value.startswith(("manifest:", "look:"))}
    return len(kinds) < 2


def reference_value(cells: t.Sequence[Cell], noted_cells: t.Sequence[Cell] = ()) -> Cell | None:
    """Return the cell that the others are measured by: what most nodes have or have noted; of as many, the first."""
    known = [cell for cell in (*cells, *noted_cells) if cell.value]
    candidates = [cell for cell in cells if cell.value]
    return max(candidates, key=lambda cell: sum(one.value == cell.value for one in known), default=None)


def outsiders(cells: t.Mapping[str, Cell], noted_cells: t.Mapping[str, Cell]) -> dict[str, str]:
    """Return the nodes that differ from what most have, with what those have, in words."""
    reference = reference_value(list(cells.values()), list(noted_cells.values()))
    if reference is None:
        return {}
    holders = [node for node, cell in cells.items() if cell.value == reference.value]
    said = f"{reference.shown} on {shorten(holders)}"
    return {node: said for node, cell in cells.items() if differ(cell, reference)}


def options(arguments: t.Iterable[str]) -> dict[str, str]:
    """Return a command line by option, with its values; what stands before the first option has the name ``model``."""
    found: dict[str, list[str]] = {"model": []}
    name = "model"
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.partition("=")
            found.setdefault(name, []).extend([value] if equals else [])
        else:
            found[name].append(argument)
    return {name: " ".join(values) for name, values in found.items()}


def option_changes(before: _Known, after: _Known, both: bool = False) -> list[str]:
    """Return in words what differs between options or variables, ``after`` as it is and ``before`` in brackets.

    :param both: leave out what only one of them has.
    """
    changes = []
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name) or (both and not (name in before and name in after)):
            continue
        old, new = (_shown(side[name]) if name in side else "absent" for side in (before, after))
        changes.append(f"{name} {new or 'empty'} ({old or 'empty'})")
    return changes


def _shown(value: t.Any) -> str:
    """Return a value of an option or a setting as a line has room for it."""
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value))[:60]


def cure(name: str, among_nodes: bool, cell: Cell | None = None) -> str:
    """Return what to do about a difference in a field."""
    if name in HOST_FIELDS.values():
        same = f"bring the nodes to the same {name}, then run site.yml"
        return same if among_nodes else "run site.yml, which proves it and notes it"
    if name.startswith("model "):
        if cell is not None and cell.value.startswith("look:"):
            return "put the same files there on every node, then run site.yml"
        return "run site.yml -e model_verify=full"
    return "run site.yml"


def compare(cluster: _Known, states: t.Mapping[str, _Known]) -> ClusterDrift:
    """Compare what was read of one cluster's nodes.

    :param cluster: the fact ``spark_cluster``.
    :param states: for each node what module ``fleet_lock`` returned (``found``, ``lock``, ``lock_error``), or
        ``error``, why it could not be read.
    """
    name = str(cluster["name"])
    nodes = [str(node) for node in cluster["nodes"]]
    result = ClusterDrift(name, nodes, {})
    readable = []
    for node in nodes:
        state = states.get(node) or {"error": "it was not read"}
        error = state.get("error") or state["found"]["error"]
        if error:
            what = "correct that, then look again"
            result.differences.append(
                Difference(name, node, "node", "unreadable", what, text=f"{node}: {error}; {what}")
            )
        else:
            readable.append(node)
    locks: dict[str, _Known] = {node: states[node].get("lock") or {} for node in readable}
    for node in readable:
        result.views[node] = now(states[node]["found"], locks[node])
        result.differences += _lock_problems(name, node, states[node])
    found = {
        node: _by_field(result.views, {other: noted(lock) for other, lock in locks.items()}, node) for node in readable
    }
    for node in readable:
        own = noted(locks[node])
        for title, cell in result.views[node].items():
            others = found[node].get(title, "")
            lock = own[title].shown if differ(cell, own.get(title)) else ""
            if others or lock:
                what = cure(title, bool(others), cell)
                result.differences.append(Difference(name, node, title, cell.shown, what, others, lock))
    for node in readable:
        _name_options(result, node, states, locks)
        result.differences += _hidden_differences(name, node, states[node]["found"], locks[node])
    result.differences += _inventory_differences(cluster, {node: lock for node, lock in locks.items() if lock})
    _say(result, locks)
    return result


def _by_field(views: t.Mapping[str, View], notes: t.Mapping[str, View], node: str) -> dict[str, str]:
    """Return what the other nodes have, by the fields in which a node differs from them."""
    found = {}
    for title in views[node]:
        if title.startswith("arguments "):
            continue  # compared option by option
        cells = {other: view[title] for other, view in views.items() if title in view}
        kept = {other: view[title] for other, view in notes.items() if title in view}
        said = outsiders(cells, kept).get(node)
        if said:
            found[title] = said
    return found


def _lock_problems(cluster: str, node: str, state: _Known) -> list[Difference]:
    """Return why a node's lock is none."""
    lock = state.get("lock") or {}
    if state.get("lock_error"):
        has = f"its fleet lock cannot be used ({state['lock_error']})"
    elif not lock:
        has = "it has no fleet lock"
    elif (lock.get("node"), lock.get("cluster")) != (node, cluster):
        has = f"its fleet lock is of {lock.get('node')} in cluster {lock.get('cluster')}"
    else:
        return []
    what = "run site.yml, which writes it"
    return [Difference(cluster, node, "lock", has, what, text=f"{node}: {has}; {what}")]


def _name_options(
    result: ClusterDrift, node: str, states: t.Mapping[str, _Known], locks: t.Mapping[str, _Known]
) -> None:
    """Say which options of a node's servers differ: from its lock, or else from those of the model's first node."""
    for title in [title for title in result.views[node] if title.startswith("arguments ")]:
        model = title.removeprefix("arguments ")
        mine = options(_arguments(states[node], model))
        of_lock = next((one for one in result.differences if (one.node, one.field) == (node, title)), None)
        if of_lock is not None:
            entry = next(one for one in locks[node]["models"] if one["name"] == model)
            of_lock.has = shorten(option_changes(options(entry["arguments"]), mine)) or "in another order"
            of_lock.lock = "in brackets"
            continue
        first = next(peer for peer in result.views if _arguments(states[peer], model) or peer == node)
        changes = option_changes(_shared(options(_arguments(states[first], model))), _shared(mine), both=True)
        if changes:
            said = f"in brackets on {first}"
            result.differences.append(Difference(result.name, node, title, shorten(changes), cure(title, True), said))


def _shared(own: t.Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in own.items() if name not in OF_A_RANK}


def _arguments(state: _Known, model: str) -> list[str]:
    container: _Known = state["found"]["containers"].get(f"spark-vllm-{model}") or {}
    return list(container.get("arguments") or [])


def _hidden_differences(cluster: str, node: str, found: _Known, lock: _Known) -> list[Difference]:
    """Return what differs from the lock and has no row in the table: environments, files, containers."""
    if not lock:
        return []
    differences = []
    what = "run site.yml"
    kept: _Known = lock.get("environment") or {}
    for name, container in sorted(found["containers"].items()):
        if name not in kept:
            has = f"container {name} runs, which site.yml did not prove"
            differences.append(Difference(cluster, node, f"container {name}", has, what, text=f"{node}: {has}; {what}"))
            continue
        changes = option_changes(kept[name], container["environment"])
        if changes:
            title = f"environment of {name}"
            differences.append(Difference(cluster, node, title, shorten(changes), what, lock="in brackets"))
    files: _Known = lock.get("files") or {}
    for path in sorted({*files, *found["files"]}):
        if files.get(path) == found["files"].get(path):
            continue
        has = "gone" if path not in found["files"] else "not from site.yml" if path not in files else "changed"
        differences.append(Difference(cluster, node, path, has, what, lock="another content" if path in files else ""))
    return differences


def _inventory_differences(cluster: _Known, locks: t.Mapping[str, _Known]) -> list[Difference]:
    """Return where the inventory asks for something else than what was proven, once for all nodes."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for node, lock in locks.items():
        wanted = {str(model["name"]): model for model in cluster.get("models") or [] if node in model["nodes"]}
        kept = {str(model["name"]): model for model in lock.get("models") or []}
        for name in sorted({*wanted, *kept}):
            if name not in kept or name not in wanted:
                has, asks = ("not proven", "served") if name in wanted else ("proven", "not served")
                lines.setdefault((f"inventory {name}", has, asks), []).append(node)
                continue
            asked = {**settings(wanted[name]), "nodes": list(wanted[name]["nodes"]), "leader": wanted[name]["leader"]}
            proven = {**kept[name]["settings"], "nodes": kept[name]["nodes"], "leader": kept[name]["leader"]}
            # A newer version of the collection may know more settings than the one that wrote the lock.
            changes = [line for line in option_changes(asked, proven, both=True) if HIDDEN not in line]
            if changes:
                lines.setdefault((f"inventory {name}", shorten(changes), "in brackets"), []).append(node)
    found = []
    for (title, has, asks), those in lines.items():
        who = [str(cluster["name"])] if len(those) == len(cluster["nodes"]) else those
        found += [Difference(str(cluster["name"]), one, title, has, "run site.yml", inventory=asks) for one in who]
    return found


def _say(result: ClusterDrift, locks: t.Mapping[str, _Known]) -> None:
    """Write each difference as one line; what follows from another image is said by the image."""
    for one in result.differences:
        if one.text:
            continue
        follows = one.field in FROM_IMAGE and result.differs(one.node, "image")
        parts = [one.nodes] if one.nodes else []
        if one.lock:
            when = str(locks[one.node].get("changed") or "")[:10]
            parts.append(f"{one.lock} when site.yml proved it{f' ({when})' if when else ''}")
        if one.inventory:
            parts.append(f"{one.inventory} in the inventory")
        title = one.field.replace("inventory ", "model ", 1) if one.inventory else one.field
        if title == "image by name":
            title = f"image {tag_of(locks[one.node])}"
        if not follows:
            one.text = f"{one.node}: {title} is {one.has}, {'; '.join(parts)}; {one.cure}"
