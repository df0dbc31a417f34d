"""One crossing: from the rows of a process's tokens to the rows its experts get, and back."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from ..comm.all_to_all import all_to_all_rows
from ..comm.counts import Counts, exchange_counts
from ..comm.send_rows import Splits, send_rows
from ..functional.dispatch_plan import (
    SendPlan,
    count_work,
    plan_send,
    receive_probs,
    send_values,
)
from ..functional.permute import expand_rows, reduce_rows
from ..kernels import Kernels


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Rows over the ranks of one process group: T tokens -> U rows sent -> V rows received.

    Where the group has one rank nothing moves: U = V = T, also for a token without experts.

    Attributes:
        plan: what this rank sends; None where the group has one rank.
        counts: how much everybody sends.
        group: the ranks.
    """

    plan: SendPlan | None
    counts: Counts
    group: dist.ProcessGroup

    def pack(self, x_TH: Tensor, probs_TE: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
        """Copy out what is to be sent: rows [U, H], and the weights of the pairs on them [P].

        With one rank nothing is: both stay, and the weights have to be packed.
        """
        if self.plan is None:
            return x_TH, probs_TE
        return expand_rows(x_TH, self.plan.rows, kernels), send_values(probs_TE, self.plan)

    def send(self, x_UH: Tensor, values_P: Tensor) -> tuple[Tensor, Tensor]:
        """Cross: rows [V, H], and the weights of this rank's experts on them, [V, L] packed."""
        if self.plan is None:
            return x_UH, values_P
        counts = self.counts
        splits = Splits(
            counts.sent_rows, counts.received_rows, counts.sent_pairs, counts.received_pairs
        )
        x_VH, values, codes = send_rows(x_UH, values_P, self.plan.code_P, splits, self.group)
        num_local_experts = counts.tokens_per_expert.numel()
        packed_VL = receive_probs(
            values,
            codes,
            counts.received[:, 0],
            counts.received[:, 1 : 1 + num_local_experts].sum(1),
            num_rows=x_VH.shape[0],
            num_local_experts=num_local_experts,
        )
        return x_VH, packed_VL

    def send_back(self, y_VH: Tensor) -> Tensor:
        """Cross back: [V, H] -> [U, H]."""
        if self.plan is None:
            return y_VH
        counts = self.counts
        return all_to_all_rows(y_VH, counts.received_rows, counts.sent_rows, self.group)

    def unpack(self, y_UH: Tensor, kernels: Kernels) -> Tensor:
        """Sum the rows of every token: [U, H] -> [T, H]; a token without experts gets 0."""
        return y_UH if self.plan is None else reduce_rows(y_UH, self.plan.rows, kernels)


def plan_crossing(
    routing_map_TE: Tensor,
    num_groups: int,
    group: dist.ProcessGroup,
    tp_group: dist.ProcessGroup | None,
) -> Crossing:
    """Count, tell the others, and plan.

    Args:
        routing_map_TE: [T, E] bool; E is what the ranks of ``group`` hold together.
        num_groups: of those experts.
        group: the ranks to cross to, the r-th of which holds the r-th slice of experts.
        tp_group: the expert tensor parallel group, None if the rows will be sent on.
    """
    ranks = dist.get_world_size(group)
    work_RC = count_work(routing_map_TE, ranks, num_groups)
    num_tokens, num_experts = routing_map_TE.shape
    counts = exchange_counts(work_RC, num_tokens, num_experts // ranks, group, tp_group)
    plan = None
    if ranks > 1:
        pairs = sum(counts.sent_pairs)
        plan = plan_send(routing_map_TE, ranks, sum(counts.sent_rows), pairs)
    return Crossing(plan=plan, counts=counts, group=group)
