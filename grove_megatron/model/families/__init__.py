"""The model families of Hugging Face that are converted, a file each."""

from dataclasses import replace

from ..architecture import Model
from ..table import EMBEDDING, EXPERT_BIAS, OUTPUT, weights
from ..weights import Weight
from .family import Family
from .grove_moe import GROVE_MOE
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE

FAMILIES = (GROVE_MOE, QWEN3_MOE, QWEN3)


def family_of(model: Model) -> Family:
    """The family that a model belongs to."""
    if model.is_grove:
        return GROVE_MOE
    return QWEN3_MOE if model.num_experts else QWEN3


def named_weights(model: Model) -> list[Weight]:
    """The table of a model, with whole Hugging Face names in every weight.

    Raises:
        ValueError: weights for which the family has no name, all of them.
    """
    family = family_of(model)
    names = dict(family.names)
    if model.tied_embeddings:
        names[OUTPUT.name] = names[EMBEDDING.name]
    named = [
        replace(
            weight,
            hf=tuple(
                f"{family.layer if weight.prefix else ''}{name}"
                for name in weight.hf or names.get(weight.name, ())
            ),
        )
        for weight in weights(model)
    ]
    nameless = [weight.name for weight in named if len(weight.hf) != len(weight.blocks)]
    if nameless:
        raise ValueError(
            f"weights ({', '.join(nameless)}) have no names in the family {family.class_name}; "
            "train without what they belong to, or keep Megatron's format"
        )
    return named


def is_buffer(name: str) -> bool:
    """Is a Hugging Face tensor none that is trained? See :attr:`.weights.Weight.buffer`."""
    return name.endswith(_BUFFERS)


_BUFFERS = tuple(f".{name}" for one in FAMILIES for name in one.names.get(EXPERT_BIAS.name, ()))
