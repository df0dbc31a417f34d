"""Exchanges on a fake process group (``--fake-process-group``), which moves nothing.

One process stands for a whole job, to see what a layout needs. torch's fake collectives leave what
would be received unwritten, and counts read from that are noise. Here every other rank is a copy of
this one: each sends it what it sends itself.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def is_fake(group: dist.ProcessGroup) -> bool:
    """Does nothing leave this process?"""
    return bool(dist.get_backend(group) == "fake")


def exchange_with_copies(
    rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup
) -> Tensor:
    """What copies of this rank would send it: [sum(receive), ...].

    On the way back a copy returns what it was sent, which this process does not know where it
    differs in size from what it kept: zeros.

    Args:
        rows, send, receive: as for ``all_to_all_rows``.
    """
    rank = dist.get_rank(group)
    own = torch.split(rows, list(send))[rank]
    return torch.cat(
        [own if size == own.shape[0] else own.new_zeros(size, *own.shape[1:]) for size in receive]
    )
