"""OLMoE: weights are those of the softmax over all experts; SwiGLU experts.

transformers 4.46.3, models/olmoe/modeling_olmoe.py; arXiv 2409.02060.
"""

from ..pieces import behind_a_gate
from ..settings import Settings
from ..system import System

NAMES = ("olmoe",)


def system(settings: Settings) -> System:
    return behind_a_gate(settings, normalised=(False, True))
