# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The drift of a fleet as data and as text, and what the playbook drift is asked.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import difflib
import os
import typing as t

from ._drift import ClusterDrift, compare
from ._status import table

SCHEMA: t.Final = 1
OPTIONS: t.Final = ("drift_verify", "drift_json")
VERIFY: t.Final = ("cached", "full")

_Known = t.Mapping[str, t.Any]


def report(clusters: t.Iterable[_Known], states: t.Mapping[str, _Known]) -> dict[str, t.Any]:
    """Return the drift of a fleet as plain data.

    :param clusters: the facts ``spark_cluster``, one for each cluster.
    :param states: what was read of each node, see ``compare``.
    :return: ``schema``, ``drift`` (whether there is any), ``clusters`` (``name``, ``nodes``, ``rows``, ``differences``)
        and ``lines``, a line for each difference.
    """
    found = [compare(cluster, states) for cluster in clusters]
    lines = [one.text for cluster in found for one in cluster.differences if one.text]
    return {
        "schema": SCHEMA,
        "drift": any(cluster.differences for cluster in found),
        "clusters": [_as_dict(cluster, states) for cluster in found],
        "lines": lines,
    }


def _as_dict(cluster: ClusterDrift, states: t.Mapping[str, _Known]) -> dict[str, t.Any]:
    titles = list(dict.fromkeys(title for view in cluster.views.values() for title in view))
    # Models and their arguments side by side, whichever node has which.
    titles.sort(key=lambda title: title.partition(" ")[2] if title.startswith(("model ", "arguments ")) else "")
    rows = []
    for title in titles:
        if all(view[title].shown == "-" for view in cluster.views.values() if title in view):
            continue
        cells = {
            node: {"shown": view[title].shown, "differs": cluster.differs(node, title)}
            for node, view in cluster.views.items()
            if title in view
        }
        rows.append({"field": title, "cells": cells})
    locks = {
        node: {
            "shown": str((states[node].get("lock") or {}).get("changed") or "none")[:10],
            "differs": cluster.differs(node, "lock"),
        }
        for node in cluster.views
    }
    rows.append({"field": "lock", "cells": locks})
    return {
        "name": cluster.name,
        "nodes": cluster.nodes,
        "rows": rows,
        "differences": [one.as_dict() for one in cluster.differences],
    }


def render(found: _Known) -> list[str]:
    """Return a report as lines for a person: a table for each cluster, differing cells with a star, then the lines."""
    lines: list[str] = []
    for cluster in found["clusters"]:
        rows = [["", *cluster["nodes"]]]
        for row in cluster["rows"]:
            cells = [row["cells"].get(node) for node in cluster["nodes"]]
            rows.append([row["field"], *(_cell(cell) for cell in cells)])
        lines += [f"cluster {cluster['name']}", *table(rows), ""]
    if found["drift"]:
        lines += ["* differs", *(f"drift: {line}" for line in found["lines"])]
    else:
        lines.append("no drift")
    return lines


def _cell(cell: _Known | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['shown']} *" if cell["differs"] else str(cell["shown"])


def input_problem(given: _Known) -> str:
    """Return what is wrong with what the playbook is asked, in one line, empty where nothing is.

    :param given: the variables whose names begin with ``drift_``.
    """
    for name in sorted(set(given) - set(OPTIONS)):
        near = difflib.get_close_matches(name, OPTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(OPTIONS)}"
        return f"{name} is no variable of drift; {hint}"
    verify = given.get("drift_verify", VERIFY[0])
    if verify not in VERIFY:
        return f"drift_verify is {verify}; give {' or '.join(VERIFY)}"
    file = os.path.abspath(os.path.expanduser(str(given.get("drift_json") or "")))
    if given.get("drift_json") and (os.path.isdir(file) or not os.path.isdir(os.path.dirname(file))):
        return f"drift_json is {given['drift_json']}, which is no file in a directory that is there; correct it"
    return ""
