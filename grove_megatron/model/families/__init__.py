"""The model families of Hugging Face that are converted, a file each."""

from dataclasses import replace

from ..architecture import Model
from ..table import EMBEDDING, EXPERT_BIAS, OUTPUT, weights
from ..weights import Weight
from .family import Family
from .grove_moe import GROVE_MOE, GROVE_MOE_PLUS_PLUS
from .mixtral import MIXTRAL
from .moe_plus_plus import MOE_PLUS_PLUS
from .olmoe import OLMOE
from .qwen2_moe import QWEN2_MOE
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE

FAMILIES = (GROVE_MOE, QWEN3_MOE, QWEN3, QWEN2_MOE, MIXTRAL, OLMOE, MOE_PLUS_PLUS)


def family_of(model: Model) -> Family:
    """The family that a model belongs to."""
    if model.is_grove:
        return GROVE_MOE_PLUS_PLUS if model.local_experts else GROVE_MOE
    if model.local_experts:
        return MOE_PLUS_PLUS
    if not model.num_experts:
        return QWEN3
    if model.shared_expert_size:
        return QWEN2_MOE
    if model.whole_qk_norm:
        return OLMOE
    return QWEN3_MOE if model.qk_layernorm else MIXTRAL


def named_weights(model: Model) -> list[Weight]:
    """The table of a model, with whole Hugging Face names in every weight.

    Raises:
        ValueError: weights for which the family has no name, all of them.
    """
    family = family_of(model)
    names = dict(family.names)
    if model.tied_embeddings:
        names[OUTPUT.name] = names[EMBEDDING.name]
    named = [_with_names(weight, names, family, model) for weight in weights(model)]
    nameless = [w.name for w in named if len(w.hf) != len(w.hf_blocks or w.blocks)]
    if nameless:
        raise ValueError(
            f"weights ({', '.join(nameless)}) have no names in the family {family.class_name}; "
            "train without what they belong to, or keep Megatron's format"
        )
    return named


def _with_names(
    weight: Weight, names: dict[str, tuple[str, ...]], family: Family, model: Model
) -> Weight:
    given = weight.hf or names.get(weight.name, ())
    place = family.layer if weight.prefix else ""
    found = tuple(f"{place}{one}" for name in given for one in _of_constants(name, model))
    cut = family.cut.get(weight.name)
    return replace(weight, hf=found, hf_blocks=(cut,) * len(found) if cut else ())


def _of_constants(name: str, model: Model) -> list[str]:
    """The name in every constant expert, which the routed experts come before."""
    if "{constant}" not in name:
        return [name]
    numbers = range(model.num_experts, model.num_experts + model.constant_experts)
    return [name.replace("{constant}", str(number)) for number in numbers]


def is_buffer(name: str) -> bool:
    """Is a Hugging Face tensor none that is trained? See ``Weight.buffer``."""
    return name.endswith(_BUFFERS)


_BUFFERS = tuple(f".{name}" for one in FAMILIES for name in one.names.get(EXPERT_BIAS.name, ()))
