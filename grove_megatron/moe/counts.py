"""What a MoE layer routes and sends, counted on the device while the run trains.

Counting waits for nothing and talks to no other rank: one sum per call, added to what was there.
:meth:`LayerCounts.take` hands the sums over, in the order of :class:`Columns`, when somebody asks.

Shape suffixes: T tokens, E experts, G groups, U units (groups, or experts where there are none),
R expert-parallel ranks, N nodes; D = 1 + the most groups that a token can meet.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional.groups import group_map
from .allgather_dispatcher import GroveAllGatherDispatcher
from .dispatcher import GroveTokenDispatcher

SCALARS = ("holders", "biased", "sent_tokens", "rerun_tokens", "left_rows", "node_rows")
"""The columns of a layer that are single numbers, see :class:`Columns`."""


@dataclass(frozen=True)
class Columns:
    """Where a layer's numbers stand in its row of the table; the same on every rank.

    Sums over the microbatches of training: each counts once, also with recompute; evaluation
    never. (An iteration that Megatron's rerun machine repeats to find a fault counts again.)

        holders       1 from every rank that has the layer
        biased        1 from every rank whose router has an expert bias
        sent_tokens   tokens that came to the layer, padding included
        rerun_tokens  tokens of passes that recompute runs again
        left_rows     rows that left the rank they were on, padding included; with expert tensor
                      parallelism also to the other ranks of that group, see :meth:`take`
        node_rows     rows sent to nodes, the own one included; 0 without hierarchical dispatch
        experts [E]   routed pairs of every expert, after dropping, without padding
        local [C]     the same of every local expert
        groups [G]    tokens of every group's adjugate, without padding
        sharing [D]   tokens by the number of groups they met, without padding
        rows [R]      rows sent to every expert-parallel rank, the own one and padding included
        bias [E + C]  the expert bias, summed over ``biased`` ranks
        coactivation [U * U]  where it is asked for: tokens that met both units, on the diagonal
                      those that met the one; without padding
    """

    experts: int
    groups: int
    degrees: int
    ranks: int
    local: int = 0
    coactivation: bool = False

    @property
    def units(self) -> int:
        """Groups, or experts where there are none."""
        return self.groups or self.experts

    @property
    def widths(self) -> dict[str, int]:
        """Columns by name, in order."""
        arrays = {
            "experts": self.experts,
            **({"local": self.local} if self.local else {}),
            "groups": self.groups,
            "sharing": self.degrees,
            "rows": self.ranks,
            "bias": self.experts + self.local,
            **({"coactivation": self.units**2} if self.coactivation else {}),
        }
        return dict.fromkeys(SCALARS, 1) | arrays

    @property
    def total(self) -> int:
        return sum(self.widths.values())

    @classmethod
    def of(
        cls,
        experts: int,
        groups: int,
        topk: int,
        ranks: int,
        local: int = 0,
        coactivation: bool = False,
    ) -> "Columns":
        """``topk`` experts per token meet at most as many groups."""
        return cls(experts, groups, 1 + min(topk, groups), ranks, local, coactivation)


class LayerCounts:
    """The sums of one layer on this rank.

    Args:
        dispatcher: of the layer; says where its experts are and how rows go there.
        topk: the most experts of a token.
        local: local experts.
        coactivation: also count which units tokens met together.
    """

    def __init__(
        self,
        dispatcher: GroveTokenDispatcher | GroveAllGatherDispatcher,
        topk: int,
        local: int = 0,
        coactivation: bool = False,
    ) -> None:
        placement = dispatcher.placement
        self.columns = Columns.of(
            placement.num_experts,
            placement.num_groups,
            topk,
            placement.num_ranks,
            local,
            coactivation,
        )
        # Megatron's all-gather brings every token to every rank, whatever was routed.
        self.everywhere = isinstance(dispatcher, GroveAllGatherDispatcher)
        self.rank = dist.get_rank(dispatcher.ep_group)
        self.nodes, self.node, self.place = _place(dispatcher, self.rank)
        self.tensor_ranks = dist.get_world_size(dispatcher.tp_group)
        self.sent_tokens = 0
        self.rerun_tokens = 0
        device = torch.cuda.current_device()
        self._degrees = torch.arange(self.columns.degrees, device=device)
        order = placement.order
        self._order = None if order is None else torch.tensor(order, device=device)
        c = self.columns
        self._splits = [c.experts, c.local, c.groups, c.degrees, c.ranks, self.nodes]
        self._sums = torch.zeros(sum(self._splits), dtype=torch.int64, device=device)
        units = c.units if coactivation else 0
        self._together_UU = torch.zeros(units, units, dtype=torch.int64, device=device)

    def add(self, routing_map_TE: Tensor, padding_mask: Tensor | None) -> None:
        """Count a microbatch of training.

        A pass without gradients is one that recompute will run again with them: the tokens of
        both are the same, so only the second counts (Megatron counts for its expert bias in the
        same way).

        Args:
            routing_map_TE: [T, E + C] bool, what was routed in the end.
            padding_mask: bool with T elements, True where padding; or None.
        """
        num_tokens = routing_map_TE.shape[0]
        if not torch.is_grad_enabled():
            self.rerun_tokens += num_tokens
            return
        self.sent_tokens += num_tokens
        groups, experts = self.columns.groups, self.columns.experts
        chosen_TE, routing_map_TE = routing_map_TE, routing_map_TE[:, :experts]
        in_group_TG = group_map(routing_map_TE, groups)
        # Groups lie whole on a rank, and ranks on a node.
        placed_TU = in_group_TG if groups else routing_map_TE
        if self._order is not None:
            placed_TU = placed_TU.index_select(1, self._order)
        in_rank_TR = group_map(placed_TU, self.columns.ranks)
        sent = [in_rank_TR] if self.nodes == 0 else [in_rank_TR, group_map(in_rank_TR, self.nodes)]
        if padding_mask is None:
            degree_T = in_group_TG.sum(1)
        else:
            padding_T1 = padding_mask.reshape(-1, 1)
            chosen_TE = chosen_TE & ~padding_T1
            in_group_TG = in_group_TG & ~padding_T1
            degree_T = in_group_TG.sum(1).masked_fill(padding_T1.squeeze(1), -1)
        sharing_TD = degree_T.unsqueeze(1) == self._degrees
        self._sums += torch.cat([chosen_TE, in_group_TG, sharing_TD, *sent], dim=1).sum(0)
        if self.columns.coactivation:
            self._together_UU += together(in_group_TG if groups else chosen_TE[:, :experts])

    def take(self, bias_E: Tensor | None) -> Tensor:
        """This rank's row of the table, [columns.total] fp64 on the device; starts again at 0.

        fp64 holds counts exactly up to 2^53, and the bias beside them. Rows that arrive leave for
        the other ranks of expert tensor parallelism; they are counted here, where they were sent
        from, which is the same in the sum over all ranks.
        """
        experts, local, groups, sharing, rows, nodes = torch.split(self._sums, self._splits)
        if self.everywhere:
            rows = torch.full_like(rows, self.sent_tokens)
        left = rows.sum() - rows[self.rank]
        if self.nodes:
            # First to the rank in this one's place on every node, from there on inside the node.
            left = rows.sum() - rows.reshape(self.nodes, -1)[:, self.place].sum()
            left = left + nodes.sum() - nodes[self.node]
        # Where there is one expert-parallel rank, tokens without experts are there too.
        arrived = rows.sum() if self.columns.ranks > 1 else self.sent_tokens
        left = left + (self.tensor_ranks - 1) * arrived
        scalars = experts.new_tensor([1, bias_E is not None, self.sent_tokens, self.rerun_tokens])
        arrays = (experts, local, groups, sharing, rows)
        parts = [scalars, left.reshape(1), nodes.sum().reshape(1), *arrays]
        bias = torch.cat([experts, local]).zero_() if bias_E is None else bias_E.detach()
        parts += [bias, self._together_UU.flatten()]
        row = torch.cat([part.double() for part in parts])
        self._sums.zero_()
        self._together_UU.zero_()
        self.sent_tokens = self.rerun_tokens = 0
        return row


def together(met_TU: Tensor) -> Tensor:
    """Tokens that met both of two units: [T, U] bool -> [U, U] int64.

    One product in fp32, whose terms are 0 and 1: exact, in whatever order and format of fp32 it is
    computed (TF32 has 0 and 1, too), as long as no sum reaches 2^24.
    """
    assert met_TU.shape[0] < 2**24, "tokens of one microbatch"
    # Autocast would round the sums to bf16.
    with torch.autocast(met_TU.device.type, enabled=False):
        met = met_TU.float()
        return (met.T @ met).long()


def _place(
    dispatcher: GroveTokenDispatcher | GroveAllGatherDispatcher, rank: int
) -> tuple[int, int, int]:
    """Nodes of a dispatch in two hops (0 where there is one), this rank's node, its place there."""
    hops = dispatcher.hops if isinstance(dispatcher, GroveTokenDispatcher) else ()
    if len(hops) < 2:
        return 0, 0, rank
    across, inside = (dist.get_rank(hop.group) for hop in hops)
    return dist.get_world_size(hops[0].group), across, inside
