"""Which Megatron parameter is which Hugging Face tensors, in the patterns of Megatron-Bridge.

The names are those of :mod:`grove_megatron.model`; ``*`` stands for a number, as in
megatron/bridge/models/conversion/mapping_registry.py @ 0.6.2.

What Megatron-Bridge knows of experts it reads off their names: whether a parameter is one, how
many there are, and which number to replace in a Hugging Face name. All three are wrong for
adjugates, of which there are as many as groups, so this is done here, without Megatron-Bridge.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ..model.architecture import Model
from ..model.families import named_weights
from ..model.weights import Split

Kind = Literal["auto", "replicated", "qkv", "gated"]

ADJUGATES = ".adjugate_experts."
_GROUP = re.compile(r"(?<=\.chunk_experts\.)\d+(?=\.)")
_LAYER = re.compile(r"layers\.(\d+)")

_KIND: dict[Split, Kind] = {
    Split.WHOLE: "replicated",
    Split.GATED: "gated",
    Split.QKV: "qkv",
}

# Of every kind of layer one: which weights there are does not depend on sizes.
_ANY_GROVE_MODEL = Model(
    hidden_size=1,
    num_attention_heads=1,
    num_query_groups=1,
    head_dim=1,
    vocab_size=1,
    # Tied or not: Megatron-Bridge leaves the row of the output layer out where it is.
    tied_embeddings=False,
    qk_layernorm=True,
    moe_layers=(False, True),
    ffn_hidden_size=1,
    num_experts=1,
    moe_ffn_hidden_size=1,
    topk=1,
    num_groups=1,
    adjugate_ffn_hidden_size=1,
    expert_bias=True,
)


@dataclass(frozen=True)
class BridgeRow:
    """One Megatron parameter or buffer, and what it is made of.

    Args:
        megatron: pattern of its name in the model.
        hf: patterns of the Hugging Face tensors; for ``qkv`` and ``gated`` in that order.
        kind: how they become it. ``auto``: split as the module is, column- or row-parallel.
        of_adjugates: its number counts groups, not experts.
    """

    megatron: str
    hf: tuple[str, ...]
    kind: Kind
    of_adjugates: bool

    def hf_names(self, name: str) -> tuple[str, ...] | None:
        """The tensors of the parameter ``name``, numbers as they stand; None if it is no match."""
        match = re.fullmatch(re.escape(self.megatron).replace(r"\*", r"(\d+)"), name)
        if match is None:
            return None
        return tuple(_filled(pattern, match.groups()) for pattern in self.hf)


def _filled(pattern: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


@cache
def table() -> tuple[BridgeRow, ...]:
    """Every parameter and buffer of a Grove model, with local modules and TransformerEngine's.

    Experts are one matrix each. The stacked ones of ``--grove-kernel grouped`` and ``triton`` have
    no row: Megatron-Bridge's adapters and quantizers know experts one by one alone.
    """
    rows = (
        BridgeRow(
            megatron=_pattern(weight.prefix + name),
            hf=tuple(map(_pattern, weight.hf)),
            kind=_KIND.get(weight.split, "auto"),
            of_adjugates=weight.stack == "G",
        )
        for weight in named_weights(_ANY_GROVE_MODEL)
        for name in weight.module_names
    )
    # A norm of a dense layer and of one with experts may have the same name.
    return tuple(dict.fromkeys(rows))


def _pattern(name: str) -> str:
    return re.sub(r"\{\w+\}", "*", name)


def without_row(names: Iterable[str]) -> list[str]:
    """Those of the parameters that are in no row."""
    return [name for name in names if all(row.hf_names(name) is None for row in table())]


# ------------------------------------------------------------------------------ groups and EP ranks


def groups_per_rank(num_groups: int, ep_size: int) -> int:
    """Adjugates of one expert-parallel rank.

    Raises:
        ValueError: the size does not divide.
    """
    if num_groups % ep_size:
        raise ValueError(
            f"expert_model_parallel_size ({ep_size}) does not divide grove_num_groups "
            f"({num_groups}); use a size that does"
        )
    return num_groups // ep_size


def global_group_index(local: int, *, ep_rank: int, ep_size: int, num_groups: int) -> int:
    """Number over the whole model of a rank's adjugate number ``local``.

    Raises:
        ValueError: the rank has no such adjugate.
    """
    count = groups_per_rank(num_groups, ep_size)
    if not 0 <= local < count:
        raise ValueError(
            f"adjugate ({local}) is not one of the {count} of a rank with grove_num_groups "
            f"({num_groups}) and expert_model_parallel_size ({ep_size}); name it with its number "
            "on its rank"
        )
    return ep_rank * count + local


def globally(
    numbers: tuple[str, ...], *, ep_rank: int, ep_size: int, num_groups: int | None
) -> tuple[str, ...]:
    """The numbers in an adjugate's name, layer and adjugate, with the latter over the whole model.

    Raises:
        ValueError: see :func:`global_group_index`; or there are several ranks, and the number of
            groups is not known.
    """
    if ep_size == 1:
        return numbers
    if num_groups is None:
        raise ValueError(
            f"num_groups (None) must be known with expert_model_parallel_size ({ep_size}); give "
            "the bridge a Hugging Face config"
        )
    layer, local = numbers
    index = global_group_index(int(local), ep_rank=ep_rank, ep_size=ep_size, num_groups=num_groups)
    return layer, str(index)


def names_on_ranks(hf_name: str, *, ep_size: int, num_groups: int) -> list[str]:
    """Tensors in the place of ``hf_name`` on every expert-parallel rank, in the order of ranks.

    Raises:
        ValueError: the name is not that of an adjugate's tensor.
    """
    match = _GROUP.search(hf_name)
    if match is None:
        raise ValueError(f"{hf_name} has no number after chunk_experts; name an adjugate's tensor")
    count = groups_per_rank(num_groups, ep_size)
    local = int(match[0]) % count
    start, end = match.span()
    return [f"{hf_name[:start]}{rank * count + local}{hf_name[end:]}" for rank in range(ep_size)]


def in_common_order(names: Iterable[str]) -> list[str]:
    """Parameters in an order that means the same on every expert-parallel rank.

    Megatron-Bridge works its list off in order, with an all-gather over these ranks for each expert
    (stream_weights_megatron_to_hf, model_bridge.py @ 0.6.2). Its own order within a layer is by the
    number of the expert (extract_sort_key, utils.py @ 0.6.2), and a rank's experts and adjugates
    start at different numbers: experts 64 and up beside adjugates 0 and up. One rank would gather
    an expert while another gathers an adjugate. So adjugates come last in their layer; there they
    have the same numbers on every rank.

    Args:
        names: in the order of Megatron-Bridge, experts numbered over the whole model, adjugates on
            their rank.
    """
    return sorted(names, key=lambda name: (_layer(name), ADJUGATES in name))


def _layer(name: str) -> int:
    match = _LAYER.search(name)
    return int(match[1]) if match else -1
