"""Parameter names of GroveMoE in Megatron and in Hugging Face format, as a table.

Hugging Face names are those of the authors' release (github.com/inclusionAI/GroveMoE,
modeling_qwen3_moe.py); Qwen3-MoE shares them, without the ``chunk_experts``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .transforms import GateUp, QueryKeyValue, Replicated, Split, Transform


@dataclass(frozen=True)
class Row:
    """One kind of parameter.

    Args:
        megatron: local-implementation or TransformerEngine name with ``{layer}``, ``{expert}``,
            ``{group}`` (global numbers) in place of indices.
        hf: the Hugging Face tensors it is made of, with the same fields.
        transform: how.
    """

    megatron: str
    hf: tuple[str, ...]
    transform: Transform


def _mlp(megatron: str, hf: str) -> list[Row]:
    """A SwiGLU block: ``megatron`` has ``{fc}`` for its linears, ``hf`` its projections."""
    return [
        Row(
            megatron.replace("{fc}", "linear_fc1"),
            (f"{hf}.gate_proj.weight", f"{hf}.up_proj.weight"),
            GateUp(),
        ),
        Row(megatron.replace("{fc}", "linear_fc2"), (f"{hf}.down_proj.weight",), Split(1)),
    ]


def rows(num_query_groups: int, tied_embeddings: bool) -> list[Row]:
    """The whole table.

    Args:
        num_query_groups: key/value heads of the model.
        tied_embeddings: the output layer is the input embedding; Megatron has a copy of it on the
            last of several pipeline stages, Hugging Face has none.
    """
    head = "model.embed_tokens.weight" if tied_embeddings else "lm_head.weight"
    mega, hf = "decoder.layers.{layer}", "model.layers.{layer}"
    attention, hf_attention = f"{mega}.self_attention", f"{hf}.self_attn"
    experts = f"{mega}.mlp.experts"
    adjugates = f"{mega}.mlp.adjugate_experts"
    hf_expert, hf_adjugate = f"{hf}.mlp.experts.{{expert}}", f"{hf}.mlp.chunk_experts.{{group}}"
    qkv = tuple(f"{hf_attention}.{p}_proj.weight" for p in "qkv")
    input_norm = (f"{hf}.input_layernorm.weight",)
    mlp_norm = (f"{hf}.post_attention_layernorm.weight",)
    return [
        Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Split(0)),
        Row("decoder.final_layernorm.weight", ("model.norm.weight",), Replicated()),
        Row("output_layer.weight", (head,), Split(0)),
        Row(f"{attention}.linear_qkv.weight", qkv, QueryKeyValue(num_query_groups)),
        Row(f"{attention}.linear_proj.weight", (f"{hf_attention}.o_proj.weight",), Split(1)),
        Row(f"{attention}.q_layernorm.weight", (f"{hf_attention}.q_norm.weight",), Replicated()),
        Row(f"{attention}.k_layernorm.weight", (f"{hf_attention}.k_norm.weight",), Replicated()),
        # The local implementation keeps norms apart, TransformerEngine fuses the first one.
        Row(f"{mega}.input_layernorm.weight", input_norm, Replicated()),
        Row(f"{attention}.linear_qkv.layer_norm_weight", input_norm, Replicated()),
        Row(f"{mega}.pre_mlp_layernorm.weight", mlp_norm, Replicated()),
        Row(f"{mega}.mlp.linear_fc1.layer_norm_weight", mlp_norm, Replicated()),
        Row(f"{mega}.mlp.router.weight", (f"{hf}.mlp.gate.weight",), Replicated()),
        *_mlp(f"{mega}.mlp.{{fc}}.weight", f"{hf}.mlp"),
        # SequentialMLP; TEGroupedMLP, and GroupedExperts taken apart.
        *_mlp(f"{experts}.local_experts.{{expert}}.{{fc}}.weight", hf_expert),
        *_mlp(f"{experts}.{{fc}}.weight{{expert}}", hf_expert),
        *_mlp(f"{adjugates}.local_experts.{{group}}.{{fc}}.weight", hf_adjugate),
        *_mlp(f"{adjugates}.{{fc}}.weight{{group}}", hf_adjugate),
    ]


# Buffers that a checkpoint may hold and the released forward pass does not read.
UNUSED = re.compile(r"model\.layers\.\d+\.mlp\.expert_bias")


class NameTable:
    """Look up a Megatron parameter name."""

    def __init__(self, table: list[Row]):
        self._rows = [(re.compile(_pattern(row.megatron)), row) for row in table]

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
                yield tuple(h.format(**match.groupdict()) for h in row.hf), row.transform


def _pattern(megatron: str) -> str:
    escaped = re.escape(megatron)
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", escaped)
