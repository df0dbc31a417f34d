"""Which microbatches a pipeline stage holds activations of, when it makes a gradient."""

from functools import cache
from operator import le
from typing import NamedTuple

from ..inputs import Sizes


class Moment(NamedTuple):
    """A step of the backward pass.

    Attributes:
        held: of every model chunk, how many microbatches went forward and not yet back.
        backward: the chunk whose gradients are made, of one of these.
        forward: the chunk through which another goes meanwhile; None for none.
    """

    held: tuple[int, ...]
    backward: int
    forward: int | None


def in_flight(sizes: Sizes, stage: int) -> float:
    """Microbatches whose activations a stage holds at once, of all its layers.

    The pipeline fills before it drains: 1F1B, and interleaved 1F1B (Narayanan et al. 2104.04473)
    with virtual stages, where a microbatch of one model chunk counts as a part. One more than the
    warm-up of Megatron's get_pp_rank_microbatches (pipeline_parallel/schedules.py:902 @ 0.19.2):
    a forward pass comes before the first backward pass.
    """
    layout, training = sizes.layout, sizes.training
    if layout.virtual == 1:
        return min(layout.pipeline - stage, training.microbatches)
    warm_up = _warm_up(
        layout.pipeline, stage, layout.virtual, _group(sizes), training.overlapped_experts
    )
    return min((warm_up + 1) / layout.virtual, training.microbatches)


def moments(sizes: Sizes, stage: int, alike: tuple[int, ...]) -> tuple[Moment, ...]:
    """Those of one iteration on a stage that may be the worst.

    Args:
        alike: a number for every chunk of the stage, the same for chunks with the same layers.
    """
    layout, training = sizes.layout, sizes.training
    overlapped = training.overlapped_experts and training.microbatches > 1
    if layout.virtual == 1:
        held = min(layout.pipeline - stage, training.microbatches)
        return (Moment((held,), 0, 0 if overlapped else None),)
    return _worst(
        alike,
        layout.pipeline,
        stage,
        layout.virtual,
        _group(sizes),
        training.microbatches,
        overlapped,
    )


@cache
def _worst(alike: tuple[int, ...], *schedule: int) -> tuple[Moment, ...]:
    """Those of :func:`_interleaved`, but for moments when fewer are held than at another."""
    found: dict[tuple[int, int | None], dict[tuple[int, ...], Moment]] = {}
    for moment in _interleaved(*schedule):
        sums = [0] * (max(alike) + 1)
        for number, held in zip(alike, moment.held, strict=True):
            sums[number] += held
        forward = None if moment.forward is None else alike[moment.forward]
        found.setdefault((alike[moment.backward], forward), {})[tuple(sums)] = moment
    return tuple(
        moment
        for of_chunks in found.values()
        for sums, moment in of_chunks.items()
        if not any(sums != other and all(map(le, sums, other)) for other in of_chunks)
    )


def _group(sizes: Sizes) -> int:
    return sizes.layout.chunk_microbatches or sizes.layout.pipeline


def _warm_up(pipeline: int, stage: int, virtual: int, group: int, overlapped: bool) -> int:
    return 2 * (pipeline - stage - 1) + (virtual - 1) * group + overlapped


@cache
def _interleaved(
    pipeline: int, stage: int, virtual: int, group: int, microbatches: int, overlapped: bool
) -> tuple[Moment, ...]:
    """All that differ."""
    # Chunks in the order of forward passes: groups of microbatches, through one chunk after the
    # other; backward passes take the chunks the other way round (schedules.py, get_schedule_table).
    order = [
        chunk
        for first in range(0, microbatches, group)
        for chunk in range(virtual)
        for _ in range(first, min(first + group, microbatches))
    ]
    warm_up = min(_warm_up(pipeline, stage, virtual, group, overlapped), len(order))
    held = [0] * virtual
    for chunk in order[:warm_up]:
        held[chunk] += 1
    found: dict[Moment, None] = {}
    for done, chunk in enumerate(order):
        forward = order[warm_up + done] if warm_up + done < len(order) else None
        backward = virtual - 1 - chunk
        if forward is not None and not overlapped:
            held[forward] += 1
        beside = forward if overlapped else None
        found[Moment(tuple(held), backward, beside)] = None
        if forward is not None and overlapped:
            held[forward] += 1
        held[backward] -= 1
    return tuple(found)
