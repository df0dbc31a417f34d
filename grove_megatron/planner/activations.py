"""Bytes of activations: what a rank has of its microbatches at the worst moment of a step.

In the way of Megatron's theoretical_memory_usage.py (Korthikanti et al. 2205.05198, section 4),
but operation by operation, because that file knows neither experts nor query groups: see
:mod:`.peak.steps`. Routing is taken as uniform but for :attr:`.inputs.Training.imbalance`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress, groupby, zip_longest
from operator import mul
from typing import NamedTuple

from .inputs import Sizes
from .peak import end_steps as ends
from .peak.in_flight import Moment, in_flight, moments
from .peak.layer_steps import attention, dense
from .peak.moe_steps import experts, moe, records
from .peak.rank_sizes import RankSizes
from .peak.steps import PARTS, Block, Step, add, block, chain, kept
from .peak.trained_parts import ALL, trained_parts
from .pipeline import Stage, stages

__all__ = [
    "adjugate_activations",
    "in_flight",
    "layer_activations",
    "stage_activation_parts",
    "stage_activations",
]

# Of a token of a microbatch: itself, its label and position as 64-bit integers, its weight in fp32.
_INPUT_BYTES = 28

Kind = tuple[bool, frozenset[str]]
"""Has a layer experts, and which linear layers of it are trained?"""


def stage_activations(sizes: Sizes) -> tuple[float, ...]:
    """The most bytes of activations that a rank of every pipeline stage holds at one time."""
    return tuple(sum(parts.values()) for parts in stage_activation_parts(sizes))


def stage_activation_parts(sizes: Sizes) -> tuple[dict[str, float], ...]:
    """The same by part, one of :data:`.peak.steps.PARTS`, at that moment.

    What the layers keep of the microbatches in flight, the logits, and what one step of the
    backward pass needs beside them: gradients of the same tensors, and what it computes again.
    """
    job = _Job(sizes)
    return tuple(
        job.stage(number, stage) for number, stage in enumerate(stages(sizes.model, sizes.layout))
    )


def layer_activations(sizes: Sizes, *, is_moe: bool) -> float:
    """What one layer keeps of a microbatch."""
    rank = RankSizes(sizes)
    return kept([*attention(rank, ALL), *(moe if is_moe else dense)(rank, ALL)])


def adjugate_activations(sizes: Sizes, groups: float | None = None) -> float:
    """What the adjugates add to a microbatch in one layer.

    Args:
        groups: distinct groups that an average token meets; None for the expectation.
    """
    rank = RankSizes(sizes)
    if groups is not None:
        rank.group_pairs = rank.own_tokens * groups * sizes.layout.expert_tensor
    alone = replace(sizes, model=replace(sizes.model, num_groups=0, adjugate_ffn_hidden_size=0))
    return kept(experts(rank, ALL, 0.0)) - kept(experts(RankSizes(alone), ALL, 0.0))


class _Layer(NamedTuple):
    """What is asked of a layer.

    Attributes:
        whole: all of it.
        first, rest: what comes before rows are sent to experts, and what comes then.
    """

    whole: Block
    first: Block
    rest: Block


class _Chunk(NamedTuple):
    """Layers of a model chunk, and what goes before and after them.

    Attributes:
        whole: all of it.
        layers: of a chunk that runs beside another; empty where none does.
        after: of what follows the layers.
    """

    whole: Block
    layers: tuple[_Layer, ...]
    after: Block


class _Job:
    """Blocks of one job, each made once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.model, self.training = sizes, sizes.model, sizes.training
        self.rank = RankSizes(sizes)
        self.trained = trained_parts(sizes.model, sizes.training.train_only)
        self.layers: dict[Kind, _Layer] = {}
        self.units: dict[tuple[Kind, ...], Block] = {}
        self.chunks: dict[tuple[object, ...], _Chunk] = {}

    def stage(self, number: int, stage: Stage) -> dict[str, float]:
        """Bytes by part at the worst moment."""
        last = len(stage.chunks) - 1
        chunks = [
            self.chunk(
                self.kinds(layers),
                stage.embedding and index == 0,
                stage.mtp and index == last,
                stage.output and index == last,
            )
            for index, layers in enumerate(stage.chunks)
        ]
        alike = [next(i for i, one in enumerate(chunks) if one is chunk) for chunk in chunks]
        held, extra = self.worst(chunks, moments(self.sizes, number, tuple(alike)))
        parts = dict.fromkeys(PARTS, 0.0)
        for index in set(alike):
            times = sum(compress(held, map(index.__eq__, alike)))
            add(parts, chunks[index].whole.kept_of, times)
        add(parts, extra)
        if stage.embedding or stage.output:
            # The batches of an iteration are held to its end.
            parts["other"] += self.rank.tokens * _INPUT_BYTES * self.training.microbatches
        parts["other"] += self.received(stage, held)
        return parts

    def received(self, stage: Stage, held: tuple[int, ...]) -> float:
        """Hidden states and gradients from the neighbours, beside those of microbatches held."""
        layout, hidden = self.sizes.layout, self.rank.hidden
        if layout.pipeline == 1:
            return 0.0
        if layout.virtual == 1:
            return 2 * hidden
        # The next of each, and the gradient that was sent last. A chunk has its last input, and
        # the gradient of that, until it has another.
        idle = sum(held[index] == 0 for index in range(stage.embedding, layout.virtual))
        return (3 + 2 * idle) * hidden

    def worst(
        self, chunks: list[_Chunk], all_moments: Sequence[Moment]
    ) -> tuple[tuple[int, ...], dict[str, float]]:
        """What is held at the worst moment, and what is beside it, by part."""
        sizes = [chunk.whole.kept for chunk in chunks]
        most, found = float("-inf"), None
        for moment in all_moments:
            total = sum(map(mul, moment.held, sizes))
            beside = self.overlap(chunks, moment)
            alone = chunks[moment.backward].whole
            extra = alone.extra if beside is None else max(alone.extra, beside.extra)
            if total + extra > most:
                block = alone if beside is None or alone.extra >= beside.extra else beside
                most, found = total + extra, (moment.held, block.extra_of)
        assert found is not None, "a stage has a microbatch"
        return found

    def overlap(self, chunks: list[_Chunk], moment: Moment) -> Block | None:
        """Beside the backward pass of a chunk, the forward pass of another, layer by layer.

        While experts have their gradients made, the other layer has come to its dispatch; and is
        done while attention has (model_chunk_schedule_plan.py:236 @ 0.19.2).
        """
        if moment.forward is None:
            return None
        backward, forward = chunks[moment.backward], chunks[moment.forward]
        change: dict[str, float] = {}
        add(change, backward.after.kept_of, -1)
        found: Block | None = None
        for back, ahead in zip_longest(reversed(backward.layers), forward.layers):
            if back is None:
                break
            experts, attention = dict(change), dict(change)
            add(experts, back.rest.extra_of)
            add(attention, back.first.extra_of)
            add(attention, back.rest.kept_of, -1)
            if ahead is not None:
                add(experts, ahead.first.kept_of)
                add(attention, ahead.whole.kept_of)
                add(change, ahead.whole.kept_of)
            add(change, back.whole.kept_of, -1)
            for parts in (experts, attention):
                extra = sum(parts.values())
                if found is None or extra > found.extra:
                    found = Block(0.0, {}, extra, parts)
        return found

    def kinds(self, layers: tuple[int, ...]) -> tuple[Kind, ...]:
        """Of decoder layers."""
        if not layers:
            return ()
        first, end = layers[0], layers[-1] + 1
        pairs = zip(self.model.moe_layers[first:end], self.trained.layers[first:end], strict=True)
        return tuple(pairs)

    def layer(self, kind: Kind) -> _Layer:
        """One of a kind."""
        if kind not in self.layers:
            is_moe, trained = kind
            first = attention(self.rank, trained)
            rest = (moe if is_moe else dense)(self.rank, trained)
            # Router and dispatch belong to what comes before experts.
            before = next((i for i, s in enumerate(rest) if s.part == "experts"), len(rest))
            front, back = [*first, *rest[:before]], rest[before:]
            self.layers[kind] = _Layer(
                block([*first, *rest]), block(front), block(back or [Step("other", 0.0, 0.0)])
            )
        return self.layers[kind]

    def chunk(self, kinds: tuple[Kind, ...], embedding: bool, mtp: bool, output: bool) -> _Chunk:
        """A model chunk with what it has beside layers."""
        key = (kinds, embedding, mtp, output)
        if key not in self.chunks:
            before = [(block(ends.embedding(self.rank)), 1)] if embedding else []
            after = [*(self.mtp() if mtp else ()), *(self.output() if output else ())]
            runs = [*before, *self.runs(kinds, self.training.recompute_layers), *after]
            overlapped = self.training.overlapped_experts
            self.chunks[key] = _Chunk(
                chain(runs),
                tuple(map(self.layer, kinds)) if overlapped else (),
                chain(after),
            )
        return self.chunks[key]

    def runs(self, kinds: Sequence[Kind], count: int | None) -> list[tuple[Block, int]]:
        """Consecutive layers, of which the first ``count``, at most all, are computed again.

        Units of them keep their input alone (core/recompute.py:158 @ 0.19.2).
        """
        again = 0
        if "full" in self.training.recompute:
            again = len(kinds) if count is None else min(count, len(kinds))
        unit = self.training.recompute_unit
        starts = range(0, again, unit)
        units = [(self.unit(kinds[i : min(i + unit, again)]), 1) for i in starts]
        whole = [(self.layer(kind).whole, len(list(same))) for kind, same in groupby(kinds[again:])]
        return units + whole

    def unit(self, kinds: Sequence[Kind]) -> Block:
        """Layers that are computed again together."""
        key = tuple(kinds)
        if key not in self.units:
            hidden = self.rank.hidden
            inside = chain([(self.layer(kind).whole, 1) for kind in kinds])
            kept_of = {"other": hidden}
            kept_of["dispatcher"] = sum(records(self.rank) for is_moe, _ in kinds if is_moe)
            # Its input is that of the first layer. The gradient of what it puts out is held
            # until the last of its layers has its own.
            extra_of = {"other": -hidden + (hidden if len(kinds) > 1 else 0.0)}
            add(extra_of, inside.kept_of)
            add(extra_of, inside.extra_of)
            self.units[key] = Block(
                sum(kept_of.values()), kept_of, sum(extra_of.values()), extra_of
            )
        return self.units[key]

    def mtp(self) -> list[tuple[Block, int]]:
        """Every depth of multi-token prediction."""
        trained = self.trained.mtp
        beginning = block(ends.mtp_beginning(self.rank, trained))
        # A number of layers is of the decoder's, and leaves these out; otherwise each is made
        # again by itself (multi_token_prediction.py:1415 @ 0.19.2).
        count = None if self.training.recompute_layers is None else 0
        layer = self.runs([(self.model.mtp_is_moe, trained)], count)
        return [(beginning, 1), *layer] * self.model.mtp_depths

    def output(self) -> list[tuple[Block, int]]:
        """Of every prediction."""
        steps = ends.output(self.rank, self.trained.output)
        return [(block(steps), 1 + self.model.mtp_depths)]
