"""Which process groups cross from node to node, and what a token sends over the border."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..model.architecture import Model
from ..planner.inputs import Layout
from ..planner.traffic import rows_per_token

ORDER, ORDER_PIPELINE_FIRST = "tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"
"""How Megatron numbers ranks, the fastest first; the second with ``--use-tp-pp-dp-mapping``
(training/initialize.py:388 @ 0.19.2)."""

Groups = dict[str, list[list[int]]]


def groups_of(layout: Layout, order: str = ORDER) -> Groups:
    """The ranks of every tensor-, context-, pipeline- and expert-parallel group.

    Dense and expert layers number the same ranks, each with sizes of its own: data parallel is
    what is left.

    Args:
        layout: parallel sizes.
        order: ``ORDER`` or ``ORDER_PIPELINE_FIRST``.
    """
    dense = {
        "tp": layout.tensor,
        "cp": layout.context,
        "ep": 1,
        "dp": layout.data,
        "pp": layout.pipeline,
    }
    expert = {
        "tp": layout.expert_tensor,
        "cp": 1,
        "ep": layout.expert,
        "dp": layout.expert_copies,
        "pp": layout.pipeline,
    }
    return {
        "TP": _along("tp", dense, order),
        "CP": _along("cp", dense, order),
        "PP": _along("pp", dense, order),
        "EP": _along("ep", expert, order),
        "ETP": _along("tp", expert, order),
    }


def _along(axis: str, sizes: Mapping[str, int], order: str) -> list[list[int]]:
    stride, world = 1, 1
    for name in order.split("-"):
        stride = world if name == axis else stride
        world *= sizes[name]
    size = sizes[axis]
    # First ranks are those at place 0 of the axis.
    firsts = [rank for rank in range(world) if rank // stride % size == 0]
    return [[*range(first, first + size * stride, stride)] for first in firsts]


@dataclass(frozen=True, kw_only=True)
class Border:
    """The groups of one kind, beside the nodes.

    Attributes:
        kind: TP, CP, PP, EP or ETP.
        size: ranks of a group.
        count: groups.
        crossing: those with ranks on more than one node.
        most: nodes that one of them has ranks on, at most.
    """

    kind: str
    size: int
    count: int
    crossing: int
    most: int


def borders(groups: Groups, node_of: Sequence[str]) -> list[Border]:
    """Of every kind of group that has more than one rank.

    Args:
        groups: see :func:`groups_of`.
        node_of: the node of every rank.
    """
    found = []
    for kind, of_kind in groups.items():
        if len(of_kind[0]) == 1:
            continue
        nodes = [len({node_of[rank] for rank in ranks}) for ranks in of_kind]
        crossing = sum(count > 1 for count in nodes)
        border = Border(
            kind=kind,
            size=len(of_kind[0]),
            count=len(of_kind),
            crossing=crossing,
            most=max(nodes),
        )
        found.append(border)
    return found


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that a token is sent as to other nodes in a layer, expected under uniform routing.

    Attributes:
        flat: one to every rank there that it needs, or as the dispatch of the job has it.
        by_node: one to every node, as ``--grove-hierarchical-dispatch`` sends; None where the
            ranks of a group do not lie evenly on nodes.
    """

    flat: float
    by_node: float | None


def rows_abroad(model: Model, layout: Layout, group: Sequence[str]) -> Rows:
    """What leaves a node, on average over the tokens of one expert-parallel group.

    Args:
        model, layout: of the job.
        group: the node of every rank of the group, in order.
    """
    size = len(group)
    held = {node: group.count(node) for node in group}
    abroad = sum(count * (size - count) for count in held.values()) / size**2
    flat = rows_per_token(model, layout) * abroad
    even = len(set(held.values())) == 1 and [*group] == sorted(group, key=[*held].index)
    if not even:
        return Rows(flat=flat, by_node=None)
    nodes = len(held)
    once = replace(
        layout,
        expert=nodes,
        expert_tensor=1,
        tensor=1,
        pipeline=1,
        context=1,
        world=nodes,
        all_gather=False,
        row_per_expert=False,
    )
    return Rows(flat=flat, by_node=rows_per_token(model, once) * (nodes - 1) / nodes)


def placement_notes(layout: Layout, groups: Groups, node_of: Sequence[str]) -> list[str]:
    """What may be better placed, one line each.

    Args:
        layout: of the job.
        groups: see :func:`groups_of`.
        node_of: the node of every rank.
    """
    notes = []
    scattered = [
        node
        for node in dict.fromkeys(node_of)
        if (ranks := [r for r, n in enumerate(node_of) if n == node])[-1] - ranks[0] >= len(ranks)
    ]
    if scattered:
        notes.append(
            f"ranks of node {', '.join(scattered)} are not contiguous: groups that would lie "
            "inside of a node cross; number ranks node by node (srun --distribution=block)"
        )
    nodes = dict.fromkeys(node_of)
    smallest = min([*node_of].count(node) for node in nodes)
    expert = layout.expert * layout.expert_tensor
    crossing = any(len({node_of[r] for r in ranks}) > 1 for ranks in groups["EP"])
    if not crossing:
        return notes
    said = f"--expert-model-parallel-size ({layout.expert})"
    if layout.expert_tensor > 1:
        said += f" x --expert-tensor-parallel-size ({layout.expert_tensor})"
    if expert > smallest and layout.expert <= smallest:
        notes.append(
            f"{said} is above the ranks of a node ({smallest}), so expert-parallel groups cross; "
            "with --expert-tensor-parallel-size 1 they would lie inside"
        )
    elif expert <= smallest and not scattered:
        notes.append(
            f"{said} would fit into the ranks of a node ({smallest}) and its groups cross all the "
            "same; use a size that divides the ranks of every node"
        )
    return notes
