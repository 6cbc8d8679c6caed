# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an entry is, how a tree is read and changed, and how a set of patches is applied as one."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = "needed"
UPSTREAMED = "upstreamed"
REFUTED = "refuted"
NOT_APPLICABLE = "not applicable"
UNKNOWN = "unknown"
STATES = (NEEDED, UPSTREAMED, REFUTED, NOT_APPLICABLE, UNKNOWN)


class PatchError(Exception):
    """What is wrong with a tree or a patch and what to do, in one line."""


@dataclass
class Tree:
    """A source tree or an installed one; changes stay in memory until ``write``."""

    root: Path
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Say whether this is vLLM's "source" or an "installed" one: a wheel has no CMakeLists.txt."""
        return "source" if self.exists("CMakeLists.txt") else "installed"

    def exists(self, path: str) -> bool:
        """Say whether ``path`` is a file of the tree."""
        return path in self.changed or (self.root / path).is_file()

    def read(self, path: str) -> str:
        """Return a file's text, with what was changed in it so far."""
        if path in self.changed:
            return self.changed[path]
        try:
            return (self.root / path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PatchError(f"{path}: cannot be read as UTF-8 text ({error})") from error

    def change(self, path: str, text: str) -> None:
        """Give a file another text."""
        if text == self.read(path):
            raise PatchError(f"{path}: the transform changed nothing")
        self.changed[path] = text

    def first(self, paths: Iterable[str]) -> str | None:
        """Return the first of ``paths`` that is a file here."""
        return next((path for path in paths if self.exists(path)), None)

    def write(self) -> None:
        """Write what was changed; where that fails, every file gets its old text back."""
        old = {path: (self.root / path).read_bytes() for path in self.changed}
        written: list[str] = []
        try:
            for path, text in self.changed.items():
                written.append(path)
                _replace(self.root / path, text.encode("utf-8"))
        except OSError as error:
            for path in written:
                _replace(self.root / path, old[path])
            raise PatchError(f"{error.filename}: cannot be written ({error.strerror}); nothing was changed") from error


def _replace(path: Path, content: bytes) -> None:
    """Give ``path`` a new content in one step, keeping its mode."""
    beside = path.with_name(path.name + ".patching")
    try:
        beside.write_bytes(content)
        beside.chmod(path.stat().st_mode & 0o777)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Finding:
    """What an entry's predicate found: a state, the file that says so, and why.

    ``carried`` is for refuted entries: the tree has the change already.
    """

    state: str
    file: str
    reason: str
    carried: bool = False


Inspect = Callable[[Tree], Finding]
Transform = Callable[[Tree, Finding], None]


@dataclass(frozen=True)
class Patch:
    """One entry of the catalogue.

    ``paths`` are all files that ``inspect`` may read, at all the places where vLLM's versions have them. A refuted
    entry has the reason and no transform; its ``inspect``, where it has one, says whether a tree carries the change.
    """

    id: str
    title: str
    why: str
    origin: str
    range: str
    paths: tuple[str, ...] = ()
    target: str = "vllm"
    native: bool = False
    inspect: Inspect | None = None
    transform: Transform | None = None
    refuted: str = ""

    def find(self, tree: Tree) -> Finding:
        """Return the entry's state in a tree."""
        if self.inspect is None or (self.refuted and self.native and tree.kind == "installed"):
            return Finding(REFUTED, "", self.refuted)
        if self.native and tree.kind == "installed":
            return Finding(
                NOT_APPLICABLE, "", "compiled already; what is in the binaries is for the image's own checks"
            )
        return self.inspect(tree)

    def code(self) -> str:
        """Return the text of the entry's predicate and transform."""
        return "\n".join(inspect.getsource(part) for part in (self.inspect, self.transform) if part is not None)


@dataclass(frozen=True)
class Entry:
    """An entry with what was found in a tree."""

    patch: Patch
    finding: Finding


@dataclass(frozen=True)
class Applied:
    """What ``apply`` did: every entry's finding before, and the patches that were applied."""

    entries: tuple[Entry, ...]
    applied: tuple[Patch, ...]
    skipped: tuple[str, ...]


def check_is_tree(tree: Tree) -> None:
    """Raise PatchError where a directory holds no vLLM."""
    if not tree.exists("vllm/__init__.py"):
        raise PatchError(
            f"{tree.root}: no vllm/__init__.py; give the root of vLLM's source or a site-packages directory"
        )


def status(patches: Sequence[Patch], tree: Tree) -> tuple[Entry, ...]:
    """Return every entry's state in a tree."""
    check_is_tree(tree)
    return tuple(Entry(patch, patch.find(tree)) for patch in patches)


def apply(patches: Sequence[Patch], tree: Tree, skip: Sequence[str] = ()) -> Applied:
    """Apply each needed patch once, or raise PatchError and leave the tree as it was.

    All predicates are asked first. What is unknown stops the build too, for then nobody can say what the source needs;
    ``skip`` names entries that a person has looked at.
    """
    if missing := sorted(set(skip) - {patch.id for patch in patches}):
        raise PatchError(f"no entry is called {', '.join(missing)}; `python -m patches table` lists them")
    before = status(patches, tree)
    for entry in before:
        patch, found = entry.patch, entry.finding
        if patch.id in skip:
            continue
        if found.state == UNKNOWN:
            raise PatchError(f"{found.file}: {patch.id}: {found.reason}; look at it, then skip the entry by its name")
        if found.state == NEEDED and patch.transform is None:
            raise PatchError(f"{found.file}: {patch.id} is needed and the catalogue only knows it as upstreamed")
        if found.carried:
            raise PatchError(f"{found.file}: {patch.id}: {found.reason}; take it out of the source: {patch.refuted}")
    work = Tree(tree.root)
    done: list[Patch] = []
    for entry in before:
        patch, found = entry.patch, entry.finding
        if found.state == NEEDED and patch.transform is not None and patch.id not in skip:
            patch.transform(work, patch.find(work))
            after = patch.find(work)
            if after.state != UPSTREAMED:
                raise PatchError(f"{found.file}: {patch.id}: after its transform it is {after.state}: {after.reason}")
            done.append(patch)
    work.write()
    return Applied(before, tuple(done), tuple(skip))


def digest(patches: Iterable[Patch], shared: Iterable[object]) -> str:
    """Return the hash of a set of applied patches: their ids and code, and the code of what they share."""
    hashed = hashlib.sha256()
    applied = sorted(patches, key=lambda patch: patch.id)
    parts = [part for patch in applied for part in (patch.id, patch.code())]
    if applied:
        parts += [inspect.getsource(module) for module in shared]  # type: ignore[arg-type]
    for part in parts:
        hashed.update(part.encode("utf-8") + b"\0")
    return hashed.hexdigest()
