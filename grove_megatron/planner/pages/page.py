"""One HTML page of planned layouts that needs nothing else: a table, pictures, their numbers."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from ...report import draw
from ...report.files import write_files
from ...report.html import cell, document, origin, section, table
from ...report.page import picture
from ...report.shown import Drawn
from ..memory import MARGIN
from ..speed.cluster import GIB
from .assumed import Assumed, of_cluster
from .figures import memory, time
from .numbers import numbers, ranked
from .planned import Comparison, places
from .sharing_figures import dedup, grouping

_FIGURES = (time, memory, dedup, grouping)
_AT_FIRST = 12


def write_page(comparison: Comparison, out: Path) -> Path:
    """Write the page, all of it or nothing.

    Args:
        comparison: what it is of.
        out: the page; its folder is made.
    """
    return write_files({out: page(comparison).encode()})[0]


def page(comparison: Comparison) -> str:
    """Its HTML."""
    with draw.style():
        figures = [make(comparison) for make in _FIGURES]
    return document(
        comparison.title,
        [
            origin(_of(comparison)),
            section("The best layouts", _best(comparison), "layouts", "tables"),
            *_as_flags(comparison),
            *(_figure(drawn) for drawn in figures),
            section("What was assumed", _assumed(comparison), "assumed", "tables"),
            *_refused(comparison),
            *numbers(comparison),
        ],
    )


def _of(comparison: Comparison) -> str:
    plans, refused = comparison.plans, sum(comparison.refused.values())
    fit = sum(plan.fits for plan in plans)
    of = f"{len(plans):,} layout{'s' if len(plans) > 1 else ''}, {fit:,} of which fit"
    of += f"; {refused:,} more cannot be" if refused else ""
    model, sizes = comparison.model, comparison.first.sizes
    experts = ""
    if model.num_experts:
        experts = f", {model.num_experts} experts, top-{model.topk}"
        experts += f", in {model.num_groups} groups" if model.num_groups else ""
    return (
        f"{of}. {model.num_layers} layers of width {model.hidden_size}{experts}; sequences of "
        f"{sizes.training.sequence_length:,} tokens; {sizes.layout.world:,} GPUs of "
        f"{comparison.cluster.memory / GIB:g} GiB. Planned, not measured."
    )


def _best(comparison: Comparison) -> str:
    every = places(comparison)
    words = (
        "<p>TP, PP, VPP, CP, EP, ETP: tensor, pipeline, virtual pipeline, context, expert and "
        "expert tensor parallel, where above 1; DP: data parallel; mb: samples of a micro-batch. "
        f"GiB: on a rank of the stage that needs most, with a margin of {MARGIN:.0%}.</p>\n"
    )
    text = words + ranked(every[:_AT_FIRST])
    if len(every) > _AT_FIRST:
        text += f"<p>The first {_AT_FIRST} of {len(every):,}; more below.</p>"
    return text


def _as_flags(comparison: Comparison) -> Iterable[str]:
    first = comparison.first
    if first.fits and first.flags:
        # No line breaks at the hyphens of a flag.
        said = " ".join(f'<span class="whole">{escape(word)}</span>' for word in first.flags)
        yield section("The first one as flags", f"<p><code>{said}</code></p>", "flags")


def _figure(drawn: Drawn) -> str:
    # On the page alone, without a file beside it.
    image, _ = picture(drawn, Path(drawn.name))
    return section(drawn.title, f"<p>{escape(drawn.read)}</p>\n{image}", drawn.name)


def _assumed(comparison: Comparison) -> str:
    training = comparison.first.sizes.training
    most = f"the busiest rank gets {training.imbalance:g} times the mean of the rows"
    routing = Assumed(name="routing", value=most)
    rows = [
        [cell(one.name, "name", code=True), cell(one.value), cell(one.source)]
        for one in (*of_cluster(comparison.cluster), routing, *comparison.assumed)
    ]
    return table(["number", "in the plan", "source"], rows)


def _refused(comparison: Comparison) -> Iterable[str]:
    if comparison.refused:
        counts = sorted(comparison.refused.items(), key=lambda counted: -counted[1])
        rows = [[cell(f"{count:,}", "number"), cell(reason)] for reason, count in counts]
        words = "<p>Layouts that cannot be, counted by their first reason.</p>\n"
        text = words + table(["layouts", "reason"], rows)
        yield section("What cannot be", text, "refused", "tables")
