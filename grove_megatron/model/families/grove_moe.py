"""GroveMoE (github.com/inclusionAI/GroveMoE, modeling_qwen3_moe.py), which adds chunk_experts."""

from .family import Family, swiglu
from .qwen3_moe import QWEN3_MOE

GROVE_MOE = Family(
    "GroveMoeForCausalLM",
    "grove_moe",
    {
        **QWEN3_MOE.names,
        **swiglu("mlp.adjugate_experts.experts", "mlp.chunk_experts.{index}"),
    },
    module=True,
)
