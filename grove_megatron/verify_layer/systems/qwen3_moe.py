"""Qwen3-MoE: softmax over the selected logits, SwiGLU experts, stacked.

transformers 5.23.0, models/qwen3_moe/modeling_qwen3_moe.py; arXiv 2505.09388.
"""

from ..pieces import behind_a_gate, stacked
from ..settings import Settings
from ..system import System

NAMES = ("qwen3_moe",)


def system(settings: Settings) -> System:
    return behind_a_gate(settings, normalised=(True, False), experts=stacked)
