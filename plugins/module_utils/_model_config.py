# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
"""A model as its config.json describes it: its layers, the tensors of each, and what each layer caches.

Nothing here knows of a node or of a setting. Sizes are counts of elements; how an element is stored is said by the
``Storage`` beside it, so that a quantised checkpoint and its layers that were left out of the quantisation both add up.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

from ._model_quantisation import (
    DTYPE_BYTES,
    Quantisation,
    Storage,
    read_quantisation,
)

# How tensor parallelism divides a matrix: by its output, input, KV heads, the vocabulary; ``whole``: not at all.
Split = Literal["out", "in", "kv", "vocab", "groups", "whole"]
CacheKind = Literal["none", "full", "window", "chunk", "state"]

# Attention with a compressed latent; the same list as vLLM's is_deepseek_mla.
_MLA = frozenset(
    {
        "axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note", "glm_moe_dsa", "glm4_moe_lite", "glm5_next",
        "glm5_next_text", "hy_v4", "kimi_k2", "longcat_flash", "pangu_ultra_moe",
    }
)  # fmt: skip
_QKV_BIAS = ("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "gpt_oss")
_WHOLE_QK_NORM = ("minimax_m2", "olmoe", "olmo2")
_HEAD_QK_NORM = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
                 "qwen3_vl_text", "qwen3_vl_moe_text", "gemma3", "gemma3_text")  # fmt: skip
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text")
# Published checkpoints of these hold one layer for predicting more tokens, though config.json may not say so.
_PREDICTS = ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
_PATTERN = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")


class ModelError(ValueError):
    """The model cannot be judged: its directory or its config.json is not what is expected, or not known here."""


@dataclass(frozen=True)
class Tensor:
    """A matrix of ``rows`` outputs and ``columns`` inputs (1: a vector), and how it is stored and divided."""

    name: str
    rows: int
    columns: int
    split: Split
    storage: Storage
    heads: int = 0  # KV heads of split kv, groups of split groups

    @property
    def size(self) -> int:
        """Bytes in the checkpoint."""
        return self.storage.bytes(self.rows, self.columns)


@dataclass(frozen=True)
class Experts:
    """The routed experts of a layer: ``count`` times ``matrices`` matrices of hidden x intermediate."""

    count: int
    hidden: int
    intermediate: int
    matrices: int
    top_k: int
    storage: Storage
    bias_bytes: int = 0  # of one element; 0: no biases

    def bytes(self, intermediate: int, hidden: int) -> int:
        """Return the bytes of all experts with these dimensions; the last matrix leads back to hidden."""
        into = (self.matrices - 1) * self.storage.bytes(intermediate, hidden)
        biases = ((self.matrices - 1) * intermediate + self.hidden) * self.bias_bytes
        return self.count * (into + self.storage.bytes(hidden, intermediate) + biases)

    @property
    def size(self) -> int:
        """Bytes in the checkpoint."""
        return self.bytes(self.intermediate, self.hidden)


@dataclass(frozen=True)
class State:
    """The recurrent state of a linear-attention or mamba layer: sizes in elements over all ranks.

    ``groups`` (mamba2) are copied where there are fewer of them than ranks.
    """

    conv: int
    conv_rows: int
    recurrent: int
    recurrent_bytes: int
    heads: int
    groups: int = 0
    group_size: int = 0


@dataclass(frozen=True)
class Cache:
    """What one layer keeps of a sequence: per token ``heads`` x ``width`` elements and ``extra`` bytes, or a state.

    ``heads`` 0 stands for a latent that every rank keeps whole. ``window``: tokens that a sliding window or a chunk
    looks back.
    """

    kind: CacheKind
    heads: int = 0
    width: int = 0
    window: int = 0
    extra: int = 0
    state: State | None = None


@dataclass(frozen=True)
class Layer:
    """One decoder layer. ``live``: elements per token that its widest moment keeps, divided by tp and not divided."""

    tensors: tuple[Tensor, ...]
    cache: Cache
    experts: Experts | None
    live: int
    live_whole: int

    @property
    def size(self) -> int:
        """Bytes in the checkpoint."""
        return sum(tensor.size for tensor in self.tensors) + (self.experts.size if self.experts else 0)


@dataclass(frozen=True, eq=False)
class Model:
    """A model. Sizes in bytes unless said otherwise.

    ``weights``: the checkpoint; when ``estimated``, counted from config.json instead of read from its files.
    ``counted``: what the layers here add up to, and ``unloaded`` what the checkpoint holds besides and vLLM leaves out.
    """

    model_type: str
    dtype_bytes: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    max_len: int
    tied: bool
    mla: bool
    layers: tuple[Layer, ...]
    embedding: Tensor
    head: Tensor | None
    norm: Tensor
    extra: tuple[Tensor, ...]
    mla_copy: int  # elements of kv_b_proj, which vLLM keeps a second time for decoding
    weights: int
    estimated: bool
    counted: int
    unloaded: int
    quantisation: Quantisation
    notes: tuple[str, ...]
    dims: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def experts(self) -> Experts | None:
        """The experts of the first layer that has some."""
        return next((layer.experts for layer in self.layers if layer.experts), None)

    @cached_property
    def caches(self) -> Mapping[Cache, tuple[int, ...]]:
        """The different caches, and which layers have them."""
        found: dict[Cache, list[int]] = {}
        for index, layer in enumerate(self.layers):
            if layer.cache.kind != "none":
                found.setdefault(layer.cache, []).append(index)
        return {cache: tuple(members) for cache, members in found.items()}

    @cached_property
    def widths(self) -> frozenset[tuple[int, int]]:
        """The different elements per token that layers keep: not divided, and divided."""
        return frozenset((layer.live_whole, layer.live) for layer in self.layers)

    @property
    def has_state(self) -> bool:
        """Whether some layers keep a recurrent state."""
        return any(cache.kind == "state" for cache in self.caches)


class _Reader:
    """Looks keys up in a config.json, in its text part first."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        nested = (config.get(key) for key in ("text_config", "llm_config", "language_config", "thinker_config"))
        inner: Mapping[str, Any] = next((part for part in nested if isinstance(part, Mapping)), config)
        if isinstance(inner.get("text_config"), Mapping):
            inner = inner["text_config"]
        self.root, self.text = config, inner

    def raw(self, *names: str) -> Any:
        for part in (self.text, self.root):
            for name in names:
                if part.get(name) is not None:
                    return part[name]
        return None

    def number(self, *names: str, default: int | None = None) -> int:
        value = self.raw(*names)
        if isinstance(value, list) and value and len(set(map(str, value))) == 1:
            value = value[0]
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(f"config.json has no usable {names[0]}, so it describes no decoder that is known here")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        return default if value is None else bool(value)

    @property
    def model_type(self) -> str:
        return str(self.text.get("model_type") or self.root.get("model_type") or "")


def _layer_kinds(read: _Reader, count: int) -> list[str]:
    """Return for each layer: attention, window, chunk, linear, mamba, moe or mlp (the last two have no attention)."""
    pattern = read.raw("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [_PATTERN.get(letter, "attention") for letter in pattern[:count]]
    named = read.raw("layers_block_type", "layer_types")
    if isinstance(named, list) and len(named) >= count:
        short = {"full_attention": "attention", "sliding_attention": "window", "linear_attention": "linear",
                 "chunked_attention": "chunk"}  # fmt: skip
        kinds = [short.get(str(one), str(one)) for one in named[:count]]
        unknown = sorted(set(kinds) - {"attention", "window", "chunk", "linear", "mamba", "moe", "mlp"})
        if unknown:
            raise ModelError(f"layers of the kind {', '.join(unknown)} are not known here")
        return kinds
    if interval := read.raw("full_attention_interval"):
        return ["attention" if (i + 1) % int(interval) == 0 else "linear" for i in range(count)]
    if read.raw("attention_chunk_size") and isinstance(read.raw("no_rope_layers"), list):
        return ["chunk" if rope else "attention" for rope in read.raw("no_rope_layers")[:count]]
    window = read.raw("sliding_window")
    if not window or not read.flag("use_sliding_window", default=True):
        return ["attention"] * count
    if read.model_type in ("gpt_oss", "gemma2"):
        return ["window" if i % 2 == 0 else "attention" for i in range(count)]
    if every := int(read.raw("sliding_window_pattern", "_sliding_window_pattern") or 0) or (
        6 if read.model_type.startswith("gemma3") else 0
    ):
        return ["attention" if (i + 1) % every == 0 else "window" for i in range(count)]
    return ["window"] * count


def _expert_layers(read: _Reader, kinds: list[str], experts: int) -> list[bool]:
    """Return for each layer whether it has routed experts."""
    count = len(kinds)
    if not experts:
        return [False] * count
    if "moe" in kinds or "mlp" in kinds:
        return [kind == "moe" for kind in kinds]
    dense = set(read.raw("mlp_only_layers") or ())
    first = read.number("first_k_dense_replace", default=0)
    listed = read.raw("moe_layers", "moe_layer_freq")
    if isinstance(listed, list) and len(listed) == count:
        return [bool(one) for one in listed]
    step = read.raw("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq")
    every = step if isinstance(step, int) and step > 0 else 1
    return [i >= first and i not in dense and (i + 1 if first == 0 else i - first) % every == 0 for i in range(count)]


@dataclass
class _Builder:
    """Makes layers of a config: what all of them share is read once."""

    read: _Reader
    quant: Quantisation
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int

    def __post_init__(self) -> None:
        self.plain = Storage(bits=8 * self.dtype_bytes)
        read = self.read
        # Config keys that two families share do not make a latent: the model type has to be one of them, as in vLLM.
        self.mla = read.model_type in _MLA and read.raw("kv_lora_rank") is not None
        self.gated = read.raw("mlp_hidden_act", "hidden_act") not in ("relu2",)

    def linear(self, name: str, rows: int, columns: int, split: Split, heads: int = 0) -> Tensor:
        return Tensor(name, rows, columns, split, self.quant.storage(name, self.dtype_bytes), heads)

    def vector(self, name: str, rows: int, split: Split = "whole", heads: int = 0) -> Tensor:
        return Tensor(name, rows, 1, split, self.plain, heads)

    def layer(self, index: int, kind: str, routed: bool) -> Layer:
        """Return layer ``index``: what mixes tokens, then what works on each, with a norm before either."""
        tensors: list[Tensor] = []
        cache, live, whole = Cache("none"), 0, 0
        at = f"layers.{index}"
        if kind in ("linear", "mamba"):
            make = self._linear_attention if kind == "linear" else self._mamba
            parts, cache, live = make(f"{at}.linear_attn" if kind == "linear" else f"{at}.mixer")
            tensors += parts
        elif kind not in ("moe", "mlp"):
            part = self._latent if self.mla else self._attention
            parts, cache, live, whole = part(f"{at}.self_attn" if not self._blocks else f"{at}.mixer", kind)
            tensors += parts
        experts = None
        if not self._blocks or kind in ("moe", "mlp"):
            dense = "mixer" if self._blocks else "mlp"
            more, experts, wide = self._feed_forward(f"{at}.{dense}", routed)
            tensors += more
            live = max(live, wide)
        norms = 1 if self._blocks else 4 if self.read.model_type in _FOUR_NORMS else 2
        tensors.append(self.vector(f"{at}.norms", norms * self.hidden))
        # Besides its own, a layer keeps the residual and its input.
        return Layer(tuple(tensors), cache, experts, live, whole + 2 * self.hidden)

    @property
    def _blocks(self) -> bool:
        """Whether a layer is only one of attention, mamba, experts and mlp, as in Nemotron-H."""
        return self.read.raw("hybrid_override_pattern", "layers_block_type") is not None

    def _attention(self, at: str, kind: str) -> tuple[list[Tensor], Cache, int, int]:
        read, hidden = self.read, self.hidden
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        gate = 2 if read.flag("attn_output_gate", read.model_type in _PREDICTS) else 1
        tensors = [
            self.linear(f"{at}.q_proj", gate * q, hidden, "out"),
            self.linear(f"{at}.k_proj", kv, hidden, "kv", self.kv_heads),
            self.linear(f"{at}.v_proj", kv, hidden, "kv", self.kv_heads),
            self.linear(f"{at}.o_proj", hidden, q, "in"),
        ]
        if read.flag("attention_bias") or read.flag("qkv_bias") or read.model_type in _QKV_BIAS:
            tensors += [
                self.vector(f"{at}.q_bias", q, "out"),
                self.vector(f"{at}.kv_bias", 2 * kv, "kv", self.kv_heads),
            ]
        if read.model_type == "gpt_oss":
            tensors += [self.vector(f"{at}.o_bias", hidden), self.vector(f"{at}.sinks", self.heads, "out")]
        if read.model_type in _WHOLE_QK_NORM:
            tensors += [self.vector(f"{at}.q_norm", q, "out"), self.vector(f"{at}.k_norm", kv, "kv", self.kv_heads)]
        elif read.model_type in _HEAD_QK_NORM or read.flag("use_qk_norm"):
            tensors.append(self.vector(f"{at}.qk_norm", 2 * self.head_dim))
        looks_back = {"window": "sliding_window", "chunk": "attention_chunk_size"}.get(kind)
        window = read.number(looks_back) if looks_back else 0
        names: dict[str, CacheKind] = {"window": "window", "chunk": "chunk"}
        cache = Cache(names.get(kind, "full"), self.kv_heads, 2 * self.head_dim, window)
        return tensors, cache, (gate + 1) * q + 2 * kv, 0

    def _latent(self, at: str, kind: str) -> tuple[list[Tensor], Cache, int, int]:
        read, hidden = self.read, self.hidden
        latent, rope = read.number("kv_lora_rank"), read.number("qk_rope_head_dim")
        nope, value = read.number("qk_nope_head_dim"), read.number("v_head_dim")
        q_rank = read.number("q_lora_rank", default=0)
        q, kv = self.heads * (nope + rope), self.heads * (nope + value)
        tensors = [
            self.linear(f"{at}.kv_a_proj_with_mqa", latent + rope, hidden, "whole"),
            self.linear(f"{at}.kv_b_proj", kv, latent, "out"),
            self.linear(f"{at}.o_proj", hidden, self.heads * value, "in"),
            self.vector(f"{at}.a_norms", latent + q_rank),
        ]
        if q_rank:
            tensors.append(self.linear(f"{at}.q_a_proj", q_rank, hidden, "whole"))
        tensors.append(self.linear(f"{at}.q_b_proj" if q_rank else f"{at}.q_proj", q, q_rank or hidden, "out"))
        extra = 0
        if read.raw("index_topk"):
            # The indexer of sparse attention: its own projections and, per token, keys in 8 bits with a scale.
            dim, index_heads = read.number("index_head_dim"), read.number("index_n_heads", default=64)
            tensors += [
                self.linear(f"{at}.indexer.wq_b", index_heads * dim, q_rank or hidden, "whole"),
                self.linear(f"{at}.indexer.wk", dim, hidden, "whole"),
                self.linear(f"{at}.indexer.weights_proj", index_heads, hidden, "whole"),
                self.vector(f"{at}.indexer.norm", 2 * dim),
            ]
            extra = dim + 4 * math.ceil(dim / 128)
        return (
            tensors,
            Cache("full", 0, latent + rope, extra=extra),
            q + kv + self.heads * value,
            latent + rope + q_rank,
        )

    def _linear_attention(self, at: str) -> tuple[list[Tensor], Cache, int]:
        read, hidden = self.read, self.hidden
        key_heads, value_heads = read.number("linear_num_key_heads"), read.number("linear_num_value_heads")
        key_dim, value_dim = read.number("linear_key_head_dim"), read.number("linear_value_head_dim")
        kernel = read.number("linear_conv_kernel_dim")
        keys, values = key_heads * key_dim, value_heads * value_dim
        conv = 2 * keys + values
        tensors = [
            self.linear(f"{at}.in_proj_qkvz", conv + values, hidden, "out"),
            self.linear(f"{at}.in_proj_ba", 2 * value_heads, hidden, "out"),
            Tensor(f"{at}.conv1d", conv, kernel, "out", self.plain),
            self.vector(f"{at}.A_log_dt_bias", 2 * value_heads, "out"),
            self.vector(f"{at}.norm", value_dim),
            self.linear(f"{at}.out_proj", hidden, values, "in"),
        ]
        # vLLM takes the state's type from mamba_ssm_dtype where the family has that key, else the model's own.
        named = DTYPE_BYTES.get(str(read.raw("mamba_ssm_dtype", "mamba_ssm_cache_dtype") or ""), self.dtype_bytes)
        state = State(conv, kernel - 1, value_heads * value_dim * key_dim, named, value_heads)
        return tensors, Cache("state", state=state), 2 * conv + 3 * values

    def _mamba(self, at: str) -> tuple[list[Tensor], Cache, int]:
        read, hidden = self.read, self.hidden
        heads, dim = read.number("mamba_num_heads", "mamba_n_heads"), read.number("mamba_head_dim", "mamba_d_head")
        groups, size = read.number("n_groups", "mamba_n_groups"), read.number("ssm_state_size", "mamba_d_state")
        kernel = read.number("conv_kernel", "mamba_d_conv")
        inner, shared = heads * dim, 2 * groups * size
        tensors = [
            self.linear(f"{at}.in_proj", 2 * inner + heads, hidden, "out"),
            self.linear(f"{at}.in_proj", shared, hidden, "groups", groups),
            Tensor(f"{at}.conv1d", inner, kernel + 1, "out", self.plain),
            Tensor(f"{at}.conv1d", shared, kernel + 1, "groups", self.plain, groups),
            self.vector(f"{at}.A_D_dt_bias", 3 * heads, "out"),
            self.vector(f"{at}.norm", inner, "out"),
            self.linear(f"{at}.out_proj", hidden, inner, "in"),
        ]
        # NemotronH keeps its state in 32 bits unless the model says otherwise.
        named = str(read.raw("mamba_ssm_cache_dtype") or "float32")
        state = State(
            inner + shared, kernel - 1, heads * dim * size, DTYPE_BYTES.get(named, 4), heads, groups, size
        )  # fmt: skip
        return tensors, Cache("state", state=state), 2 * (2 * inner + shared) + inner

    def _feed_forward(self, at: str, routed: bool) -> tuple[list[Tensor], Experts | None, int]:
        read, hidden = self.read, self.hidden
        matrices = 3 if self.gated else 2
        if not routed:
            size = read.number("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size")
            return self._mlp(at, size), None, matrices * size
        count = read.number("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
        size = read.number("moe_intermediate_size", "intermediate_size")
        latent = read.number("moe_latent_size", default=0)
        # MiniMax keeps its router in 32 bits.
        plain = Storage(bits=32) if read.model_type == "minimax_m2" else self.plain
        biased = read.raw("scoring_func") == "sigmoid" or read.raw("topk_method") == "noaux_tc"
        biased = biased or read.model_type in ("glm4_moe", "gpt_oss", "minimax_m2", "nemotron_h")
        tensors = [Tensor(f"{at}.gate", count * (hidden + biased), 1, "whole", plain)]
        if latent:
            tensors += [self.vector(f"{at}.latent", 2 * latent * hidden)]
        shared = read.number(
            "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=0
        ) or size * read.number("n_shared_experts", "num_shared_experts", default=0)  # fmt: skip
        if shared:
            tensors += self._mlp(f"{at}.shared_experts", shared)
        if shared and read.raw("shared_expert_intermediate_size"):
            tensors.append(self.vector(f"{at}.shared_expert_gate", hidden))
        storage = self.quant.storage(f"{at}.experts.0.up_proj", self.dtype_bytes)
        experts = Experts(
            count, latent or hidden, size, matrices,
            read.number("num_experts_per_tok", "num_experts_per_token", "moe_topk", default=1), storage,
            self.dtype_bytes if read.model_type == "gpt_oss" else 0,
        )  # fmt: skip
        return tensors, experts, matrices * shared

    def _mlp(self, at: str, size: int) -> list[Tensor]:
        into = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        tensors = [self.linear(f"{at}.{name}", size, self.hidden, "out") for name in into]
        return [*tensors, self.linear(f"{at}.down_proj", self.hidden, size, "in")]

    def vision(self, config: Mapping[str, Any]) -> list[Tensor]:
        """Return an estimate of an image encoder and of the projection to the decoder."""
        read = _Reader(config)
        wide, depth = read.number("hidden_size", "embed_dim"), read.number("num_hidden_layers", "depth")
        inner, patch = read.number("intermediate_size", default=4 * wide), read.number("patch_size", default=14)
        side = read.number("image_size", default=0) // patch
        merged = wide * read.number("spatial_merge_size", default=1) ** 2
        block = 4 * (wide * wide + wide) + 2 * wide * inner + inner + wide + 4 * wide
        ends = 3 * patch * patch * wide + wide + side * side * wide + 2 * wide
        joint = merged * self.hidden + wide + (merged * merged if merged != wide else 0)
        return [self.vector("vision", depth * block + ends + joint)]


def _predicting(builder: _Builder, layers: list[Layer], ends: int) -> int:
    """Return the bytes of the checkpoint's layers for predicting more tokens, which vLLM leaves out by default."""
    read, hidden = builder.read, builder.hidden
    own = builder.plain.bytes(2 * hidden, hidden) + builder.plain.bytes(3 * hidden, 1)
    if read.model_type in _PREDICTS:
        full = next((one for one in reversed(layers) if one.cache.kind == "full"), layers[-1])
        return read.number("mtp_num_hidden_layers", "num_nextn_predict_layers", default=1) * (full.size + own)
    count = read.number("num_nextn_predict_layers", default=0)
    # These bring their own embedding and head.
    return count * (layers[-1].size + own + ends)


def model_of(
    config: Mapping[str, Any], weights: int | None = None, quant_config: Mapping[str, Any] | None = None
) -> Model:
    """Return the model that a config.json describes.

    :param weights: bytes of the checkpoint, where they are known
    :param quant_config: hf_quant_config.json, which some checkpoints have beside a config.json that says nothing
    :raises ModelError: the config is of no decoder that is known here
    """
    read = _Reader(config)
    if read.raw("compress_ratios") is not None:
        raise ModelError(f"what {read.model_type} caches is not known here: its attention compresses tokens by layer")
    if read.flag("is_encoder_decoder"):
        raise ModelError(f"{read.model_type} is an encoder-decoder, which is not known here")
    count = read.number("num_hidden_layers", "n_layer")
    if isinstance(named := read.raw("layers_block_type"), list):
        count = len(named)
    hidden, heads = read.number("hidden_size"), read.number("num_attention_heads")
    vocab = read.number("vocab_size")
    if not (count and hidden and heads and vocab):
        raise ModelError("config.json has a size of 0, so it describes no decoder that is known here")
    dtype = str(read.raw("dtype", "torch_dtype") or "bfloat16").removeprefix("torch.")
    dtype_bytes = DTYPE_BYTES.get(dtype, 2)
    kv_heads = read.number("num_key_value_heads", "num_kv_heads", "multi_query_group_num", default=heads)
    head_dim = read.number("head_dim", "attention_head_dim", default=0) or hidden // heads
    quant = read_quantisation(read.raw("quantization_config", "compression_config") or quant_config)
    builder = _Builder(read, quant, hidden, heads, kv_heads, head_dim, dtype_bytes)
    experts = read.number("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", default=0)
    kinds = _layer_kinds(read, count)
    routed = _expert_layers(read, kinds, experts)
    layers = [builder.layer(i, kind, routed[i]) for i, kind in enumerate(kinds)]
    tied = read.flag("tie_word_embeddings", default=read.model_type.startswith("gemma"))
    embedding = Tensor("embed_tokens", vocab, hidden, "vocab", builder.plain)
    head_storage = quant.storage("lm_head", dtype_bytes) if quant.head else builder.plain
    head = None if tied else Tensor("lm_head", vocab, hidden, "vocab", head_storage)
    vision = config.get("vision_config")
    extra: list[Tensor] = []
    notes = list(quant.notes)
    if isinstance(vision, Mapping) and vision:
        try:
            extra = builder.vision(vision)
            notes.append("the image encoder is estimated, and what it needs while it runs is not counted")
        except ModelError:
            notes.append("the image encoder is not counted")
    norm = builder.vector("norm", hidden)
    ends = embedding.size + (head.size if head else 0)
    counted = sum(layer.size for layer in layers) + ends + norm.size + sum(tensor.size for tensor in extra)
    predicting = _predicting(builder, layers, ends)
    loaded, unloaded = counted, 0
    if weights:
        # What is nearer: a checkpoint with the layers that predict more tokens, or one without.
        unloaded = predicting if abs(weights - counted - predicting) < abs(weights - counted) else 0
        loaded = weights - unloaded * weights // (counted + unloaded)
        off = abs(weights - counted - unloaded) / weights
        if off > 0.05:
            notes.append(
                f"config.json explains the weights' size only to {round(off * 100)} %, so shares are estimates"
            )
    return Model(
        model_type=read.model_type, dtype_bytes=dtype_bytes, hidden=hidden, vocab=vocab, heads=heads,
        kv_heads=kv_heads, max_len=_max_len(read), tied=tied, mla=builder.mla, layers=tuple(layers),
        embedding=embedding, head=head, norm=norm, extra=tuple(extra),
        mla_copy=sum(t.rows * t.columns for x in layers for t in x.tensors if t.name.endswith(".kv_b_proj")),
        weights=loaded, estimated=not weights, counted=counted, unloaded=unloaded, quantisation=quant,
        notes=tuple(notes), dims=_dims(read, any(routed), all(routed)),
    )  # fmt: skip


def _dims(read: _Reader, some: bool, every: bool) -> dict[str, int]:
    """Return the sizes that have to be divisible by the number of ranks; 0 where the model has none."""
    return {
        "intermediate": 0 if every else read.number("intermediate_size_mlp", "intermediate_size", default=0),
        "expert": read.number("moe_intermediate_size", "intermediate_size", default=0) if some else 0,
        "key_heads": read.number("linear_num_key_heads", default=0),
        "value_heads": read.number("linear_num_value_heads", default=0),
        "mamba_heads": read.number("mamba_num_heads", "mamba_n_heads", default=0),
        "groups": read.number("n_groups", "mamba_n_groups", default=0),
    }


def _max_len(read: _Reader) -> int:
    """Return the model's own limit of context in tokens, as vLLM derives it."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
             "max_sequence_length")  # fmt: skip
    found = [value for name in names if isinstance(value := read.raw(name), int) and value > 0]
    length = min(found, default=2048)
    rope = read.raw("rope_scaling", "rope_parameters")
    if isinstance(rope, Mapping) and not read.model_type.startswith("gemma3"):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "longrope":
            return read.number("original_max_position_embeddings", default=length)
        # These leave the limit scaled already.
        if kind not in (None, "default", "su", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope"):
            length = int(length * float(rope.get("factor") or 1))
    return length


def _json(path: str) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def _weights_on_disk(directory: str, names: Iterable[str]) -> int:
    sizes = [os.path.getsize(path) for name in names if os.path.isfile(path := os.path.join(directory, name))]
    return sum(sizes)


def weights_of(directory: str) -> int | None:
    """Return the bytes of the weights in a directory, or ``None`` where nothing says.

    The files themselves count before the index: the total_size of some published indexes is wrong.
    """
    names = sorted(os.listdir(directory))
    for index in (name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))):
        try:
            document = _json(os.path.join(directory, index))
            files = set(map(str, document["weight_map"].values()))
            total = int((document.get("metadata") or {}).get("total_size") or 0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{os.path.join(directory, index)} cannot be read") from error
        present = [name for name in files if os.path.isfile(os.path.join(directory, name))]
        return _weights_on_disk(directory, present) if files and len(present) == len(files) else total or None
    for suffix in _WEIGHT_SUFFIXES:
        # Some repositories hold the same weights twice, under another name.
        files = {name for name in names if name.endswith(suffix) and not fnmatchcase(name, "consolidated*")}
        if files:
            return _weights_on_disk(directory, files)
    return None


def read_model(directory: str) -> Model:
    """Return the model in a directory, which needs to hold no more than config.json.

    :raises ModelError: with a line that says what is wrong
    """
    if not os.path.isdir(directory):
        raise ModelError(f"{directory} is no directory")
    config = os.path.join(directory, "config.json")
    try:
        content = _json(config)
        quant = os.path.join(directory, "hf_quant_config.json")
        beside = _json(quant) if os.path.isfile(quant) else None
    except OSError as error:
        raise ModelError(f"{config} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{config} or the hf_quant_config.json beside it is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{config} holds no JSON object")
    return model_of(content, weights_of(directory), beside if isinstance(beside, dict) else None)
