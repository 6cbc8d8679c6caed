# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Make one file for an installation without a network
version_added: "0.1.0"
description:
  - Writes a tar with the wheels of a variant's locks, the image to build on, the GPU kernels' wheel, this collection
    and those that it needs, hashes of them all, variables for the installation, and a page that says how.
  - Runs on the controller. Wheels come by pip, for the image's platform and not the controller's, and by hash.
  - What a bundle of that name holds already, and what a directory of wheels has, is not downloaded again. Equal content
    changes nothing. The file is replaced when the new one is whole.
  - In check mode, says what is missing or would be new.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Downloads and writes nothing.
  diff_mode:
    support: none
    description: The result says what is new.
options:
  file:
    description:
      - The bundle. Its directory has to be there, outside of O(collection). Downloads are kept beside it until it is
        whole.
    type: path
    required: true
  variant:
    description: Variant of the image.
    type: str
    choices: [cuda, cpu]
    default: cuda
  directory:
    description: Where relative paths start. Empty stands for where Ansible runs modules.
    type: path
    default: ""
  collection:
    description: Directory of this collection, installed or a checkout.
    type: path
    required: true
  base:
    description: Name of the image that the image to build on is made from.
    type: str
    default: ""
  base_archive:
    description: The image to build on with its packages, as C(docker save) writes it. Empty takes the one made for it.
    type: path
    default: ""
  wheelhouse:
    description: Directory with all wheels of the locks. Empty downloads them.
    type: path
    default: ""
  kernels_wheel:
    description:
      - Wheel of the GPU kernels. Empty takes the collection's own where the variant needs them, V(none) leaves them
        out.
    type: path
    default: ""
  index_url:
    description: Package index. May hold a password.
    type: str
    default: ""
  ca_file:
    description: Certificates that downloads are checked against.
    type: path
    default: ""
  proxy:
    description: Proxies for downloads, with the keys C(http), C(https) and C(no_proxy). May hold a password.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Is anything missing?
  sparkfleet.vllm.bundle:
    file: /srv/bundle-cuda.tar
    collection: "{{ role_path }}/../.."
    base: ubuntu:24.04
  check_mode: true
  register: bundle
"""

RETURN = r"""
base_needed:
  description: Whether the image to build on has to be made first.
  returned: success
  type: bool
base_name:
  description: Name of the image to build on, when it has to be made or was.
  returned: success
  type: str
base:
  description: What that image is made from, O(base).
  returned: success
  type: str
machine:
  description: Machine that the variant is for.
  returned: success
  type: str
incoming:
  description: Where that image's archive is looked for.
  returned: success
  type: str
new:
  description: What is new in the bundle, or has to be downloaded, in words.
  returned: success
  type: str
size:
  description: Bytes of the bundle.
  returned: when it is there
  type: int
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bundle, _image, _image_kernels

NAME = "sparkfleet.vllm"


class Maker:
    """What has to come into the bundle, and from where."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        given = module.params
        self.variant: str = given["variant"]
        self.machine = _image.MACHINES[self.variant]
        self.file = self.path("file")
        self.work = f"{self.file}.part"
        self.base = os.path.join(self.work, _bundle.BASE)
        self.wheels = os.path.join(self.work, "wheels")
        self.root = os.path.realpath(given["collection"])
        self.images = os.path.join(self.root, "files", "image")
        self.old = _bundle.read(self.file)

    def path(self, name: str) -> str:
        """Return a path that was given, empty where none was. A module runs in another directory than its caller."""
        given = self.module.params[name]
        return os.path.abspath(os.path.join(self.module.params["directory"], given)) if given else ""

    # --- wheels

    def given_wheels(self, lock: dict[str, _image.Requirement]) -> dict[str, _bundle.Part]:
        """Return the wheels of the directory that was named."""
        where = self.path("wheelhouse")
        found = _bundle.wheelhouse(lock, where, self.variant)
        return {f"wheels/{name}": _bundle.Part.of_file(os.path.join(where, name), one) for name, one in found.items()}

    def known_wheels(
        self, lock: dict[str, _image.Requirement]
    ) -> tuple[dict[str, _bundle.Part], dict[str, _image.Requirement]]:
        """Return the wheels that the bundle or an interrupted run has, and what is still missing."""
        have = {f"wheels/{os.path.basename(path)}": path for path in glob.glob(os.path.join(self.wheels, "*.whl"))}
        parts = {name: part for name, part in self.old.items() if name.startswith("wheels/") and name.endswith(".whl")}
        parts |= {name: _bundle.Part.of_file(path) for name, path in have.items()}
        digests = {name.partition("/")[2]: part.sha256 for name, part in parts.items()}
        found, missing = _bundle.fitting(lock, digests, self.variant)
        return {f"wheels/{name}": parts[f"wheels/{name}"] for name in found}, missing

    def download(self, missing: t.Iterable[_image.Requirement]) -> None:
        """Let pip fetch what is missing."""
        pip = [sys.executable, "-m", "pip"]
        if self.module.run_command([*pip, "--version"])[0]:
            program = self.module.get_bin_path("pip3") or self.module.get_bin_path("pip")
            if not program:
                raise _bundle.BundleError("pip is missing on the controller; install it (package python3-pip)")
            pip = [program]
        given = self.module.params
        ca_file = self.path("ca_file")
        if ca_file and not os.path.isfile(ca_file):
            raise _bundle.BundleError(f"image_ca_file {ca_file} is no file; correct the path")
        os.makedirs(self.wheels, exist_ok=True)
        wanted = os.path.join(self.work, "requirements.txt")
        options = _bundle.pip_options(self.variant, wanted, self.wheels)
        environment = _bundle.pip_environment(given["index_url"], ca_file, given["proxy"])
        environment["TMPDIR"] = self.work  # where it would else be may be small, or lie in memory
        for batch in _bundle.batches(missing):
            with open(wanted, "w", encoding="utf-8") as file:
                file.write(_bundle.requirements(batch))
            rc, out, err = self.module.run_command([*pip, *options], environ_update=environment)
            if rc:
                raise _bundle.BundleError(_bundle.pip_failure(err or out))

    # --- the image to build on, and the kernels

    def base_part(self, name: str) -> tuple[_bundle.Part | None, str]:
        """Return the archive of the image to build on, None where it has to be made, and the image's name."""
        path = self.path("base_archive")
        if path:
            found = _bundle.check_base(path, self.variant, _bundle.listed(self.images, self.variant))
            return _bundle.Part.of_file(path), found
        with contextlib.suppress(_bundle.BundleError):  # of another run
            if os.path.isfile(self.base) and _bundle.check_base(self.base, self.variant) == name:
                return _bundle.Part.of_file(self.base), name
        noted = self.old.get(_bundle.BASE_NAME)
        same = noted is not None and noted.sha256 == _bundle.Part.of_data(f"{name}\n".encode()).sha256
        return (self.old.get(_bundle.BASE) if same else None), name

    def kernels(self) -> str:
        """Return the path of the kernels' wheel, empty for none."""
        given = self.module.params["kernels_wheel"]
        if given and given != _image_kernels.NONE:
            given = self.path("kernels_wheel")
        try:
            return _image_kernels.find_wheel(given, self.variant, self.machine, self.root)
        except _image_kernels.KernelsError as error:
            raise _bundle.BundleError(str(error)) from error

    # --- collections

    def galaxy(self, *arguments: str) -> str:
        """Return what ansible-galaxy says."""
        program = os.path.join(os.path.dirname(sys.executable), "ansible-galaxy")
        if not os.path.exists(program):
            program = self.module.get_bin_path("ansible-galaxy") or ""
        if not program:
            raise _bundle.BundleError("ansible-galaxy is missing on the controller; install ansible-core")
        rc, out, err = self.module.run_command([program, "collection", *arguments])
        if rc:
            raise _bundle.BundleError(f"ansible-galaxy: {(err.strip() or out.strip()).splitlines()[-1]}")
        return str(out)

    def collections(self, where: str) -> tuple[dict[str, _bundle.Part], str]:
        """Pack this collection and those that it needs into a directory; return them and our version."""
        target = os.path.join(where, "collections")
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(target)
        roots: dict[str, str] = {}
        for path, found in json.loads(self.galaxy("list", "--format", "json")).items():
            for name in found:
                roots.setdefault(name, os.path.join(path, *name.split(".")))
        own = self.root
        if not os.path.exists(os.path.join(own, "MANIFEST.json")):  # a checkout
            built, own = os.path.join(where, "built"), os.path.join(where, "own")
            for path in (built, own):
                shutil.rmtree(path, ignore_errors=True)
            self.galaxy("build", "--output-path", built, self.root)
            [tarball] = glob.glob(os.path.join(built, "*.tar.gz"))
            shutil.unpack_archive(tarball, own)
        roots[NAME] = own

        def manifest(name: str) -> dict[str, t.Any]:
            with open(os.path.join(roots[name], "MANIFEST.json"), encoding="utf-8") as file:
                info: dict[str, t.Any] = json.load(file)["collection_info"]
            return info

        packed = [_bundle.pack_collection(one, target) for one in (own, *_bundle.dependencies(NAME, roots, manifest))]
        parts = {f"collections/{os.path.basename(path)}": _bundle.Part.of_file(path) for path in packed}
        return parts, str(manifest(NAME)["version"])

    # --- the whole

    def plan(self, write: bool) -> dict[str, t.Any]:
        """Make the bundle, or say what is missing. Raises BundleError, ImageError, OSError."""
        _bundle.check_target(self.file, self.root)
        lock = _image.locked_for_build(self.images, self.variant)
        given = bool(self.module.params["wheelhouse"])
        wheels, missing = (self.given_wheels(lock), {}) if given else self.known_wheels(lock)
        kernels = self.kernels()
        name = _bundle.base_name(self.variant, self.module.params["base"], self.images)
        base, tag = self.base_part(name)
        if base is None and not self.module.get_bin_path("rsync"):
            raise _bundle.BundleError("rsync is missing on the controller; install it (package rsync)")
        _bundle.check_room(self.file, _bundle.room(self.variant, wheels, base, len(missing)))
        result = {
            "base": self.module.params["base"],
            "base_needed": base is None,
            "base_name": name,
            "machine": self.machine,
            "incoming": self.base,
        }
        if not write and (missing or base is None):
            lacking = [f"{one.name} {one.version}" for one in missing.values()]
            lacking += [] if base else ["the image to build on"]
            return {**result, "changed": True, "new": _image.shortened(lacking)}
        if base is None:
            raise _bundle.BundleError(f"the image to build on is not in {self.base}; give bundle_base_archive")
        with self.workplace(write) as where:
            if missing:
                self.download(missing.values())
                wheels, missing = self.known_wheels(lock)
                if missing:
                    lacking = [f"{one.name} {one.version}" for one in missing.values()]
                    raise _bundle.BundleError(
                        f"pip downloaded no wheel of {_image.shortened(lacking)} for {self.machine}; run make lock"
                    )
            parts, version = self.collections(where)
            parts |= wheels
            parts[_bundle.BASE] = base
            parts[_bundle.BASE_NAME] = _bundle.Part.of_data(f"{tag}\n".encode())
            if kernels:
                parts[f"kernels/{os.path.basename(kernels)}"] = _bundle.Part.of_file(kernels)
            texts = _bundle.texts(self.variant, version, os.path.basename(kernels))
            parts |= {one: _bundle.Part.of_data(data) for one, data in texts.items()}
            result |= {"new": _bundle.changes(parts, self.old)}
            changed = _bundle.sums(parts) != _bundle.sums(self.old)
            if not write:
                return {**result, "changed": changed}
            if changed:
                whole = os.path.join(where, "bundle.tar")
                _bundle.write(whole, f"bundle-{self.variant}-{version}", parts, self.file)
                os.replace(whole, self.file)
            shutil.rmtree(where)
        return {**result, "changed": changed, "size": os.path.getsize(self.file)}

    @contextlib.contextmanager
    def workplace(self, write: bool) -> t.Iterator[str]:
        """Give the directory where the parts are made: beside the bundle for this run alone, or nowhere that lasts."""
        if not write:
            with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as scratch:
                yield scratch
            return
        os.makedirs(self.work, exist_ok=True)
        lock = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield self.work
        except BlockingIOError as error:
            raise _bundle.BundleError(f"another run makes {self.file}; wait for it") from error
        finally:
            os.close(lock)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "file": {"type": "path", "required": True},
            "variant": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
            "directory": {"type": "path", "default": ""},
            "collection": {"type": "path", "required": True},
            "base": {"type": "str", "default": ""},
            "base_archive": {"type": "path", "default": ""},
            "wheelhouse": {"type": "path", "default": ""},
            "kernels_wheel": {"type": "path", "default": ""},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "path", "default": ""},
            "proxy": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Maker(module).plan(not module.check_mode))
    except (_bundle.BundleError, _image.ImageError) as error:
        module.fail_json(msg=f"bundle: {error}")
    except OSError as error:
        module.fail_json(
            msg=f"bundle: {error.filename or module.params['file']}: {error.strerror}; correct that and run again"
        )


if __name__ == "__main__":
    main()
