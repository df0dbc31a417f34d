"""What a job will do, in a few lines or as numbers."""

from collections.abc import Iterator
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from ..model.architecture import Model
from ..model.parameters import active_parameters, total_parameters
from ..model.selection import ffn_per_token, ffn_range
from ..model.subsets import trained_parameters
from .fit import fit
from .flops import flops_per_token
from .inputs import Layout, Sizes
from .memory import MARGIN, largest, stage_memory
from .parameters import rank_parameters, rank_trained
from .traffic import distinct_range, groups_per_token, rows_per_token

COLUMNS = 80
_LABEL = 12
# Expert-parallel ranks that are listed one by one.
_LISTED = 4


def plan(sizes: Sizes) -> dict[str, Any]:
    """The numbers behind :func:`plan_lines`, for JSON: counts, bytes of a rank, FLOPs of a token.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    model, layout, training = sizes.model, sizes.layout, sizes.training
    memories = stage_memory(sizes)
    stage = largest(memories)
    groups = groups_per_token(model)
    numbers: dict[str, Any] = {
        "vocabulary_rows": model.vocab_size or None,
        "params_total": total_parameters(model).total,
        "params_active": active_parameters(model, groups),
        "params_rank": [asdict(counts) for counts in rank_parameters(model, layout)],
        "groups_per_token": groups,
        "rows_per_token": rows_per_token(model, layout),
        "stock_rows_per_token": ffn_per_token(model),
        "memory_stage": stage,
        "memory": memories[stage].state,
        "memory_activation_parts": memories[stage].activation_parts,
        "memory_with_margin": memories[stage].with_margin,
        "flops_per_token": flops_per_token(model, training.sequence_length),
        "adjugate_flops_per_token": _adjugate_flops(sizes),
    }
    if chosen := training.train_only:
        numbers["params_trained"] = trained_parameters(model, chosen).total
        numbers["params_rank_trained"] = [
            asdict(counts) for counts in rank_trained(model, layout, chosen)
        ]
    if model.num_groups or model.local_experts:
        few, many = ffn_range(model)
        fewest, most = _fewest_groups(model, few), min(many, model.num_groups)
        numbers["params_active_least"] = active_parameters(model, fewest, few)
        numbers["params_active_most"] = active_parameters(model, most, many)
        numbers["ffn_experts_per_token"] = ffn_per_token(model)
    return numbers


def _fewest_groups(model: Model, experts: int) -> int:
    if not model.num_groups:
        return 0
    return distinct_range(model.num_experts, experts, model.num_groups)[0]


def plan_lines(sizes: Sizes, tokens_of: str = "", gpu_memory: float | None = None) -> list[str]:
    """What a launch will do, to be read: lines of at most 80 columns.

    Args:
        tokens_of: where the number of tokens is from, or why it is not known.
        gpu_memory: GiB of a GPU, to be judged by; None: no verdict.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    numbers = plan(sizes)
    paragraphs = [
        ("model", _model(sizes.model)),
        ("vocabulary", _vocabulary(sizes.model, tokens_of)),
        ("parameters", _parameters(sizes.model)),
        ("active", _active(sizes.model, numbers)),
        ("ranks", _ranks(sizes.layout)),
        *(("EP ranks", text) for text in _placement(sizes.model, sizes.layout)),
        ("rows sent", _rows(sizes, numbers)),
        ("memory", _memory(sizes, numbers)),
        ("verdict", fit(sizes, gpu_memory).verdict if gpu_memory is not None else ""),
        ("FLOPs", _flops(sizes, numbers)),
    ]
    lines: list[str] = []
    before = ""
    for label, text in paragraphs:
        for line in wrap(text, COLUMNS - _LABEL) if text else []:
            lines.append(f"{label if label != before else '':<{_LABEL}}{line}")
            before = label
    return lines


def _model(model: Model) -> str:
    moe, layers = (
        model.count_moe_layers(mtp=model.mtp_modules),
        model.num_layers + model.mtp_modules,
    )
    text = f"{layers} layers"
    if model.mtp_modules:
        text += f", {model.mtp_modules} of them for multi-token prediction"
    if not moe:
        return text
    which = "all" if moe == layers else str(moe)
    text += f", {which} with {model.num_experts} experts"
    if model.local_experts:
        text += f" and {model.local_experts} without an FFN"
    text += f", {model.topk} a token"
    if model.num_groups:
        size = model.num_experts // model.num_groups
        text += f", in {model.num_groups} groups of {size} with an adjugate each"
    return text


def _vocabulary(model: Model, tokens_of: str) -> str:
    if model.vocab_size:
        return f"{model.vocab_size:,} rows: {tokens_of}" if tokens_of else ""
    return (
        f"not known: {tokens_of}. Embedding, output layer and logits are left out of all that "
        "follows; --vocab-size plans with them"
    )


def _parameters(model: Model) -> str:
    counts = total_parameters(model)
    text = f"{counts.total:,}"
    if not model.vocab_size:
        text += " beside embedding and output layer"
    if not counts.experts:
        return text
    text += f": {counts.dense:,} dense, {counts.experts:,} in experts"
    return text + (f", {counts.adjugates:,} in adjugates" if model.num_groups else "")


def _routing(model: Model) -> str:
    return "uniform routing" if model.local_tau == 1 else f"tau {model.local_tau:g}"


def _active(model: Model, numbers: dict[str, Any]) -> str:
    if not (model.num_groups or model.local_experts):
        return f"{numbers['params_active']:,.0f} a token" if model.num_experts else ""
    least, most = numbers["params_active_least"], numbers["params_active_most"]
    met = []
    if model.local_experts:
        met.append(f"{numbers['ffn_experts_per_token']:.3f} experts with an FFN")
    if model.num_groups:
        met.append(f"{numbers['groups_per_token']:.3f} adjugates")
    return (
        f"{least:,.0f} to {most:,.0f} a token; {numbers['params_active']:,.0f} expected, with "
        f"{' and '.join(met)} in a layer ({_routing(model)})"
    )


def _ranks(layout: Layout) -> str:
    text = (
        f"{layout.world} = tensor {layout.tensor} x pipeline {layout.pipeline} x context "
        f"{layout.context} x data {layout.data}"
    )
    expert = (
        f"; experts: tensor {layout.expert_tensor} x pipeline {layout.pipeline} x expert "
        f"{layout.expert} x data {layout.expert_copies}"
    )
    return text + (expert if layout.expert * layout.expert_tensor > 1 else "")


def _placement(model: Model, layout: Layout) -> Iterator[str]:
    """Experts and groups of the expert-parallel ranks, which are contiguous."""
    if not model.num_experts:
        return
    ranks = range(layout.expert)
    shown = [*ranks] if layout.expert <= _LISTED else [0, 1, layout.expert - 1]
    for rank in shown:
        text = f"{rank}: experts {_share(model.num_experts, layout, rank)}"
        if model.num_groups:
            text += f", groups and adjugates {_share(model.num_groups, layout, rank)}"
        yield text
        if len(shown) < layout.expert and rank == 1:
            yield "..."


def _share(count: int, layout: Layout, rank: int) -> str:
    each = count // layout.expert
    first, last = rank * each, (rank + 1) * each - 1
    return str(first) if first == last else f"{first} to {last}"


def _rows(sizes: Sizes, numbers: dict[str, Any]) -> str:
    if not sizes.model.num_experts:
        return ""
    if sizes.layout.all_gather:
        return (
            f"{numbers['rows_per_token']:.0f} a token and layer, one to every rank whether it "
            "needs it or not (Megatron's all-gather)"
        )
    if sizes.layout.row_per_expert:
        return (
            f"{numbers['rows_per_token']:.4g} a token and layer, one for each of its experts "
            "(Megatron's all-to-all)"
        )
    return (
        f"{numbers['rows_per_token']:.3f} a token and layer, one to every rank it needs, its own "
        f"included ({_routing(sizes.model)}); Megatron's all-to-all sends "
        f"{numbers['stock_rows_per_token']:.4g}"
    )


def _memory(sizes: Sizes, numbers: dict[str, Any]) -> str:
    total = numbers["memory_with_margin"]
    unit, size = ("GiB", 2**30) if total >= 2**30 else ("MiB", 2**20)
    stage = numbers["memory_stage"]
    counts = rank_parameters(sizes.model, sizes.layout)[stage]
    where = f" of stage {stage}" if sizes.layout.pipeline > 1 else ""
    if sizes.training.train_only:
        where += f", {sum(numbers['params_rank_trained'][stage].values()):,} of them trained"
    listed = ", ".join(f"{name} {part / size:.2f}" for name, part in numbers["memory"].items())
    return (
        f"{counts.total:,} parameters on a rank{where}; estimated {unit}: {listed}; "
        f"{total / size:.2f} with a margin of {MARGIN:.0%}"
        + ("" if sizes.model.vocab_size else "; embedding and logits are not counted")
    )


def _flops(sizes: Sizes, numbers: dict[str, Any]) -> str:
    total = numbers["flops_per_token"]
    text = (
        f"{total:.4g} a token, forward and backward, in sequences of "
        f"{sizes.training.sequence_length}"
    )
    if not sizes.model.num_groups:
        return text
    return text + f"; {numbers['adjugate_flops_per_token'] / total:.1%} of them in adjugates"


def _adjugate_flops(sizes: Sizes) -> float:
    length = sizes.training.sequence_length
    return flops_per_token(sizes.model, length) - flops_per_token(sizes.model, length, groups=0.0)
