"""Parameter names of Grove MoE, Qwen3-MoE and Qwen3 in Megatron and Hugging Face format, a table.

Hugging Face names are those of the authors' release (github.com/inclusionAI/GroveMoE,
modeling_qwen3_moe.py); Qwen3-MoE shares them, without the ``chunk_experts``. Megatron keys are
those of megatron-core 0.19 checkpoints (compared with a real model's in
tests/multirank/test_entries.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .architecture import Architecture
from .transforms import GateUp, QueryKeyValue, Replicated, Shape, Split, Transform


@dataclass(frozen=True)
class HfTensor:
    """A Hugging Face tensor: its name, and its dimensions as letters of :func:`sizes`."""

    name: str
    dims: str


@dataclass(frozen=True)
class Row:
    """One kind of parameter.

    Args:
        key: its entry in a Megatron checkpoint, ``{layer}`` in place of the layer's number.
        hf: the Hugging Face tensors it is made of; ``{layer}``, ``{expert}``, ``{group}`` count
            over the whole model.
        transform: how.
        layers: which layers have one.
        stack: of what a layer has several, which are then an axis of the entry.
        parameters: names of the module parameter, where they differ from the key.
        also: a second key under which some implementation looks for the same tensor.
        buffer: not a parameter, so no gradient belongs to it.
        saved: False for a copy that checkpoints do not hold.
    """

    key: str
    hf: tuple[HfTensor, ...]
    transform: Transform
    layers: Literal["none", "all", "moe", "dense"] = "none"
    stack: Literal["expert", "group"] | None = None
    parameters: tuple[str, ...] = ()
    also: str | None = None
    buffer: bool = False
    saved: bool = True


def is_buffer(name: str) -> bool:
    """Is a Hugging Face tensor none that is trained? See :attr:`Row.buffer`."""
    return name.endswith(".mlp.expert_bias")


def sizes(architecture: Architecture) -> dict[str, int]:
    """The letters that :class:`HfTensor` uses for dimensions."""
    a = architecture
    return {
        "V": a.vocab_size,
        "H": a.hidden_size,
        "Q": a.num_attention_heads * a.head_dim,
        "K": a.num_query_groups * a.head_dim,
        "D": a.head_dim,
        "E": a.num_experts,
        "F": a.ffn_hidden_size or 0,
        "I": a.moe_ffn_hidden_size,
        "A": a.adjugate_ffn_hidden_size,
    }


MEGATRON_LAYER = "decoder.layers.{layer}"
HF_LAYER = "model.layers.{layer}"
NORM = "pre_mlp_layernorm.weight"


def rows(architecture: Architecture) -> list[Row]:
    """The whole table for one model."""
    attention, hf_attention = f"{MEGATRON_LAYER}.self_attention", f"{HF_LAYER}.self_attn"
    mlp, hf_mlp = f"{MEGATRON_LAYER}.mlp", f"{HF_LAYER}.mlp"
    query_key_value = QueryKeyValue(architecture.num_query_groups)
    table = [
        Row(
            "embedding.word_embeddings.weight",
            (HfTensor("model.embed_tokens.weight", "VH"),),
            Split(0),
        ),
        Row(
            f"{attention}.linear_qkv.layer_norm_weight",
            (HfTensor(f"{HF_LAYER}.input_layernorm.weight", "H"),),
            Replicated(),
            layers="all",
            # The local implementation keeps norms apart, TransformerEngine fuses this one.
            parameters=(f"{MEGATRON_LAYER}.input_layernorm.weight",),
        ),
        Row(
            f"{attention}.linear_qkv.weight",
            (
                HfTensor(f"{hf_attention}.q_proj.weight", "QH"),
                HfTensor(f"{hf_attention}.k_proj.weight", "KH"),
                HfTensor(f"{hf_attention}.v_proj.weight", "KH"),
            ),
            query_key_value,
            layers="all",
        ),
        *(
            Row(
                f"{attention}.{which}_layernorm.weight",
                (HfTensor(f"{hf_attention}.{which}_norm.weight", "D"),),
                Replicated(),
                layers="all",
            )
            for which in "qk"
        ),
        Row(
            f"{attention}.linear_proj.weight",
            (HfTensor(f"{hf_attention}.o_proj.weight", "HQ"),),
            Split(1),
            layers="all",
        ),
        Row(
            f"{mlp}.linear_fc1.layer_norm_weight",
            (HfTensor(f"{HF_LAYER}.post_attention_layernorm.weight", "H"),),
            Replicated(),
            layers="dense",
            # In a model with both kinds of layers, the row of MoE layers has this name.
            parameters=() if architecture.num_experts else (f"{MEGATRON_LAYER}.{NORM}",),
        ),
        *_swiglu(mlp, hf_mlp, "F", layers="dense"),
    ]
    if architecture.num_experts:
        table += _moe_rows(mlp, hf_mlp)
    if architecture.num_groups:
        table += _swiglu(
            f"{mlp}.adjugate_experts", f"{hf_mlp}.chunk_experts.{{group}}", "A", stack="group"
        )
    head = "model.embed_tokens.weight" if architecture.tied_embeddings else "lm_head.weight"
    table += [
        Row(
            "decoder.final_layernorm.weight",
            (HfTensor("model.norm.weight", "H"),),
            Replicated(),
        ),
        Row(
            "output_layer.weight",
            (HfTensor(head, "VH"),),
            Split(0),
            # Tied, it is a copy on the last of several pipeline stages.
            saved=not architecture.tied_embeddings,
        ),
    ]
    return table


def _moe_rows(mlp: str, hf_mlp: str) -> list[Row]:
    return [
        Row(
            f"{MEGATRON_LAYER}.{NORM}",
            (HfTensor(f"{HF_LAYER}.post_attention_layernorm.weight", "H"),),
            Replicated(),
            layers="moe",
            # Megatron's own local layer renames it as if a dense layer followed.
            also=f"{mlp}.linear_fc1.layer_norm_weight",
        ),
        Row(
            f"{mlp}.router.weight",
            (HfTensor(f"{hf_mlp}.gate.weight", "EH"),),
            Replicated(),
            layers="moe",
        ),
        Row(
            f"{mlp}.router.expert_bias",
            (HfTensor(f"{hf_mlp}.expert_bias", "E"),),
            Replicated(),
            layers="moe",
            buffer=True,
        ),
        *_swiglu(f"{mlp}.experts", f"{hf_mlp}.experts.{{expert}}", "I", stack="expert"),
    ]


def _swiglu(
    megatron: str,
    hf: str,
    width: str,
    *,
    layers: Literal["moe", "dense"] = "moe",
    stack: Literal["expert", "group"] | None = None,
) -> list[Row]:
    """A SwiGLU block: linear_fc1 of gate_proj and up_proj, linear_fc2 of down_proj."""
    pieces: dict[str, tuple[tuple[HfTensor, ...], Transform]] = {
        "linear_fc1": (
            (
                HfTensor(f"{hf}.gate_proj.weight", f"{width}H"),
                HfTensor(f"{hf}.up_proj.weight", f"{width}H"),
            ),
            GateUp(),
        ),
        "linear_fc2": ((HfTensor(f"{hf}.down_proj.weight", f"H{width}"),), Split(1)),
    }
    return [
        Row(
            f"{megatron}.experts.{linear}.weight" if stack else f"{megatron}.{linear}.weight",
            tensors,
            transform,
            layers=layers,
            stack=stack,
            parameters=(
                # SequentialMLP; TEGroupedMLP, and GroupedExperts taken apart.
                f"{megatron}.local_experts.{{{stack}}}.{linear}.weight",
                f"{megatron}.{linear}.weight{{{stack}}}",
            )
            if stack
            else (),
        )
        for linear, (tensors, transform) in pieces.items()
    ]


class NameTable:
    """Look up a Megatron module parameter."""

    def __init__(self, table: list[Row]):
        self._rows = [
            (re.compile(_pattern(name)), row)
            for row in table
            for name in (row.key, *row.parameters)
            if not row.buffer
        ]

    def find(self, name: str) -> tuple[tuple[str, ...], Transform]:
        """Hugging Face names and transform of a parameter named with global numbers.

        Raises:
            KeyError: no row, or more than one, has this name.
        """
        found = list(self._matches(name))
        if len(found) != 1:
            raise KeyError(f"{name} has {len(found)} rows in the name table; it needs 1")
        return found[0]

    def _matches(self, name: str) -> Iterator[tuple[tuple[str, ...], Transform]]:
        for pattern, row in self._rows:
            if match := pattern.fullmatch(name):
                yield tuple(t.name.format(**match.groupdict()) for t in row.hf), row.transform


def _pattern(megatron: str) -> str:
    escaped = re.escape(megatron)
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", escaped)


def shape_of(tensor: HfTensor, architecture: Architecture) -> Shape:
    """The tensor's shape in this model."""
    letters = sizes(architecture)
    return tuple(letters[letter] for letter in tensor.dims)
