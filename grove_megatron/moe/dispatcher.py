"""The dispatcher: every token crosses to an expert-parallel rank at most once, one row comes back.

Megatron's stages hand only (hidden states, probs) to each other, so what else a stage needs is
kept in two frozen values, ``send_plan`` and ``expand_plan``; both are remade by every forward
pass, so a recomputed forward remakes them too.
"""

from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch import Tensor

from ..comm.all_to_all import all_to_all_rows, exchange_counts, gather_rows, scatter_sum_rows
from ..config import GroveTransformerConfig
from ..functional.dispatch_plan import (
    ExpandPlan,
    SendPlan,
    pack_probs,
    plan_expand,
    plan_send,
    unpack_probs,
)
from ..functional.permute import add_rows, take_rows
from ..functional.placement import Placement


@dataclass
class Traffic:
    """What a dispatcher has sent since it was made, recomputed forwards included.

    ``rows`` is what was sent, the rows that stayed on the own rank included; ``routed_pairs`` is
    the expert work they stood for. They are two numbers: fewer rows than pairs means that tokens
    shared a row, not that tokens were dropped.
    """

    tokens: int = 0
    routed_pairs: int = 0
    rows: int = 0
    adjugate_pairs: float = 0.0


class GroveTokenDispatcher(MoETokenDispatcher):
    """All-to-all dispatch of one row per distinct (token, expert-parallel rank).

    The six stages have Megatron's names and order (token_dispatcher.py:61 @ 0.19). Stage
    ``group_inputs`` is the addition: the rows of the adjugate experts, taken from what has
    already arrived.

    Args:
        placement: experts and groups per rank.
        config, pg_collection: as for Megatron's dispatchers; groups ``ep``, ``expt_tp`` are used.
    """

    config: GroveTransformerConfig

    def __init__(
        self,
        placement: Placement,
        config: GroveTransformerConfig,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.placement = placement
        self.send_plan: SendPlan | None = None
        self.expand_plan: ExpandPlan | None = None
        self.received_rows: list[int] = []
        self.gathered_rows: list[int] = []
        self.hidden_shape = torch.Size()
        self.traffic = Traffic()

    @property
    def drop_and_pad(self) -> bool:
        """Megatron's inference switches this on to pad every expert to one capacity."""
        return False

    @drop_and_pad.setter
    def drop_and_pad(self, value: bool) -> None:
        if value:
            raise ValueError(
                f"drop_and_pad ({value}) is not supported by {type(self).__name__}; padding "
                "would count as tokens of an adjugate expert"
            )

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Plan, and copy out the rows to send.

        Args:
            hidden_states: [S, B, H].
            routing_map: [T, E] bool with T = S*B; any number of experts per token.
            probs: [T, E], 0 where unrouted.

        Returns:
            x_UH [U, H] and the packed weights of the destination's experts [U, L].
        """
        self.hidden_shape = hidden_states.shape
        x_TH = hidden_states.reshape(-1, self.hidden_shape[-1])
        plan = plan_send(routing_map, self.placement.num_ranks)
        self.received_rows = exchange_counts(plan.rows_per_rank, self.ep_group, x_TH.device)
        self.send_plan = plan
        self.traffic.tokens += plan.num_tokens
        self.traffic.routed_pairs += plan.routed_pairs
        self.traffic.rows += plan.rows
        return take_rows(x_TH, plan.token_U), pack_probs(probs, routing_map, plan)

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Cross to the expert-parallel ranks: [U, ...] -> [V, ...], both differentiable."""
        send = self._sent().rows_per_rank
        x_VH = all_to_all_rows(hidden_states, send, self.received_rows, self.ep_group)
        packed_VL = all_to_all_rows(probs, send, self.received_rows, self.ep_group)
        return x_VH, packed_VL

    def gather_expert_tensor_parallel(
        self, hidden_states: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With expert tensor parallelism every rank of that group works on the rows of all."""
        if self.tp_size == 1:
            return hidden_states, probs
        mine = [hidden_states.shape[0]] * self.tp_size
        self.gathered_rows = exchange_counts(mine, self.tp_group, hidden_states.device)
        return (
            gather_rows(hidden_states, self.gathered_rows, self.tp_group),
            gather_rows(probs, self.gathered_rows, self.tp_group),
        )

    def expand(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Plan the work on the received rows; returns the weights of its pairs, [N] and [M]."""
        local_groups = self.placement.groups_per_rank
        self.expand_plan = plan_expand(probs.detach(), local_groups)
        # Every rank of the expert tensor parallel group works on the same pairs.
        self.traffic.adjugate_pairs += self.expand_plan.row_M.numel() / self.tp_size
        return unpack_probs(probs, self.expand_plan, local_groups)

    def dispatch_postprocess(
        self, hidden_states: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows by local expert, for experts alone; see :meth:`expand` for both kinds."""
        hidden_states, probs = self.gather_expert_tensor_parallel(hidden_states, probs)
        probs_N, _ = self.expand(probs)
        return *self.expert_inputs(hidden_states), probs_N

    def expert_inputs(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """x_NH [N, H] sorted by local expert, and tokens_per_expert [L] on the CPU."""
        plan = self._expanded()
        return take_rows(hidden_states, plan.row_N), plan.tokens_per_expert

    def group_inputs(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """x_MH [M, H] sorted by local group, and tokens_per_group on the CPU."""
        plan = self._expanded()
        return take_rows(hidden_states, plan.row_M), plan.tokens_per_group

    def combine_preprocess(
        self, hidden_states: Tensor, adjugate_output: Tensor | None = None
    ) -> Tensor:
        """Sum the weighted outputs to one row per received row: [N, H], [M, H] -> [V, H]."""
        plan = self._expanded()
        pieces = [(hidden_states, plan.row_N)]
        if adjugate_output is not None:
            pieces.append((adjugate_output, plan.row_M))
        y_VH = add_rows(pieces, plan.num_rows, hidden_states.dtype)
        if self.tp_size > 1:
            y_VH = scatter_sum_rows(y_VH, self.gathered_rows, self.tp_group)
        return y_VH

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Cross back: [V, H] -> [U, H]."""
        return all_to_all_rows(
            hidden_states, self.received_rows, self._sent().rows_per_rank, self.ep_group
        )

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """Sum the rows of every token: [U, H] -> [S, B, H]; a token without experts gets 0."""
        plan = self._sent()
        y_TH = add_rows([(hidden_states, plan.token_U)], plan.num_tokens, hidden_states.dtype)
        return y_TH.reshape(self.hidden_shape)

    def _sent(self) -> SendPlan:
        assert self.send_plan is not None, "dispatch_preprocess comes first"
        return self.send_plan

    def _expanded(self) -> ExpandPlan:
        assert self.expand_plan is not None, "expand comes first"
        return self.expand_plan
