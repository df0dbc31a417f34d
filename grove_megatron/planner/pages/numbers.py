"""Tables of the numbers behind the pictures of a page."""

from collections.abc import Iterable, Mapping, Sequence
from math import nan

from ...report.html import cell, section, shown, table
from ..speed.cluster import GIB
from .planned import Comparison, Place, layout_label, memory_parts, names_of, places
from .sharing import WAYS, Dispatch, dispatches, groupings

_LISTED = 200


def numbers(comparison: Comparison) -> Iterable[str]:
    """Sections of the layouts and of what sharing saves."""
    every = places(comparison)
    listed = every[:_LISTED]
    more = len(every) - len(listed)
    rest = f"<p>{more:,} more layouts are not listed.</p>" if more else ""
    timed = [place for place in listed if place.plan.step]
    times = [place.plan.step for place in timed]
    memories = [memory_parts(place.plan.memory) for place in listed]
    for name, title, text in (
        ("all", "all layouts", ranked(listed)),
        ("time", "seconds of an iteration", _parts(timed, times, 1.0)),
        ("memory", "GiB on a rank of the stage that needs most", _parts(listed, memories, GIB)),
    ):
        yield section(f"Numbers: {title}", text + rest, f"numbers-{name}", "tables")
    if comparison.model.num_experts:
        for name, title, text in (
            ("dedup", "dispatch", _dispatches(comparison)),
            ("grouping", "groups", _groupings(comparison)),
        ):
            yield section(f"Numbers: {title}", text, f"numbers-{name}", "tables")


def ranked(listed: Sequence[Place]) -> str:
    """The layouts, a row each."""
    priced = any(place.plan.cost is not None for place in listed)
    header = ["", "layout", "tokens/s a GPU", "MFU", "s a step", "GiB", "fits"]
    header += ["cost of a trillion tokens"] * priced + ["bottleneck"]
    rows = []
    for place in listed:
        plan = place.plan
        timed = [f"{plan.per_gpu:,.0f}", f"{plan.mfu:.1%}", shown(plan.seconds)]
        memory = f"{plan.memory.with_margin / GIB:,.2f}"
        figures = [*(timed if plan.step else [""] * len(timed)), memory]
        cost = "" if plan.cost is None else f"{plan.cost:,.0f}"
        rows.append(
            [
                cell(place.number, "number"),
                cell(layout_label(plan.sizes), "name"),
                *(cell(figure, "number") for figure in figures),
                cell("yes" if plan.fits else "no", "name"),
                *[cell(cost, "number")] * priced,
                cell(plan.bottleneck),
            ]
        )
    return table(header, rows)


def _parts(listed: Sequence[Place], parts: Sequence[Mapping[str, float]], scale: float) -> str:
    if not listed:
        return "<p>None was timed.</p>"
    names = names_of(parts)
    rows = [
        [
            cell(place.label, "name"),
            *(cell(shown(one.get(name, 0.0) / scale), "number") for name in names),
            cell(shown(sum(one.values()) / scale), "number"),
        ]
        for place, one in zip(listed, parts, strict=True)
    ]
    return table(["layout", *names, "together"], rows)


def _dispatches(comparison: Comparison) -> str:
    by_ranks: dict[int, dict[str, Dispatch]] = {}
    for one in dispatches(comparison.first.sizes, comparison.cluster):
        by_ranks.setdefault(one.ranks, {})[one.way] = one
    rows = []
    for ranks, ways in by_ranks.items():
        figures = [ways["stock"].rows, ways["flat"].rows]
        figures += [ways[way].far if way in ways else nan for way in WAYS]
        figures += [1e3 * ways[way].seconds if way in ways else nan for way in WAYS]
        rows.append([cell(shown(figure), "number") for figure in (ranks, *figures)])
    header = ["EP", "rows: stock", "flat"]
    header += ["to other nodes: stock", "flat", "hierarchical"]
    header += ["ms an iteration: stock", "flat", "hierarchical"]
    words = (
        "<p>Rows of a token in a layer, one way, and what an iteration of the first layout takes "
        "to dispatch and combine.</p>\n"
    )
    return words + table(header, rows)


def _groupings(comparison: Comparison) -> str:
    model = comparison.model
    length = comparison.first.sizes.training.sequence_length
    rows = []
    for one in groupings(model, length):
        figures = [shown(one.groups), shown(one.met)]
        if model.num_groups:
            figures += [shown(one.width), f"{one.share:.3%}", f"{one.share_per_expert:.3%}"]
        rows.append([cell(figure, "number") for figure in figures])
    header = ["groups", "met by a token"]
    if model.num_groups:
        header += ["width", "operations, once a group", "once an expert"]
    return table(header, rows)
