"""Who sends how much to whom: one exchange of counts, one copy to the host."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .fake_group import is_fake


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sizes of one call of the layer, known on the host.

    Attributes:
        sent_rows, sent_pairs: for every expert-parallel rank, R ints each.
        received_rows, received_pairs: from every rank, R ints each.
        gathered_rows: what each rank of the expert tensor parallel group has received.
        received: [R, 1 + L + L_groups] int64 on the device, what comes from every rank: rows, pairs
            of every expert, pairs of every group.
        tokens_per_expert, tokens_per_group: [L], [L_groups] int64 on the CPU, this rank's work.
    """

    sent_rows: tuple[int, ...]
    sent_pairs: tuple[int, ...]
    received_rows: tuple[int, ...]
    received_pairs: tuple[int, ...]
    gathered_rows: tuple[int, ...]
    received: Tensor
    tokens_per_expert: Tensor
    tokens_per_group: Tensor


def exchange_counts(
    work_RC: Tensor,
    num_tokens: int,
    num_local_experts: int,
    ep_group: dist.ProcessGroup,
    tp_group: dist.ProcessGroup | None,
) -> Counts:
    """Tell every rank what it will get.

    Args:
        work_RC: [R, 1 + L + L_groups] int64, see ``dispatch_plan.count_work``.
        num_tokens: T of this rank. Where ``ep_group`` has one rank nothing moves: so many rows are
            there, those of tokens without experts included.
        num_local_experts: L.
        ep_group: the R ranks.
        tp_group: the expert tensor parallel group; its ranks work on the rows of all of them.
            None for this rank alone.
    """
    if dist.get_world_size(ep_group) == 1:
        mine_RC = work_RC.clone()
        mine_RC[:, 0] = num_tokens
    elif is_fake(ep_group):
        mine_RC = work_RC[dist.get_rank(ep_group)].expand_as(work_RC)
    else:
        mine_RC = torch.empty_like(work_RC)
        dist.all_to_all_single(mine_RC, work_RC.contiguous(), group=ep_group)
    tp_size = 1 if tp_group is None else dist.get_world_size(tp_group)
    everyone = mine_RC.unsqueeze(0)
    if tp_size > 1 and is_fake(ep_group):
        everyone = everyone.expand(tp_size, -1, -1)
    elif tp_size > 1:
        flat = mine_RC.new_empty((tp_size * mine_RC.shape[0], mine_RC.shape[1]))
        dist.all_gather_into_tensor(flat, mine_RC.contiguous(), group=tp_group)
        everyone = flat.reshape(tp_size, *mine_RC.shape)
    # The one moment the host waits for the device. It adds up the few numbers itself.
    on_host = torch.cat([work_RC.unsqueeze(0), mine_RC.unsqueeze(0), everyone]).cpu()
    sent, mine, *every = on_host.tolist()
    end = 1 + num_local_experts
    tokens_per_expert, tokens_per_group = (
        on_host[2:].sum((0, 1))[1:].tensor_split([num_local_experts])
    )
    return Counts(
        sent_rows=tuple(row[0] for row in sent),
        sent_pairs=tuple(sum(row[1:end]) for row in sent),
        received_rows=tuple(row[0] for row in mine),
        received_pairs=tuple(sum(row[1:end]) for row in mine),
        gathered_rows=tuple(sum(row[0] for row in rank) for rank in every),
        received=mine_RC,
        tokens_per_expert=tokens_per_expert,
        tokens_per_group=tokens_per_group,
    )
