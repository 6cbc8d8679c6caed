# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVFP4 kernels for decoding on GB10 (DGX Spark), as PyTorch operators ``torch.ops.sparkfleet_kernels.*``.

``sparkfleet_kernels.ops`` loads the library and holds the documented functions; ``layout`` packs values and scales,
``reference`` computes what every operator has to return, in float64. These two need no library and no GPU, and
``import sparkfleet_kernels`` alone loads neither torch nor the library.
"""

__version__ = "0.1.0"
