# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet lock: what runs on a node, written down once it has been proven, and the same of a whole fleet.

Not to be mixed up with the run lock of ``_lock``, which keeps two runs from changing a node at once.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import typing as t

SCHEMA: t.Final = 1
PATH: t.Final = "/etc/sparkfleet/lock.json"
HIDDEN: t.Final = "(not shown)"
"""What stands in a lock in place of a secret that an owner put where none belongs."""

_SECRET = re.compile(r"(?:^|[_-])(?:api_?)?(?:key|token|secret|password|passwd)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")

PLACE: t.Final = ("name", "index", "source", "path", "nodes", "leader", "recipe")
"""What of a model's fact is no setting: where it is, which a lock says by itself, or a path on one controller."""
LONG: t.Final = ("tls_certificate", "tls_ca")
"""Settings that are whole files."""
SIZES: t.Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")

Data = dict[str, t.Any]
_Known = t.Mapping[str, t.Any]


def without_secrets(arguments: t.Iterable[str]) -> list[str]:
    """Return a command line with everything hidden that reads like a secret."""
    shown: list[str] = []
    hide = False
    for argument in arguments:
        option, equals, _value = argument.partition("=")
        if hide and not argument.startswith("-"):
            shown.append(HIDDEN)
        elif argument.startswith("-") and equals and _SECRET.search(option):
            shown.append(f"{option}={HIDDEN}")
        else:
            shown.append(_CREDENTIALS.sub(HIDDEN, argument))
        # An option may have several values.
        hide = (hide and not argument.startswith("-")) or bool(
            argument.startswith("-") and not equals and _SECRET.search(argument)
        )
    return shown


def environment_without_secrets(environment: _Known) -> dict[str, str]:
    """Return an environment with everything hidden that reads like a secret, sorted by name."""
    shown = {}
    for name, value in sorted(environment.items()):
        text = str(value)
        if _SECRET.search(name):
            text = HIDDEN if text else ""
        elif name.endswith("_ARGS"):
            try:
                text = shlex.join(without_secrets(shlex.split(text)))
            except ValueError:
                text = HIDDEN
        shown[name] = _CREDENTIALS.sub(HIDDEN, text)
    return shown


def settings(model: _Known) -> Data:
    """Return what the inventory says of how a model is served, from an element of ``spark_cluster.models``."""
    found = {key: value for key, value in model.items() if key not in PLACE and key not in LONG}
    if isinstance(found.get("extra_args"), list):
        found["extra_args"] = without_secrets(map(str, found["extra_args"]))
    if isinstance(found.get("extra_env"), dict):
        found["extra_env"] = environment_without_secrets(found["extra_env"])
    return t.cast("Data", json.loads(json.dumps(found, sort_keys=True)))


def compose(
    node: str, cluster: str, reference: str, tag: str, models: t.Sequence[_Known], found: _Known
) -> tuple[Data, list[str]]:
    """Put a node's lock together, without the time.

    :param reference: the image as ``docker run`` is given it, ``image_ref``.
    :param tag: the name that role image gives to what it builds; noted where the node's is that image.
    :param models: those of ``spark_cluster.models`` that run on the node, each with ``path``, its directory there.
    :param found: what ``_node_state.read`` returned.
    :return: the lock, and why what runs is not what was asked for, as ``what; what to do`` lines.
    """
    images: _Known = found["images"]
    image: _Known = images.get(reference) or {}
    problems = []
    running: _Known = found["containers"]
    for name, container in sorted(running.items()):
        if image and container["content"] and container["content"] != image["content"]:
            problems.append(
                f"{name} runs image {short(container['image'])}, but {reference} is {short(image['id'])} here; "
                "run playbooks/restart.yml, then site.yml"
            )
    same_tag = bool(image) and (images.get(tag) or {}).get("content") == image["content"]
    lock: Data = {
        "schema": SCHEMA,
        "node": node,
        "cluster": cluster,
        "host": found["host"],
        "image": {
            "reference": reference,
            "tag": tag if same_tag else "",
            "id": image.get("id", ""),
            "content": image.get("content", ""),
            **_described(image, running),
        },
        "models": [_model(model, found) for model in sorted(models, key=lambda model: str(model["name"]))],
        "environment": {name: container["environment"] for name, container in sorted(running.items())},
        "files": found["files"],
    }
    # As it is read back, so that it can be compared.
    return t.cast("Data", json.loads(json.dumps(lock))), problems


def _described(image: _Known, running: _Known) -> Data:
    """Return what the image says of itself; a container of it says more than its labels do."""
    descriptions = [
        container["description"]
        for container in running.values()
        if container["description"] and container["content"] == image.get("content")
    ]
    return dict(next(iter(descriptions), image.get("description") or {}))


def _model(model: _Known, found: _Known) -> Data:
    name = str(model["name"])
    files: _Known = found["models"].get(name) or {}
    container: _Known = found["containers"].get(f"spark-vllm-{name}") or {}
    return {
        "name": name,
        "served_model_name": str(model.get("served_model_name") or name),
        "source": _CREDENTIALS.sub(HIDDEN, str(model.get("source") or "")),
        "revision": str(model.get("revision") or files.get("revision") or ""),
        "path": str(model.get("path") or ""),
        "manifest_sha256": files.get("manifest", ""),
        "quick_sha256": files.get("quick", ""),
        "files": files.get("files", 0),
        "bytes": files.get("bytes", 0),
        "executor": str(model.get("executor") or ""),
        "nodes": list(model.get("nodes") or []),
        "leader": str(model.get("leader") or ""),
        **{size: model.get(size) for size in SIZES},
        "arguments": list(container.get("arguments") or []),
        "settings": settings(model),
    }


def dated(before: _Known, lock: _Known, now: str) -> tuple[Data, bool]:
    """Return a lock with the time of its last change, and whether it differs from the one before.

    :param before: the lock that is there, empty for none.
    :param now: the time to note where it differs.
    """
    changed = {key: value for key, value in before.items() if key != "changed"} != dict(lock)
    when = now if changed else str(before.get("changed", now))
    return {"schema": lock["schema"], "changed": when, **lock}, changed


def text_of(lock: _Known) -> str:
    """Return the text of a lock file."""
    return json.dumps(lock, indent=2, ensure_ascii=False) + "\n"


def parse(text: str) -> Data:
    """Return the lock in a file's text. Raises ValueError with what is wrong, fit for a message."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError("it is no JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
        raise ValueError("it is no fleet lock")
    if found["schema"] != SCHEMA:
        raise ValueError(f"its schema is {found['schema']}, this collection knows {SCHEMA}")
    return found


def parse_merged(text: str) -> Data:
    """Return the nodes' locks of a merged file. Raises ValueError as ``parse`` does."""
    nodes = parse(text).get("nodes")
    if not isinstance(nodes, dict) or not all(isinstance(lock, dict) for lock in nodes.values()):
        raise ValueError("it has no nodes")
    return nodes


def merge(before: _Known, locks: t.Iterable[_Known], known: t.Container[str]) -> str:
    """Return the text of the file of the whole fleet, empty where no node is left.

    :param before: the nodes' locks in the file that is there.
    :param locks: those of the nodes in this run, which replace theirs.
    :param known: the nodes of the inventory; what is said of others is forgotten.
    """
    nodes = {name: lock for name, lock in before.items() if name in known}
    nodes.update({str(lock["node"]): lock for lock in locks})
    changed = max((str(lock.get("changed", "")) for lock in nodes.values()), default="")
    return text_of({"schema": SCHEMA, "changed": changed, "nodes": dict(sorted(nodes.items()))}) if nodes else ""


def merged_path(sources: t.Sequence[str]) -> str:
    """Return where the file of the whole fleet lies: beside the first inventory, and not in its directory.

    Ansible would take a file in there for an inventory. Hosts on the command line have no place for one, and where
    nothing can be written there is none.

    :return: for example ``/srv/inventories/mine.sparkfleet-lock.json``, or an empty string.
    """
    for source in sources:
        if "," in source:
            continue
        path = os.path.abspath(source)
        stem = path if os.path.isdir(path) else os.path.splitext(path)[0]
        return f"{stem}.sparkfleet-lock.json" if os.access(os.path.dirname(stem), os.W_OK) else ""
    return ""


def short(digest: str) -> str:
    """Return the beginning of a digest, as people compare it."""
    return digest.removeprefix("sha256:")[:12] or "unknown"
