# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the simulated fleet serves with: wheels of the CPU image, its base image, and a tiny random model.

``python -m simulator.assets --dir .cache`` makes what is missing there and leaves what is complete; each piece is
made under another name and renamed when it is whole, so an interrupted run leaves nothing half done in its place.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

REPOSITORY = Path(__file__).resolve().parent.parent
VARIANT = REPOSITORY / "files" / "image" / "cpu"
LOCK = VARIANT / "requirements-x86_64.lock"
SUITE = "bookworm"  # its CPython is the one that the CPU wheel of torch asks for (3.11) at the glibc of the lock (2.36)
BASE_NAME = f"sparkfleet/base:{SUITE}"
EPOCH = 1_780_272_000  # seconds; newest time of a file in the base image, so that its bytes do not depend on today


class AssetError(Exception):
    """What could not be made, and what to do, in one line."""


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


def run(command: list[str], what: str, env: dict[str, str] | None = None) -> None:
    """Run ``command`` quietly; raise AssetError with its last line of output where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    except FileNotFoundError as error:
        raise AssetError(f"{what}: {command[0]} is not installed; install it (package {command[0]})") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise AssetError(f"{what}: {lines[-1]}")


# --- wheels ---------------------------------------------------------------------------------------------------------


def locked(lock: str) -> dict[str, set[str]]:
    """Return ``{name==version: {sha256, ...}}`` of a lock in pip's requirements format."""
    found: dict[str, set[str]] = {}
    hashes: set[str] = set()
    for line in lock.splitlines():
        word = line.strip().split(" ")[0]
        if word.startswith("--hash=sha256:"):
            hashes.add(word.removeprefix("--hash=sha256:"))
        elif "==" in word and not line.startswith(("#", " ")):
            hashes = found.setdefault(word, set())
    return found


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheelhouse(directory: Path) -> None:
    """Fill ``directory``/wheelhouse with exactly the wheels of the lock, through pip as this machine has it set up.

    The file .complete holds the lock's own hash: a wheelhouse of another lock, or one without it, is completed.
    """
    target, part = directory / "wheelhouse", directory / "wheelhouse.part"
    stamp, want = target / ".complete", sha256(LOCK)
    if stamp.is_file() and stamp.read_text() == want:
        return say(f"{target}: there")
    say(f"{target}: downloading the wheels of {LOCK.name} (about 600 MB)")
    hashes = {one for some in locked(LOCK.read_text()).values() for one in some}
    part.mkdir(exist_ok=True)
    for wheel in [*target.glob("*.whl"), *part.glob("*.whl")]:  # what an earlier lock or an interrupted run left
        if sha256(wheel) not in hashes:
            wheel.unlink()
        elif wheel.parent == target:
            wheel.rename(part / wheel.name)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64", "any"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp"]
    command += [f"--abi={abi}" for abi in ("cp311", "abi3", "none")] + [f"--platform={name}" for name in platforms]
    run([*command, "--dest", str(part), "--requirement", str(LOCK)], "wheelhouse")
    (part / ".complete").write_text(want)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return say(f"{target}: {len(list(target.glob('*.whl')))} wheels")


# --- base image -----------------------------------------------------------------------------------------------------


def packages() -> list[str]:
    """Return the packages that the image's own lists name: with them in the base, a node's build asks apt nothing."""
    lines = [
        line for name in ("packages.txt", "packages-build.txt") for line in (VARIANT / name).read_text().split("\n")
    ]
    return sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})


def mirror() -> list[str]:
    """Return the mirror of SUITE that this machine's apt uses, as a list for debootstrap; empty: debootstrap's own."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return [uri for name, _sep, uri in (line.partition(" ") for line in text.splitlines()) if name == SUITE][:1]


UNWANTED = ("dev/", "proc/", "sys/", "var/cache/apt/", "var/lib/apt/lists/", "var/log/", "var/cache/ldconfig/")
# debootstrap copies these two from the machine it runs on; containers get their own
UNWANTED_FILES = ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/cache/debconf/templates.dat-old")


def members(root: Path) -> Iterator[Path]:
    """Yield what belongs into the layer, in one order for all machines."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(UNWANTED) and name not in UNWANTED_FILES:
            yield path


def write_layer(root: Path, layer: Path) -> None:
    """Write the tree ``root`` as an uncompressed layer: numeric owners, no time after EPOCH."""
    with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in members(root):
            entry = tar.gettarinfo(str(path), path.relative_to(root).as_posix())
            entry.uname = entry.gname = ""
            entry.mtime = min(int(entry.mtime), EPOCH)
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)


def write_image(layer: Path, archive: Path) -> None:
    """Write a ``docker load``-able archive with one layer; its image ID depends on nothing but the layer's bytes."""
    digest = sha256(layer)
    created = "2026-06-01T00:00:00Z"
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": created, "created_by": f"debootstrap --variant=minbase {SUITE}"}],
    }
    body = json.dumps(config, sort_keys=True).encode()
    name = f"{hashlib.sha256(body).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [BASE_NAME], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for member, data in ((name, body), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        tar.add(layer, f"{digest}/layer.tar")


def base_image(directory: Path) -> None:
    """Make ``directory``/base-bookworm.tar, a minimal Debian with the packages of the image's lists."""
    target = directory / f"base-{SUITE}.tar"
    if target.is_file():
        return say(f"{target}: there")
    say(f"{target}: debootstrap {SUITE} (about a minute)")
    if os.geteuid() != 0:
        raise AssetError(f"{target}: debootstrap needs root; run as root, or put a `docker save` of Debian 12 there")
    work = directory / "base.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    root = work / "root"
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages())}", SUITE, str(root), *mirror()]
    run(command, "debootstrap", {"SOURCE_DATE_EPOCH": str(EPOCH)})
    write_layer(root, work / "layer.tar")
    write_image(work / "layer.tar", work / "image.tar")
    (work / "image.tar").rename(target)
    shutil.rmtree(work)
    return say(f"{target}: {BASE_NAME}, {target.stat().st_size // 1_000_000} MB")


# --- model ----------------------------------------------------------------------------------------------------------

LAYERS, HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM, VOCABULARY = 4, 128, 256, 4, 32, 384  # all divide by 4: TP up to 4
CONTEXT = 2048  # tokens
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "A cluster of two DGX Spark nodes serves a language model over Ray.",
    "system user assistant hello world, how are you today? I am fine, thank you.",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Tokenizer:
    """Train the byte-level BPE tokenizer on CORPUS; the same text gives the same merges."""
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS * 50, trainer)
    return made


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Qwen3 model of this size; one-dimensional ones are norms."""
    wide = HEADS * HEAD_DIM
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for number in range(LAYERS):
        for name, shape in {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (wide, HIDDEN),
            "self_attn.k_proj": (wide, HIDDEN),
            "self_attn.v_proj": (wide, HIDDEN),
            "self_attn.o_proj": (HIDDEN, wide),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }.items():
            found[f"model.layers.{number}.{name}.weight"] = shape
    return dict(sorted(found.items()))


def bfloat16(values: Any) -> bytes:
    """Return float32 values as little-endian bfloat16, rounded to nearest even (numpy has no such type)."""
    bits = values.astype("<f4").view("<u4").astype(numpy.uint64)
    return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def weights() -> bytes:
    """Return the model's safetensors file: norms of one, everything else random from a fixed seed.

    The format is written here (length, JSON header, data), since numpy has no bfloat16 to give to its library.
    """
    random = numpy.random.RandomState(0)  # the one generator whose stream numpy never changes
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes().items():
        one = bfloat16(numpy.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * 0.3)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(one)]}
        data += one
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def model_files() -> dict[str, bytes]:
    """Return the model directory as ``{file name: content}``, the same bytes on each call."""
    tokens = tokenizer()
    end, pad = tokens.token_to_id("<|im_end|>"), tokens.token_to_id("<|endoftext|>")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    generation = {"eos_token_id": [end], "pad_token_id": pad}
    text: Callable[[dict[str, Any]], bytes] = lambda data: (json.dumps(data, indent=2) + "\n").encode()  # noqa: E731
    return {
        "config.json": text(config),
        "generation_config.json": text(generation),
        "model.safetensors": weights(),
        "tokenizer.json": text(json.loads(tokens.to_str())),
        "tokenizer_config.json": text(words),
    }


def tiny_model(directory: Path) -> None:
    """Write ``directory``/tiny-model, a tiny random Qwen3 that answers gibberish; made anew each time (0.1 s)."""
    target, part = directory / "tiny-model", directory / "tiny-model.part"
    files = model_files()
    if target.is_dir() and {path.name: path.read_bytes() for path in target.iterdir()} == files:
        return say(f"{target}: there")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, data in files.items():
        (part / name).write_bytes(data)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return say(f"{target}: {sum(map(len, files.values())) // 1000} kB")


MAKERS: dict[str, Callable[[Path], None]] = {"wheelhouse": wheelhouse, "base": base_image, "model": tiny_model}


def main(arguments: list[str] | None = None) -> int:
    """Make what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulator.assets", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--dir", type=Path, default=REPOSITORY / ".cache", help="where to put them (.cache)")
    parser.add_argument("--only", action="append", choices=[*MAKERS], help="make this one only; may be repeated")
    given = parser.parse_args(arguments)
    try:
        given.dir.mkdir(parents=True, exist_ok=True)
        for name in given.only or MAKERS:
            MAKERS[name](given.dir)
    except AssetError as error:
        print(f"assets: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("assets: interrupted; run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
