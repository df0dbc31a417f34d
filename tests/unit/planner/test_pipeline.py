"""Stages against Megatron's own division, whose functions take the rank as an argument."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from grove_megatron.model.architecture import Model
from grove_megatron.planner.inputs import Layout
from grove_megatron.planner.pipeline import stages


def model(layers: int, mtp: int = 0) -> Model:
    return Model(
        hidden_size=8,
        head_dim=4,
        num_attention_heads=2,
        num_query_groups=2,
        vocab_size=16,
        moe_layers=(False,) * layers,
        mtp_depths=mtp,
        mtp_modules=mtp,
    )


def megatrons(layers: int, layout: Layout) -> list[tuple[int, ...]]:
    """Layer numbers of every pipeline rank."""
    config: Any = SimpleNamespace(
        num_layers=layers,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        num_layers_in_first_pipeline_stage=layout.first_layers,
        num_layers_in_last_pipeline_stage=layout.last_layers,
        account_for_embedding_in_pipeline_split=layout.count_embedding,
        account_for_loss_in_pipeline_split=layout.count_loss,
        pipeline_model_parallel_layout=None,
    )
    held = []
    for rank in range(layout.pipeline):
        numbers: list[int] = []
        for chunk in range(layout.virtual):
            vp_stage = chunk if layout.virtual > 1 else None
            count = get_num_layers_to_build(config, vp_stage, rank)
            offset = get_transformer_layer_offset(config, vp_stage, rank)
            numbers += range(offset, offset + count)
        held.append(tuple(numbers))
    return held


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, Layout]:
    """Layers and how they are divided, such that they do divide."""
    pipeline, virtual = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    counts = [virtual * draw(st.integers(1, 3))] * pipeline
    uneven = draw(st.booleans())
    first = virtual * draw(st.integers(1, 3)) if uneven and draw(st.booleans()) else None
    last = virtual * draw(st.integers(1, 3)) if uneven and draw(st.booleans()) else None
    counts[0] = first if first is not None else counts[0]
    counts[-1] = last if last is not None else counts[-1]
    embedding, loss = (not uneven and draw(st.booleans()) for _ in range(2))
    layers = sum(counts) - embedding - loss
    assume(layers > 0)
    # Megatron divides by zero there (transformer_layer.py:157 @ 0.19.2).
    assume(not (pipeline == 2 and virtual > 1 and first is not None and last is not None))
    layout = Layout(
        pipeline=pipeline,
        world=pipeline,
        virtual=virtual,
        first_layers=first,
        last_layers=last,
        count_embedding=embedding,
        count_loss=loss,
    )
    return layers, layout


@given(case=layouts())
def test_every_stage_has_megatrons_layers(case):
    layers, layout = case
    planned = stages(model(layers, mtp=1), layout)
    assert [stage.layers for stage in planned] == megatrons(layers, layout)
    ends = [(stage.embedding, stage.mtp, stage.output) for stage in planned]
    inner = [(False, False, False)] * (layout.pipeline - 2)
    assert ends == [(True, False, False), *inner, (False, True, True)]


@pytest.mark.parametrize(
    ("letters", "pipeline"),
    [
        ("Et|tt|t|L", 2),
        ("Ettt|(tt|)*2,t|L", 5),
        ("Et*3|t*2|(t|)*1mL", 4),
        ("E|t|tt|(t|)*3|tmL", 4),
    ],
)
def test_a_layout_in_letters_is_read_as_megatron_reads_it(letters, pipeline):
    theirs = PipelineParallelLayerLayout(letters, pipeline)
    flat = theirs.flatten_layout
    layers, mtp = flat.count(LayerType.decoder), flat.count(LayerType.mtp)
    layout = Layout(pipeline=pipeline, world=pipeline, custom=letters)
    for rank, stage in enumerate(stages(model(layers, mtp), layout)):
        chunks = theirs.layout[rank]
        of_stage = [kind for chunk in chunks for kind in chunk]
        assert len(stage.layers) == of_stage.count(LayerType.decoder)
        assert stage.embedding == (LayerType.embedding in of_stage)
        assert stage.mtp == (LayerType.mtp in of_stage)
        assert stage.output == (LayerType.loss in of_stage)
    numbers = [n for stage in stages(model(layers, mtp), layout) for n in stage.layers]
    assert sorted(numbers) == [*range(layers)]


@pytest.mark.parametrize(
    ("layers", "settings", "message"),
    [
        (5, {}, r"layers to divide \(5\) are not a multiple of pipeline stages \(2\)"),
        (6, {"virtual": 2}, r"\(3\) are not a multiple of virtual pipeline stages \(2\)"),
        (6, {"first_layers": 2, "last_layers": 2}, r"layers of all pipeline stages \(4\) differ"),
        (6, {"custom": "Ett|tL"}, r"layout \(Ett\|tL\) has 3 layers, which differ from"),
        (3, {"custom": "Et|t|tL"}, r"\(3\) are not a multiple of pipeline stages \(2\)"),
    ],
)
def test_layers_that_do_not_divide_are_named(layers, settings, message):
    layout = Layout(pipeline=2, world=2, **settings)
    with pytest.raises(ValueError, match=message):
        stages(model(layers), layout)
