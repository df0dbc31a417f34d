"""A cluster of 64 nodes with 8 GPUs each that nothing is wrong with."""

from dataclasses import replace
from typing import Any

from grove_megatron.machines.records import (
    Card,
    Crossing,
    Gpu,
    Measured,
    Needs,
    Node,
    Pair,
    Rank,
    Reached,
    Seen,
    Survey,
)

NODES, PER_NODE = 64, 8
GIB = 2**30
GPU = Gpu(name="NVIDIA H100 80GB HBM3, 9.0", free=79 * GIB, total=80 * GIB, count=8, uuid="")
CARDS = tuple(
    Card(index=str(index), uuid=f"gpu {index}", uncorrected=0, slowed=(), users=())
    for index in range(PER_NODE)
)


def node(number: int) -> Node:
    return Node(
        hostname=f"gpu{number:03}",
        resolves=f"10.0.0.{number}",
        address=f"10.0.0.{number}",
        interface="bond0",
        chosen={},
        memory=1024 * GIB,
        shared_memory=512 * GIB,
        same={"code of grove_megatron": "abc", "--data-path: text.idx": "100 bytes, def"},
        cards=CARDS,
    )


def rank(number: int) -> Rank:
    of_node = number // PER_NODE
    return Rank(
        rank=number,
        node=str(of_node),
        machine=f"boot {of_node}",
        same={"device": "cuda", "version of NCCL": "2.27.7"},
        open_files=65536,
        gpu=replace(GPU, uuid=f"gpu {number % PER_NODE}"),
        says=node(of_node) if number % PER_NODE == 0 else None,
    )


def cluster() -> Survey:
    ranks = tuple(rank(number) for number in range(NODES * PER_NODE))
    pairs = [(a, b) for a in range(NODES) for b in range(a + 1, NODES)]
    of_ranks = [(a, a + 1) for a in range(0, NODES * PER_NODE, 2)]
    groups = [range(first, first + 8) for first in range(0, NODES * PER_NODE, 8)]
    return Survey(
        ranks=ranks,
        needs=Needs(device="cuda", rank_bytes=60 * GIB, loader_bytes=GIB, hierarchical=True),
        reached=tuple(
            Reached(node=str(number), offset=0.002, uncertainty=0.0001, unreachable={})
            for number in range(NODES)
        ),
        seen=tuple(
            Seen(node=str(number), flag=flag, folder="/shared/run", unseen=(), seconds=0.1)
            for flag in ("--save", "--grove-metrics-dir", "--data-cache-path")
            for number in range(NODES)
        ),
        bound=10.0,
        per_node=PER_NODE,
        measured=Measured(
            between=tuple(
                Pair(one=str(a), other=str(b), gigabytes=300 + (a + b) % 7, ranks=(8 * a, 8 * b))
                for a, b in pairs
            ),
            inside=tuple(Pair(one=str(a), other=str(b), gigabytes=350) for a, b in of_ranks),
            crossings=tuple(
                Crossing(ranks=tuple(group), seconds=0.01, sent=10**9) for group in groups
            ),
            rounds=63,
            all_rounds=63,
            inside_rounds=7,
            all_inside_rounds=7,
            message=64 * 2**20,
            backend="nccl",
        ),
    )


def with_rank(survey: Survey, number: int, **changed: Any) -> Survey:
    """The same with something else on one rank."""
    ranks = [*survey.ranks]
    ranks[number] = replace(ranks[number], **changed)
    return replace(survey, ranks=tuple(ranks))


def with_node(survey: Survey, number: int, **changed: Any) -> Survey:
    """The same with something else said for one node."""
    first = number * PER_NODE
    says = survey.ranks[first].says
    assert says is not None
    return with_rank(survey, first, says=replace(says, **changed))


def with_card(survey: Survey, number: int, **changed: Any) -> Survey:
    """The same with something else on GPU 3 of one node."""
    cards = [*CARDS]
    cards[3] = replace(cards[3], **changed)
    return with_node(survey, number, cards=tuple(cards))


def with_reached(survey: Survey, number: int, **changed: Any) -> Survey:
    """The same with something else that one node has found of the others."""
    reached = [*survey.reached]
    reached[number] = replace(reached[number], **changed)
    return replace(survey, reached=tuple(reached))


def with_seen(survey: Survey, flag: str, nodes: range, **changed: Any) -> Survey:
    """The same with something else that some nodes saw in the folder of a flag."""
    seen = [
        replace(one, **changed) if one.flag == flag and int(one.node) in nodes else one
        for one in survey.seen
    ]
    return replace(survey, seen=tuple(seen))


def with_pair(survey: Survey, kind: str, place: int, **changed: Any) -> Survey:
    """The same with something else of one pair, or one all-to-all."""
    found = [*getattr(survey.measured, kind)]
    found[place] = replace(found[place], **changed)
    return replace(survey, measured=replace(survey.measured, **{kind: tuple(found)}))
