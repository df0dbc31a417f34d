"""Parameters: of the whole model, active for a token, and of every rank.

Counted from the weights that Megatron's GPTModel makes (0.19.2: gpt_model.py, attention.py,
mlp.py, moe/router.py, moe/shared_experts.py, multi_token_prediction.py). Buffers, such as the
router's expert bias, are not parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from .inputs import Layout, Model
from .pipeline import Stage, stages


class Part(Enum):
    """Whose weights they are: the three that differ in copies and in use."""

    DENSE = "dense"
    EXPERTS = "experts"
    ADJUGATES = "adjugates"


class Split(Enum):
    """What a weight is divided over."""

    NONE = "no ranks"
    TENSOR = "tensor-parallel ranks"
    EXPERT = "expert-parallel ranks"
    EXPERT_TENSOR = "expert-parallel ranks and their tensor-parallel ranks"


@dataclass(frozen=True)
class Weight:
    """A weight, or as many alike as the model has.

    Attributes:
        name: what it is, for messages.
        numel: elements in the whole model.
        split, part: see there.
        width: the columns or rows that tensor-parallel ranks divide; unused where they do not.
        count: experts or adjugates in it, which expert-parallel ranks divide.
        repeats: is it a copy, kept by a stage, of a weight that another stage has?
    """

    name: str
    numel: int
    split: Split = Split.NONE
    part: Part = Part.DENSE
    width: int = 0
    count: int = 1
    repeats: bool = False


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters by part."""

    dense: int = 0
    experts: int = 0
    adjugates: int = 0

    @property
    def total(self) -> int:
        return self.dense + self.experts + self.adjugates


def total_parameters(model: Model) -> Counts:
    """Of the whole model, every weight once."""
    return _count((weight, weight.numel) for weight in whole_model(model))


def active_parameters(model: Model, groups_per_token: float) -> float:
    """Parameters that a token uses: all but the experts and adjugates it does not meet.

    Embedding and output count whole, as in the model cards of mixture-of-experts models.

    Args:
        groups_per_token: adjugates it uses in a layer: a bound, an expectation, or a measurement.
    """
    counts = total_parameters(model)
    active = float(counts.dense)
    if model.num_experts:
        active += counts.experts * model.topk / model.num_experts
    if model.num_groups:
        active += counts.adjugates * groups_per_token / model.num_groups
    return active


def rank_parameters(model: Model, layout: Layout) -> tuple[Counts, ...]:
    """On a rank of every pipeline stage; all ranks of a stage hold as many.

    Raises:
        ValueError: a weight that the layout divides into unequal parts.
    """
    return tuple(
        _count((weight, share(weight, layout)) for weight in stage_weights(model, stage))
        for stage in stages(model, layout)
    )


def ways(split: Split, layout: Layout) -> int:
    """The number of parts a weight is divided into."""
    expert, tensor = _parts(split, layout)
    return expert * tensor


def _parts(split: Split, layout: Layout) -> tuple[int, int]:
    """Expert-parallel and tensor-parallel ranks."""
    return {
        Split.NONE: (1, 1),
        Split.TENSOR: (1, layout.tensor),
        Split.EXPERT: (layout.expert, 1),
        Split.EXPERT_TENSOR: (layout.expert, layout.expert_tensor),
    }[split]


def share(weight: Weight, layout: Layout) -> int:
    """Elements of ``weight`` on one rank."""
    expert, tensor = _parts(weight.split, layout)
    if weight.count % expert:
        raise ValueError(
            f"number of {weight.name} ({weight.count}) is not a multiple of expert-parallel ranks "
            f"({expert}); change one of them"
        )
    if weight.width % tensor:
        raise ValueError(
            f"width of {weight.name} ({weight.width}) is not a multiple of tensor-parallel ranks "
            f"({tensor}); change one of them"
        )
    return weight.numel // (expert * tensor)


def whole_model(model: Model) -> list[Weight]:
    """Every weight once."""
    everything = Stage(
        chunks=(tuple(range(model.num_layers)),),
        embedding=True,
        output=True,
        mtp=model.mtp_modules > 0,
    )
    return stage_weights(model, everything)


def stage_weights(model: Model, stage: Stage) -> list[Weight]:
    """What a stage holds, as whole weights."""
    weights: list[Weight] = []
    if stage.embedding or stage.mtp:
        weights += _embedding(model, repeats=not stage.embedding)
    for layer in stage.layers:
        weights += _layer(model, model.moe_pattern[layer])
    # Without MTP layers the norm is the output's, with them that of the last layer.
    holds_last = model.num_layers - 1 in stage.layers
    if holds_last if model.mtp_modules else stage.output:
        weights.append(_norm(model, "final norm"))
    if stage.mtp:
        for _ in range(model.mtp_modules):
            weights += _mtp_layer(model)
    if stage.output and not (model.tied_embeddings and stage.embedding):
        output = model.hidden_size * model.padded_vocab_size
        weights.append(
            Weight(
                "output",
                output,
                Split.TENSOR,
                width=model.padded_vocab_size,
                repeats=model.tied_embeddings,
            )
        )
    return weights


def _count(weights: Iterable[tuple[Weight, int]]) -> Counts:
    by_part = dict.fromkeys(Part, 0)
    for weight, numel in weights:
        by_part[weight.part] += numel
    return Counts(
        dense=by_part[Part.DENSE],
        experts=by_part[Part.EXPERTS],
        adjugates=by_part[Part.ADJUGATES],
    )


def _embedding(model: Model, *, repeats: bool) -> list[Weight]:
    words = model.hidden_size * model.padded_vocab_size
    rows = model.padded_vocab_size
    weights = [Weight("embedding", words, Split.TENSOR, width=rows, repeats=repeats)]
    if model.learned_positions:
        positions = model.hidden_size * model.learned_positions
        weights.append(Weight("position embedding", positions, repeats=repeats))
    return weights


def _layer(model: Model, is_moe: bool) -> list[Weight]:
    norms = [_norm(model, "norm before attention"), _norm(model, "norm before the FFN")]
    if not is_moe:
        return [*norms, *_attention(model), *_ffn(model, "dense FFN", model.ffn_hidden_size)]
    return [*norms, *_attention(model), *_moe(model)]


def _norm(model: Model, name: str, size: int | None = None) -> Weight:
    return Weight(name, model.norm_vectors * (model.hidden_size if size is None else size))


def _attention(model: Model) -> list[Weight]:
    hidden, query = model.hidden_size, model.query_size
    qkv = query * (1 + model.attention_output_gate) + 2 * model.key_size
    weights = [
        Weight("QKV", hidden * qkv, Split.TENSOR, width=qkv),
        Weight("attention output", query * hidden, Split.TENSOR, width=query),
    ]
    if model.qk_layernorm:
        weights += [_norm(model, f"{name} norm", model.kv_channels) for name in ("query", "key")]
    if model.softmax_offset:
        heads = model.num_attention_heads
        weights.append(Weight("softmax offset", heads, Split.TENSOR, width=heads))
    if model.linear_bias or model.qkv_bias:
        weights.append(Weight("QKV bias", qkv, Split.TENSOR, width=qkv))
    if model.linear_bias:
        weights.append(Weight("attention output bias", hidden))
    return weights


def _ffn(
    model: Model, name: str, width: int, count: int = 1, part: Part = Part.DENSE
) -> list[Weight]:
    """``count`` FFNs of one width."""
    hidden, up = model.hidden_size, width * (1 + model.gated)
    whole, columns = Split.NONE, Split.TENSOR
    if part is not Part.DENSE:
        whole, columns = Split.EXPERT, Split.EXPERT_TENSOR
    sizes = [(name, hidden * (up + width), columns)]
    if model.linear_bias:
        sizes += [(f"{name} inner bias", up, columns), (f"{name} output bias", hidden, whole)]
    return [
        Weight(of, count * numel, split, part, width=width, count=count)
        for of, numel, split in sizes
    ]


def _moe(model: Model) -> list[Weight]:
    hidden, experts = model.hidden_size, model.num_experts
    weights = [Weight("router", experts * (hidden + model.linear_bias))]
    weights += _ffn(model, "experts", model.moe_ffn_hidden_size, experts, Part.EXPERTS)
    if model.num_groups:
        width = model.adjugate_ffn_hidden_size
        weights += _ffn(model, "adjugates", width, model.num_groups, Part.ADJUGATES)
    if model.shared_expert_size:
        weights += _ffn(model, "shared expert", model.shared_expert_size)
        if model.shared_expert_gate:
            weights.append(Weight("shared expert gate", hidden))
    return weights


def _mtp_layer(model: Model) -> list[Weight]:
    hidden = model.hidden_size
    norms = ("MTP embedding norm", "MTP hidden norm", "MTP final norm")
    return [
        *(_norm(model, name) for name in norms),
        Weight("MTP projection", 2 * hidden * hidden, Split.TENSOR, width=hidden),
        *_layer(model, model.mtp_is_moe),
    ]
