# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See plugins/modules/image_state.py."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _image
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._answers import ask, first_line
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils._digests import Digests

TO_NODE = ("reference", "tag", "root")
FROM_NODE = ("image", "images", "tagged", "base_present", "leftovers", "ours", "engine_error")


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
                "reference": {"type": "str", "default": ""},
                "tag": {"type": "str", "default": ""},
                "builds": {"type": "bool", "default": False},
                "min_disk_gb": {"type": "float", "default": 0},
                "root": {"type": "path", "default": "/var/lib/sparkfleet/image"},
            },
        )
        result |= {"changed": False, "problems": [], "plan": {}, "image": "", "images": [], "tagged": False}
        result |= {"leftovers": [], "ours": [], "base_present": False, "engine_error": ""}
        plan = None
        if options["directory"] and not options["reference"]:
            try:
                plan = self._plan(options)
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
        result |= {name: node[name] for name in FROM_NODE}
        if plan or options["reference"]:
            result["problems"] = self._problems(options, plan, node)
        return result

    def _plan(self, options: dict[str, Any]) -> _image.Plan:
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
        return _image.make_plan(variant, files, self._lock(directory, variant), base)

    def _lock(self, directory: str, variant: str) -> dict[str, _image.Requirement]:
        """Return the variant's lock. Raises ImageError."""
        path = os.path.join(directory, variant, f"requirements-{_image.MACHINES[variant]}.lock")
        try:
            with open(path, encoding="utf-8") as file:
                return _image.read_lock(file.read())
        except OSError as error:
            raise _image.ImageError(f"the lock {path} cannot be read ({error.strerror}); make lock") from error

    def _problems(self, options: dict[str, Any], plan: _image.Plan | None, node: dict[str, Any]) -> list[str]:
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
            problems += self._wheelhouse_problems(options)
        return problems

    def _wheelhouse_problems(self, options: dict[str, Any]) -> list[str]:
        """Return what is wrong with the wheelhouse."""
        where = os.path.abspath(os.path.expanduser(options["wheelhouse"]))
        try:
            names = os.listdir(where)
        except OSError as error:
            return [f"image_wheelhouse {where} cannot be read ({error.strerror}); correct the path"]
        with Digests() as digests:
            lock = self._lock(options["directory"], options["variant"])
            return _image.wheelhouse_problems(lock, names, lambda name: digests.of(os.path.join(where, name)), where)
