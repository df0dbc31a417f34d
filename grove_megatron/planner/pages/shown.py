"""Plans to be read: a table and what goes around it, and the same as numbers."""

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...checks.problem import Problem
from ...model.selection import ffn_per_token, ffn_range
from ..choice.layouts import Planned, Plans
from ..choice.remedies import Remedy
from ..inputs import Layout
from ..memory import MARGIN
from ..report import plan
from ..speed.cluster import GIB, Cluster
from ..traffic import distinct_range, groups_per_token
from .assumed import Assumed
from .front import Asked
from .planned import Comparison

_COLUMNS = 120
_REASONS = 8


def show(
    asked: Asked,
    cluster: Cluster,
    plans: Plans,
    changes: Sequence[Remedy],
    *,
    top: int | None,
    stream: IO[str],
) -> None:
    """Print everything.

    Args:
        changes: that would make something fit, where nothing does.
        top: layouts to list; None: all, and all that is refused.
    """
    console = Console(file=stream, highlight=False, soft_wrap=True, width=_width(stream))
    for line in _head(asked, cluster, plans):
        console.print(escape(line))
    if plans.ranked:
        console.print(_table(plans.ranked[:top], cluster))
        console.print(f"fastest: {escape(' '.join(_to_paste(asked, plans.ranked[0])))}")
    elif plans.too_large:
        console.print(escape(_nothing_fits(plans.too_large[0], cluster)))
        for number, one in enumerate(changes, 1):
            console.print(escape(f"  {number}. {one.change}; then {' '.join(one.planned.flags)}"))
    for line in _refused(plans, every=top is None):
        console.print(escape(line))


def _width(stream: IO[str]) -> int | None:
    # In a file, where no terminal says how wide it is, no column is cut off.
    return None if stream.isatty() else _COLUMNS


def _head(asked: Asked, cluster: Cluster, plans: Plans) -> Iterator[str]:
    per_gpu, name = cluster.memory / GIB, cluster.machine.name
    yield (
        f"grove_megatron: {cluster.gpus:,} {name} GPUs, {cluster.per_node} in each of "
        f"{cluster.nodes:,} node{'s' if cluster.nodes > 1 else ''}, {per_gpu:.4g} GiB each"
    )
    if asked.assumed:
        yield f"assumed of a model alone: {' '.join(asked.assumed)}"
    for planned in (plans.ranked or plans.too_large)[:1]:
        yield from _of_tokens(planned)
    yield (
        f"layouts: {len(plans.ranked):,} fit, {len(plans.too_large):,} are too large, "
        f"{len(plans.refused):,} choices are refused"
    )


def _of_tokens(planned: Planned) -> Iterator[str]:
    """What a token takes in a layer: fewest, expected, most."""
    model = planned.sizes.model
    if not model.num_experts:
        return
    few, many = ffn_range(model)
    line = f"a token has {model.topk} of {model.num_experts + model.local_experts} experts"
    if model.local_experts:
        line += f", {few} to {many} with an FFN, {ffn_per_token(model):.3f} expected"
    if model.num_groups:
        least = distinct_range(model.num_experts, few, model.num_groups)[0]
        most = min(many, model.num_groups)
        line += f"; {least} to {most} adjugates, {groups_per_token(model):.3f} expected"
    yield line


def _table(ranked: Sequence[Planned], cluster: Cluster) -> Table:
    """Of what differs or is more than 1; a size that no layout has is left out."""
    rows = [_columns(one) for one in ranked]
    shown = [
        name for name in rows[0] if name not in _SIZES or any(row[name] != "1" for row in rows)
    ]
    if cluster.price is None:
        shown.remove(_COST)
    if not ranked[0].sizes.model.num_experts and "ETP" in shown:
        # By default that of tensor parallelism, and of nothing here.
        shown.remove("ETP")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", justify="right")
    for name in shown:
        table.add_column(name, justify="left" if name in _TEXTS else "right", overflow="fold")
    for number, row in enumerate(rows, 1):
        table.add_row(str(number), *(escape(row[name]) for name in shown))
    return table


_SIZES = ("TP", "PP", "VPP", "CP", "EP", "ETP", "DP", "micro")
_COST = "10^12 tokens cost"
_TEXTS = ("recompute", "dispatch", "most of it")


def _columns(one: Planned) -> dict[str, str]:
    layout, training = one.sizes.layout, one.sizes.training
    sizes = (
        *(layout.tensor, layout.pipeline, layout.virtual, layout.context),
        *(layout.expert, layout.expert_tensor, layout.data, training.micro_batch),
    )
    part = max(one.step, key=lambda name: one.step[name])
    return {
        **dict(zip(_SIZES, map(str, sizes), strict=True)),
        "recompute": ", ".join(sorted(training.recompute)) or "-",
        "dispatch": _dispatch(layout),
        "GiB": f"{one.memory.with_margin / GIB:.1f}",
        "s a step": f"{one.seconds:.3g}",
        "tokens/s/GPU": f"{one.per_gpu:,.0f}",
        "MFU": f"{one.mfu:.1%}",
        _COST: "" if one.cost is None else f"{one.cost:,.0f}",
        "most of it": f"{part} {one.step[part] / one.seconds:.0%}",
    }


def _dispatch(layout: Layout) -> str:
    if layout.expert == 1:
        return "-"
    if layout.all_gather:
        return "all-gather"
    return "hierarchical" if layout.hierarchical else "flat"


def _to_paste(asked: Asked, one: Planned) -> tuple[str, ...]:
    return (*asked.assumed, *one.flags)


def _nothing_fits(smallest: Planned, cluster: Cluster) -> str:
    parts = sorted(smallest.memory.state.items(), key=lambda named: -named[1])
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts)
    needed = smallest.memory.with_margin / GIB
    return (
        f"no layout fits {cluster.memory / GIB:.4g} GiB with a margin of {MARGIN:.0%}: the "
        f"smallest, {' '.join(smallest.flags)}, needs {needed:.2f} (GiB without: {listed}); what "
        "would fit:"
    )


def _refused(plans: Plans, *, every: bool) -> Iterator[str]:
    if every:
        yield from (f"refused: {' '.join(words)}: {problem}" for words, problem in plans.refused)
        return
    reasons = plans.reasons
    for count, problem in reasons[:_REASONS]:
        lines = wrap(f"refused {count:,}: {problem}", _COLUMNS, subsequent_indent="    ")
        yield from lines
    if len(reasons) > _REASONS:
        yield f"and for {len(reasons) - _REASONS} more reasons; --all lists them"


def comparison(asked: Asked, cluster: Cluster, plans: Plans) -> Comparison:
    """What a page is of: the layouts that fit, and those that do not."""
    model = (plans.ranked or plans.too_large)[0].sizes.model
    named = asked.job.args.grove_preset or f"{model.num_layers} layers"
    return Comparison(
        title=f"{named} on {cluster.gpus:,} {cluster.machine.name} GPUs",
        plans=[*plans.ranked, *plans.too_large],
        cluster=cluster,
        assumed=[Assumed(name="job", value=" ".join(asked.assumed))] if asked.assumed else [],
        refused={str(problem): count for count, problem in plans.reasons},
    )


def as_numbers(
    asked: Asked, cluster: Cluster, plans: Plans, changes: Sequence[Remedy], top: int | None
) -> dict[str, Any]:
    """The same, for JSON: bytes, seconds, tokens a second."""
    refused: Sequence[tuple[int, Problem]] = plans.reasons
    nothing = not (plans.ranked or plans.too_large)
    return {
        "machine": cluster.machine.name,
        "gpus": cluster.gpus,
        "nodes": cluster.nodes,
        "memory": cluster.memory,
        "assumed": [*asked.assumed],
        "tokens_of": asked.tokens_of,
        "problems": [str(problem) for _, problem in refused] if nothing else [],
        "fit": len(plans.ranked),
        "too_large": len(plans.too_large),
        "layouts": [_numbers(one) for one in (*plans.ranked, *plans.too_large)[:top]],
        "refused": [{"count": count, "reason": str(problem)} for count, problem in refused],
        "changes": [{"change": one.change, "flags": [*one.planned.flags]} for one in changes],
    }


def _numbers(one: Planned) -> dict[str, Any]:
    return {
        "flags": [*one.flags],
        "fits": one.fits,
        "seconds": one.step,
        "step_seconds": one.seconds,
        "tokens_per_second": one.tokens_per_second,
        "tokens_per_second_gpu": one.per_gpu,
        "mfu": one.mfu,
        "cost_per_trillion_tokens": one.cost,
        "bottleneck": one.bottleneck,
        "numbers": plan(one.sizes),
    }
