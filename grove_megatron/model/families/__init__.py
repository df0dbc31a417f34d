"""The model families of Hugging Face that are converted, a file each."""

from dataclasses import fields, replace

from ..architecture import Model
from ..table import EXPERT_BIAS, Table, weights
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


def named_weights(model: Model) -> Table:
    """The table of a model, with whole Hugging Face names in every weight.

    Raises:
        ValueError: weights for which the family has no name, all of them.
    """
    family, table = family_of(model), weights(model)
    nameless: list[str] = []

    def named(weight: Weight, layer: str) -> Weight:
        tied = weight in table.output and model.tied_embeddings
        hf = weight.hf or family.names.get(table.embedding[0].name if tied else weight.name, ())
        if len(hf) != len(weight.blocks):
            nameless.append(weight.name)
        return replace(weight, hf=tuple(f"{layer}{name}" for name in hf))

    result = Table(
        **{
            part.name: tuple(
                named(weight, family.layer if part.name in ("dense", "moe", "mtp") else "")
                for weight in getattr(table, part.name)
            )
            for part in fields(Table)
        }
    )
    if nameless:
        raise ValueError(
            f"weights ({', '.join(dict.fromkeys(nameless))}) have no names in the family "
            f"{family.class_name}; train without what they belong to, or keep Megatron's format"
        )
    return result


def is_buffer(name: str) -> bool:
    """Is a Hugging Face tensor none that is trained? See :attr:`.weights.Weight.buffer`."""
    return name.endswith(_BUFFERS)


_BUFFERS = tuple({f".{name}" for family in FAMILIES for name in family.names.get(EXPERT_BIAS, ())})
