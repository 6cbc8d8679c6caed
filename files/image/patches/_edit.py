# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding one place in a file and replacing it, for Python (by its syntax tree), C++ and CMake (by anchors)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ._core import PatchError

# --- Python --------------------------------------------------------------------------------------------------------


def parse(path: str, text: str) -> ast.Module:
    """Return a Python file's syntax tree."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise PatchError(f"{path}:{error.lineno}: not Python: {error.msg}") from error


def function(tree: ast.AST, name: str) -> ast.FunctionDef | None:
    """Return the function of this name, wherever it is defined; the only one, or none."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[0] if len(found) == 1 else None


def assignments(tree: ast.AST, target: str) -> list[ast.Assign]:
    """Return the assignments whose only target is written ``target``, in the order of the file."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and len(node.targets) == 1]
    return sorted((node for node in found if ast.unparse(node.targets[0]) == target), key=lambda node: node.lineno)


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Return the calls of something written ``name``."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def keyword(call: ast.Call, name: str) -> ast.keyword | None:
    """Return a call's keyword argument."""
    return next((given for given in call.keywords if given.arg == name), None)


def imports(tree: ast.Module, module: str) -> bool:
    """Say whether a file has ``import module`` at its top level."""
    names = [alias for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return any(alias.name == module and alias.asname is None for alias in names)


def _offset(text: str, line: int, column: int) -> int:
    """Return the index in ``text`` of a line (from 1) and a column in UTF-8 bytes, as ast counts them."""
    lines = text.split("\n")
    before = sum(len(one) + 1 for one in lines[: line - 1])
    return before + len(lines[line - 1].encode("utf-8")[:column].decode("utf-8"))


def replaced(path: str, text: str, node: ast.expr, new: str) -> str:
    """Return ``text`` with ``new`` in place of an expression; the result has to be Python."""
    if node.end_lineno is None or node.end_col_offset is None:
        raise PatchError(f"{path}:{node.lineno}: an expression without an end")
    start = _offset(text, node.lineno, node.col_offset)
    end = _offset(text, node.end_lineno, node.end_col_offset)
    result = text[:start] + new + text[end:]
    parse(path, result)
    return result


def inserted(path: str, text: str, before: ast.stmt, new: str) -> str:
    """Return ``text`` with the statement ``new`` on a line of its own before another, as deep as that one."""
    start = _offset(text, before.lineno, 0)
    result = text[:start] + " " * before.col_offset + new + "\n" + text[start:]
    parse(path, result)
    return result


# --- C++ -----------------------------------------------------------------------------------------------------------

_TERM = re.compile(r"\s*(\w+)\s*(>=|<=|==|<|>)\s*(\d+)\s*")


def holds(condition: str, value: int) -> bool:
    """Evaluate a C++ condition such as ``sm >= 120 && sm < 130`` for its one variable."""
    truth = True
    for term in condition.split("&&"):
        match = _TERM.fullmatch(term)
        if match is None:
            raise PatchError(f"the condition ({condition}) is none of comparisons joined by &&")
        number = int(match[3])
        truth &= {
            ">=": value >= number,
            "<=": value <= number,
            "==": value == number,
            "<": value < number,
            ">": value > number,
        }[match[2]]
    return truth


def only(path: str, pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    """Return the one match of an anchor; raise PatchError where there are none or several."""
    found = list(pattern.finditer(text))
    if len(found) != 1:
        raise PatchError(f"{path}: {what} is there {len(found)} times instead of once (anchor {pattern.pattern})")
    return found[0]


def line_of(text: str, index: int) -> int:
    """Return the number of the line that an index is in."""
    return text.count("\n", 0, index) + 1


# --- CMake ---------------------------------------------------------------------------------------------------------


def arch_lists(text: str, variable: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the list of each ``cuda_archs_loose_intersection`` into ``variable``."""
    pattern = re.compile(rf'cuda_archs_loose_intersection\(\s*{variable}\s+"([^"]*)"')
    for match in pattern.finditer(text):
        yield line_of(text, match.start()), match[1].split(";")


def supported(text: str) -> tuple[int, list[str]] | None:
    """Return the line and the list of supported architectures of the newest CUDA, which stands first."""
    match = re.search(r'^\s*set\(CUDA_SUPPORTED_ARCHS "([^"]*)"\)', text, re.MULTILINE)
    return None if match is None else (line_of(text, match.start()), match[1].split(";"))
