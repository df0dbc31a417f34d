"""Which part of a model lies on which pipeline stage.

As Megatron divides it: get_num_layers_to_build (transformer_block.py:70 @ 0.19.2) and, for a
layout in letters, pipeline_parallel_layer_layout.py.
"""

import re
from dataclasses import dataclass
from functools import cache

from ..model.architecture import Model
from .inputs import Layout


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one pipeline rank holds.

    Attributes:
        chunks: numbers of the decoder layers, from 0, of each of its model chunks.
        embedding, output: has it the input embedding, the output layer?
        mtp: has it the MTP layers?
    """

    chunks: tuple[tuple[int, ...], ...]
    embedding: bool
    output: bool
    mtp: bool

    @property
    def layers(self) -> tuple[int, ...]:
        """Of all its chunks."""
        return tuple(layer for chunk in self.chunks for layer in chunk)


def stages(model: Model, layout: Layout) -> tuple[Stage, ...]:
    """One for every pipeline rank.

    Raises:
        ValueError: the layers do not divide as the layout says.
    """
    # What divides layers; the many layouts that divide them alike are asked about often.
    division = Layout(
        pipeline=layout.pipeline,
        world=layout.pipeline,
        virtual=layout.virtual,
        first_layers=layout.first_layers,
        last_layers=layout.last_layers,
        count_embedding=layout.count_embedding,
        count_loss=layout.count_loss,
        custom=layout.custom,
    )
    return _stages(model.num_layers, model.mtp_modules > 0, division)


@cache
def _stages(num_layers: int, has_mtp: bool, layout: Layout) -> tuple[Stage, ...]:
    if layout.custom is not None:
        return _from_letters(layout.custom, num_layers, layout)
    per_chunk = [_chunk_layers(num_layers, layout, rank) for rank in range(layout.pipeline)]
    held: list[list[range]] = [[] for _ in per_chunk]
    layer = 0
    # Chunks are dealt round by round: every stage's first, then every stage's second.
    for chunk in range(layout.virtual):
        for rank, layers in enumerate(per_chunk):
            held[rank].append(range(layer, layer + layers[chunk]))
            layer += layers[chunk]
    if layer != num_layers:
        raise ValueError(
            f"layers of all pipeline stages ({layer}) differ from --num-layers "
            f"({num_layers}); change the layers of the first or last stage"
        )
    last = layout.pipeline - 1
    return tuple(
        Stage(
            chunks=tuple(map(tuple, chunks)),
            embedding=rank == 0,
            output=rank == last,
            mtp=rank == last and has_mtp,
        )
        for rank, chunks in enumerate(held)
    )


def _chunk_layers(num_layers: int, layout: Layout, rank: int) -> list[int]:
    """Decoder layers of every chunk of a stage."""
    first, last = rank == 0, rank == layout.pipeline - 1
    ends = [n for n in (layout.first_layers, layout.last_layers) if n is not None]
    if ends and first and layout.first_layers is not None:
        count = layout.first_layers
    elif ends and last and layout.last_layers is not None:
        count = layout.last_layers
    else:
        places = num_layers - sum(ends) + layout.count_embedding + layout.count_loss
        count = _share(places, layout.pipeline - len(ends), "pipeline stages")
    chunks = [_share(count, layout.virtual, "virtual pipeline stages")] * layout.virtual
    if first and layout.count_embedding:
        chunks[0] -= 1
    if last and layout.count_loss:
        chunks[-1] -= 1
    return chunks


def _share(layers: int, parts: int, name: str) -> int:
    if layers % parts:
        raise ValueError(
            f"layers to divide ({layers}) are not a multiple of {name} ({parts}); change --num-"
            "layers or the pipeline's sizes"
        )
    return layers // parts


def chunks_in_letters(letters: str) -> list[str]:
    """``Ett|(tt|)*2,tm|L``: chunks in the order of layers; E embedding, t layer, m MTP, L loss."""
    return _unroll(letters).split("|")


def _from_letters(letters: str, num_layers: int, layout: Layout) -> tuple[Stage, ...]:
    chunks = chunks_in_letters(letters)
    rounds = _share(len(chunks), layout.pipeline, "pipeline stages")
    if (count := "".join(chunks).count("t")) != num_layers:
        raise ValueError(
            f"--pipeline-model-parallel-layout ({letters}) has {count} layers, which differ from "
            f"--num-layers ({num_layers}); write as many t"
        )
    held: list[list[range]] = [[] for _ in range(layout.pipeline)]
    kinds = [""] * layout.pipeline
    layer = 0
    for index, chunk in enumerate(chunks[: rounds * layout.pipeline]):
        rank = index % layout.pipeline
        held[rank].append(range(layer, layer + chunk.count("t")))
        layer += chunk.count("t")
        kinds[rank] += chunk
    return tuple(
        Stage(
            chunks=tuple(map(tuple, ranges)),
            embedding="E" in kind,
            output="L" in kind,
            mtp="m" in kind,
        )
        for ranges, kind in zip(held, kinds, strict=True)
    )


def _unroll(letters: str) -> str:
    letters = letters.replace(",", "")
    for repeated in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        letters = re.sub(repeated, lambda found: found[1] * int(found[2]), letters)
    return letters
