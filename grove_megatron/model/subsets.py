"""Which weights of a model a choice of names or regular expressions is about."""

import re
from collections.abc import Sequence

from .architecture import Model
from .parameters import Counts, count, whole_model
from .table import EMBEDDING, OUTPUT
from .weights import Weight

# In Megatron's names, with numbers of the whole model.
# TransformerEngine keeps a norm inside the matrix that follows it.
SUBSETS = {
    "adjugates": r"\.adjugate_experts\.",
    "experts": r"\.mlp\.experts\.",
    "router": r"\.mlp\.router\.(?!local_)",
    "local": r"\.mlp\.router\.local_",
    "shared": r"\.shared_experts\.",
    "dense": r"\.mlp\.linear_fc[12]\.(?!layer_norm_)",
    "attention": r"\.self_attention\.(?!.*layer_?norm)",
    "norms": r"(layernorm|layer_norm_|\.[eh]norm\.)",
    "embedding": r"(^|\.)(embedding|output_layer)\.",
    "mtp": r"(^|\.)mtp\.",
}
"""Names of parts of a model, and what finds their weights."""

TIED = (EMBEDDING.name, OUTPUT.name)
"""Two names of one weight where embeddings are tied: it is chosen by either."""


def selected(name: str, chosen: Sequence[str]) -> bool:
    """Is a weight among the chosen: names of :data:`SUBSETS`, or regular expressions?"""
    return any(re.search(SUBSETS.get(one, one), name) for one in chosen)


def are_trained(weight: Weight, prefix: str, model: Model, chosen: Sequence[str]) -> list[bool]:
    """Is it chosen: of every expert or group in a weight, or of the one it is?

    Args:
        prefix: what goes before the name, as :func:`.table.held` has it.
    """
    names = names_of(weight, prefix, model)
    return [any(selected(name, chosen) for name in of_one) for of_one in names]


def trained_parameters(model: Model, chosen: Sequence[str]) -> Counts:
    """Of the whole model, every weight once."""
    sizes = model.sizes
    trained = ((w, are_trained(w, prefix, model, chosen)) for w, prefix in whole_model(model))
    return count((w, w.numel(sizes) // len(flags) * sum(flags)) for w, flags in trained)


def names_of(weight: Weight, prefix: str, model: Model) -> list[set[str]]:
    """Of every expert or group in a weight, or of the one it is: names in all implementations."""
    names = {weight.name, *weight.module_names}
    if model.tied_embeddings and weight.name in TIED:
        names.update(TIED)
    return [
        {prefix + name.replace("{index}", str(index)) for name in names}
        for index in range(weight.count(model.sizes))
    ]
