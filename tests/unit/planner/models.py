"""Models and layouts to plan, and strategies that draw them."""

from typing import Any

from hypothesis import strategies as st

from grove_megatron.model.architecture import Model
from grove_megatron.planner.inputs import Layout, Sizes, Training
from tests.unit.checkpoint.architectures import QWEN3_MOE, RELEASED

GROVE_33B = RELEASED
QWEN3_30B = QWEN3_MOE
"""Its parent, Qwen3-30B-A3B."""


@st.composite
def jobs(draw: st.DrawFn) -> Sizes:
    """A model and a layout that fit each other, 16 ranks at most of each kind."""
    tensor, expert, expert_tensor = (draw(st.sampled_from((1, 2, 4))) for _ in range(3))
    pipeline, virtual = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    virtual = virtual if pipeline > 1 else 1
    layers = pipeline * virtual * draw(st.integers(1, 3))
    groups = expert * draw(st.integers(1, 2))
    experts = groups * draw(st.integers(1, 3))
    mtp = draw(st.integers(0, 2))
    model = Model(
        hidden_size=16,
        head_dim=4,
        num_attention_heads=8,
        num_query_groups=draw(st.sampled_from((4, 8))),
        vocab_size=32,
        moe_layers=tuple(draw(st.lists(st.booleans(), min_size=layers, max_size=layers))),
        ffn_hidden_size=24,
        num_experts=experts,
        moe_ffn_hidden_size=20,
        topk=draw(st.integers(1, experts)),
        num_groups=groups,
        adjugate_ffn_hidden_size=12,
        shared_expert_size=draw(st.sampled_from((0, 28))),
        shared_expert_gate=draw(st.booleans()),
        mtp_depths=mtp,
        mtp_modules=min(mtp, draw(st.sampled_from((1, 2)))),
        gated=draw(st.booleans()),
        norm_bias=draw(st.booleans()),
        qk_layernorm=draw(st.booleans()),
        linear_bias=draw(st.booleans()),
        learned_positions=draw(st.sampled_from((0, 32))),
        tied_embeddings=draw(st.booleans()),
    )
    dense, routed = tensor * pipeline, expert * expert_tensor * pipeline
    layout = Layout(
        tensor=tensor,
        pipeline=pipeline,
        expert=expert,
        expert_tensor=expert_tensor,
        world=dense * routed,
        sequence_parallel=tensor > 1,
        virtual=virtual,
    )
    return Sizes(model=model, layout=layout, training=training())


def training(**settings: Any) -> Training:
    return Training(**({"sequence_length": 64} | settings))
