# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One rank of an all_gather between all nodes of a cluster: is every value right, and how fast does it go?

Runs inside the image, with PyTorch: over NCCL where there is a GPU, over Gloo where there is none. RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT are in the environment, as torch.distributed wants them. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

MIB = 1 << 20
SIZES = {"nccl": (64 * MIB, 256 * MIB, 1024 * MIB), "gloo": (1 * MIB, 8 * MIB)}
"""Bytes that every rank holds after the operation."""
ITERATIONS = {"nccl": 20, "gloo": 4}
WARM_UP = {"nccl": 5, "gloo": 1}
WIDTH = 4  # bytes of a float32
PERIOD = 1009


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--timeout", type=float, default=300, help="seconds until the rank gives up")
    top.add_argument("--sizes", type=int, nargs="+", help="bytes that every rank holds after the operation")
    top.add_argument("--iterations", type=int, help="how often each size is measured")
    top.add_argument("--warm-up", type=int, help="how often it runs before that")
    return top


def say(result: dict[str, Any]) -> None:
    """Print the result as the only line of its kind."""
    print(json.dumps(result), flush=True)


def give_up(result: dict[str, Any], seconds: float) -> None:
    """End the process from a thread: a collective that waits for a dead peer cannot be interrupted."""
    say({**result, "error": f"no result after {seconds:g} s; a node did not take part or the fabric does not carry"})
    os._exit(3)


def bus_bandwidth(size: int, world: int, seconds: float) -> float:
    """Return GB/s as NCCL's own tests count an all_gather: what each link carries, whatever the number of ranks."""
    return round(size * (world - 1) / world / seconds / 1e9, 4)


def measure(torch: Any, dist: Any, device: Any, size: int, iterations: int, warm_up: int) -> dict[str, Any]:
    """Gather `size` bytes on all ranks, check them, and time it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    # PyTorch 2.13 has a new name for it.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    count = max(size // WIDTH // world, 1)
    pattern = torch.arange(count, device=device, dtype=torch.float32) % PERIOD
    own = pattern + rank * PERIOD
    gathered = torch.zeros(count * world, device=device, dtype=torch.float32)
    for _iteration in range(warm_up):
        gather(gathered, own)
    gathered.zero_()
    gather(gathered, own)
    correct = all(
        bool(torch.equal(gathered[other * count : (other + 1) * count], pattern + other * PERIOD))
        for other in range(world)
    )
    dist.barrier()
    settle(torch, device)
    began = time.perf_counter()
    for _iteration in range(iterations):
        gather(gathered, own)
    settle(torch, device)
    seconds = (time.perf_counter() - began) / iterations
    moved = count * world * WIDTH
    return {"bytes": moved, "seconds": seconds, "busbw": bus_bandwidth(moved, world, seconds), "correct": correct}


def settle(torch: Any, device: Any) -> None:
    """Wait for a GPU's queue: operations only enter it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def run(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Take part, and add what was found to the result."""
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    backend = "nccl" if gpu else "gloo"
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    result["backend"] = backend
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=options.timeout))
    try:
        found = [
            measure(
                torch,
                dist,
                device,
                size,
                options.iterations or ITERATIONS[backend],
                WARM_UP[backend] if options.warm_up is None else options.warm_up,
            )
            for size in options.sizes or SIZES[backend]
        ]
        # Nobody leaves before all have their figures: the first to go would break the others' connections.
        dist.barrier()
    finally:
        dist.destroy_process_group()
    result["sizes"] = found
    result["correct"] = all(one["correct"] for one in found)
    result["busbw"] = max(one["busbw"] for one in found)


def main(arguments: Sequence[str]) -> int:
    """Print the result; return 1 where there is none."""
    options = parser().parse_args(arguments)
    result: dict[str, Any] = {"rank": os.environ.get("RANK"), "world": os.environ.get("WORLD_SIZE")}
    # A little later than torch's own limit, which knows better what went wrong.
    watchdog = threading.Timer(options.timeout + 5, give_up, (result, options.timeout))
    watchdog.daemon = True
    watchdog.start()
    try:
        run(options, result)
    except ImportError as error:
        result["error"] = f"the image has no usable PyTorch ({error})"
    except Exception as error:  # whatever torch raises, the judge gets one line
        lines = [line for line in str(error).splitlines() if line.strip()]
        result["error"] = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]
    watchdog.cancel()
    say(result)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
