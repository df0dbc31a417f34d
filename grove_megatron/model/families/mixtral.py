"""Mixtral (Hugging Face transformers, models/mixtral/modeling_mixtral.py @ 4.46.3)."""

from .family import Family
from .qwen3_moe import ATTENTION

_EXPERT = "block_sparse_moe.experts.{index}."

MIXTRAL = Family(
    "MixtralForCausalLM",
    "mixtral",
    {
        **ATTENTION,
        "mlp.router.weight": ("block_sparse_moe.gate.weight",),
        "mlp.experts.experts.linear_fc1.weight": (f"{_EXPERT}w1.weight", f"{_EXPERT}w3.weight"),
        "mlp.experts.experts.linear_fc2.weight": (f"{_EXPERT}w2.weight",),
    },
    aliases=(
        (r"(.*)\.mlp\.gate\.weight", r"\1.block_sparse_moe.gate.weight"),
        *(
            (
                rf"(.*)\.mlp\.experts\.(\d+)\.{held}\.weight",
                rf"\1.block_sparse_moe.experts.\2.{in_files}.weight",
            )
            for held, in_files in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3"))
        ),
    ),
)
