# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes as files of the controller.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t
from pathlib import Path

import yaml
from ansible_collections.sparkfleet.vllm.plugins.module_utils._recipe import Recipe, parse, refused


class _Loader(yaml.SafeLoader):
    """YAML of which a key that stands twice is an error: which of the two was meant, nobody knows."""

    def construct_mapping(self, node: t.Any, deep: bool = False) -> dict[t.Any, t.Any]:
        seen: set[str] = set()
        for key, _value in node.value:
            if key.value != "<<" and str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class Recipes:
    """Reads each recipe once."""

    def __init__(self, loader: t.Any) -> None:
        self._dataloader = loader
        self._known: dict[str, Recipe] = {}

    def read(self, file: str) -> Recipe:
        """Return the recipe in a file, a path like that of a model. Whatever is wrong is in its problems."""
        if file not in self._known:
            self._known[file] = self._read(file)
        return self._known[file]

    def _read(self, file: str) -> Recipe:
        path = found(self._dataloader, file)
        if not path.is_file():
            return refused(file, "no such file on this machine; correct the path")
        try:
            return parse(file, yaml.load(path.read_text(encoding="utf-8"), _Loader))
        except yaml.YAMLError as error:
            return refused(file, f"not YAML ({' '.join(str(error).replace(str(path), '').split())}); correct it")
        except (OSError, ValueError) as error:
            return refused(file, f"cannot be read ({error}); correct it")


def found(loader: t.Any, path: str) -> Path:
    """Return a path of the controller: relative to where Ansible was started, or else to the playbook."""
    started = Path(path).expanduser()
    return started if started.exists() else Path(loader.path_dwim(path))
