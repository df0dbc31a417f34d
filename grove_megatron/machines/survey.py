"""Ask, visit, look, measure: everything that ranks do together, and rank 0 gathers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from ..comm.node_groups import ranks_per_node
from ..failure.job_store import from_rank_0, group_store, to_rank_0, world
from .borders import ORDER, ORDER_PIPELINE_FIRST, Groups, groups_of
from .doors import reach
from .exchange import Heard, measure_crossing, measure_pairs
from .folders import look, shared_folders
from .here import this_rank
from .job import Job
from .meeting import Meeting
from .planned import message_bytes, needs_of
from .records import Card, Crossing, Measured, Pair, Rank, Reached, Seen, Survey
from .rounds import between_nodes, inside_nodes

MESSAGES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
"""Bytes of a message between two ranks: long enough for what the link gives, whatever it takes to
begin."""


def survey(
    job: Job, device: str, cards: tuple[Card, ...], seconds: float, message: int | None
) -> Survey | None:
    """All that is to be known of the machines, on rank 0; every rank must call.

    Args:
        job: its flags.
        device: ``cpu`` or ``cuda``.
        cards: of this node.
        seconds: for everything that is measured; half of it is the longest to wait for a file.
        message: bytes between two ranks of a pair; None: as ``MESSAGES`` has it.
    """
    meeting = Meeting.held(job.timeout)
    mine = this_rank(job.args, device, cards, speaks=meeting.is_first)
    ranks = [Rank.unpacked(one) for one in to_rank_0(asdict(mine), job.timeout)]
    reached = reach(meeting, mine.says.address if mine.says is not None else "")
    all_reached = [Reached(**one) for one in meeting.of_nodes(reached and asdict(reached))]
    folders = shared_folders(job.args)
    # Of ranks with other flags, what rank 0 has.
    flags = from_rank_0(lambda: [*folders], job.timeout)
    here = {flag: folders[flag] for flag in flags if flag in folders}
    seen = look(meeting, here, seconds / 2)
    all_seen = meeting.of_nodes([asdict(one) for one in seen] if meeting.is_first else None)

    def can_measure() -> bool:
        apart = any(one.unreachable for one in all_reached)
        return not apart and len({rank.same["device"] for rank in ranks}) == 1

    measured = Measured()
    if world()[1] > 1 and from_rank_0(can_measure, job.timeout):
        measured = _measured(job, meeting, device, seconds, message or MESSAGES[device])
    if world()[0]:
        return None
    return Survey(
        ranks=tuple(ranks),
        needs=needs_of(job.args, job.sizes, device),
        reached=tuple(all_reached),
        seen=tuple(Seen(**one | {"unseen": tuple(one["unseen"])}) for of in all_seen for one in of),
        bound=seconds / 2,
        per_node=ranks_per_node(),
        measured=measured,
    )


def groups_of_job(job: Job) -> Groups:
    """Of a job that is planned."""
    assert job.sizes is not None
    first = job.args.use_tp_pp_dp_mapping
    return groups_of(job.sizes.layout, ORDER_PIPELINE_FIRST if first else ORDER)


def _measured(job: Job, meeting: Meeting, device: str, seconds: float, message: int) -> Measured:
    """On rank 0; elsewhere what is there is this rank's alone, and nobody asks."""

    def crossing() -> tuple[list[list[int]], int]:
        if job.sizes is None or job.sizes.layout.expert == 1:
            return [], 0
        return groups_of_job(job)["EP"], message_bytes(job.sizes)

    # Of ranks with other flags, what rank 0 has.
    groups, of_group = from_rank_0(crossing, job.timeout)
    on = _begin(job, device)
    nodes = meeting.nodes
    between = between_nodes(nodes) if len(nodes) > 1 else []
    # In half of the time, and a quarter each for the others.
    heard, rounds = measure_pairs(between, message, seconds / 2, on)
    of_nodes = inside_nodes(nodes)
    inside, inside_rounds = measure_pairs(of_nodes, message, seconds / 4, on)
    said: dict[str, Any] = {"pairs": [asdict(one) for one in [*heard, *inside]]}
    if groups and of_group:
        took, wrong = measure_crossing(groups, of_group, seconds / 4, on)
        said |= {"seconds": took, "wrong": wrong}
    all_said = to_rank_0(said, job.timeout)
    dist.destroy_process_group()
    pairs = {
        (rank, one["other"]): Heard(**one)
        for rank, of in enumerate(all_said)
        for one in of["pairs"]
    }
    node_of = meeting.node_of
    apart = {key: one for key, one in pairs.items() if node_of[key[0]] != node_of[key[1]]}
    return Measured(
        between=_pairs(apart, message, node_of),
        inside=_pairs(
            {key: one for key, one in pairs.items() if key not in apart},
            message,
            [*map(str, range(len(node_of)))],
        ),
        crossings=_crossings(groups if of_group else [], of_group, all_said),
        rounds=rounds,
        all_rounds=len(between),
        inside_rounds=inside_rounds,
        all_inside_rounds=len(of_nodes),
        message=message,
        backend="nccl" if device == "cuda" else "gloo",
    )


def _begin(job: Job, device: str) -> torch.device:
    """The process group of all ranks, on what the job will use."""
    rank, world_size = world()
    on = torch.device("cpu")
    if device == "cuda":
        on = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=group_store(job.args),
        rank=rank,
        world_size=world_size,
        timeout=job.timeout,
    )
    return on


def _pairs(
    heard: dict[tuple[int, int], Heard], message: int, names: Sequence[str]
) -> tuple[Pair, ...]:
    """Of all connections between two, together: the time is that of the slowest.

    Args:
        heard: by (rank, partner), both ways.
        names: of the two that every rank belongs to.
    """
    links: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for one, other in heard:
        if one < other:
            links.setdefault((names[one], names[other]), []).append((one, other))
    found = []
    for (one_name, other_name), ranks in links.items():
        took = {link: max(heard[link].seconds, heard[link[1], link[0]].seconds) for link in ranks}
        slowest = max(took, key=lambda link: took[link])
        pair = Pair(
            one=one_name,
            other=other_name,
            gigabytes=len(ranks) * message / took[slowest] / 1e9,
            wrong=any(heard[a, b].wrong or heard[b, a].wrong for a, b in ranks),
            ranks=slowest,
        )
        found.append(pair)
    return tuple(found)


def _crossings(
    groups: list[list[int]], message: int, said: list[dict[str, Any]]
) -> tuple[Crossing, ...]:
    if not said:
        return ()
    return tuple(
        Crossing(
            ranks=tuple(ranks),
            seconds=max(said[rank]["seconds"] for rank in ranks),
            sent=message * (len(ranks) - 1),
            wrong=tuple((source, rank) for rank in ranks for source in said[rank]["wrong"]),
        )
        for ranks in groups
    )
