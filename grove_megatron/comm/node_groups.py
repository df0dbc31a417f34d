"""The ranks of an expert-parallel group by node, for dispatch in two hops."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch.distributed as dist

from ..checks.ranks import spread_over_nodes as spread_over_nodes


@dataclass(frozen=True)
class NodeGroups:
    """The two process groups of a rank, for a group of nodes x ranks a node.

        ranks 0 1 | 2 3 on two nodes:   across  {0, 2} {1, 3}    inside  {0, 1} {2, 3}

    Attributes:
        across: the ranks in this rank's place on every node, by node.
        inside: the ranks of this rank's node.
    """

    across: dist.ProcessGroup
    inside: dist.ProcessGroup


NO_NODES = (
    "--grove-hierarchical-dispatch (True) needs LOCAL_WORLD_SIZE (unset), the number of ranks on "
    "every node; start with torchrun, or set it"
)


def ranks_per_node(environment: Mapping[str, str] = os.environ) -> int | None:
    """What the launcher says (torchrun sets LOCAL_WORLD_SIZE); None if it says nothing."""
    value = environment.get("LOCAL_WORLD_SIZE", "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


@cache
def node_groups(group: dist.ProcessGroup, per_node: int) -> NodeGroups | None:
    """Make the two groups of this rank, once; every rank of ``group`` must call.

    Returns:
        None where two hops would be one, with a single node or a single rank on every node.
    """
    by_node = spread_over_nodes(dist.get_process_group_ranks(group), per_node)
    if len(by_node) == 1 or len(by_node[0]) == 1:
        return None
    rank = dist.get_rank()
    (mine,) = (node for node in by_node if rank in node)
    place = mine.index(rank)
    # Other expert-parallel groups need not take part in making these.
    across = dist.new_group([node[place] for node in by_node], use_local_synchronization=True)
    inside = dist.new_group(mine, use_local_synchronization=True)
    return NodeGroups(across, inside)
