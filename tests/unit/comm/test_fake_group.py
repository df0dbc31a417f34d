"""One process that stands for a job: every other rank is a copy of it, and counts add up."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from grove_megatron.comm.all_to_all import all_to_all_rows, gather_rows, scatter_sum_rows
from grove_megatron.functional.dispatch_plan import NOT_ROUTED, pack_probs
from grove_megatron.kernels import TORCH
from grove_megatron.moe.crossing import plan_crossing

RANK, RANKS = 1, 3


@pytest.fixture(autouse=True)
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=RANKS)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_others_send_what_this_rank_keeps(group: dist.ProcessGroup) -> None:
    rows = torch.arange(6.0).reshape(6, 1).requires_grad_()
    send = [1, 2, 3]
    received = all_to_all_rows(rows, send, [2, 2, 2], group)
    assert received.flatten().tolist() == [1, 2, 1, 2, 1, 2]
    back = all_to_all_rows(received * 10, [2, 2, 2], send, group)
    # What went to other ranks comes back unknown.
    assert back.flatten().tolist() == [0, 10, 20, 0, 0, 0]
    back.sum().backward()
    assert torch.isfinite(rows.grad).all()


def test_expert_tensor_ranks_have_the_same_rows(group: dist.ProcessGroup) -> None:
    rows = torch.arange(2.0).reshape(2, 1)
    assert gather_rows(rows, [2, 2, 2], group).flatten().tolist() == [0, 1] * 3
    assert scatter_sum_rows(rows.repeat(3, 1), [2, 2, 2], group).flatten().tolist() == [0, 3]


@pytest.mark.parametrize("tp_ranks", [1, RANKS])
def test_the_counts_of_a_dispatch_add_up(tp_ranks: int, group: dist.ProcessGroup) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen_TK = torch.rand(50, 12, generator=generator).topk(4).indices
    routing_map_TE = torch.zeros(50, 12, dtype=torch.bool).scatter(1, chosen_TK, True)
    crossing = plan_crossing(routing_map_TE, 6, group, group if tp_ranks > 1 else None)
    counts = crossing.counts
    own = slice(RANK * 4, RANK * 4 + 4)
    own_rows = int(routing_map_TE[:, own].any(1).sum())
    own_pairs = int(routing_map_TE[:, own].sum())
    assert counts.sent_rows[RANK] == own_rows
    assert sum(counts.sent_pairs) == 50 * 4
    assert counts.received_rows == (own_rows,) * RANKS
    assert counts.received_pairs == (own_pairs,) * RANKS
    assert counts.gathered_rows == (own_rows * RANKS,) * tp_ranks
    assert (
        counts.tokens_per_expert.tolist()
        == (routing_map_TE[:, own].sum(0) * RANKS * tp_ranks).tolist()
    )
    # The rows themselves fit what was counted.
    packed_TE = pack_probs(torch.rand(50, 12, generator=generator), routing_map_TE)
    rows, values = crossing.pack(torch.rand(50, 2, generator=generator), packed_TE, TORCH)
    x_VH, packed_VL = crossing.send(rows, values)
    assert x_VH.shape[0] == sum(counts.received_rows)
    selected = (packed_VL != NOT_ROUTED).sum(0)
    assert selected.tolist() == (routing_map_TE[:, own].sum(0) * RANKS).tolist()
