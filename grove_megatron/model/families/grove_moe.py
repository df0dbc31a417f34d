"""GroveMoE (github.com/inclusionAI/GroveMoE, modeling_qwen3_moe.py), which adds chunk_experts."""

from .family import Family, swiglu
from .moe_plus_plus import MOE_PLUS_PLUS
from .qwen2_moe import BIASES, SHARED
from .qwen3_moe import QWEN3_MOE

GROVE_MOE = Family(
    "GroveMoeForCausalLM",
    "grove_moe",
    {
        **QWEN3_MOE.names,
        **swiglu("mlp.adjugate_experts.experts", "mlp.chunk_experts.{index}"),
        # Of upcycled parents; the release has none of them.
        "self_attention.linear_qkv.bias": BIASES,
        **SHARED,
    },
    module=True,
)

# Groups on a MoE++: a model of Megatron's format alone, whose weights need names all the same.
GROVE_MOE_PLUS_PLUS = Family(
    "GroveMoePlusPlus",
    "",
    {
        **MOE_PLUS_PLUS.names,
        "mlp.router.expert_bias": ("mlp.expert_bias",),
        **swiglu("mlp.adjugate_experts.experts", "mlp.chunk_experts.{index}"),
    },
    MOE_PLUS_PLUS.cut,
)
