"""What sharing saves: rows that a token is sent as, and adjugates that it needs.

Uniform routing throughout, as in :mod:`..traffic`.
"""

from dataclasses import dataclass, replace
from math import gcd, lcm

from ...model.architecture import Model
from ...model.selection import ffn_per_token
from ..choice.choices import divisors
from ..flops import adjugate_flops, flops_per_token
from ..inputs import Sizes
from ..speed.cluster import Cluster
from ..speed.work import Work
from ..traffic import groups_per_token, remote_rows

WAYS = ("stock", "flat", "hierarchical")
"""To send rows: Megatron's all-to-all, one for every expert; one for every rank; one for every
node, and there one for every rank."""


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """One way at one size.

    Attributes:
        ranks: expert-parallel ranks.
        way: of :data:`WAYS`.
        rows: of a token in a layer, those to its own rank included.
        far: rows that leave a node.
        seconds: that a rank dispatches and combines in an iteration, forward and backward.
    """

    ranks: int
    way: str
    rows: float
    far: float
    seconds: float


def dispatches(sizes: Sizes, cluster: Cluster) -> list[Dispatch]:
    """Every way at every size by which whole experts, and groups, can be divided.

    Nothing else of ``sizes`` changes but expert tensor parallelism and kernels of DeepEP, of which
    there are none. A way
    by nodes is left out where there is one node, or ranks do not fill the last one.
    """
    model, most = sizes.model, sizes.layout.world // sizes.layout.pipeline
    whole = gcd(model.num_experts, model.num_groups)
    found = []
    for ranks in divisors(whole, whole):
        ways = WAYS if ranks > cluster.domain and not ranks % cluster.domain else WAYS[:2]
        found += [_dispatch(sizes, cluster, ranks, way) for way in ways if ranks <= most]
    return found


def _dispatch(sizes: Sizes, cluster: Cluster, ranks: int, way: str) -> Dispatch:
    model, layout = sizes.model, sizes.layout
    dense = layout.tensor * layout.pipeline * layout.context
    changed = replace(
        layout,
        expert=ranks,
        expert_tensor=1,
        world=lcm(dense, ranks * layout.pipeline),
        all_gather=False,
        row_per_expert=way == "stock",
        hierarchical=way == "hierarchical",
        fused=False,
    )
    rows = remote_rows(model, changed, min(ranks, cluster.domain))
    one = Work(replace(sizes, layout=changed), cluster).dispatch()
    layers = model.count_moe_layers(mtp=model.mtp_depths) / layout.pipeline
    once = sum(one.forward.values()) + sum(one.backward.values())
    return Dispatch(
        ranks=ranks,
        way=way,
        rows=rows.own * ranks,
        far=rows.far,
        seconds=once * layers * sizes.training.microbatches,
    )


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """One number of groups, all adjugates together as large as the model's.

    Attributes:
        groups: of equally many experts.
        width: of an adjugate's FFN; 0 without adjugates.
        met: distinct groups an average token meets, and adjugates it needs.
        share: operations of the adjugates over all others of a token.
        share_per_expert: the same, were an adjugate computed once for every expert.
    """

    groups: int
    width: float
    met: float
    share: float
    share_per_expert: float


def groupings(model: Model, sequence_length: int) -> list[Grouping]:
    """Of every number of equal groups of the model's experts.

    Args:
        sequence_length: tokens, which decide attention's part of the operations.
    """
    total = model.num_groups * model.adjugate_ffn_hidden_size
    others = flops_per_token(model, sequence_length, groups=0.0)
    layers = model.count_moe_layers(mtp=model.mtp_depths)

    def share(groups: float, width: float) -> float:
        of_width_1 = adjugate_flops(
            1, model.hidden_size, 1, gated=model.gated, groups=groups, layers=layers
        )
        return of_width_1 * width / others

    found = []
    for groups in divisors(model.num_experts, model.num_experts):
        met, width = groups_per_token(replace(model, num_groups=groups)), total / groups
        one = Grouping(
            groups=groups,
            width=width,
            met=met,
            share=share(met, width),
            share_per_expert=share(ffn_per_token(model), width),
        )
        found.append(one)
    return found
