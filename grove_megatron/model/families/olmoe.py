"""OLMoE (transformers, models/olmoe/modeling_olmoe.py @ 4.46.3): norms over all heads."""

from .family import Family
from .qwen3_moe import ATTENTION, EXPERTS, QK_NORMS

OLMOE = Family("OlmoeForCausalLM", "olmoe", {**ATTENTION, **QK_NORMS, **EXPERTS})
