"""Parameters of every rank, from the weights of :mod:`grove_megatron.model.table`."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from ..model.architecture import Model
from ..model.parameters import Counts, count
from ..model.subsets import are_trained
from ..model.table import held
from ..model.weights import Split, Weight
from .inputs import Layout
from .pipeline import Stage, stages


def rank_parameters(model: Model, layout: Layout) -> tuple[Counts, ...]:
    """On a rank of every pipeline stage; all ranks of a stage hold as many.

    Raises:
        ValueError: a weight that the layout divides into unequal parts.
    """
    sizes = (layout.tensor, layout.expert, layout.expert_tensor)
    return tuple(_of_stage(model, *sizes, stage) for stage in stages(model, layout))


@cache
def _of_stage(model: Model, tensor: int, expert: int, expert_tensor: int, stage: Stage) -> Counts:
    """Layers are alike but for their experts: one of each kind is counted."""
    sizes = (tensor, expert, expert_tensor)
    held_layers = [
        (chunk[0], model.moe_layers[chunk[0] : chunk[-1] + 1]) for chunk in stage.chunks if chunk
    ]
    rest = _of_rest(model, *sizes, *_beside_layers(model, stage))
    dense, experts, adjugates = rest.dense, rest.experts, rest.adjugates
    for is_moe in (True, False):
        times = sum(kinds.count(is_moe) for _, kinds in held_layers)
        if times:
            counts = _of_layer(model, *sizes, is_moe)
            dense += times * counts.dense
            experts += times * counts.experts
            adjugates += times * counts.adjugates
    return Counts(dense=dense, experts=experts, adjugates=adjugates)


@cache
def _of_layer(model: Model, tensor: int, expert: int, expert_tensor: int, is_moe: bool) -> Counts:
    layer = model.moe_layers.index(is_moe)
    return _count(model, tensor, expert, expert_tensor, [layer], (False,) * 4)


@cache
def _of_rest(model: Model, tensor: int, expert: int, expert_tensor: int, *beside: bool) -> Counts:
    return _count(model, tensor, expert, expert_tensor, [], beside)


def _count(
    model: Model,
    tensor: int,
    expert: int,
    expert_tensor: int,
    layers: list[int],
    beside: tuple[bool, ...],
) -> Counts:
    layout = _layout(tensor, expert, expert_tensor)
    return count(
        (weight, share(weight, model, layout)) for weight, _ in _held(model, layers, beside)
    )


def _layout(tensor: int, expert: int, expert_tensor: int) -> Layout:
    """What divides weights."""
    world = tensor * expert * expert_tensor
    return Layout(tensor=tensor, expert=expert, expert_tensor=expert_tensor, world=world)


def _held(
    model: Model, layers: Iterable[int], beside: tuple[bool, ...]
) -> list[tuple[Weight, str]]:
    embedding, norm, output, mtp = beside
    return held(model, layers, embedding=embedding, norm=norm, output=output, mtp=mtp)


def rank_trained(model: Model, layout: Layout, chosen: Sequence[str]) -> tuple[Counts, ...]:
    """Of :func:`rank_parameters` those that are trained.

    Where single experts are chosen, the ranks of a stage differ: on the one that trains most.

    Args:
        chosen: as :func:`.subsets.selected` has it; empty for all.
    """
    if not chosen:
        return rank_parameters(model, layout)
    return tuple(
        max(_trained_of_stage(model, layout, stage, tuple(chosen)), key=lambda counts: counts.total)
        for stage in stages(model, layout)
    )


def _trained_of_stage(
    model: Model, layout: Layout, stage: Stage, chosen: tuple[str, ...]
) -> Iterator[Counts]:
    """On every expert-parallel rank of a stage, which has the next of the experts."""
    sizes = (layout.tensor, layout.expert, layout.expert_tensor)
    pieces = [_trained(model, *sizes, chosen, layer, (False,) * 4) for layer in stage.layers]
    pieces.append(_trained(model, *sizes, chosen, None, _beside_layers(model, stage)))
    for of_rank in zip(*pieces, strict=True):
        dense, experts, adjugates = map(sum, zip(*of_rank, strict=True))
        yield Counts(dense=dense, experts=experts, adjugates=adjugates)


@cache
def _trained(
    model: Model,
    tensor: int,
    expert: int,
    expert_tensor: int,
    chosen: tuple[str, ...],
    layer: int | None,
    beside: tuple[bool, ...],
) -> tuple[tuple[int, int, int], ...]:
    """Of a layer, or of what a stage has beside layers: dense, of experts, of adjugates."""
    layout = _layout(tensor, expert, expert_tensor)
    found = [
        (weight, share(weight, model, layout), are_trained(weight, prefix, model, chosen))
        for weight, prefix in _held(model, [] if layer is None else [layer], beside)
    ]
    ranks = []
    for rank in range(expert):
        trained = []
        for weight, size, flags in found:
            each = len(flags) // ways(weight, layout)[0]
            own = flags[rank * each : (rank + 1) * each] if weight.stack else flags
            trained.append((weight, size // each * sum(own)))
        counts = count(trained)
        ranks.append((counts.dense, counts.experts, counts.adjugates))
    return tuple(ranks)


def stage_weights(model: Model, stage: Stage) -> list[tuple[Weight, str]]:
    """What a stage holds, whole, a kind as often as it does, and what goes before its name."""
    return _held(model, stage.layers, _beside_layers(model, stage))


def _beside_layers(model: Model, stage: Stage) -> tuple[bool, bool, bool, bool]:
    """Has a stage the embedding, the last norm, the output layer, the MTP layers?"""
    # Without MTP layers the norm is the output's, with them that of the last layer.
    last = model.num_layers - 1
    holds_last = any(chunk and chunk[0] <= last <= chunk[-1] for chunk in stage.chunks)
    return (
        stage.embedding or stage.mtp,
        holds_last if model.mtp_modules else stage.output,
        stage.output and not (model.tied_embeddings and stage.embedding),
        stage.mtp,
    )


def ways(weight: Weight, layout: Layout) -> tuple[int, int]:
    """Expert-parallel and tensor-parallel ranks that divide a weight."""
    tensor = layout.expert_tensor if weight.stack else layout.tensor
    return layout.expert if weight.stack else 1, 1 if weight.split is Split.WHOLE else tensor


def share(weight: Weight, model: Model, layout: Layout) -> int:
    """Elements of ``weight`` on one rank."""
    sizes = model.sizes
    expert, tensor = ways(weight, layout)
    stacked, width = weight.count(sizes), weight.width(sizes)
    if stacked % expert:
        kind = "experts" if weight.stack == "E" else "adjugates"
        raise ValueError(
            f"number of {kind} ({stacked}) is not a multiple of expert-parallel ranks "
            f"({expert}); change one of them"
        )
    if width % tensor:
        raise ValueError(
            f"width of {weight.name} ({width}) is not a multiple of tensor-parallel ranks "
            f"({tensor}); change one of them"
        )
    return weight.numel(sizes) // (expert * tensor)
