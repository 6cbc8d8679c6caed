# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/image_state.py."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _image, _image_kernels, _image_source
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import ask, first_line
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._digests import Digests

TO_NODE = ("reference", "tag", "keep", "root")
NOTHING: dict[str, Any] = {
    "image": "",
    "images": [],
    "contents": {},
    "tagged": False,
    "named": False,
    "base_present": False,
    "leftovers": [],
    "removable": [],
    "surplus": [],
    "packages": [],
    "engine_error": "",
}
"""What is said of a node that could not be read."""


def _names(directory: str) -> list[str]:
    """Return what is in a directory, nothing where it is none."""
    return os.listdir(directory) if os.path.isdir(directory) else []


class ActionModule(ActionBase):
    """Plan on the controller, read the node with the module, judge both."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan, the node's state and the problems; an unreachable node is not this task's to report."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, options = self.validate_argument_spec(
            argument_spec={
                "directory": {"type": "path"},
                "variant": {"type": "str", "choices": list(_image.VARIANTS), "default": "cuda"},
                "base": {"type": "str", "default": ""},
                "base_archive": {"type": "str", "default": ""},
                "wheelhouse": {"type": "str", "default": ""},
                "ca_file": {"type": "str", "default": ""},
                "kernels_wheel": {"type": "str", "default": ""},
                "source": {"type": "dict", "default": {}},
                "reference": {"type": "str", "default": ""},
                "tag": {"type": "str", "default": ""},
                "builds": {"type": "bool", "default": False},
                "min_disk_gb": {"type": "float", "default": 0},
                "keep": {"type": "int", "default": 1},
                "root": {"type": "path", "default": "/var/lib/sparkfleet/image"},
            },
        )
        result |= {"changed": False, "problems": [], "absence": "", "plan": {}, **NOTHING}
        plan = None
        source, mods = self._source(options)
        if options["directory"] and not options["reference"]:
            wrong = _image_source.problems(source)
            wrong += _image_source.mod_problems({path: _names(path) for path in mods})
            if wrong:
                return {**result, "problems": wrong}
            try:
                plan = self._plan(options, source, mods)
                result["plan"] = dataclasses.asdict(plan)
            except _image.ImageError as error:
                return {**result, "problems": [str(error)]}
        arguments = {name: options[name] for name in TO_NODE} | {
            "key": plan.key if plan else "",
            "base_id": plan.base.image_id if plan else "",
        }
        node = ask(self._execute_module, "image_state", arguments, task_vars)
        if node is None:
            return {**result, "engine_error": "the node is unreachable"}
        if "images" not in node:
            return {**result, "engine_error": first_line(node, "msg")}
        result |= {name: node[name] for name in NOTHING}
        if options["reference"]:
            result["absence"] = _image.absence(options["reference"], node)
        if plan or options["reference"]:
            result["problems"] = self._problems(options, source, plan, node)
        return result

    def _source(self, options: dict[str, Any]) -> tuple[_image_source.Source, list[str]]:
        """Return what is built from source, and the directories of the mods."""
        given = dict(options["source"])
        mods = [os.path.abspath(os.path.expanduser(path)) for path in given.pop("mods", [])]
        given["build_jobs"] = int(given.get("build_jobs") or 0)
        return _image_source.Source(ref=options["reference"], variant=options["variant"], **given), mods

    def _plan(self, options: dict[str, Any], source: _image_source.Source, mods: list[str]) -> _image.Plan:
        """Return the wanted image. Raises ImageError."""
        directory, variant = options["directory"], options["variant"]
        base = _image.Base(options["base"])
        if options["base_archive"]:
            base = _image.read_archive(os.path.abspath(os.path.expanduser(options["base_archive"])))
        if not base.name:
            raise _image.ImageError("image_base is empty; name an image, or give image_base_archive")
        files = {
            name: _image.file_sha256(os.path.join(directory, name)) for name in _image.context_files(directory, variant)
        }
        lock = _image.locked(directory, variant)
        try:
            kernels = self._kernels(options)
        except _image_kernels.KernelsError as error:
            raise _image.ImageError(str(error)) from error
        digest = _image.file_sha256(kernels) if kernels else ""
        names = _image_source.mod_names(mods)
        for path, name in zip(mods, names, strict=True):
            for root, _directories, found in os.walk(path):
                for one in found:
                    file = os.path.join(root, one)
                    files[os.path.join("mods", name, os.path.relpath(file, path))] = _image.file_sha256(file)
        arguments = _image_source.arguments(source)
        incidental = _image_source.incidental(source, str(time.time_ns()))
        return _image.make_plan(variant, files, lock, base, kernels, digest, arguments, incidental, names)

    def _kernels(self, options: dict[str, Any]) -> str:
        """Return the wheel of the kernels for the image, empty for none. Raises KernelsError."""
        given, variant = options["kernels_wheel"], options["variant"]
        if given and given != _image_kernels.NONE:
            given = os.path.abspath(os.path.expanduser(given))
        root = os.path.join(options["directory"], "..", "..")
        return _image_kernels.find_wheel(given, variant, _image.MACHINES[variant], root)

    def _problems(
        self,
        options: dict[str, Any],
        source: _image_source.Source,
        plan: _image.Plan | None,
        node: dict[str, Any],
    ) -> list[str]:
        """Return why the image cannot come to the node; what a build needs is asked only where one is due."""
        wish = _image.Wish(
            plan=plan,
            reference=options["reference"],
            tag=options["tag"],
            variant=options["variant"],
            builds=options["builds"],
            disk_gb=options["min_disk_gb"],
        )
        problems = _image.node_problems(wish, node)
        if plan is None or not options["builds"] or node["images"] or node["engine_error"]:
            return problems
        if not shutil.which("rsync"):
            problems.append("rsync is missing on the controller; install it (package rsync)")
        if options["ca_file"] and not os.path.isfile(os.path.expanduser(options["ca_file"])):
            problems.append(f"image_ca_file {options['ca_file']} is no file on the controller; correct the path")
        if options["wheelhouse"]:
            problems += self._wheelhouse_problems(options, source)
        return problems

    def _wheelhouse_problems(self, options: dict[str, Any], source: _image_source.Source) -> list[str]:
        """Return what is wrong with the wheelhouse."""
        where = os.path.abspath(os.path.expanduser(options["wheelhouse"]))
        try:
            names = os.listdir(where)
        except OSError as error:
            return [f"image_wheelhouse {where} cannot be read ({error.strerror}); correct the path"]
        with Digests() as digests:
            lock = _image.locked_for_build(options["directory"], options["variant"])
            found = _image.wheelhouse_problems(lock, names, lambda name: digests.of(os.path.join(where, name)), where)
        return found + _image_source.wheelhouse_problems(source, names, where)
