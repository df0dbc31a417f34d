"""Plans to be read: a table and what goes around it, and the same as numbers."""

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..checks.problem import Problem
from ..model.selection import ffn_per_token, ffn_range
from .assumed import Assumed
from .cluster import GIB, Cluster
from .front import Asked
from .layouts import Planned, Plans
from .memory import MARGIN
from .planned import Comparison
from .remedies import Remedy
from .report import plan
from .traffic import distinct_range, groups_per_token

_COLUMNS = 120
_REASONS = 8
_ON_PAGE = 100


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
    some = [*plans.ranked[:1], *plans.too_large[:1]]
    for planned in some[:1]:
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
    table = Table(title=None, show_edge=False, pad_edge=False)
    for name in ("", "TP", "PP", "VPP", "CP", "EP", "ETP", "DP", "micro"):
        table.add_column(name, justify="right")
    table.add_column("recompute, dispatch")
    for name in ("GiB", "s a step", "tokens/s/GPU", "MFU"):
        table.add_column(name, justify="right")
    if cluster.price is not None:
        table.add_column("cost of 10^12 tokens", justify="right")
    table.add_column("takes most")
    for number, one in enumerate(ranked, 1):
        cost = [] if one.cost is None else [f"{one.cost:,.0f}"]
        table.add_row(
            *(str(value) for value in (number, *_sizes(one))),
            escape(_also(one)),
            f"{one.memory.with_margin / GIB:.1f}",
            f"{one.seconds:.3g}",
            f"{one.per_gpu:,.0f}",
            f"{one.mfu:.1%}",
            *cost,
            escape(one.bottleneck),
        )
    return table


def _sizes(one: Planned) -> tuple[int, ...]:
    layout = one.sizes.layout
    return (
        *(layout.tensor, layout.pipeline, layout.virtual, layout.context),
        *(layout.expert, layout.expert_tensor, layout.data, one.sizes.training.micro_batch),
    )


def _also(one: Planned) -> str:
    words = [", ".join(sorted(one.sizes.training.recompute)) or "-"]
    words += ["hierarchical"] if one.sizes.layout.hierarchical else []
    return ", ".join(words)


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
    """What a page is of: the layouts that fit, and the smallest that do not."""
    model = (plans.ranked or plans.too_large)[0].sizes.model
    named = asked.job.args.grove_preset or f"{model.num_layers} layers"
    return Comparison(
        title=f"{named} on {cluster.gpus:,} {cluster.machine.name} GPUs",
        plans=[*plans.ranked[:_ON_PAGE], *plans.too_large[:_ON_PAGE]],
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
