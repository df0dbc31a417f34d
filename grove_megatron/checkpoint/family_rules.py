"""What no model of a family has, of one that would be written as one."""

from collections.abc import Iterator

from ..model.architecture import Architecture
from ..model.families import family_of
from ..model.families.grove_moe import GROVE_MOE, GROVE_MOE_PLUS_PLUS
from ..model.families.mixtral import MIXTRAL
from ..model.families.olmoe import OLMOE
from ..model.families.qwen2_moe import QWEN2_MOE


def has_config(architecture: Architecture) -> bool:
    """Is there a family whose config can say what the model is?"""
    return family_of(architecture) is not GROVE_MOE_PLUS_PLUS


def family_problems(architecture: Architecture) -> list[str]:
    """All of it, a line each, flags spelled as on the command line."""
    return [*_problems(architecture)]


def _problems(a: Architecture) -> Iterator[str]:
    family = family_of(a)
    fix = f"as in every {family.class_name}; train with that"
    rules = {
        f"--add-qkv-bias (True) is not False, {fix}": (
            a.qkv_bias and family not in (QWEN2_MOE, GROVE_MOE)
        ),
        f"--qk-layernorm (True) is not False, {fix}": a.qk_layernorm and family is QWEN2_MOE,
        f"--moe-router-pre-softmax (True) is not False, {fix}": (
            family is MIXTRAL and not a.normalized_topk
        ),
        f"--moe-layer-freq leaves layers without experts, not {fix}": (
            family in (MIXTRAL, OLMOE) and not all(a.moe_layers)
        ),
        f"--moe-shared-expert-gate (False) is not True, {fix}": (
            a.shared_expert_size and not a.shared_expert_gate
        ),
    }
    yield from (line for line, is_so in rules.items() if is_so)
