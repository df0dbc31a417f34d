"""Parameters of every rank, from the weights of :mod:`grove_megatron.model.table`."""

from collections.abc import Iterator, Sequence

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
    return tuple(
        count((weight, share(weight, model, layout)) for weight, _ in stage_weights(model, stage))
        for stage in stages(model, layout)
    )


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
    # Without MTP layers the norm is the output's, with them that of the last layer.
    holds_last = model.num_layers - 1 in stage.layers
    return held(
        model,
        stage.layers,
        embedding=stage.embedding or stage.mtp,
        norm=holds_last if model.mtp_modules else stage.output,
        output=stage.output and not (model.tied_embeddings and stage.embedding),
        mtp=stage.mtp,
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
