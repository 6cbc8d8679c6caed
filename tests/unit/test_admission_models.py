# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What published models need, against bytes that are derived here by hand.

An expected value is arithmetic on the figures of config.json and calls nothing of the code under test. Where a figure
was observed by an owner of the model, in a log of vLLM, the test says so.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _model_memory as memory
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_config import Model, ModelError, model_of
from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_memory import Settings

from docs import memory_table

GIB = 1 << 30
BF16 = 2


def model(name: str) -> Model:
    """Return a model of tests/unit/data/models."""
    return memory_table.model_of(memory_table.MODELS / f"{name}.json")


def split(tp: int = 1, pp: int = 1, **more: object) -> Settings:
    """Return settings with these sizes."""
    return Settings(tensor_parallel_size=tp, pipeline_parallel_size=pp, **more)  # type: ignore[arg-type]


def weights(name: str, tp: int = 1, pp: int = 1, stage: int = 0, dp: int = 1) -> int:
    """Return the bytes of weights on a rank."""
    return memory.stage_weights(model(name), split(tp, pp, data_parallel_size=dp), stage)


def cache(name: str, length: int, settings: Settings | None = None, stage: int = 0) -> int:
    """Return what vLLM asks for of a rank's KV cache."""
    return memory.kv_cache(model(name), settings or Settings()).need(length, stage)


# --- the whole checkpoint: config.json alone gives what the files have ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Llama-3.1-8B-Instruct", 2 * 8_030_261_248),
        ("Llama-3.3-70B-Instruct", 2 * 70_553_706_496),
        ("Mixtral-8x7B-Instruct-v0.1", 2 * 46_702_792_704),
        ("Qwen3-30B-A3B", 2 * 30_532_122_624),
        ("Qwen3-235B-A22B", 2 * 235_093_634_560),
        ("DeepSeek-V2-Lite", 2 * 15_706_484_224),
        ("gemma-3-27b-it", 2 * 27_432_406_640),
        ("gpt-oss-120b", 65_248_815_744),
        ("gpt-oss-20b", 13_761_264_768),
        ("MiniMax-M2", 230_121_630_720),
        # With the layer for multi-token prediction, which the files hold.
        ("GLM-4.5-Air", 2 * 110_468_824_832),
        ("Qwen3-Next-80B-A3B", 2 * 81_324_862_720),
        # 2944: the routers' biases, which the count of parameters leaves out.
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 2 * (31_577_937_344 + 2_944)),
    ],
)
def test_config_alone_gives_the_published_size(name: str, published: int) -> None:
    one = model(name)
    assert one.counted + one.unloaded == published


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        # The files also have headers, and biases of the routers in 32 bits.
        ("DeepSeek-V3", 688_586_727_753, 1e-4),
        # Its scales are in 16 bits, and vLLM takes them to 32.
        ("Qwen3-32B-FP8", 34_322_434_048, 2e-4),
        # The whole repository, with its tokenizer of 11 MB.
        ("Qwen2.5-72B-Instruct-AWQ", 41_607_438_677, 5e-4),
    ],
)
def test_config_alone_nearly_gives_the_published_size(name: str, published: int, tolerance: float) -> None:
    one = model(name)
    assert one.counted + one.unloaded == pytest.approx(published, rel=tolerance)


def test_the_layer_that_predicts_more_tokens_is_not_loaded() -> None:
    # GLM-4.5-Air: 46 layers and one more, with an own embedding and head.
    attention = 4096 * 96 * 128 * 2 + 2 * 4096 * 8 * 128 + (96 + 2 * 8) * 128
    experts = 128 * 3 * 4096 * 1408 + (4096 + 1) * 128 + 3 * 4096 * 1408
    more = attention + experts + 2 * 4096 + 2 * 4096 * 4096 + 3 * 4096 + 2 * 151_552 * 4096
    assert weights("GLM-4.5-Air") == 220_937_649_664 - BF16 * more


# --- a rank's part of the weights ------------------------------------------------------------------------------------


def test_llama_8b_in_two() -> None:
    divided = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 128_256 * 4096
    norms = (2 * 32 + 1) * 4096
    assert weights("Llama-3.1-8B-Instruct", tp=2) == BF16 * (divided // 2 + norms)


def test_llama_70b_in_four() -> None:
    divided = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672) + 2 * 128_256 * 8192
    assert weights("Llama-3.3-70B-Instruct", tp=4) == BF16 * (divided // 4 + (2 * 80 + 1) * 8192)


def test_llama_70b_nvfp4_in_two() -> None:
    # 4 bits, and 8 bits for 16 of them; two 32-bit scales for each of 7 matrices. Embedding and head stay.
    elements = (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672) // 2
    layer = elements // 2 + elements // 16 + 7 * 8 + BF16 * 2 * 8192
    assert weights("Llama-3.3-70B-Instruct-NVFP4", tp=2) == 80 * layer + BF16 * (128_256 * 8192 + 8192)


def test_qwen_72b_awq_in_two() -> None:
    # 4 bits, and for 128 of them a scale of 16 bits and a zero point of 4. Head and embedding stay.
    elements = (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 29696) // 2
    layer = elements // 2 + elements // 128 * 20 // 8 + BF16 * ((8192 + 2 * 1024) // 2 + 2 * 8192)
    assert weights("Qwen2.5-72B-Instruct-AWQ", tp=2) == 80 * layer + BF16 * (152_064 * 8192 + 8192)


def test_qwen_30b_in_eight_copies_its_four_kv_heads() -> None:
    # 4 KV heads for 8 ranks: each has one whole head; router and norms are everywhere.
    attention = 2 * 2048 * 4096 // 8 + 2 * 2048 * 1 * 128
    experts = 128 * 3 * 2048 * (768 // 8)
    everywhere = 128 * 2048 + 2 * 2048 + 2 * 128
    expected = 48 * (attention + experts + everywhere) + 2 * 151_936 * 2048 // 8 + 2048
    assert weights("Qwen3-30B-A3B", tp=8) == BF16 * expected


def test_qwen_30b_nvfp4() -> None:
    # Quantised: 4 matrices of attention, 3 of each of 128 experts. Not: routers, norms, embedding, head.
    elements = 2 * 2048 * 4096 + 2 * 2048 * 512 + 128 * 3 * 2048 * 768
    layer = elements // 2 + elements // 16 + (4 + 128 * 3) * 8 + BF16 * (128 * 2048 + 2 * 2048 + 2 * 128)
    assert weights("Qwen3-30B-A3B-NVFP4") == 48 * layer + BF16 * (2 * 151_936 * 2048 + 2048)


def test_qwen_32b_fp8_in_two() -> None:
    elements = (2 * 5120 * 8192 + 2 * 5120 * 1024 + 3 * 5120 * 25600) // 2
    layer = elements + elements // (128 * 128) * 4 + BF16 * (2 * 5120 + 2 * 128)
    expected = 64 * layer + BF16 * (151_936 * 5120 + 5120)
    # Its scales have 16 bits in the files, which are 0.01 % less.
    assert weights("Qwen3-32B-FP8", tp=2) == pytest.approx(expected, rel=2e-4)
    assert weights("Qwen3-32B-FP8") == 34_322_434_048


def test_qwen_235b_in_four_stages() -> None:
    # 94 layers: 23 each, and the two left over go to the middle. The ends have the embedding and the head.
    layer = 2 * 4096 * 8192 + 2 * 4096 * 512 + 2 * 128 + 128 * 3 * 4096 * 1536 + 128 * 4096 + 2 * 4096
    assert [weights("Qwen3-235B-A22B", pp=4, stage=stage) for stage in range(4)] == [
        BF16 * (23 * layer + 151_936 * 4096),
        BF16 * 24 * layer,
        BF16 * 24 * layer,
        BF16 * (23 * layer + 151_936 * 4096 + 4096),
    ]


def test_replicas_share_the_experts() -> None:
    # Mixtral with data parallelism over 2: attention whole on each, experts divided.
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 4096
    experts = 8 * 3 * 4096 * 14336 // 2
    expected = BF16 * (32 * (attention + experts) + 2 * 32_000 * 4096 + 4096)
    assert weights("Mixtral-8x7B-Instruct-v0.1", dp=2) == expected


def test_gpt_oss_120b_is_padded_for_its_kernel() -> None:
    # Marlin: the experts' 2880 x 2880 become 2944 x 3072; 4 bits and 8 bits for 32 of them. Biases grow with the rows.
    padding = 36 * 128 * 3 * (2944 * 3072 - 2880 * 2880) * 17 // 32 + 36 * 128 * 2 * 64 * BF16
    assert weights("gpt-oss-120b") == 65_248_815_744 + padding
    # vllm-project/vllm#23278: "Model loading took 65.9651 GiB".
    assert weights("gpt-oss-120b") / GIB == pytest.approx(65.97, abs=0.1)


def test_gpt_oss_20b_in_two() -> None:
    # 2880 / 2 = 1440 becomes 1536.
    experts = 32 * (3 * 1536 * 3072 * 17 // 32 + (2 * 1536 + 2880) * BF16)
    attention = (2 * 2880 * 4096 + 2 * 2880 * 512 + 4096 + 2 * 512 + 64) // 2 + 2880
    router = (2880 + 1) * 32
    layer = experts + BF16 * (attention + router + 2 * 2880)
    assert weights("gpt-oss-20b", tp=2) == 24 * layer + BF16 * (201_088 * 2880 + 2880)


def test_deepseek_v2_lite_in_two() -> None:
    # The latent's projection is everywhere, what unfolds it is divided, and kept a second time for decoding.
    whole = 2048 * (512 + 64) + 512 + 2 * 2048
    divided = 2048 * 16 * 192 + 512 * 16 * 256 + 16 * 128 * 2048
    experts = 26 * (66 * 3 * 2048 * 1408 // 2 + 64 * 2048)
    expected = 27 * (whole + divided // 2) + 3 * 2048 * 10944 // 2 + experts + 102_400 * 2048 + 2048
    again = 27 * 512 * 16 * 256 // 2
    assert weights("DeepSeek-V2-Lite", tp=2) == BF16 * (expected + again)


def test_deepseek_v3_in_eight() -> None:
    def fp8(rows: int, columns: int) -> float:
        return rows * columns * (1 + 4 / (128 * 128))

    whole = fp8(1536, 7168) + 576 * 7168 + 5 * 56 * 4 + BF16 * (512 + 1536 + 2 * 7168)
    divided = (fp8(128 * 192, 1536) + fp8(128 * 256, 512) + fp8(7168, 128 * 128)) / 8
    dense = 3 * 3 * fp8(18432, 7168) / 8
    experts = 58 * (257 * 3 * fp8(2048, 7168) / 8 + BF16 * (7168 + 1) * 256)
    ends = BF16 * (2 * 129_280 * 7168 / 8 + 7168)
    again = BF16 * 61 * 512 * 128 * 256 / 8
    expected = 61 * (whole + divided) + dense + experts + ends + again
    assert weights("DeepSeek-V3", tp=8) == pytest.approx(expected, rel=1e-4)


def test_minimax_in_four() -> None:
    divided = (2 * 3072 * 6144 + 2 * 3072 * 1024 + 256 * 3 * 3072 * 1536) // 4
    # The norms of q and k go over all heads, so they are divided too. The router has 32 bits.
    layer = divided + divided // (128 * 128) * 4 + BF16 * ((48 + 8) * 128 // 4 + 2 * 3072) + 4 * (3072 + 1) * 256
    assert weights("MiniMax-M2", tp=4) == 62 * layer + BF16 * (2 * 200_064 * 3072 // 4 + 3072)


def test_qwen_next_in_two() -> None:
    hidden, state, keys, values = 2048, 36, 16 * 128, 32 * 128
    # 12 layers of attention with a gate (q twice), 36 linear ones; 2 KV heads, one on each rank.
    attention = 12 * ((2 * hidden * 4096 + 2 * hidden * 512 + 4096 * hidden) // 2 + 2 * 256)
    linear = state * (
        (hidden * (2 * keys + 2 * values + 2 * 32) + (2 * keys + values) * 4 + 2 * 32 + values * hidden) // 2 + 128
    )
    experts = 48 * ((512 + 1) * 3 * hidden * 512 // 2 + 512 * hidden + hidden + 2 * hidden)
    expected = attention + linear + experts + 151_936 * hidden + hidden
    assert weights("Qwen3-Next-80B-A3B", tp=2) == BF16 * expected


def test_nemotron_in_two() -> None:
    hidden, inner, shared = 2688, 64 * 64, 2 * 8 * 128
    mamba = 23 * ((hidden * (2 * inner + shared + 64) + (inner + shared) * 5 + 3 * 64 + inner + inner * hidden) // 2)
    attention = 6 * ((2 * hidden * 32 * 128 + 2 * hidden * 2 * 128) // 2)
    # Not gated: two matrices. One expert of 3712 for all.
    experts = 23 * ((128 * 2 * hidden * 1856 + 2 * hidden * 3712) // 2 + 128 * (hidden + 1))
    norms = (52 + 1) * hidden
    expected = mamba + attention + experts + norms + 2 * 131_072 * hidden // 2
    assert weights("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", tp=2) == BF16 * expected


def test_gemma_has_one_matrix_for_embedding_and_head() -> None:
    layer = 2 * 5376 * 4096 + 2 * 5376 * 2048 + 2 * 128 + 3 * 5376 * 21504 + 4 * 5376
    vision = 27 * (4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152)
    vision += 3 * 14 * 14 * 1152 + 1152 + 64 * 64 * 1152 + 2 * 1152 + 1152 * 5376 + 1152
    assert weights("gemma-3-27b-it") == BF16 * (62 * layer + 262_208 * 5376 + 5376 + vision)
    # With a pipeline the last stage needs it too.
    assert weights("gemma-3-27b-it", pp=2, stage=1) == BF16 * (31 * layer + 262_208 * 5376 + 5376)


# --- the KV cache of one sequence ------------------------------------------------------------------------------------
# A block has 16 tokens. vLLM keeps one block back, so it is on top of those of the sequence.


@pytest.mark.parametrize(
    ("name", "length", "tp", "expected"),
    [
        # layers x heads x (128 keys + 128 values) x bytes x 16 tokens x (blocks + 1)
        ("Llama-3.1-8B-Instruct", 131_072, 1, 32 * 8 * 256 * 2 * 16 * (131_072 // 16 + 1)),
        ("Llama-3.3-70B-Instruct", 131_072, 4, 80 * 2 * 256 * 2 * 16 * (131_072 // 16 + 1)),
        # Its quantisation asks for a cache of 8 bits.
        ("Llama-3.3-70B-Instruct-NVFP4", 131_072, 1, 80 * 8 * 256 * 1 * 16 * (131_072 // 16 + 1)),
        ("Qwen3-30B-A3B-NVFP4", 40_960, 2, 48 * 2 * 256 * 1 * 16 * (40_960 // 16 + 1)),
        ("Qwen2.5-72B-Instruct-AWQ", 32_768, 2, 80 * 4 * 256 * 2 * 16 * (32_768 // 16 + 1)),
        # 4 heads: one on each of 4 ranks, and no less on 8.
        ("Qwen3-30B-A3B", 40_960, 4, 48 * 1 * 256 * 2 * 16 * (40_960 // 16 + 1)),
        ("Qwen3-30B-A3B", 40_960, 8, 48 * 1 * 256 * 2 * 16 * (40_960 // 16 + 1)),
        ("Qwen3-32B-FP8", 40_960, 2, 64 * 4 * 256 * 2 * 16 * (40_960 // 16 + 1)),
        # 1000 tokens begin a 63rd block.
        ("Qwen3-32B-FP8", 1_000, 1, 64 * 8 * 256 * 2 * 16 * (63 + 1)),
        ("Mixtral-8x7B-Instruct-v0.1", 32_768, 1, 32 * 8 * 256 * 2 * 16 * (32_768 // 16 + 1)),
        ("GLM-4.5-Air", 131_072, 2, 46 * 4 * 256 * 2 * 16 * (131_072 // 16 + 1)),
        ("MiniMax-M2", 196_608, 4, 62 * 2 * 256 * 2 * 16 * (196_608 // 16 + 1)),
        # MLA: 512 of the latent and 64 of the position, once for all heads, whole on every rank.
        ("DeepSeek-V2-Lite", 163_840, 1, 27 * 576 * 2 * 16 * (163_840 // 16 + 1)),
        ("DeepSeek-V3", 163_840, 8, 61 * 576 * 2 * 16 * (163_840 // 16 + 1)),
        # Half of the layers look back 128 tokens: 127 before, 2 x 8192 that are being computed, and one block more.
        ("gpt-oss-120b", 131_072, 1, 18 * 8 * 128 * 2 * 16 * (8_192 + (1_032 + 1) + 1)),
        ("gpt-oss-20b", 131_072, 2, 12 * 4 * 128 * 2 * 16 * (8_192 + (1_032 + 1) + 1)),
        # 10 layers see everything and 52 see 1024 tokens: groups of 10 at most, so 6 of the latter.
        ("gemma-3-27b-it", 131_072, 1, 10 * 16 * 256 * 2 * 16 * (8_192 + 6 * (1_088 + 1) + 1)),
        # Hybrid, see below: blocks of 544 tokens; 36 linear layers are 3 groups of 12, two states each.
        ("Qwen3-Next-80B-A3B", 262_144, 1, 12 * 544 * 2 * 512 * 2 * (482 + 3 * 2 + 1)),
        # 23 mamba layers are 4 groups of at most 6, as wide as the 6 layers of attention.
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 262_144, 1, 6 * 2096 * 2 * 256 * 2 * (126 + 4 * 2 + 1)),
    ],
)
def test_cache_of_one_sequence(name: str, length: int, tp: int, expected: int) -> None:
    assert cache(name, length, split(tp)) == expected


def test_eight_bits_halve_it() -> None:
    assert cache("Mixtral-8x7B-Instruct-v0.1", 32_768, split(kv_cache_dtype="fp8")) == 32 * 8 * 256 * 16 * 2_049


def test_a_stage_has_its_layers_only() -> None:
    # 94 layers in 4 stages: 23, 24, 24, 23.
    sizes = [cache("Qwen3-235B-A22B", 40_960, split(pp=4), stage) for stage in range(4)]
    assert sizes == [layers * 4 * 256 * 2 * 16 * 2_561 for layers in (23, 24, 24, 23)]


@pytest.mark.parametrize(
    ("name", "settings", "tokens"),
    [
        # A block of attention has to be as large as a state, in steps of 16 tokens.
        # State: (2 x 2048 + 4096) x 3 x 2 and 32 x 128 x 128 x 2 bytes = 1097728; a token: 2 x 512 x 2 = 2048.
        ("Qwen3-Next-80B-A3B", Settings(), 544),
        # Observed: "Setting attention block size to 784 tokens". State: 10240 x 3 x 2 + 48 x 128 x 128 x 4 = 3207168;
        # a token: 4 x 512 x 2 = 4096.
        ("Qwen3.8-27B", Settings(), 784),
        # Observed with tensor parallelism over 2 and a cache of 8 bits: blocks of 1568 tokens.
        ("Qwen3.8-27B", Settings(tensor_parallel_size=2, kv_cache_dtype="fp8"), 1568),
        # State: 6144 x 3 x 2 + 64 x 64 x 128 x 4 = 2134016; a token: 2 x 256 x 2 = 1024.
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", Settings(), 2096),
    ],
)
def test_blocks_of_hybrid_models(name: str, settings: Settings, tokens: int) -> None:
    assert memory.kv_cache(model(name), settings).granularity == tokens


def test_what_vllm_itself_asked_for() -> None:
    # vllm-project/recipes#12: Qwen3-Coder-480B "262144 … 62.00 GiB KV cache is needed".
    coder = model_of(
        {
            "model_type": "qwen3_moe", "hidden_size": 6144, "num_hidden_layers": 62, "num_attention_heads": 96,
            "num_key_value_heads": 8, "head_dim": 128, "moe_intermediate_size": 2560, "num_experts": 160,
            "num_experts_per_tok": 8, "vocab_size": 151936,
        }
    )  # fmt: skip
    assert memory.kv_cache(coder, Settings()).need(262_144, 0) / GIB == pytest.approx(62.00, abs=0.01)
    # eugr/spark-vllm-docker#396, two Sparks: MiniMax-M2.7, 196608 tokens, "23.25 GiB KV cache is needed".
    assert cache("MiniMax-M2", 196_608, split(2)) / GIB == pytest.approx(23.25, abs=0.01)


def test_a_cpu_has_larger_blocks() -> None:
    assert cache("Llama-3.1-8B-Instruct", 512, Settings(device="cpu")) == 32 * 8 * 256 * 2 * 128 * (4 + 1)


# --- activations -----------------------------------------------------------------------------------------------------


def test_activations_of_a_dense_model() -> None:
    settings = split(2, max_num_seqs=16, max_num_batched_tokens=8192, max_model_len=4096)
    # Residual and input whole, gate, up and their product divided; the sampler's 16 rows are less.
    layer = 8192 * (2 * 4096 + 3 * 14336 // 2) * 2
    kept = 16 * 4 * (128_256 + 4096 + 2 * 4096 // 16)
    assert memory.activations(model("Llama-3.1-8B-Instruct"), settings) == layer + kept + 394 * (1 << 20)


def test_activations_of_experts() -> None:
    settings = Settings(max_num_seqs=1, max_num_batched_tokens=1024, max_model_len=1024)
    # 8 experts for each token: the larger of 768 and 2048, and of 2 x 768 and 2048.
    scratch = 1024 * 8 * (2048 + 2048) * 2
    # Attention: residual, input, q and its result (4096 each), k and v (512 each).
    layer = 1024 * (2 * 2048 + 2 * 4096 + 2 * 512) * 2
    kept = 1 * 4 * (151_936 + 1024 + 2 * 64)
    expected = scratch + layer + kept + 394 * (1 << 20)
    assert memory.activations(model("Qwen3-30B-A3B"), settings) == expected


def test_many_sequences_make_the_sampler_the_peak() -> None:
    settings = Settings(max_num_seqs=1024, max_num_batched_tokens=1024, max_model_len=1024)
    sampler = 1024 * 128_256 * (2 + 2 + 4)
    kept = 1024 * 4 * (128_256 + 1024 + 2 * 64)
    assert memory.activations(model("Llama-3.1-8B-Instruct"), settings) == sampler + kept + 394 * (1 << 20)


# --- reading what is not known ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "bert", "hidden_size": 768},
        {"model_type": "deepseek_v4", "compress_ratios": [4, 128], "num_hidden_layers": 2},
        {"model_type": "x", "num_hidden_layers": 0, "hidden_size": 0, "num_attention_heads": 0, "vocab_size": 0},
        {"model_type": "x", "num_hidden_layers": "many", "hidden_size": 8},
        {
            "model_type": "x", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 8,
            "intermediate_size": 8, "layer_types": ["conv"],
        },
    ],
)  # fmt: skip
def test_what_is_no_known_decoder_is_refused_in_a_line(config: dict[str, object]) -> None:
    with pytest.raises(ModelError) as error:
        model_of(config)
    assert "\n" not in str(error.value)


def test_an_unknown_quantisation_is_noted() -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 256, "quantization_config": {"quant_method": "exl9"},
    }  # fmt: skip
    one = model_of(config)
    assert one.notes == ("the quantisation exl9 is not known here",)
    assert one.counted == 2 * (4 * 64 * 64 + 3 * 64 * 128 + 3 * 64 + 2 * 256 * 64)


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}},
    },
    "ignore": ["re:.*self_attn.*", "model.layers.0.mlp.down_proj", "lm_head"],
}


def test_an_ignore_list_means_what_it_names() -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 256, "quantization_config": COMPRESSED,
    }  # fmt: skip
    packed = 64 * 128 // 2 + 64 * 128 // 32 * 2
    rest = 2 * (2 * 4 * 64 * 64 + 5 * 64 + 2 * 256 * 64)
    # Five of the six matrices of the two feed-forward parts are packed.
    assert model_of(config).counted == 5 * packed + 64 * 128 * 2 + rest


def test_files_count_before_the_index(tmp_path: Path) -> None:
    from ansible_collections.sparkfleet.vllm.plugins.module_utils._model_config import weights_of

    assert weights_of(str(tmp_path)) is None
    (tmp_path / "model.safetensors").write_bytes(b"x" * 30)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 30)
    assert weights_of(str(tmp_path)) == 30
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {"total_size": 99}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    assert weights_of(str(tmp_path)) == 99
    (tmp_path / "1.safetensors").write_bytes(b"x" * 10)
    assert weights_of(str(tmp_path)) == 99
    (tmp_path / "2.safetensors").write_bytes(b"x" * 11)
    assert weights_of(str(tmp_path)) == 21
    index.write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        weights_of(str(tmp_path))
