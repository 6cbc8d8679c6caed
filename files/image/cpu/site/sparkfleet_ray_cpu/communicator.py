# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The communicator class; imported only inside the image, where torch and vLLM are."""

from __future__ import annotations

import socket

import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class NodeAwareCpuCommunicator(CpuCommunicator):
    """CPU communicator that uses shared memory only among ranks of one host.

    vLLM compares the *names* of the shared-memory groups; under Ray they are the same on every node, so it
    would wait for a segment that lies in another host's /dev/shm.
    """

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        hosts = [""] * self.world_size
        torch.distributed.all_gather_object(hosts, socket.gethostname(), group=self.device_group)
        return len(set(hosts)) == 1
