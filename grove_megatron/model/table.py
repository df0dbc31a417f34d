"""Every weight of a model, as Megatron's GPTModel has them.

Compared with models that Megatron 0.19.2 builds: the entries of their checkpoints in
tests/multirank/test_entries.py, names and sizes of their parameters in
tests/multirank/test_planned_parameters.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from .architecture import LatentAttention, Model
from .weights import DECODER_LAYER, MTP_LAYER, Place, Split, Weight

EMBEDDING = Weight("embedding.word_embeddings.weight", ("VH",), Split.ROWS, place="embedding")
POSITIONS = Weight("embedding.position_embeddings.weight", ("PH",), place="embedding")
# Tied, it is a copy that only the last of several pipeline stages has, and no checkpoint.
OUTPUT = Weight("output_layer.weight", ("VH",), Split.ROWS, place="output")
EXPERT_BIAS = Weight("mlp.router.expert_bias", ("R",), buffer=True)

# Parts of a router that has no matrix of Megatron's.
_WITHOUT_MATRIX = ("mlp.router.gate_", "mlp.router.selector_hash.")


def weights(model: Model) -> list[Weight]:
    """Every kind of weight once."""
    return [
        EMBEDDING,
        *([POSITIONS] if model.learned_positions else []),
        *(_attention(model) if model.latent is None else _latent_attention(model, model.latent)),
        *(() if all(model.moe_layers) else _dense(model)),
        *(_moe(model) if any(model.moe_layers) else ()),
        *model.part_weights,
        *_norm(model, "norm", "decoder.final_layernorm."),
        OUTPUT,
        *(_mtp(model) if model.mtp_modules else ()),
    ]


def of_layer(kinds: Iterable[Weight], is_moe: bool) -> list[Weight]:
    """Those of a decoder layer with experts, or of one without."""
    return [weight for weight in kinds if weight.place in ("layer", "moe" if is_moe else "dense")]


def held(
    model: Model, layers: Iterable[int], *, embedding: bool, norm: bool, output: bool, mtp: bool
) -> list[tuple[Weight, str]]:
    """The weights of a part of the model, a kind as often as the part has it.

    With each what goes before its name, the number of its layer in the whole model filled in.

    Args:
        layers: numbers of its decoder layers, from 0.
        embedding, norm, output, mtp: has it these?
    """
    kinds = weights(model)
    has = {"embedding": embedding, "norm": norm, "output": output}
    found = [(weight, "") for weight in kinds if has.get(weight.place)]
    for layer in layers:
        prefix = DECODER_LAYER.format(layer=layer)
        found += [(weight, prefix) for weight in of_layer(kinds, model.moe_layers[layer])]
    for layer in range(model.mtp_modules if mtp else 0):
        prefix = MTP_LAYER.format(layer=layer)
        found += [(weight, prefix) for weight in kinds if weight.place == "mtp"]
        inside = f"{prefix}mtp_model_layer."
        found += [(weight, inside) for weight in of_layer(kinds, model.mtp_is_moe)]
    return found


def _norm(
    model: Model, place: Place, name: str, size: str = "H", module: str = ""
) -> Iterator[Weight]:
    for kind in ("weight", "bias") if model.norm_bias else ("weight",):
        modules = (f"{module}{kind}",) if module else ()
        yield Weight(f"{name}{kind}", (size,), place=place, modules=modules)


def _attention(model: Model) -> Iterator[Weight]:
    name = "self_attention."
    # The local implementation keeps norms apart, TransformerEngine fuses this one.
    yield from _norm(model, "layer", f"{name}linear_qkv.layer_norm_", module="input_layernorm.")
    blocks = ("Q", "Q", "K", "K") if model.attention_output_gate else ("Q", "K", "K")
    whole = tuple(f"{block}H" for block in blocks)
    yield Weight(f"{name}linear_qkv.weight", whole, Split.QKV, place="layer")
    if model.linear_bias or model.qkv_bias:
        yield Weight(f"{name}linear_qkv.bias", blocks, Split.QKV, place="layer")
    if model.qk_layernorm:
        sizes = ("Q", "K") if model.whole_qk_norm else ("D", "D")
        for what, size in zip("qk", sizes, strict=True):
            yield from _norm(model, "layer", f"{name}{what}_layernorm.", size)
    yield from _core_and_output(model, "HQ")


def _latent_attention(model: Model, latent: LatentAttention) -> Iterator[Weight]:
    """As multi_latent_attention.py:465 @ 0.19.2 builds it; its projections have no biases."""
    name = "self_attention."
    yield from _norm(model, "layer", "input_layernorm.")
    down = Split.WHOLE if latent.whole_compression else Split.ROWS
    if latent.q_lora_rank is None:
        if model.qk_layernorm:
            # Which TransformerEngine fuses (mla_qk_norm_config.py:133 @ 0.19.2).
            yield from _norm(model, "layer", f"{name}linear_q_proj.layer_norm_")
        yield Weight(f"{name}linear_q_proj.weight", ("QH",), Split.ROWS, place="layer")
    else:
        yield Weight(f"{name}linear_q_down_proj.weight", ("XH",), down, place="layer")
        yield from _compressed(model, "q", "X", "QX")
    yield Weight(f"{name}linear_kv_down_proj.weight", ("LH", "MH"), down, place="layer")
    yield from _compressed(model, "kv", "L", "ZL")
    yield from _core_and_output(model, "HO")


def _compressed(model: Model, what: str, rank: str, up: str) -> Iterator[Weight]:
    """A norm of what is compressed, which TransformerEngine fuses too, and what expands it."""
    name = "self_attention."
    if model.qk_layernorm:
        apart = f"{name}{what}_layernorm."
        fused = f"{name}linear_{what}_up_proj.layer_norm_"
        yield from _norm(model, "layer", fused, rank, module=apart)
    yield Weight(f"{name}linear_{what}_up_proj.weight", (up,), Split.ROWS, place="layer")


def _core_and_output(model: Model, output: str) -> Iterator[Weight]:
    name = "self_attention."
    if model.softmax_offset:
        offset = f"{name}core_attention.softmax_offset"
        yield Weight(offset, ("N",), Split.ROWS, place="layer")
    yield Weight(f"{name}linear_proj.weight", (output,), Split.COLUMNS, place="layer")
    if model.linear_bias:
        yield Weight(f"{name}linear_proj.bias", ("H",), place="layer")


def _dense(model: Model) -> Iterator[Weight]:
    yield from _norm(model, "dense", "mlp.linear_fc1.layer_norm_", module="pre_mlp_layernorm.")
    yield from _ffn(model, "dense", "mlp.", "F")


def _moe(model: Model) -> Iterator[Weight]:
    for norm in _norm(model, "moe", "pre_mlp_layernorm."):
        # Megatron's own local layer renames it as if a dense layer followed.
        also = norm.name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        # A Grove layer looks for the first name alone.
        yield norm if model.is_grove else replace(norm, also=also)
    if not any(part.name.startswith(_WITHOUT_MATRIX) for part in model.part_weights):
        yield Weight("mlp.router.weight", ("RH",))
        if model.linear_bias:
            yield Weight("mlp.router.bias", ("R",))
    if model.expert_bias:
        yield EXPERT_BIAS
    yield from _ffn(model, "moe", "mlp.experts.", "I", "E")
    if model.num_groups:
        yield from _ffn(model, "moe", "mlp.adjugate_experts.", "A", "G")
    if model.shared_expert_size:
        yield from _ffn(model, "moe", "mlp.shared_experts.", "S")
        if model.shared_expert_gate:
            yield Weight("mlp.shared_experts.gate_weight", ("1H",))


def _mtp(model: Model) -> Iterator[Weight]:
    """Of an MTP layer, beside those of a decoder layer."""
    for norm in ("enorm.", "hnorm.", "final_layernorm."):
        yield from _norm(model, "mtp", norm)
    yield Weight("eh_proj.weight", ("HJ",), Split.ROWS, place="mtp")


def _ffn(
    model: Model, place: Place, name: str, width: str, stack: Literal["E", "G"] | None = None
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
        # SequentialMLP; TEGroupedMLP, and GroupedExperts taken apart.
        modules = (f"{name}local_experts.{{index}}.{of}", f"{name}{of}{{index}}")
        yield Weight(
            f"{name}experts.{of}" if stack else f"{name}{of}",
            blocks,
            divided,
            place=place,
            stack=stack,
            modules=modules if stack else (),
        )
