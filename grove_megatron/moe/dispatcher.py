"""The dispatcher: every token crosses to an expert-parallel rank at most once, one row comes back.

Megatron's stages hand only (hidden states, probs) to each other, so what else a stage needs is
kept in two frozen values, ``journey`` and ``work``; both are remade by every forward pass, so a
recomputed forward remakes them too.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch import Tensor

from ..comm.all_to_all import gather_rows, scatter_sum_rows
from ..comm.node_groups import NO_NODES, node_groups, ranks_per_node
from ..config import GroveTransformerConfig
from ..functional.dispatch_plan import NOT_ROUTED, pack_probs
from ..functional.expand_plan import ExpandPlan, plan_expand, unpack_probs
from ..functional.permute import expand_rows, reduce_rows
from ..functional.placement import Placement
from ..kernels import Kernels
from .crossing import Crossing, plan_crossing
from .kernel_choice import choose_kernels, log_once


@dataclass
class Traffic:
    """What a dispatcher has sent since it was made, recomputed forwards included.

    ``rows`` is what was sent, the rows that stayed on the own rank included; ``routed_pairs`` is
    the expert work they stood for. They are two numbers: fewer rows than pairs means that tokens
    shared a row, not that tokens were dropped. With hierarchical dispatch ``node_rows`` is what
    was sent to the nodes, the own one included, and ``rows`` what their ranks passed on inside.
    """

    tokens: int = 0
    routed_pairs: float = 0
    node_rows: int = 0
    rows: int = 0
    adjugate_pairs: float = 0.0


@dataclass(frozen=True)
class Journey:
    """One call as the owner of the tokens sees it: how its rows go out, and what shape they had.

    One crossing to the expert-parallel ranks; or one to the nodes, then one inside the node.
    """

    crossings: tuple[Crossing, ...]
    hidden_shape: torch.Size


class Hop(NamedTuple):
    """Where a crossing leads: the arguments of ``plan_crossing`` that stay the same.

    tp_group is None where the rows will be sent on: only the last hop's reach experts.
    """

    num_groups: int
    group: dist.ProcessGroup
    tp_group: dist.ProcessGroup | None


class GroveTokenDispatcher(MoETokenDispatcher):
    """All-to-all dispatch of one row per distinct (token, expert-parallel rank).

    The six stages have Megatron's names and order (token_dispatcher.py:61 @ 0.19).
    :meth:`arrive` and :meth:`leave` are the additions: what happens to received rows before and
    after the experts and adjugates, whatever computes them.

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
        self.hops = self._hops()
        self.journey: Journey | None = None
        self.work: ExpandPlan | None = None
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
            x_UH [U, H], and the weights of the routed pairs on them; see :class:`Crossing`.
        """
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        crossing = self._plan(routing_map, hop=0)
        self.journey = Journey((crossing,), hidden_states.shape)
        self.traffic.tokens += x_TH.shape[0]
        self.traffic.routed_pairs += sum(crossing.counts.sent_pairs)
        if crossing.plan is None:
            # Otherwise the weights of the routed pairs alone are read.
            probs = pack_probs(probs, routing_map)
        return crossing.pack(x_TH, probs, self._kernels(x_TH))

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Cross to the expert-parallel ranks: x_UH -> x_VH, and packed weights [V, L]."""
        journey = self._journey()
        hidden_states, probs = journey.crossings[0].send(hidden_states, probs)
        for hop in range(1, len(self.hops)):
            # What has arrived is sent on, as if it were this rank's own tokens.
            crossing = self._plan(probs.detach() != NOT_ROUTED, hop)
            rows, values = crossing.pack(hidden_states, probs, self._kernels(hidden_states))
            hidden_states, probs = crossing.send(rows, values)
            journey = replace(journey, crossings=(*journey.crossings, crossing))
        self.journey = journey
        return hidden_states, probs

    def arrive(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Plan the work on the received rows.

        With expert tensor parallelism every rank of that group first gets the rows of all.

        Returns:
            the rows to work on [V, H], the weights of the routed pairs on them [N], and of the
            adjugates' pairs [M]; :attr:`work` says where they lie.
        """
        counts = self._journey().crossings[-1].counts
        hidden_states = gather_rows(hidden_states, counts.gathered_rows, self.tp_group)
        probs = gather_rows(probs, counts.gathered_rows, self.tp_group)
        self.work = plan_expand(probs.detach(), counts.tokens_per_expert, counts.tokens_per_group)
        # Every rank of the expert tensor parallel group works on the same pairs.
        self.traffic.adjugate_pairs += self.work.segments.num_owner_pairs / self.tp_size
        return hidden_states, *unpack_probs(probs, self.work)

    def leave(self, y_VH: Tensor) -> Tensor:
        """Return every rank of the expert tensor parallel group the sums of its rows."""
        gathered_rows = self._journey().crossings[-1].counts.gathered_rows
        return scatter_sum_rows(y_VH, gathered_rows, self.tp_group)

    def dispatch_postprocess(
        self, hidden_states: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows by local expert for experts alone: x_NH, tokens_per_expert [L] on the CPU, [N]."""
        x_VH, probs_N, _ = self.arrive(hidden_states, probs)
        work = self._work()
        x_NH = expand_rows(x_VH, work.rows, self._kernels(x_VH))
        return x_NH, work.tokens_per_expert, probs_N

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """Sum the experts' weighted outputs to one row per received row: y_NH -> y_VH."""
        kernels = self._kernels(hidden_states)
        return self.leave(reduce_rows(hidden_states, self._work().rows, kernels))

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Cross back: [V, H] -> [U, H]."""
        first, *later = self._journey().crossings
        for crossing in reversed(later):
            hidden_states = crossing.send_back(hidden_states)
            hidden_states = crossing.unpack(hidden_states, self._kernels(hidden_states))
        return first.send_back(hidden_states)

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """Sum the rows of every token: [U, H] -> [S, B, H]; a token without experts gets 0."""
        journey = self._journey()
        y_TH = journey.crossings[0].unpack(hidden_states, self._kernels(hidden_states))
        return y_TH.reshape(journey.hidden_shape)

    def _hops(self) -> tuple[Hop, ...]:
        groups = self.placement.num_groups
        per_node = ranks_per_node()
        if not self.config.grove_hierarchical_dispatch:
            return (Hop(groups, self.ep_group, self.tp_group),)
        if per_node is None:
            raise ValueError(NO_NODES)
        nodes = node_groups(self.ep_group, per_node)
        if nodes is None:
            log_once(
                "grove_megatron: --grove-hierarchical-dispatch has nothing to do: expert-parallel "
                f"ranks {dist.get_process_group_ranks(self.ep_group)}, {per_node} ranks a node"
            )
            return (Hop(groups, self.ep_group, self.tp_group),)
        inside = groups // dist.get_world_size(nodes.across)
        return (Hop(groups, nodes.across, None), Hop(inside, nodes.inside, self.tp_group))

    def _plan(self, routing_map: Tensor, hop: int) -> Crossing:
        crossing = plan_crossing(routing_map, *self.hops[hop])
        rows = sum(crossing.counts.sent_rows)
        if hop == len(self.hops) - 1:
            self.traffic.rows += rows
        else:
            self.traffic.node_rows += rows
        return crossing

    def _kernels(self, x: Tensor) -> Kernels:
        return choose_kernels(self.config, x)

    def _journey(self) -> Journey:
        assert self.journey is not None, "dispatch_preprocess comes first"
        return self.journey

    def _work(self) -> ExpandPlan:
        assert self.work is not None, "arrive comes first"
        return self.work
