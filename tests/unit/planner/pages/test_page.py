"""The page of planned layouts: it needs nothing else, and says what the plans say."""

import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

from grove_megatron.planner.choice.layouts import Planned
from grove_megatron.planner.memory import Memory
from grove_megatron.planner.pages.assumed import Assumed
from grove_megatron.planner.pages.figures import MEMORY, TIME, memory, time, time_unit
from grove_megatron.planner.pages.numbers import numbers
from grove_megatron.planner.pages.page import page, write_page
from grove_megatron.planner.pages.planned import layout_label, memory_parts
from grove_megatron.planner.pages.sharing import dispatches, groupings
from grove_megatron.planner.pages.sharing_figures import dedup, grouping
from grove_megatron.planner.speed.cluster import GIB
from grove_megatron.planner.speed.step import PARTS
from grove_megatron.report import draw
from grove_megatron.report.refused import page_problems
from tests.integration.installed_wheel import without

from ..models import GROVE_33B, QWEN3_30B
from .plans import H100, comparison, plan, plans

DENSE = replace(QWEN3_30B, moe_layers=(False,) * 48, num_experts=0, topk=0, ffn_hidden_size=6144)
IMAGES = ["time", "memory", "dedup", "grouping"]


class Parsed(HTMLParser):
    """Sections of a page: their tables, and images; every tag must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.section = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "h2":
            self.section = str(given["id"])
            self.texts[self.section] = ""
        if tag == "img":
            self.images[self.section] = str(given["alt"])
        if tag == "table":
            self.tables[self.section] = []
        if tag == "tr":
            self.tables[self.section].append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[self.section][-1][-1] += data
        elif self.section:
            self.texts[self.section] += data


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("%"))


def sizes_of(memory: Memory) -> dict[str, float]:
    return {
        name: getattr(memory, name) for name in ("weights", "gradients", "optimizer", "activations")
    }


def whole(parts: dict[str, float]) -> dict[str, float]:
    """With activations as one part, where they are several."""
    found: dict[str, float] = {}
    for name, size in parts.items():
        first = name.split(":")[0]
        found[first] = found.get(first, 0.0) + size
    return found


def assert_numbers(parsed: Parsed, found: list[Planned]) -> None:
    """Of every plan in the tables."""
    _, *rows = parsed.tables["numbers-all"]
    assert len(rows) == min(len(found), 200)
    for row, one in zip(rows, found, strict=False):
        assert row[1] == layout_label(one.sizes)
        speed = one.tokens_per_second / one.sizes.layout.world
        expected = [speed, 100 * one.mfu, sum(one.step.values()), one.memory.with_margin / GIB]
        # As many digits as are shown.
        assert [number(text) for text in row[2:6]] == pytest.approx(expected, rel=2e-3, abs=0.06)
        assert row[6] == ("yes" if one.fits else "no")
        assert row[-1] == one.bottleneck
    for name, scale in (("time", 1.0), ("memory", GIB)):
        (_, *names, together), *rows = parsed.tables[f"numbers-{name}"]
        assert together == "together"
        for row, one in zip(rows, found, strict=False):
            parts = one.step if name == "time" else sizes_of(one.memory)
            shown = whole(dict(zip(names, map(number, row[1:-1]), strict=True)))
            expected = {part: parts.get(part, 0.0) / scale for part in shown}
            assert shown == pytest.approx(expected, rel=1e-3)
            assert sum(expected.values()) == pytest.approx(number(row[-1]), rel=1e-3)


def test_a_page_of_many_layouts_needs_nothing_else_and_has_all_numbers(tmp_path: Path) -> None:
    found = [replace(one, cost=n + 0.4) for n, one in enumerate(plans(GROVE_33B) * 3)]
    found.sort(key=lambda one: (not one.fits, -one.tokens_per_second))
    assert len(found) == 225
    reasons = {"experts (128) <= few": 3, "ranks": 1204}
    made = comparison(
        found,
        title="<a> & b",
        refused=reasons,
        assumed=[Assumed(name="x", value="<1>", source="'me'")],
    )
    file = write_page(made, tmp_path / "new" / "plan.html")
    assert [*file.parent.iterdir()] == [file]
    html = file.read_text()
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert set(re.findall(r'(?:src|href)="([^"]{0,22})', html)) == {"data:image/png;base64,"}
    assert "<h1>&lt;a&gt; &amp; b</h1>" in html
    parsed = Parsed(html)
    assert [*parsed.images] == IMAGES
    assert all(len(alt) > 100 for alt in parsed.images.values())
    assert_numbers(parsed, found)
    assert [row[-2] for row in parsed.tables["numbers-all"][1:4]] == [
        f"{one.cost:,.0f}" for one in found[:3]
    ]
    assert "25 more layouts are not listed" in parsed.texts["numbers-all"]
    assert len(parsed.tables["layouts"]) == 13
    assert "The first 12 of 225" in parsed.texts["layouts"]
    assert parsed.texts["flags"].strip().endswith(" ".join(found[0].flags))
    assert parsed.tables["refused"][1:] == [["1,204", "ranks"], ["3", "experts (128) <= few"]]
    assumed = {name: more for name, *more in parsed.tables["assumed"]}
    assert assumed["scale_out_gb_s"] == ["50 GB/s one way", H100.sources["scale_out_gb_s"]]
    assert assumed["scale_up_gb_s"] == ["400 GB/s one way", H100.sources["scale_up_gb_s"]]
    assert assumed["bf16_tflops"] == ["989", H100.sources["bf16_tflops"]]
    assert set(H100.sources) < set(assumed)
    assert assumed["something_else"] == ["", "<b>another</b>"]
    assert assumed["x"] == ["<1>", "'me'"]
    # Sizes from 1 up to what the pipeline of the best leaves.
    pipeline = found[0].sizes.layout.pipeline
    sizes = [int(row[0]) for row in parsed.tables["numbers-dedup"][1:]]
    assert sizes == [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= 64 // pipeline]
    sent = {(one.ranks, one.way): one for one in dispatches(found[0].sizes, made.cluster)}
    for ranks, *row in parsed.tables["numbers-dedup"][1:]:
        stock, flat, nodes = (
            sent.get((int(ranks), way)) for way in ("stock", "flat", "hierarchical")
        )
        expected = [stock.rows, flat.rows, stock.far, flat.far, *([nodes.far] if nodes else [])]
        expected += [1e3 * one.seconds for one in (stock, flat, nodes) if one]
        assert [number(text) for text in row if text] == pytest.approx(expected, rel=1e-3)
    for one, row in zip(
        groupings(GROVE_33B, 4096), parsed.tables["numbers-grouping"][1:], strict=True
    ):
        expected = [one.groups, one.met, one.width]
        expected += [100 * one.share, 100 * one.share_per_expert]
        assert [number(text) for text in row] == pytest.approx(expected, rel=1e-3)
    # The paper's number.
    (own,) = (row for row in parsed.tables["numbers-grouping"] if row[0] == "64")
    assert own[1] == "7.78"
    assert own[2] == "128"


def test_a_page_of_one_layout_of_a_model_without_groups_that_fits_nowhere() -> None:
    one = plan(QWEN3_30B, memory_gib=1, expert=8)
    parsed = Parsed(page(comparison([one], 1)))
    assert [*parsed.images] == ["memory", "dedup", "grouping"]
    assert "No layout fits" in parsed.texts["time"]
    assert "The experts are not in groups" in parsed.texts["grouping"]
    assert "flags" not in parsed.texts
    assert "refused" not in parsed.texts
    assert "cost of a trillion tokens" not in parsed.tables["layouts"][0]
    assert parsed.tables["numbers-grouping"][0] == ["groups", "met by a token"]
    assert_numbers(parsed, [one])


def test_a_dense_model_has_a_page() -> None:
    parsed = Parsed(page(comparison([plan(DENSE)])))
    assert [*parsed.images] == ["time", "memory"]
    assert "no experts" in parsed.texts["dedup"]
    assert "no experts" in parsed.texts["grouping"]
    assert not {"numbers-dedup", "numbers-grouping"} & set(parsed.tables)


def widths(figure, known: dict[str, str], row: int) -> dict[str, float]:
    """Of the parts of a bar, by their colours."""
    names = {to_rgba(colour): name for name, colour in known.items()}
    bars = [bar for bar in figure.axes[0].patches if round(bar.get_y() + 0.36) == row]
    return {names[bar.get_facecolor()]: bar.get_width() for bar in bars if bar.get_width()}


def test_bars_are_the_parts_and_what_does_not_fit_is_hatched() -> None:
    found = [*plans(GROVE_33B, memory_gib=40)]
    made = comparison(found, 40)
    shown = time(made).figure
    for row in range(16):
        parts = {name: value for name, value in found[row].step.items() if value}
        # The unit may be milliseconds.
        scale = time_unit(max(sum(one.step.values()) for one in found[:16]))[0]
        assert widths(shown, TIME, row) == pytest.approx(
            {name: value / scale for name, value in parts.items()}
        )
    shown = memory(made).figure
    axes = shown.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    places = [int(label.split(":")[0]) - 1 for label in labels]
    too_large = [one for one in found if not one.fits]
    nearest = sorted(too_large, key=lambda one: one.memory.total)[:6]
    assert [found[place] for place in places] == found[:16] + nearest
    for row, place in enumerate(places):
        assert whole(widths(shown, MEMORY, row)) == pytest.approx(
            {name: size / GIB for name, size in sizes_of(found[place].memory).items()}
        )
    hatched = {round(bar.get_y() + 0.36) for bar in axes.patches if bar.get_hatch()}
    assert hatched == set(range(16, 22))
    assert any([*line.get_xdata()] == [40, 40] for line in axes.lines)
    # The best is on top.
    bottom, top = axes.get_ylim()
    assert bottom > top
    (margins,) = (line for line in axes.lines if line.get_marker() == "|")
    assert [*margins.get_xdata()] == pytest.approx(
        [found[place].memory.with_margin / GIB for place in places]
    )


@pytest.mark.parametrize("make", [time, memory, dedup, grouping])
def test_words_are_inside_of_their_figure_and_beside_one_another(make) -> None:
    found = [*plans(GROVE_33B, memory_gib=40)]
    # The longest label there is.
    sizes = found[0].sizes
    recompute = frozenset({"core_attn", "moe_act"})
    layout = replace(sizes.layout, hierarchical=True)
    training = replace(sizes.training, recompute=recompute)
    found[0] = replace(found[0], sizes=replace(sizes, layout=layout, training=training))
    with draw.style():
        figure = make(comparison(found, 40)).figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        inside = figure.bbox.padded(1)
        for key in figure.legends:
            for word in key.get_texts():
                box = word.get_window_extent()
                assert inside.contains(box.x0, box.y0), word
                assert inside.contains(box.x1, box.y1), word
        for axes in figure.axes:
            across, up = (ticks(axis) for axis in (axes.xaxis, axes.yaxis))
            others = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
            for word in (*across, *up, *axes.texts, *others):
                box = word.get_window_extent()
                if word.get_text():
                    assert inside.contains(box.x0, box.y0), word
                    assert inside.contains(box.x1, box.y1), word
            ends = [word.get_window_extent() for word in across]
            assert all(a.x1 < b.x0 for a, b in pairwise(ends))
            for words in (up, axes.texts):
                rows = sorted(word.get_window_extent().extents.tolist()[1::2] for word in words)
                assert all(a[1] <= b[0] for a, b in pairwise(rows))


def ticks(axis) -> list:
    """Labels that are seen."""
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [label for at, label in labels if low <= at <= high]


def test_every_part_of_a_step_and_of_memory_has_a_colour_of_its_own() -> None:
    assert set(TIME) == set(PARTS)
    assert set(memory_parts(plan(GROVE_33B).memory)) <= set(MEMORY)
    for colours in (TIME, MEMORY):
        assert len(set(colours.values())) == len(colours)


def test_parts_that_nobody_knows_and_parts_of_nothing() -> None:
    one = plan(GROVE_33B, expert=8)
    odd = replace(one, step={"zero": 0.0, "unknown": 2e-3, "experts": 1e-3})
    (key,) = time(comparison([odd])).figure.legends
    assert [text.get_text() for text in key.get_texts()] == ["experts", "unknown"]
    nothing = replace(one, step={"experts": 0.0}, tokens_per_second=0.0, mfu=0.0)
    assert time(comparison([nothing])).figure.axes[0].get_xlim() == (0, 1.02)
    assert Parsed(page(comparison([nothing]))).tables["numbers-time"][1][-1] == "0"


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [(12.0, "seconds"), (0.5, "milliseconds"), (2e-6, "microseconds"), (0.0, "seconds")],
)
def test_numbers_have_a_unit_that_they_are_1_of_at_least(seconds: float, unit: str) -> None:
    scale, name = time_unit(seconds)
    assert name == unit
    assert seconds / scale >= 1 or not seconds


def test_where_this_model_is_in_the_figures() -> None:
    made = comparison([plan(GROVE_33B, expert=16)])
    drawn = dedup(made)
    for axes in drawn.figure.axes:
        at = [label.get_text() for label in axes.get_xticklabels()].index("16")
        assert any([*line.get_xdata()] == [at, at] for line in axes.lines)
    assert "6.6 rows at 16 ranks" in drawn.read
    assert "at 64 ranks 4.67 rows leave a node, and not 6.81 (stock 7)" in drawn.read
    drawn = grouping(made)
    for axes in drawn.figure.axes:
        (own,) = (line for line in axes.lines if line.get_label() == "this model")
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels[int(own.get_xdata()[0])] == "64"
    assert "meets 7.78 of them" in drawn.read
    assert "add 7.66% to its operations" in drawn.read


def test_no_page_without_matplotlib_and_none_of_another_kind(tmp_path: Path) -> None:
    assert page_problems("--page", tmp_path / "plan.html", "it") == []
    ask = f"""{without("matplotlib")}
from pathlib import Path
from grove_megatron.report.refused import page_problems
for problem in page_problems("--page", Path("plan.pdf"), "the page of a plan"):
    print(problem)
assert not {{"numpy", "typer", "torch"}} & set(sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        "matplotlib (not installed) draws the page of a plan; pip install 'grove-megatron[report]'",
        "--page (plan.pdf) does not end in (.html); name the page",
    ]


def test_the_label_of_a_layout_is_short_and_has_what_matters() -> None:
    sizes = plan(GROVE_33B, pipeline=4, virtual=3, expert=8).sizes
    assert layout_label(sizes) == "PP4 VPP3 EP8 DP16 mb1"

    def label(**changed: bool) -> str:
        return layout_label(replace(sizes, layout=replace(sizes.layout, **changed)))

    assert label(hierarchical=True).endswith("mb1 hierarchical")
    assert label(row_per_expert=True).endswith("mb1 stock dispatch")
    assert label(fused=True).endswith("mb1 fused dispatch")
    assert label(all_gather=True).endswith("mb1 all-gather")
    assert label(all_gather=True, expert=1).endswith("mb1")
    again = replace(sizes.training, recompute=frozenset({"moe_act", "core_attn"}))
    assert layout_label(replace(sizes, training=again)).endswith("recompute core_attn+moe_act")


def test_what_was_not_timed_has_no_seconds() -> None:
    found = plans(GROVE_33B, memory_gib=40)
    untimed = replace(found[-1], step={}, tokens_per_second=0.0, mfu=0.0, bottleneck="", fits=False)
    parsed = Parsed("".join(numbers(comparison([found[0], untimed], 40))))
    assert parsed.tables["numbers-all"][2][2:5] == ["", "", ""]
    assert len(parsed.tables["numbers-time"]) == 2
    assert len(parsed.tables["numbers-memory"]) == 3
    alone = Parsed("".join(numbers(comparison([untimed], 40))))
    assert "None was timed" in alone.texts["numbers-time"]


@dataclass(frozen=True, kw_only=True)
class Parted(Memory):
    activation_parts: dict[str, float] = field(default_factory=dict)


def test_activations_are_shown_by_part_where_they_are_known() -> None:
    one = plan(GROVE_33B, expert=8)
    parts = {"attention": 2.0 * GIB, "experts": 3.0 * GIB, "router": 0.0}
    memory_of = sizes_of(one.memory) | {"activations": 5.0 * GIB}
    parted = replace(one, memory=Parted(**memory_of, activation_parts=parts))
    assert sum(memory_parts(parted.memory).values()) == pytest.approx(parted.memory.total)
    made = comparison([parted])
    drawn = widths(memory(made).figure, MEMORY, 0)
    assert drawn["activations: attention"] == pytest.approx(2)
    assert drawn["activations: experts"] == pytest.approx(3)
    assert set(drawn) & {"activations", "activations: router"} == set()
    header, row = Parsed("".join(numbers(made))).tables["numbers-memory"]
    assert dict(zip(header, row, strict=True))["activations: experts"] == "3"


def test_lines_are_the_numbers_of_the_tables() -> None:
    made = comparison([plan(GROVE_33B, expert=16)])
    sizes = made.first.sizes
    found = dispatches(sizes, made.cluster)
    sent, far, cost = dedup(made).figure.axes
    scale, _ = time_unit(max(one.seconds for one in found))
    for axes, of in ((sent, "rows"), (far, "far"), (cost, "seconds")):
        lines = [[*line.get_ydata()] for line in axes.lines if len(line.get_ydata()) != 2]
        ways = ("stock", "flat", "hierarchical")[: len(lines)]
        by = scale if of == "seconds" else 1.0
        assert len(ways) == (2 if of == "rows" else 3)
        for way, line in zip(ways, lines, strict=True):
            assert line == pytest.approx([getattr(o, of) / by for o in found if o.way == way])
    found = groupings(GROVE_33B, sizes.training.sequence_length)
    met, share = grouping(made).figure.axes
    assert [*met.lines[0].get_ydata()] == [one.met for one in found]
    assert [[*line.get_ydata()] for line in share.lines[:2]] == [
        [one.share_per_expert for one in found],
        [one.share for one in found],
    ]
