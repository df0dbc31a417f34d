"""The Grove MoE layer: Megatron's MoELayer with adjugate experts and deduplicated dispatch.

Without groups it is a plain MoE with that dispatch.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import (
    ExpertsInterface,
    MoELayer,
    MoESubmodules,
    _RecordExpertDgradCompletion,
)
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from torch import Tensor

from ..config import GroveTransformerConfig, has_adjugates, has_grove_layers
from ..functional.placement import Placement
from .adjugate import build_adjugates
from .allgather_dispatcher import GroveAllGatherDispatcher
from .carried import Carried, carrying_flags, join, take_apart
from .compute import experts_alone, module_by_module, one_pass
from .counts import LayerCounts
from .dispatcher import GroveTokenDispatcher
from .experts import GroupedExperts
from .logical_names import SINGLETON, numbered
from .placed import Columns, move, placed
from .router import GroveRouter

DISPATCHERS: dict[str, type[GroveTokenDispatcher] | type[GroveAllGatherDispatcher]] = {
    "alltoall": GroveTokenDispatcher,
    "allgather": GroveAllGatherDispatcher,
}
"""By --moe-token-dispatcher-type."""


class GroveMoELayer(MoELayer):
    """y = sum_i w_i E_i(x) + scale * sum_j (sum_{i in G_j} w_i) A_j(x)  (arXiv 2508.07785, Eq. 5).

    ``forward`` is Megatron's: route, preprocess, dispatch, routed_experts_compute, combine,
    postprocess. Recompute, the overlapped schedule and delayed weight gradients call these stages
    one by one; this class fills in what differs. The layer's parameters beside Megatron's are
    ``adjugate_experts``, None without groups; their name holds "experts" because Muon tells experts
    by it.

    Args: as for MoELayer; ``config`` must ask for Grove layers.
    """

    config: GroveTransformerConfig
    token_dispatcher: GroveTokenDispatcher | GroveAllGatherDispatcher

    def __init__(
        self,
        config: GroveTransformerConfig,
        submodules: MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        name: str | None = None,
    ) -> None:
        pg_collection = pg_collection or get_default_pg_collection()
        super().__init__(config, submodules, layer_number, pg_collection, is_mtp_layer, name)
        assert has_grove_layers(config), "a Grove layer is only built where the config asks for it"
        if not isinstance(self.router, GroveRouter):
            raise ValueError(
                f"router ({type(self.router).__name__}) of the layer's MoESubmodules is not "
                f"GroveRouter, which grove_router_scoring ({config.grove_router_scoring}) is read "
                "by; build the spec with grove_megatron.layer_spec.adapt_spec"
            )
        placement = Placement(
            num_experts=config.num_moe_experts,
            num_groups=config.grove_num_groups or 0,
            num_ranks=pg_collection.ep.size(),
        )
        self.token_dispatcher = DISPATCHERS[config.moe_token_dispatcher_type](
            placement, config, pg_collection
        )
        self.adjugate_experts: ExpertsInterface | None = None
        if has_adjugates(config):
            self.adjugate_experts = build_adjugates(
                self.submodules.experts,
                placement.groups_per_rank,
                config,
                pg_collection,
                name=f"{name}.adjugate_experts" if name is not None else None,
            )
        # Where a placement has moved this layer's experts.
        self.columns: Columns | None = None
        self.orders: dict[str, tuple[int, ...]] = {}
        self._placed_as: int | None = None
        self.in_one_pass = isinstance(self.experts, GroupedExperts)
        self.counts: LayerCounts | None = None
        # From route to postprocess, which one pass calls one after the other.
        self._added: Tensor | None = None
        # Columns beside the hidden states, [S, B, any], of this layer and for the next; see
        # carried.py.
        self.carries = bool(self.router.needs)
        self.previous: Tensor | None = None
        self.handed: Tensor | None = None
        # Whoever gives the number here does not tell it again.
        if layer_number is not None:
            self._place(layer_number)

    def set_layer_number(self, layer_number: int) -> None:
        """Megatron's, which tells a layer its number when it is made; then it can be placed."""
        super().set_layer_number(layer_number)
        self._place(layer_number)

    def _place(self, layer_number: int) -> None:
        """Once, as the placement says of that layer."""
        path, dispatcher = self.config.grove_placement, self.token_dispatcher
        if path is None:
            return
        if dispatcher.placement.order is not None:
            if layer_number != self._placed_as:
                raise ValueError(
                    f"layer_number ({layer_number}) is given to a layer that grove_placement "
                    f"({path}) has moved as layer ({self._placed_as}); give its number once"
                )
            return
        self._placed_as = layer_number
        name = f"mtp {layer_number}" if self.is_mtp_layer else f"{layer_number}"
        dispatcher.placement = placement = placed(dispatcher.placement, path, name)
        if placement.order is None:
            return
        experts = placement.expert_order
        assert experts is not None
        self.columns = Columns(experts, torch.cuda.current_device())
        self.orders = {"experts": experts}
        move(self.experts, placement, experts, self.ep_group)
        if self.adjugate_experts is not None:
            self.orders["adjugate_experts"] = placement.order
            move(self.adjugate_experts, placement, placement.order, self.ep_group)

    def held(self, kind: str) -> tuple[int, ...] | None:
        """The numbers in the model of this rank's experts; None: they are the rank's slice.

        Args:
            kind: ``experts`` or ``adjugate_experts``.
        """
        order = self.orders.get(kind)
        if order is None:
            return None
        return self.token_dispatcher.placement.held(order, self.ep_group.rank())

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Megatron's; experts have their numbers in the model, whichever rank holds them."""
        entries: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.orders and (metadata or {}).get(SINGLETON):
            raise ValueError(
                f"grove_placement ({self.config.grove_placement}) excludes {SINGLETON} "
                f"({metadata[SINGLETON]}) of a checkpoint; save it without"
            )
        for kind, order in self.orders.items():
            numbered(entries, f"{prefix}{kind}.", order, len(sharded_offsets))
        return entries

    def forward(
        self,
        hidden_states: Tensor,
        intermediate_tensors: Any = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Megatron's; where that runs again, all that it reads and gives goes in and comes out."""
        if self.previous is not None and self.previous.shape[:2] != hidden_states.shape[:2]:
            raise ValueError(
                f"tokens of a MoE layer {list(hidden_states.shape[:2])} are not those of the one "
                f"before {list(self.previous.shape[:2])}, whose columns {self._asked()} reads; "
                "give it whole sequences"
            )
        if not self.joins:
            self.router.carried = Carried.of(self.previous, self.config, self.training)
            y, bias = super().forward(hidden_states, intermediate_tensors, padding_mask)
            self.handed = self._handed()
            return y, bias
        joined = join(hidden_states, self.previous)
        output, bias = super().forward(joined, intermediate_tensors, padding_mask)
        y, self.handed = take_apart(output, self.config.hidden_size)
        return y, bias

    @property
    def joins(self) -> bool:
        """Must logits go in and out with the tokens, because this layer will run again?"""
        return bool(self.carries and self.moe_layer_recompute and self.training)

    def shared_experts_compute(self, hidden_states: Tensor) -> Tensor | None:
        """Megatron's, of hidden states alone."""
        if self.use_shared_expert:
            hidden_states, _ = take_apart(hidden_states, self.config.hidden_size)
        shared: Tensor | None = super().shared_experts_compute(hidden_states)
        return shared

    def preprocess(
        self, hidden_states: Tensor, probs: Tensor, routing_map: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Megatron's, of what experts compute with, to whoever holds them."""
        hidden_states, _ = take_apart(hidden_states, self.config.hidden_size)
        if self.columns is not None:
            probs, routing_map = self.columns.of_probs(probs), self.columns.of_map(routing_map)
        sent: tuple[Tensor, Tensor] = super().preprocess(
            self._for_experts(hidden_states), probs, routing_map
        )
        return sent

    def _for_experts(self, hidden_states: Tensor) -> Tensor:
        if not self.config.grove_topk_scaled_input:
            return hidden_states
        scaled: Tensor = hidden_states * self.config.moe_router_topk
        return scaled

    def route(
        self, hidden_states: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Megatron's, of the routed experts; what the others add is kept for :meth:`postprocess`.

        Counted, where the run asks what its layers route.
        """
        if self.joins:
            hidden_states, columns = take_apart(hidden_states, self.config.hidden_size)
            self.router.carried = Carried.of(columns, self.config, self.training)
        probs_TE, routing_map_TE = super().route(hidden_states, padding_mask)
        self.router.carried = Carried()
        if self.counts is not None and self.training:
            self.counts.add(routing_map_TE, padding_mask)
        x_TH = self._for_experts(hidden_states).reshape(-1, hidden_states.shape[-1])
        probs_TE, routing_map_TE, self._added = self.router.divide(x_TH, probs_TE, routing_map_TE)
        return probs_TE, routing_map_TE

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        """Megatron's; plus what local experts made of the same tokens."""
        y: Tensor = super().postprocess(output, shared_expert_output)
        added_TH, self._added = self._added, None
        y = y if added_TH is None else y + added_TH.reshape(y.shape)
        if not self.joins:
            return y
        return join(y, self._handed())

    def _handed(self) -> Tensor | None:
        """Columns for the next layer; kept for nobody, they would keep what they were made of."""
        handed: Carried = self.router.handed
        self.router.handed = Carried()
        if "logits" not in self.router.needs:
            handed = handed.with_logits(None)
        return handed.columns

    def _asked(self) -> str:
        return " and ".join(carrying_flags(self.config))

    def routed_experts_compute(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """Run this rank's experts and adjugates on the received rows.

        Args:
            hidden_states: x_VH [V, H], the received rows.
            probs: [V, L], the weights of this rank's experts for every row.

        Returns:
            y_VH [V, H], one summed row per received row, and None (no bias).
        """
        if self.config.overlap_dispatch_backward_with_experts_wgrad:
            hidden_states = _RecordExpertDgradCompletion.apply(
                self._delayed_wgrad_event, hidden_states
            )
        dispatcher = self.token_dispatcher
        x_VH, probs_N, group_probs_M = dispatcher.arrive(hidden_states, probs)
        compute: Callable[..., Tensor] = one_pass if self.in_one_pass else module_by_module
        if self.adjugate_experts is None:
            compute = experts_alone
        y_VH = compute(
            x_VH,
            probs_N,
            self.config.grove_adjugate_scale * group_probs_M,
            plan=dispatcher.work,
            experts=self.experts,
            adjugates=self.adjugate_experts,
            config=self.config,
        )
        return dispatcher.leave(y_VH), None

    def backward_dw(self, routed_experts: bool = True, shared_experts: bool = False) -> None:
        """Compute delayed weight gradients; without this, adjugates would silently get none."""
        super().backward_dw(routed_experts, shared_experts)
        if routed_experts and self.adjugate_experts is not None:
            self.adjugate_experts.backward_dw()
