# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command of a recipe: a template with placeholders becomes arguments, and those become variables of role serve.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import json
import re
import shlex
import string
import typing as t
from dataclasses import dataclass

from . import _serve_memory
from ._model import is_hub_id

SHORT: t.Final[t.Mapping[str, str]] = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-n": "--nnodes",
    "-r": "--node-rank",
}
"""Short options of vLLM that this module has to understand; others are handed on as they are."""

NUMBERS: t.Final[t.Mapping[str, str]] = {
    "--tensor-parallel-size": "serve_tensor_parallel_size",
    "--pipeline-parallel-size": "serve_pipeline_parallel_size",
    "--data-parallel-size": "serve_data_parallel_size",
    "--port": "serve_port",
    "--max-num-seqs": "serve_max_num_seqs",
    "--shutdown-timeout": "serve_drain_timeout_s",
}
TOKENS: t.Final[t.Mapping[str, str]] = {
    "--max-model-len": "serve_max_model_len",
    "--max-num-batched-tokens": "serve_max_num_batched_tokens",
}
"""Options whose number vLLM reads with a unit too, `32k` or `32K`."""

TEXTS: t.Final[t.Mapping[str, str]] = {
    "--host": "serve_host",
    "--kv-cache-memory-bytes": "serve_kv_cache_memory_bytes",
    "--dtype": "serve_dtype",
    "--quantization": "serve_quantization",
    "--kv-cache-dtype": "serve_kv_cache_dtype",
    "--load-format": "serve_load_format",
}

OWNED: t.Final[t.Mapping[str, str]] = {
    **dict.fromkeys(("--nnodes", "--node-rank", "--headless"), "it follows from serve_nodes"),
    **dict.fromkeys(("--master-addr", "--data-parallel-address"), "role fabric finds the address"),
    "--master-port": "set serve_rendezvous_port",
    "--data-parallel-rpc-port": "set serve_dp_port",
    **dict.fromkeys(
        ("--data-parallel-size-local", "--data-parallel-start-rank", "--data-parallel-rank", "--data-parallel-backend"),
        "it follows from serve_nodes and serve_executor",
    ),
    "--api-key": "set serve_api_key, from a vault",
    "--ssl-certfile": "set serve_tls_certificate",
    "--ssl-keyfile": "set serve_tls_key",
    "--ssl-ca-certs": "clients are not asked for certificates",
    "--hf-token": "a token never reaches a node",
    "--download-dir": "nodes download nothing",
}
"""Options that the collection sets by itself, with what to do or why. Their values are not shown: some are secret."""

REVISIONS: t.Final = ("--revision", "--code-revision", "--tokenizer-revision")

ELSEWHERE: t.Final = frozenset(
    {"--tokenizer", "--hf-config-path", "--speculative-config", "--speculative-model", "--generation-config"}
    | {"--chat-template", "--reasoning-parser-plugin", "--tool-parser-plugin", "--config"}
)
"""Options that may name another repository, or a file of the recipe's own container."""

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_ASSIGNED = re.compile(r"[A-Za-z_]\w*=")
_NEGATIVE = re.compile(r"-\d+(?:\.\d+)?\Z")
_QUOTED = re.compile(r"""\\.|'[^']*'|"((?:\\.|[^"\\])*)\"""", re.DOTALL)
_BRACES: t.Final = {0: "{", 1: "}"}
_ROUNDS = 5


@dataclass(frozen=True)
class Argument:
    """One option of vLLM with its values, both as they are written and as they are meant."""

    name: str
    """The long name with dashes."""
    values: tuple[str, ...]
    words: tuple[str, ...]
    """The words of the command line."""


@dataclass(frozen=True)
class Command:
    """What a recipe's command line says."""

    model: str = ""
    environment: t.Mapping[str, str] | None = None
    """Variables that are set in front of the program."""
    arguments: tuple[Argument, ...] = ()
    fields: frozenset[str] = frozenset()
    """Placeholders that the template has."""


def text_of(value: object) -> str:
    """Return a value of a recipe as a word of a command line; lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def filled(template: str, fields: t.Mapping[str, object]) -> tuple[str, frozenset[str]]:
    """Return a template with its `{placeholders}` filled in, and their names.

    Braces that are doubled, as Python's format strings want them, are single ones afterwards; a template that is no
    such format string, as one with plain JSON in it, keeps its braces. Values may hold placeholders themselves.
    Raises ValueError (`what; what to do`) for a placeholder without a value.
    """
    used: set[str] = set()
    line = _protected(template) if _is_format(template) else template
    for _round in range(_ROUNDS):
        names = set(_FIELD.findall(line))
        if not names:
            return line.translate(_BRACES), frozenset(used)
        missing = sorted(names - set(fields))
        if missing:
            raise ValueError(
                f"command has {', '.join(f'{{{name}}}' for name in missing)} and defaults has no value for it; "
                "add it to defaults"
            )
        used |= names
        line = _FIELD.sub(lambda match: text_of(fields[match[1]]), line)
    raise ValueError("command has placeholders that stand for each other; give one of them a value of its own")


def _is_format(line: str) -> bool:
    """Tell whether a line is one of Python's format strings with nothing but names in it."""
    try:
        parts = list(string.Formatter().parse(line))
    except ValueError:
        return False
    return all(
        name is None or (name.isidentifier() and not spec and not conversion)
        for _literal, name, spec, conversion in parts
    )


def _protected(line: str) -> str:
    """Return a format string whose doubled braces are characters that nothing takes for a placeholder."""
    return "".join(
        literal.replace("{", "\0").replace("}", "\1") + (f"{{{name}}}" if name else "")
        for literal, name, _spec, _conversion in string.Formatter().parse(line)
    )


def _unquoted(line: str, keep_double: bool = False) -> str:
    """Return what of a command line stands outside of quotes, with `keep_double` also what a shell would expand."""
    return _QUOTED.sub(lambda match: re.sub(r"\\.", "", match[1] or "") if keep_double else "", line)


def words_of(line: str) -> list[str]:
    """Return the words of a command line as a shell splits them. Raises ValueError for anything else of a shell."""
    lines = [one for one in line.split("\n") if not one.lstrip().startswith("#")]
    joined = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines)).strip().removesuffix("\\").strip()
    operator = re.search(r"[;&|<>]+", _unquoted(joined))
    if operator:
        raise ValueError(f"command has `{operator[0]}`, and there is no shell; leave only `vllm serve` in it")
    if "\n" in _unquoted(joined):
        raise ValueError("command has more than one line; end the lines of one command with a backslash")
    if re.search(r"\$[A-Za-z_({]|`", _unquoted(joined, keep_double=True)):
        raise ValueError("command has a variable of a shell, and there is no shell; write its value")
    try:
        return shlex.split(joined)
    except ValueError as error:
        raise ValueError(f"command cannot be split ({error}); close its quotes") from error


def read(template: str, fields: t.Mapping[str, object]) -> Command:
    """Return what a command template says. Raises ValueError (`what; what to do`) where it starts something else."""
    line, used = filled(template, fields)
    words = words_of(line)
    environment: dict[str, str] = {}
    while words and _ASSIGNED.match(words[0]):
        name, _equals, value = words.pop(0).partition("=")
        environment[name] = value
    rest = _after_program(words)
    model = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    found: list[Argument] = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            raise ValueError(f"command has {word!r}, which belongs to no option; write the model first")
        name, equals, value = word.partition("=")
        values = [value] if equals else []
        while not equals and rest and (not rest[0].startswith("-") or _NEGATIVE.match(rest[0])):
            values.append(rest.pop(0))
        name = SHORT.get(name, name.replace("_", "-") if name.startswith("--") else name)
        found.append(Argument(name, tuple(values), (word,) if equals else (word, *values)))
    for argument in found:
        if argument.name == "--model":
            model = model or " ".join(argument.values)
    return Command(model, environment, tuple(one for one in found if one.name != "--model"), used)


def _after_program(words: t.Sequence[str]) -> list[str]:
    if list(words[:2]) == ["vllm", "serve"]:
        return list(words[2:])
    if words[:1] in (["python"], ["python3"]) and list(words[1:3]) == ["-m", "vllm.entrypoints.openai.api_server"]:
        return list(words[3:])
    raise ValueError(f"command starts {' '.join(words[:2]) or 'nothing'!r} and not `vllm serve`; correct it")


def variables(arguments: t.Iterable[Argument]) -> tuple[dict[str, t.Any], list[str]]:
    """Return the variables of role serve that vLLM's options stand for, and a note for what is not honoured.

    Raises ValueError (`what; what to do`) for a value that cannot be read.
    """
    found: dict[str, t.Any] = {}
    extra: list[str] = []
    notes: list[str] = []
    for one in arguments:
        if one.name in OWNED:
            notes.append(f"{one.name} is left out; {OWNED[one.name]}")
        elif one.name in REVISIONS:
            notes.append(f"{one.name} {_single(one)} cannot be checked; make sure that the directory has this revision")
        elif one.name in NUMBERS:
            found[NUMBERS[one.name]] = _number(one)
        elif one.name in TOKENS:
            if _single(one) in ("auto", "-1"):
                notes.append(f"{one.name} {_single(one)} is left out; set {TOKENS[one.name]} to a number of tokens")
            else:
                found[TOKENS[one.name]] = _tokens(one)
        elif one.name in TEXTS:
            found[TEXTS[one.name]] = _single(one)
        elif one.name == "--gpu-memory-utilization":
            found["serve_gpu_memory_utilization"] = _share(one)
        elif one.name == "--served-model-name":
            if not one.values:
                raise ValueError(f"{one.name} has no value; give it one")
            found["serve_served_model_name"] = " ".join(one.values)
        elif one.name == "--distributed-executor-backend":
            if _single(one) in ("ray", "mp"):
                found["serve_executor"] = _single(one)
            else:
                notes.append(f"{one.name} {_single(one)} is left out; serve_executor is ray or mp")
        else:
            extra.extend(one.words)
            notes.extend(_elsewhere(one))
    return ({**found, "serve_extra_args": extra} if extra else found), notes


def _elsewhere(one: Argument) -> t.Iterator[str]:
    """Yield a note where an option names something that is not there on a node."""
    if one.name not in ELSEWHERE or not one.values:
        return
    named = one.values[0]
    if named.startswith("{"):
        try:
            named = str(json.loads(named).get("model") or "")
        except ValueError:
            return
    if named.startswith("/") or named.endswith((".py", ".jinja", ".json", ".yaml")):
        yield f"{one.name} names {named}, a file of the recipe's container; it is handed on, and has to be in the image"
    elif is_hub_id(named):
        yield f"{one.name} names {named}, and nodes download nothing; it is handed on, so name a directory on the nodes"


def _single(one: Argument) -> str:
    """Return the value of an option that has exactly one. Raises ValueError."""
    if len(one.values) != 1 or not one.values[0]:
        raise ValueError(f"{one.name} has {len(one.values) or 'no'} values in the command; give it one")
    return one.values[0]


def _number(one: Argument) -> int:
    value = _single(one)
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"{one.name} is {value!r}; give a number")
    return int(value)


def _tokens(one: Argument) -> int:
    try:
        return _serve_memory.size(_single(one))
    except ValueError as error:
        raise ValueError(f"{one.name} is {_single(one)!r}; give a number of tokens") from error


def _share(one: Argument) -> float:
    value = _single(one)
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{one.name} is {value!r}; give a share, more than 0 and at most 1")
    return share
