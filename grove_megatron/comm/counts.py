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
        received: [R, 2] int64 on the device, received_rows and received_pairs.
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
    experts = slice(1, 1 + num_local_experts)
    received = torch.stack([mine_RC[:, 0], mine_RC[:, experts].sum(1)], dim=1)
    parts = [
        work_RC[:, 0],
        work_RC[:, experts].sum(1),
        received[:, 0],
        received[:, 1],
        everyone[:, :, 0].sum(1),
        everyone.sum((0, 1))[1:],
    ]
    # The one moment the host waits for the device.
    on_host = torch.cat(parts).cpu()
    pieces = torch.split(on_host, [part.numel() for part in parts])
    sizes = [tuple(part.tolist()) for part in pieces[:5]]
    tokens_per_expert, tokens_per_group = pieces[5].tensor_split([num_local_experts])
    return Counts(
        sent_rows=sizes[0],
        sent_pairs=sizes[1],
        received_rows=sizes[2],
        received_pairs=sizes[3],
        gathered_rows=sizes[4],
        received=received,
        tokens_per_expert=tokens_per_expert,
        tokens_per_group=tokens_per_group,
    )
