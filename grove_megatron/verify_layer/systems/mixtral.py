"""Mixtral: softmax over the selected logits, SwiGLU experts.

transformers 4.46.3, models/mixtral/modeling_mixtral.py; arXiv 2401.04088.
"""

from functools import partial

from ..pieces import behind_a_gate, separate
from ..settings import Settings
from ..system import System

NAMES = ("mixtral",)


def system(settings: Settings) -> System:
    experts = partial(separate, names=("w1", "w3", "w2"))
    return behind_a_gate(settings, normalised=(True,), experts=experts)
