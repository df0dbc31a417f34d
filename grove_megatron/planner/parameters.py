"""Parameters of every rank, from the weights of :mod:`grove_megatron.model.table`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from ..model.architecture import Model
from ..model.parameters import Counts, count
from ..model.subsets import are_trained
from ..model.table import held, of_layer, weights
from ..model.weights import Split, Weight
from .inputs import Layout
from .pipeline import Stage, stages


def rank_parameters(model: Model, layout: Layout) -> tuple[Counts, ...]:
    """On a rank of every pipeline stage; all ranks of a stage hold as many.

    Raises:
        ValueError: a weight that the layout divides into unequal parts.
    """
    sizes = layout.expert, layout.tensor, layout.expert_tensor
    return tuple(_of_stage(model, stage, *sizes) for stage in stages(model, layout))


def _of_stage(model: Model, stage: Stage, *sizes: int) -> Counts:
    """Layers of a kind are counted once."""
    moe = sum(model.moe_layers[layer] for layer in stage.layers)
    # How often it has each.
    parts: dict[str, int] = {**_holds(model, stage)} | {
        "moe": moe,
        "dense": len(stage.layers) - moe,
    }
    parts["mtp"] *= model.mtp_modules
    found = Counts(dense=0)
    for part, times in parts.items():
        if times:
            found += _of_part(model, part, *sizes).times(times)
    return found


def _holds(model: Model, stage: Stage) -> dict[str, bool]:
    # Without MTP layers the norm is the output's, with them that of the last layer.
    holds_last = model.num_layers - 1 in stage.layers
    return {
        "embedding": stage.embedding or stage.mtp,
        "norm": holds_last if model.mtp_modules else stage.output,
        "output": stage.output and not (model.tied_embeddings and stage.embedding),
        "mtp": stage.mtp,
    }


@lru_cache(maxsize=4096)
def _of_part(model: Model, part: str, expert: int, tensor: int, expert_tensor: int) -> Counts:
    """On one rank: of a layer with experts or without, an MTP layer, or what is beside layers."""
    ranks = expert * tensor * expert_tensor
    layout = Layout(expert=expert, tensor=tensor, expert_tensor=expert_tensor, world=ranks)
    kinds = weights(model)
    found = [weight for weight in kinds if weight.place == part]
    if part in ("moe", "dense"):
        found = of_layer(kinds, part == "moe")
    elif part == "mtp":
        found += of_layer(kinds, model.mtp_is_moe)
    return count((weight, share(weight, model, layout)) for weight in found)


def rank_trained(model: Model, layout: Layout, chosen: Sequence[str]) -> tuple[Counts, ...]:
    """Of :func:`rank_parameters` those that are trained.

    Where single experts are chosen, the ranks of a stage differ: on the one that trains most.

    Args:
        chosen: as :func:`.subsets.selected` has it; empty for all.
    """
    if not chosen:
        return rank_parameters(model, layout)
    return tuple(
        max(_of_ranks(model, layout, stage, chosen), key=lambda counts: counts.total)
        for stage in stages(model, layout)
    )


def _of_ranks(
    model: Model, layout: Layout, stage: Stage, chosen: Sequence[str]
) -> Iterator[Counts]:
    """Trained on every expert-parallel rank of a stage, which has the next of the experts."""
    held = [
        (weight, share(weight, model, layout), are_trained(weight, prefix, model, chosen))
        for weight, prefix in stage_weights(model, stage)
    ]
    for rank in range(layout.expert):
        trained = []
        for weight, size, flags in held:
            each = len(flags) // ways(weight, layout)[0]
            own = flags[rank * each : (rank + 1) * each] if weight.stack else flags
            trained.append((weight, size // each * sum(own)))
        yield count(trained)


def stage_weights(model: Model, stage: Stage) -> list[tuple[Weight, str]]:
    """What a stage holds, whole, a kind as often as it does, and what goes before its name."""
    return held(model, stage.layers, **_holds(model, stage))


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
