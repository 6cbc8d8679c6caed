# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole NVFP4 layers of vLLM's on a GPU, with the plugin: a linear layer, and a mixture of experts with its router.

vLLM's Python and this package's kernels are real. On a vLLM with its CUDA library, on a GPU of capability 12.x, vLLM's
own W4A4 kernels are real too (not run on GB10). Elsewhere, for instance with the sources alone that ``vllm_tree.py``
packs, its W4A4 operators are those of ``upstream.Operators``, and vLLM is told that its CUTLASS experts run here.

Which kernel multiplied can be seen in the result: activations of four bits cost far more than rounding to bfloat16.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="no vLLM on this machine; tests/gpu/vllm_tree.py packs what is needed of one")

import upstream
from sparkfleet_kernels import plugin
from torch import Tensor

#: Larger than what rounding to bfloat16 costs, and smaller than what 4-bit activations do.
BFLOAT16, FOUR_BITS = 0.004, 0.3
FEW, MANY = (1, 2, 3, 4, 5, 6, 7, 8), (9, 16, 33)

names = (f"experts.{number}" for number in itertools.count())


@pytest.fixture(scope="module", autouse=True)
def process(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Iterator[Any]:
    """vLLM in this process, with the plugin; yields its configuration."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SPARKFLEET_KERNELS", "force")
        if not upstream.have_operators():
            stack.enter_context(upstream.Operators())
        # On a GPU this asks some of the operators.
        from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4

        if not CutlassExpertsFp4._supports_current_device():
            patch.setattr(CutlassExpertsFp4, "_supports_current_device", staticmethod(lambda: True))
        stack.callback(plugin.unregister)
        plugin.register()
        assert plugin._changes is not None, "the plugin left this vLLM as it is; its log says why"
        yield stack.enter_context(upstream.vllm_process(tmp_path_factory.mktemp("vllm"), device))


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(count: int, columns: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(count, columns, generator=generator).to(device, torch.bfloat16)


def graphed(function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Return a CUDA graph of a function without arguments, and the tensor that a replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _time in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()
    return graph, out


def test_registering_leaves_the_gpu_alone() -> None:
    """vLLM loads plugins before it forks: a process that has used CUDA could not."""
    program = (
        "import contextlib, torch, upstream\n"
        "from sparkfleet_kernels import plugin\n"
        "with contextlib.nullcontext() if upstream.have_operators() else upstream.Operators():\n"
        "    plugin.register()\n"
        "    print('registered', plugin._changes is not None, 'CUDA', torch.cuda.is_initialized())\n"
    )
    path = os.pathsep.join([str(Path(upstream.__file__).parent), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"SPARKFLEET_KERNELS": "force", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "registered True CUDA False" in result.stdout, result.stdout + result.stderr


# --- a linear layer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(72, 64), (200, 192), (4096, 2048)])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_linear(n: int, k: int, bias: bool, generator: torch.Generator, device: torch.device) -> None:
    made = upstream.make_linear(n, k, generator, device, bias)
    kernel = made.layer.quant_method.kernel
    assert type(kernel).__name__.startswith("Sparkfleet")
    assert made.layer.sparkfleet_hybrid
    for tokens in FEW:
        x = random_rows(tokens, k, generator, device)
        y = made.layer(x)
        assert y.shape == (tokens, n)
        assert upstream.relative_error(y, made.exact(x)) < BFLOAT16, tokens
        assert torch.equal(made.layer(x), y)
    for tokens in MANY:
        x = random_rows(tokens, k, generator, device)
        y = made.layer(x)
        assert BFLOAT16 < upstream.relative_error(y, made.exact(x)) < FOUR_BITS, tokens
        # Exactly what the layer gives without the plugin.
        assert torch.equal(y, type(kernel).__base__.apply_weights(kernel, made.layer, x, made.bias))


def test_linear_without_tokens(generator: torch.Generator, device: torch.device) -> None:
    made = upstream.make_linear(72, 64, generator, device)
    assert made.layer(random_rows(0, 64, generator, device)).shape == (0, 72)


def test_linear_part_of_a_tensor(generator: torch.Generator, device: torch.device) -> None:
    """Columns of a wider tensor: not contiguous, or (one row) contiguous and not aligned."""
    made = upstream.make_linear(72, 64, generator, device)
    for tokens in (1, 5):
        for start in (0, 3, 8):
            x = random_rows(tokens, 100, generator, device)[:, start : start + 64]
            assert upstream.relative_error(made.layer(x), made.exact(x)) < BFLOAT16, (tokens, start)


def test_linear_compiled(generator: torch.Generator, device: torch.device) -> None:
    """One graph for every number of tokens."""
    made = upstream.make_linear(200, 192, generator, device, bias=True)
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: made.layer(x) * 2, fullgraph=True, backend=backend)
    for tokens in (3, 8, 9, 17):
        x = random_rows(tokens, 192, generator, device)
        torch._dynamo.mark_dynamic(x, 0)  # an error if the trace depends on it
        assert torch.equal(compiled(x), made.layer(x) * 2)
    assert len(graphs) == 1


@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_linear_in_a_graph(tokens: int, generator: torch.Generator, device: torch.device) -> None:
    made = upstream.make_linear(200, 192, generator, device)
    x = random_rows(tokens, 192, generator, device)
    graph, out = graphed(lambda: made.layer(x))
    for _replay in range(3):
        x.copy_(random_rows(tokens, 192, generator, device))
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, made.layer(x))
        assert upstream.relative_error(out, made.exact(x)) < BFLOAT16


# --- experts ------------------------------------------------------------------------------------------------------

SIZES = [(8, 2, 256, 192), (32, 4, 1024, 512)]  # experts, top-k, hidden size, intermediate size


def forward(process: Any, made: upstream.Experts, x: Tensor, logits: Tensor) -> Tensor:
    """Run the whole layer of vLLM's: router, experts, reduction."""
    from vllm.forward_context import set_forward_context

    with set_forward_context(None, process, num_tokens=x.shape[0]):
        result = made.layer(x, logits)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_experts(
    sizes: tuple[int, int, int, int], process: Any, generator: torch.Generator, device: torch.device
) -> None:
    made = upstream.make_experts(*sizes, generator, device, next(names))
    assert type(made.kernel).__name__ == "SparkfleetCutlassExpertsFp4"
    assert made.kernel.sparkfleet_reason is None
    experts, topk, hidden, _inner = sizes
    for tokens in (*FEW, *MANY):
        x, logits = (random_rows(tokens, columns, generator, device) for columns in (hidden, experts))
        y = forward(process, made, x, logits)
        error = upstream.relative_error(y, made.exact(x, *upstream.route(x, logits, topk, True)))
        if tokens in FEW:
            assert error < BFLOAT16, tokens
            assert torch.equal(forward(process, made, x, logits), y)
        else:
            assert BFLOAT16 < error < FOUR_BITS, tokens


def apply(made: upstream.Experts, x: Tensor, weights: Tensor, ids: Tensor, **changes: Any) -> Tensor:
    """Call the experts object as vLLM's modular kernel does, with a poisoned output; return that."""
    tokens, topk = ids.shape
    inner = made.routed.w2_weight.shape[2] * 2
    scratch = tokens * topk * max(2 * inner, x.shape[1])
    arguments: dict[str, Any] = {
        "output": torch.full_like(x, float("nan")),
        "hidden_states": x,
        "w1": made.routed.w13_weight,
        "w2": made.routed.w2_weight,
        "topk_weights": weights,
        "topk_ids": ids,
        "activation": made.routed.activation,
        "global_num_experts": made.routed.w13_weight.shape[0],
        "expert_map": None,
        "a1q_scale": None,
        "a2_scale": None,
        "workspace13": torch.empty(scratch, dtype=x.dtype, device=x.device),
        "workspace2": torch.empty(scratch, dtype=x.dtype, device=x.device),
        "expert_tokens_meta": None,
        "apply_router_weight_on_input": False,
    }
    made.kernel.apply(**arguments | changes)
    output: Tensor = arguments["output"]
    return output


def test_experts_without_the_plugin(generator: torch.Generator, device: torch.device) -> None:
    """More tokens than the kernels take get exactly what vLLM's own class gives."""
    from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp4

    made = upstream.make_experts(*SIZES[0], generator, device, next(names))
    experts, topk, hidden, _inner = SIZES[0]
    x, logits = (random_rows(9, columns, generator, device) for columns in (hidden, experts))
    weights, ids = upstream.route(x, logits, topk, True)
    ours = apply(made, x, weights, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made.kernel), "apply", CutlassExpertsFp4.apply)
        assert torch.equal(apply(made, x, weights, ids), ours)
        few = apply(made, x[:8], weights[:8], ids[:8])
    exact = made.exact(x[:8], weights[:8], ids[:8])
    assert BFLOAT16 < upstream.relative_error(few, exact) < FOUR_BITS
    assert upstream.relative_error(apply(made, x[:8], weights[:8], ids[:8]), exact) < BFLOAT16


def test_experts_of_another_rank(generator: torch.Generator, device: torch.device) -> None:
    """Expert parallelism: twice as many experts in all, every other one here; others add nothing."""
    experts, topk, hidden, _inner = SIZES[0]
    made = upstream.make_experts(*SIZES[0], generator, device, next(names))
    numbers = torch.arange(2 * experts)
    expert_map = torch.where(numbers % 2 == 0, numbers // 2, -1).to(device, torch.int32)
    x, logits = (random_rows(8, columns, generator, device) for columns in (hidden, 2 * experts))
    weights, ids = upstream.route(x, logits, topk, True)
    ids[0] = torch.tensor([1, 3])
    y = apply(made, x, weights, ids, expert_map=expert_map, global_num_experts=2 * experts)
    assert upstream.relative_error(y, made.exact(x, weights, ids, expert_map)) < BFLOAT16
    assert not y[0].any()


@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_experts_in_a_graph(tokens: int, process: Any, generator: torch.Generator, device: torch.device) -> None:
    """The whole layer, router included, as vLLM captures it for decoding."""
    experts, topk, hidden, _inner = SIZES[0]
    made = upstream.make_experts(*SIZES[0], generator, device, next(names))
    x, logits = (random_rows(tokens, columns, generator, device) for columns in (hidden, experts))
    graph, out = graphed(lambda: forward(process, made, x, logits))
    for _replay in range(3):
        x.copy_(random_rows(tokens, hidden, generator, device))
        logits.copy_(random_rows(tokens, experts, generator, device))
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, forward(process, made, x, logits))
        assert upstream.relative_error(out, made.exact(x, *upstream.route(x, logits, topk, True))) < BFLOAT16
