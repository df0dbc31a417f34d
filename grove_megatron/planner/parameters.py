"""Parameters of every rank, from the weights of :mod:`grove_megatron.model.table`."""

from ..model.architecture import Model
from ..model.parameters import Counts, count
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
        count((weight, share(weight, model, layout)) for weight in stage_weights(model, stage))
        for stage in stages(model, layout)
    )


def stage_weights(model: Model, stage: Stage) -> list[Weight]:
    """What a stage holds, a kind of weight as often as it does, whole."""
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
