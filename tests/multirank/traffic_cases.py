"""On the ranks: collectives of known sizes, called under the names that Megatron and we use."""

import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import write_result

HIDDEN = 6
ROW_BYTES = HIDDEN * 4


def collectives(folder: str) -> None:
    """Job: what is counted of one collective after the other, on two ranks."""
    from grove_megatron.benchmarks.traffic import Collectives

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    with Collectives(ROW_BYTES) as seen:
        # Rank 0 sends 1 and 2 rows, rank 1 sends 3 and 4.
        send = [[1, 2], [3, 4]][rank]
        receive = [[1, 3], [2, 4]][rank]
        _exchange(torch.randn(sum(send), HIDDEN), send, receive)
        _exchange(torch.randn(sum(send), HIDDEN + 2), send, receive)
        _exchange(torch.randn(sum(send)), send, receive)
        _exchange(torch.randn(sum(send), HIDDEN - 1), send, receive)
        _exchange(torch.zeros(2, HIDDEN, dtype=torch.int64), [1, 1], [1, 1])
        dist.all_gather_into_tensor(torch.empty(10), torch.randn(5))
        dist.all_reduce(torch.randn(7))
        dist.barrier()
        torch.randn(100).sum()
    outside = len(seen.sent)
    dist.all_reduce(torch.randn(7))
    write_result(
        folder,
        {
            "sent": [
                [s.operator, s.sent_bytes, None if s.rows is None else sum(s.rows.values())]
                for s in seen.sent
            ],
            "outside": len(seen.sent) - outside,
            "crossings": seen.crossings,
            "total": seen.total_bytes,
            "metadata": seen.metadata_bytes,
        },
    )
    dist.destroy_process_group()


def backward(folder: str) -> None:
    """Job: are the collectives of a backward pass seen?"""
    from grove_megatron.benchmarks.traffic import Collectives
    from grove_megatron.comm.all_to_all import all_to_all_rows

    dist.init_process_group("gloo")
    x = torch.randn(4, HIDDEN, requires_grad=True)
    with Collectives(ROW_BYTES) as seen:
        y = all_to_all_rows(x, [2, 2], [2, 2], dist.group.WORLD)
        forward = len(seen.sent)
        y.sum().backward()
    write_result(folder, {"forward": forward, "both": len(seen.sent), "rows": seen.crossings})
    dist.destroy_process_group()


def hops(folder: str) -> None:
    """Job: rows to nodes of two and inside them, on four ranks, and once to everybody."""
    from grove_megatron.benchmarks.traffic import Collectives

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    across = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])][rank % 2]
    inside = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])][rank // 2]
    with Collectives(ROW_BYTES) as seen:
        # One row to the first of them, two to the second.
        for group in (across, inside, inside, across):
            mine = dist.get_rank(group) + 1
            _exchange(torch.randn(3, HIDDEN), [1, 2], [mine, mine], group)
        _exchange(torch.randn(10, HIDDEN), [1, 2, 3, 4], [rank + 1] * 4)
        # Even splits need not be said.
        dist.all_to_all_single(torch.empty(8, HIDDEN), torch.randn(8, HIDDEN))
    found = {"hops": seen.hops, "leaving": [seen.leaving(n) for n in (1, 2, 4)]}
    write_result(folder, found | {"to": [s.rows for s in seen.sent]})
    dist.destroy_process_group()


def _exchange(
    rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup | None = None
) -> None:
    received = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(
        received, rows, output_split_sizes=receive, input_split_sizes=send, group=group
    )
