"""What the backward pass finds in memory, operation by operation.

Autograd keeps of every operation what its gradient is made of, and frees it when that has been
made. So a list of operations, in the order of the forward pass, says all there is at any moment
of the backward pass: what the operations before a moment keep, and gradients that are being made.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

PARTS = ("attention", "experts", "dispatcher", "router", "output", "other")
"""Whose bytes they are. ``other`` is norms, hidden states between layers, dense FFNs, shared
experts, masks, inputs and buffers of the pipeline."""


class Step(NamedTuple):
    """One operation.

    Attributes:
        part: one of :data:`PARTS`.
        kept: bytes from the forward pass until its own gradient is made.
        live: bytes beside them while that is made: gradients, of weights too, and temporaries.
        live_of: the same by part, where it is not all of ``part``.
    """

    part: str
    kept: float
    live: float
    live_of: Mapping[str, float] | None = None


class Block(NamedTuple):
    """Operations that follow each other, such as a layer: what they keep, and their worst moment.

    Attributes:
        kept: bytes between forward and backward pass.
        kept_of: the same by part.
        extra: bytes at the worst moment of its own backward pass, beyond ``kept``.
        extra_of: the same by part.
    """

    kept: float
    kept_of: dict[str, float]
    extra: float
    extra_of: dict[str, float]


def kept(steps: Iterable[Step]) -> float:
    """Bytes that all of them keep."""
    return sum(step.kept for step in steps)


def worst(steps: Sequence[Step]) -> tuple[float, int]:
    """Bytes beyond what all keep at the worst moment of the backward pass, and whose it is."""
    freed, most, where = 0.0, float("-inf"), -1
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        if step.live - freed > most:
            most, where = step.live - freed, index
        freed += step.kept
    return most, where


def block(steps: Sequence[Step]) -> Block:
    """Of operations in the order of the forward pass, one at least."""
    kept_of: dict[str, float] = {}
    for step in steps:
        kept_of[step.part] = kept_of.get(step.part, 0.0) + step.kept
    extra, where = worst(steps)
    extra_of = dict(steps[where].live_of or {steps[where].part: steps[where].live})
    for step in steps[where + 1 :]:
        extra_of[step.part] = extra_of.get(step.part, 0.0) - step.kept
    return Block(sum(kept_of.values()), kept_of, extra, extra_of)


def recomputed(
    part: str, steps: Sequence[Step], *, kept_input: float, held: float, records: float = 0.0
) -> list[Step]:
    """Operations that the backward pass computes again before it makes their gradients.

    Args:
        part: of the input.
        kept_input: bytes of their input, which alone is kept; 0 where another keeps it.
        held: bytes that are there all the time: what they put out, once more, and its gradient.
        records: bytes that outlive the first computation.

    Returns:
        Two steps: the one that keeps the input, and the one that computes again.
    """
    again = block(steps)
    live_of = dict(again.kept_of)
    add(live_of, again.extra_of)
    add(live_of, {part: held})
    return [
        Step(part, kept_input, 0.0),
        Step(part, 0.0, held + again.kept + again.extra, live_of),
        *([Step("dispatcher", records, 0.0)] if records else []),
    ]


def chain(runs: Sequence[tuple[Block, int]]) -> Block:
    """Blocks that follow each other, each so many times."""
    kept_of: dict[str, float] = {}
    for one, times in runs:
        add(kept_of, one.kept_of, times)
    freed, most, where = 0.0, float("-inf"), len(runs)
    for index in range(len(runs) - 1, -1, -1):
        one, times = runs[index]
        if one.extra - freed > most:
            most, where = one.extra - freed, index
        freed += one.kept * times
    extra_of: dict[str, float] = {}
    if runs:
        add(extra_of, runs[where][0].extra_of)
    for one, times in runs[where + 1 :]:
        add(extra_of, one.kept_of, -times)
    return Block(freed, kept_of, sum(extra_of.values()), extra_of)


def add(into: dict[str, float], parts: Mapping[str, float], times: float = 1) -> None:
    """Add bytes part by part."""
    for part, size in parts.items():
        into[part] = into.get(part, 0.0) + size * times
