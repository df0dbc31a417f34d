"""The dispatcher: every token crosses to an expert-parallel rank at most once, one row comes back.

Megatron's stages hand only (hidden states, probs) to each other, so what else a stage needs is
kept in two frozen values, ``crossing`` and ``work``; both are remade by every forward pass, so a
recomputed forward remakes them too.
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


@dataclass(frozen=True)
class Crossing:
    """One call as the owner of the tokens sees it: what goes out, what comes in, what shape."""

    plan: SendPlan
    received_rows: tuple[int, ...]
    hidden_shape: torch.Size


@dataclass(frozen=True)
class Work:
    """One call as the owner of the experts sees it; gathered_rows counts per expert tensor rank."""

    plan: ExpandPlan
    gathered_rows: tuple[int, ...]


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
        self.crossing: Crossing | None = None
        self.work: Work | None = None
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
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        plan = plan_send(routing_map, self.placement.num_ranks)
        received_rows = exchange_counts(plan.rows_per_rank, self.ep_group, x_TH.device)
        self.crossing = Crossing(plan, received_rows, hidden_states.shape)
        self.traffic.tokens += plan.num_tokens
        self.traffic.routed_pairs += plan.routed_pairs
        self.traffic.rows += plan.rows
        return take_rows(x_TH, plan.token_U), pack_probs(probs, routing_map, plan)

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Cross to the expert-parallel ranks: [U, ...] -> [V, ...], both differentiable."""
        crossing = self._crossing()
        send, receive = crossing.plan.rows_per_rank, crossing.received_rows
        x_VH = all_to_all_rows(hidden_states, send, receive, self.ep_group)
        packed_VL = all_to_all_rows(probs, send, receive, self.ep_group)
        return x_VH, packed_VL

    def gather_and_plan(
        self, hidden_states: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Plan the work on the received rows.

        With expert tensor parallelism every rank of that group first gets the rows of all.

        Returns:
            the rows to work on [V, H], and the weights of the pairs on them, [N] and [M].
        """
        gathered_rows: tuple[int, ...] = ()
        if self.tp_size > 1:
            mine = [hidden_states.shape[0]] * self.tp_size
            gathered_rows = exchange_counts(mine, self.tp_group, hidden_states.device)
            hidden_states = gather_rows(hidden_states, gathered_rows, self.tp_group)
            probs = gather_rows(probs, gathered_rows, self.tp_group)
        local_groups = self.placement.groups_per_rank
        plan = plan_expand(probs.detach(), local_groups)
        self.work = Work(plan, gathered_rows)
        # Every rank of the expert tensor parallel group works on the same pairs.
        self.traffic.adjugate_pairs += plan.row_M.numel() / self.tp_size
        return hidden_states, *unpack_probs(probs, plan, local_groups)

    def dispatch_postprocess(
        self, hidden_states: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows by local expert, for experts alone; see :meth:`gather_and_plan` for both kinds."""
        hidden_states, probs_N, _ = self.gather_and_plan(hidden_states, probs)
        return *self.expert_inputs(hidden_states), probs_N

    def expert_inputs(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """x_NH [N, H] sorted by local expert, and tokens_per_expert [L] on the CPU."""
        plan = self._work().plan
        return take_rows(hidden_states, plan.row_N), plan.tokens_per_expert

    def group_inputs(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """x_MH [M, H] sorted by local group, and tokens_per_group on the CPU."""
        plan = self._work().plan
        return take_rows(hidden_states, plan.row_M), plan.tokens_per_group

    def combine_preprocess(
        self, hidden_states: Tensor, adjugate_output: Tensor | None = None
    ) -> Tensor:
        """Sum the weighted outputs to one row per received row: [N, H], [M, H] -> [V, H]."""
        work = self._work()
        plan = work.plan
        pieces = [(hidden_states, plan.row_N)]
        if adjugate_output is not None:
            pieces.append((adjugate_output, plan.row_M))
        y_VH = add_rows(pieces, plan.num_rows, hidden_states.dtype)
        if self.tp_size > 1:
            y_VH = scatter_sum_rows(y_VH, work.gathered_rows, self.tp_group)
        return y_VH

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Cross back: [V, H] -> [U, H]."""
        crossing = self._crossing()
        return all_to_all_rows(
            hidden_states, crossing.received_rows, crossing.plan.rows_per_rank, self.ep_group
        )

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """Sum the rows of every token: [U, H] -> [S, B, H]; a token without experts gets 0."""
        crossing = self._crossing()
        plan = crossing.plan
        y_TH = add_rows([(hidden_states, plan.token_U)], plan.num_tokens, hidden_states.dtype)
        return y_TH.reshape(crossing.hidden_shape)

    def _crossing(self) -> Crossing:
        assert self.crossing is not None, "dispatch_preprocess comes first"
        return self.crossing

    def _work(self) -> Work:
        assert self.work is not None, "gather_and_plan comes first"
        return self.work
