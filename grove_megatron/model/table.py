"""Every weight of a model, as Megatron's GPTModel has them.

Compared with models that Megatron 0.19.2 builds: the entries of their checkpoints in
tests/multirank/test_entries.py, names and sizes of their parameters in
tests/multirank/test_planned_parameters.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from .architecture import Model
from .weights import Split, Weight

DECODER_LAYER = "decoder.layers.{layer}."
MTP_LAYER = "mtp.layers.{layer}."
# Where an MTP layer has a decoder layer: its module; a checkpoint says transformer_layer.
MTP_DECODER_LAYER = f"{MTP_LAYER}mtp_model_layer."

EXPERT_BIAS = "mlp.router.expert_bias"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The kinds of weights by where they are.

    Attributes:
        embedding, norm, output: of the model, once. Tied, the output layer is a copy of the
            embedding, which only the last of several pipeline stages has, and no checkpoint.
        dense, moe: of a layer without experts, and of one with.
        mtp: of an MTP layer, beside those of a decoder layer.
    """

    embedding: tuple[Weight, ...]
    dense: tuple[Weight, ...]
    moe: tuple[Weight, ...]
    norm: tuple[Weight, ...]
    output: tuple[Weight, ...]
    mtp: tuple[Weight, ...]

    def layer(self, is_moe: bool) -> tuple[Weight, ...]:
        return self.moe if is_moe else self.dense

    @property
    def kinds(self) -> Iterator[tuple[str, Weight]]:
        """Every kind once, MTP layers aside, and what goes before its name."""
        for weight in (*self.embedding, *self.norm, *self.output):
            yield "", weight
        for weight in dict.fromkeys((*self.dense, *self.moe)):
            yield DECODER_LAYER, weight


def weights(model: Model) -> Table:
    """The table of one model."""
    layer = (
        # The local implementation keeps norms apart, TransformerEngine fuses this one.
        *_norm(
            model,
            "self_attention.linear_qkv.layer_norm_",
            module="input_layernorm.",
        ),
        *_attention(model),
    )
    positions = (Weight("embedding.position_embeddings.weight", ("PH",)),)
    return Table(
        embedding=(
            Weight("embedding.word_embeddings.weight", ("VH",), Split.ROWS),
            *(positions if model.learned_positions else ()),
        ),
        dense=() if all(model.moe_layers) else (*layer, *_dense(model)),
        moe=(*layer, *_moe(model)) if any(model.moe_layers) else (),
        norm=_norm(model, "decoder.final_layernorm."),
        output=(Weight("output_layer.weight", ("VH",), Split.ROWS),),
        mtp=tuple(_mtp(model)) if model.mtp_modules else (),
    )


def held(
    model: Model, layers: Iterable[int], *, embedding: bool, norm: bool, output: bool, mtp: bool
) -> list[Weight]:
    """The weights of a part of the model, a kind as often as the part has it.

    Args:
        layers: numbers of its decoder layers, from 0.
        embedding, norm, output, mtp: has it these?
    """
    table = weights(model)
    found = [*table.embedding] if embedding else []
    for layer in layers:
        found += table.layer(model.moe_layers[layer])
    if norm:
        found += table.norm
    if mtp:
        found += (*table.mtp, *table.layer(model.mtp_is_moe)) * model.mtp_modules
    if output:
        found += table.output
    return found


def _norm(model: Model, name: str, size: str = "H", module: str = "") -> tuple[Weight, ...]:
    return tuple(
        Weight(f"{name}{kind}", (size,), modules=(f"{module}{kind}",) if module else ())
        for kind in (("weight", "bias") if model.norm_bias else ("weight",))
    )


def _attention(model: Model) -> Iterator[Weight]:
    name = "self_attention."
    blocks = ("Q", "Q", "K", "K") if model.attention_output_gate else ("Q", "K", "K")
    yield Weight(f"{name}linear_qkv.weight", tuple(f"{b}H" for b in blocks), Split.QKV)
    if model.linear_bias or model.qkv_bias:
        yield Weight(f"{name}linear_qkv.bias", blocks, Split.QKV)
    if model.qk_layernorm:
        yield from _norm(model, f"{name}q_layernorm.", "D")
        yield from _norm(model, f"{name}k_layernorm.", "D")
    if model.softmax_offset:
        yield Weight(f"{name}core_attention.softmax_offset", ("N",), Split.ROWS)
    yield Weight(f"{name}linear_proj.weight", ("HQ",), Split.COLUMNS)
    if model.linear_bias:
        yield Weight(f"{name}linear_proj.bias", ("H",))


def _dense(model: Model) -> Iterator[Weight]:
    yield from _norm(model, "mlp.linear_fc1.layer_norm_", module="pre_mlp_layernorm.")
    yield from _ffn(model, "mlp.", "F")


def _moe(model: Model) -> Iterator[Weight]:
    for norm in _norm(model, "pre_mlp_layernorm."):
        # Megatron's own local layer renames it as if a dense layer followed.
        also = norm.name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        # A Grove layer looks for the first name alone.
        yield norm if model.is_grove else Weight(norm.name, norm.blocks, also=also)
    yield Weight("mlp.router.weight", ("EH",))
    if model.linear_bias:
        yield Weight("mlp.router.bias", ("E",))
    if model.expert_bias:
        yield Weight(EXPERT_BIAS, ("E",), buffer=True)
    yield from model.part_weights
    yield from _ffn(model, "mlp.experts.", "I", "E")
    if model.num_groups:
        yield from _ffn(model, "mlp.adjugate_experts.", "A", "G")
    if model.shared_expert_size:
        yield from _ffn(model, "mlp.shared_experts.", "S")
        if model.shared_expert_gate:
            yield Weight("mlp.shared_experts.gate_weight", ("1H",))


def _mtp(model: Model) -> Iterator[Weight]:
    for norm in ("enorm.", "hnorm.", "final_layernorm."):
        yield from _norm(model, norm)
    yield Weight("eh_proj.weight", ("HJ",), Split.ROWS)


def _ffn(
    model: Model, name: str, width: str, stack: Literal["E", "G"] | None = None
) -> Iterator[Weight]:
    """Gate and up as linear_fc1, or up alone, and down as linear_fc2; of one FFN, or of a stack."""
    first, split = ((width, width), Split.GATED) if model.gated else ((width,), Split.ROWS)
    rows = [
        ("linear_fc1.weight", tuple(f"{block}H" for block in first), split),
        ("linear_fc2.weight", (f"H{width}",), Split.COLUMNS),
    ]
    if model.linear_bias:
        rows += [("linear_fc1.bias", first, split), ("linear_fc2.bias", ("H",), Split.WHOLE)]
    for of, blocks, divided in rows:
        if stack is None:
            yield Weight(f"{name}{of}", blocks, divided)
        else:
            # SequentialMLP; TEGroupedMLP, and GroupedExperts taken apart.
            modules = (f"{name}local_experts.{{index}}.{of}", f"{name}{of}{{index}}")
            entry = f"{name}experts.{of}"
            yield Weight(entry, blocks, divided, stack=stack, modules=modules)
