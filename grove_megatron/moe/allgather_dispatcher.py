"""``--moe-token-dispatcher-type allgather``: Megatron's own dispatch, to check ours against.

Every rank gets every token, so nothing is saved; and nothing of our crossing is used.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoEAllGatherTokenDispatcher
from torch import Tensor

from ..config import GroveTransformerConfig
from ..functional.dispatch_plan import pack_probs
from ..functional.expand_plan import ExpandPlan, plan_expand, unpack_probs
from ..functional.groups import group_map
from ..functional.placement import Placement
from .dispatcher import Traffic


class GroveAllGatherDispatcher(MoEAllGatherTokenDispatcher):
    """Megatron's all-gather and reduce-scatter around the work of :class:`GroveTokenDispatcher`.

    Args:
        placement: experts and groups per rank.
        config, pg_collection: as for Megatron's dispatchers.
    """

    config: GroveTransformerConfig

    def __init__(
        self,
        placement: Placement,
        config: GroveTransformerConfig,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        self.placement = placement
        local = placement.experts_per_rank
        first = pg_collection.ep.rank() * local
        self._local = slice(first, first + local)
        super().__init__(local, list(range(first, first + local)), config, pg_collection)
        self.work: ExpandPlan | None = None
        self.traffic = Traffic()

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As Megatron's: [S, B, H] -> [T, H], and probs [T, E] as they are."""
        hidden_states, probs = super().dispatch_preprocess(hidden_states, routing_map, probs)
        self.traffic.tokens += hidden_states.shape[0]
        self.traffic.rows += hidden_states.shape[0] * self.ep_size
        return hidden_states, probs

    def arrive(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Plan the work on the tokens of all ranks; see :meth:`GroveTokenDispatcher.arrive`.

        Args:
            hidden_states: [V, H], all tokens of the expert (tensor) parallel ranks.
            probs: [V, E], their weights.
        """
        map_VL = self.routing_map[:, self._local]
        packed_VL = pack_probs(probs[:, self._local], map_VL)
        groups = group_map(map_VL, self.placement.groups_per_rank).sum(0)
        experts, groups = torch.cat([map_VL.sum(0), groups]).cpu().tensor_split([map_VL.shape[1]])
        self.work = plan_expand(packed_VL.detach(), experts, groups)
        # Pairs computed here: over all ranks as many as were routed, known without another wait.
        self.traffic.routed_pairs += int(experts.sum()) / self.tp_size
        self.traffic.adjugate_pairs += self.work.segments.num_owner_pairs / self.tp_size
        # Its dtype is what Megatron sums over the ranks in.
        self.local_probs = probs
        # The gathered tokens lie in a buffer that the next layer uses again.
        return hidden_states.clone(), *unpack_probs(packed_VL, self.work)

    def leave(self, y_VH: Tensor) -> Tensor:
        """Nothing: Megatron's ``token_combine`` sums over all ranks at once."""
        return y_VH
