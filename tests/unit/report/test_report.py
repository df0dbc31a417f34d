"""``grove report``: one page that needs nothing else, of small and of large models."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import StepPatch

from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.report import draw
from grove_megatron.report.figures import draw_all
from grove_megatron.report.page import write_report
from grove_megatron.report.record import Evaluation, Interval, Run, Writer
from grove_megatron.report.shown import Drawn
from grove_megatron.report.view import View
from tests.unit.report.intervals import RUN, a_training, interval
from tests.unit.report.jobs import grove_report, recorded

LARGE = replace(
    RUN,
    layers=tuple(str(n + 1) for n in range(48)),
    experts=128,
    groups=64,
    topk=8,
    ranks=8,
    world_size=64,
    settings={"num-layers": 48, "grove-num-groups": 64, "data-path": "<a> & 'b'"},
)
SMALL = replace(RUN, settings={"data-path": "<a> & 'b'"})
NAMES = ("loss", "load-over-time", "load-now", "balance", "dead")
NAMES += ("sharing", "coactivation", "traffic", "ranks", "bias", "speed")


def by_name(intervals: Any) -> dict[str, Drawn]:
    view = View(name="it", intervals=list(intervals))
    return {drawn.name: drawn for drawn in draw_all(view)}


def assert_page_of(page: str, files: list[str], run: Run) -> None:
    assert files == sorted(f"report-{name}.png" for name in NAMES)
    # Everything is inside: no script, and nothing to be fetched.
    assert "<script" not in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,22})', page)) == {"data:image/png;base64,"}
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("<img alt=") == len(NAMES)
    assert all(f'<h2 id="{name}">' in page for name in NAMES)
    assert f"{len(run.layers)} MoE layers of {run.experts} experts in {run.groups} groups" in page
    assert "<code>&lt;a&gt; &amp; &#x27;b&#x27;</code></td>" in page
    # What uniform routing would give, beside what was measured.
    (row,) = re.findall(r"<code>groups_per_token</code></td>(.*?)<td>distinct", page)
    uniform = expected_distinct(run.experts, run.topk, run.groups)
    assert float(re.findall(r">([\d.]+)<", row)[2]) == pytest.approx(uniform, rel=1e-3)


@pytest.mark.parametrize("run", [SMALL, pytest.param(LARGE, marks=pytest.mark.long)])
def test_a_page_needs_nothing_else(run: Run, tmp_path: Path) -> None:
    folder = recorded(tmp_path, run, number=3, tokens=100)
    result = grove_report(folder)
    assert result.exit_code == 0, result.output
    files = sorted(file.name for file in folder.glob("*.png"))
    assert_page_of((folder / "report.html").read_text(), files, run)


def test_a_plain_model_has_a_page_without_groups(tmp_path: Path) -> None:
    run = replace(RUN, groups=0)
    folder = recorded(tmp_path, run, number=2)
    result = grove_report(folder)
    assert result.exit_code == 0, result.output
    page = (folder / "report.html").read_text()
    assert f"{len(run.layers)} MoE layers of {run.experts} experts, top-{run.topk}" in page
    assert "The experts are not in groups." in page
    for name in ("groups_per_token", "adjugate_max_vio"):
        assert name not in page
    for name in ("rows_per_token", "max_vio", "active_parameters"):
        assert f"<code>{name}</code>" in page


def test_megatrons_all_gather_is_not_measured_by_what_ours_would_send(tmp_path: Path) -> None:
    run = replace(RUN, dispatcher="allgather")
    rows = np.full((2, 2), 4)
    one = interval(run=run, rows=rows, sent_tokens=np.array([4, 4]))
    drawn = by_name([one])["traffic"]
    assert "brings every token to all 2 expert-parallel rank(s)" in drawn.read
    labels = drawn.figure.axes[0].get_legend_handles_labels()[1]
    assert "rows of uniform routing: 2.00" in labels
    page = write_report(View(name="it", intervals=[one]), [], tmp_path / "page.html")[0].read_text()
    (cells,) = re.findall(r"<code>rows_per_token</code></td>(.*?)<td>rows", page)
    assert re.findall(r">([\d.]+)<", cells) == ["2", "2", "2"]
    ours = by_name([interval()])["traffic"]
    assert "that it needs once" in ours.read
    expected = expected_distinct(RUN.experts, RUN.topk, RUN.ranks)
    labels = ours.figure.axes[0].get_legend_handles_labels()[1]
    assert f"rows of uniform routing: {expected:.2f}" in labels


def test_nothing_is_drawn_where_nothing_was_recorded() -> None:
    first, second, third = a_training(RUN, 3, tokens=50)
    # 21 to 30 are missing.
    third = replace(third, iteration=40, bias=second.bias)
    drawn = by_name([first, second, third])
    mesh = drawn["load-over-time"].figure.axes[0].collections[0]
    shown = np.ma.masked_invalid(np.asarray(mesh.get_array()).reshape(RUN.experts, 4))
    masked = np.ma.getmaskarray(mesh.get_array()).reshape(RUN.experts, 4)
    assert masked.all(0).tolist() == [False, False, True, False], shown
    (line, *_) = drawn["loss"].figure.axes[0].get_lines()
    assert line.get_xdata().tolist() == [10, 20, 30, 40]
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, False]
    by_layer = drawn["balance"].figure.axes[1].collections[0].get_array()
    assert np.ma.getmaskarray(by_layer).reshape(2, 4).all(0).tolist() == [False] * 2 + [True, False]
    range_of_layers = drawn["balance"].figure.axes[0].collections[0].get_paths()
    assert len(range_of_layers) == 2


@pytest.mark.long
def test_two_jobs_in_one_folder_are_said_and_either_can_be_drawn(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    other = replace(RUN, id="b", experts=16, settings={"this": "one"})
    writer.run(RUN)
    writer.interval(interval())
    writer.run(other)
    for one in (interval(run=other), interval(iteration=20)):
        writer.interval(one)
    result = grove_report(tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.count("note: run a ") == 2
    page = (tmp_path / "report.html").read_text()
    assert "Also in this record: run a (begun" in page
    assert "2 MoE layers of 16 experts" in page
    assert grove_report(tmp_path, "--run", "a").exit_code == 0
    assert "2 MoE layers of 8 experts" in (tmp_path / "report.html").read_text()
    result = grove_report(tmp_path, "--run", "c")
    assert result.exit_code == 2
    assert "--run (c) is not one of (a, b)" in result.output


def test_every_layer_has_a_panel_and_every_figure_its_labels() -> None:
    drawn = by_name(a_training(LARGE, 2, tokens=50))
    panels = drawn["load-over-time"].figure.axes
    titles = [axes.get_title("left") for axes in panels if axes.get_title("left")]
    assert titles == [f"layer {n + 1}" for n in range(48)]
    for name, one in drawn.items():
        assert len(one.read) > 60, name
        labelled = [axes.get_xlabel() or axes.get_ylabel() for axes in one.figure.axes]
        if name != "load-over-time":
            assert all(labelled), (name, labelled)


def test_panels_hold_the_measured_load() -> None:
    intervals = list(a_training(RUN, 3, tokens=50))
    mesh = by_name(intervals)["load-over-time"].figure.axes[0].collections[0]
    shown = np.asarray(mesh.get_array()).reshape(RUN.experts, 3)
    first = intervals[0].experts[0]
    assert shown[first > 0, 0] == pytest.approx((first / first.mean())[first > 0])
    # No token at all is another mesh, of one colour.
    without = by_name(intervals)["load-over-time"].figure.axes[0].collections[1].get_array()
    dead = ~np.ma.getmaskarray(without).reshape(RUN.experts, 3)
    assert dead[3].all()
    assert dead.tolist() == [[not i.experts[0, e] for i in intervals] for e in range(RUN.experts)]


def colour(drawn: Drawn, value: float) -> tuple[float, ...]:
    """Of a load over the mean, as the first panel draws it."""
    mesh = drawn.figure.axes[0].collections[0]
    return tuple(mesh.to_rgba(np.array([value]))[0])


def test_no_token_looks_like_no_load_and_what_is_beyond_the_colours_like_neither() -> None:
    drawn = by_name(a_training(RUN, 3, tokens=50))["load-over-time"]
    none, below, low, mean, high, above = (
        to_rgba(draw.NO_TOKEN),
        *(colour(drawn, load) for load in (0.2, 0.25, 1.0, 4.0, 4.1)),
    )

    def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return float(np.abs(np.subtract(a, b)).max())

    kinds = [none, below, low, mean, high, above, to_rgba(draw.NOT_RECORDED)]
    assert min(distance(a, b) for a, b in combinations(kinds, 2)) > 0.15
    # Black and blue also where there is no colour, on paper.
    grey = np.array([[0.299, 0.587, 0.114, 0]]) @ np.array(kinds).T
    assert np.abs(np.diff(np.sort(np.r_[grey[0, 0], grey[0, 1:].min()]))) > 0.2
    (key,) = drawn.figure.legends
    assert [text.get_text() for text in key.get_texts()] == [
        *("above 4", "below 1/4", "no token", "not recorded"),
    ]


def test_what_a_heat_map_clips_is_said_with_its_value() -> None:
    wild = [[0, 1]] * 50
    even = [[0, 4], [1, 5], [2, 6], [3, 7]] * 9
    first = interval((wild, wild))
    rest = [interval((even, even), iteration=10 * n) for n in range(2, 62)]
    bar = by_name([first, *rest])["balance"].figure.axes[2]
    assert bar.get_ylabel() == "MaxVio of the experts\n(red: above, up to 3)"


def test_a_little_does_not_look_like_much() -> None:
    """An axis shows at least what would matter."""
    intervals = []
    for number in (1, 2, 3):
        even = [[0, 4], [1, 5], [2, 6], [3, 7]] * 100 + [[0, 4]] * number
        losses = {"lm loss": 3 + 1e-4 * number, "load_balancing_loss": 1 + 1e-3 * number}
        bias = np.full((2, 8), 1e-6 * number, np.float32)
        intervals.append(interval((even, even), iteration=10 * number, losses=losses, bias=bias))
    drawn = by_name(intervals)

    def limits(name: str, axes: int = 0) -> tuple[float, float]:
        return drawn[name].figure.axes[axes].get_ylim()

    def holds(outer: tuple[float, float], low: float, high: float) -> bool:
        return outer[0] <= low and high <= outer[1]

    assert holds(limits("loss"), 2.97, 3.03)
    assert holds(limits("loss", 1), 0.9, 1.1)
    assert holds(limits("balance"), 0, 0.5)
    assert holds(limits("sharing"), 1, 2)
    assert limits("sharing", 3)[0] == 0
    assert holds(limits("ranks"), 1, 1.25)
    assert holds(limits("bias"), -0.01, 0.01)
    assert drawn["balance"].figure.axes[2].get_ylim() == (0, 0.5)


def resharded() -> list[Interval]:
    """Two expert-parallel ranks of two, then one of one, in other processes."""
    alone = replace(RUN, id="b", resumed=20, ranks=1, world_size=1, started=90.0)
    alone = replace(alone, settings=RUN.settings | {"lr": 1e-4})
    two = [replace(i, time=i.iteration) for i in a_training(RUN, 2, tokens=50)]
    one = [
        replace(i, iteration=i.iteration + 20, time=100.0 + i.iteration)
        for i in a_training(alone, 2, tokens=50)
    ]
    return [*two, *one]


def test_a_layout_that_changed_has_its_own_references_and_texts(tmp_path: Path) -> None:
    intervals = resharded()
    drawn = by_name(intervals)
    labels = drawn["traffic"].figure.axes[0].get_legend_handles_labels()[1]
    expected = expected_distinct(RUN.experts, RUN.topk, 2)
    assert f"rows of uniform routing: {expected:.2f} (EP 2), 1.00 (EP 1)" in labels
    (steps,) = [p for p in drawn["traffic"].figure.axes[0].patches if isinstance(p, StepPatch)]
    assert steps.get_data().values.tolist() == [expected] * 2 + [1] * 2
    assert "each of the 2, then 1 expert-parallel rank(s)" in drawn["traffic"].read
    # What two ranks did is still there, and what one did is not drawn as perfect balance.
    ranks = drawn["ranks"].figure
    assert ranks.axes[0].get_lines()[0].get_xdata().tolist() == [10, 20]
    assert ranks.axes[1].get_title("left") == "routed pairs in iterations 11-20, EP 2"
    for name in ("loss", "balance", "traffic", "sharing"):
        said = [t.get_text() for t in drawn[name].figure.axes[0].texts]
        assert said == ["EP 2 → 1"], name
    page = write_report(View(name="it", intervals=intervals), [], tmp_path / "page.html")[0]
    text = page.read_text()
    assert "1 expert-parallel of 1 ranks; EP 2 → 1 after iteration 20." in text
    (cells,) = re.findall(r"<code>rows_per_token</code></td>(.*?)<td>rows", text)
    assert f"{expected:.4g} → 1" in cells
    changed = re.findall(r'<span class="whole">(\S+ \S+ → \S+)</span>', text)
    assert changed == [
        *("lr 0.001 → 0.0001", "expert-model-parallel-size 2 → 1", "world-size 4 → 1"),
    ]


def test_a_page_says_what_it_is_of(tmp_path: Path) -> None:
    settings = RUN.settings | {"moe-aux-loss-coeff": 0.01}
    run = replace(RUN, started=1_700_000_000.0, settings=settings)
    writer = Writer(tmp_path / "my-run" / "grove_metrics")
    writer.run(run)
    for one in a_training(run, 3, tokens=50):
        writer.interval(replace(one, time=run.started + one.iteration))
        made = {"run": run, "iteration": one.iteration, "seconds": 5.0}
        loss = {"lm loss": 4.0 + one.iteration}
        ended = run.started + one.iteration + 5
        writer.evaluation(Evaluation(of="validation", losses=loss, time=ended, **made))
    writer.evaluation(Evaluation(of="test", losses={"lm loss": 99.0}, time=ended, **made))
    view = View.of(tmp_path / "my-run")
    page = write_report(view, [], tmp_path / "page.html")[0].read_text()
    assert "<title>my-run: what the experts do</title>" in page
    assert 'begun <span class="whole">2023-11-14 22:13 UTC</span>' in page

    def shown(name: str) -> list[str]:
        (cells,) = re.findall(rf"<code>{name}</code></td>(.*?)<td>[a-z]", page)
        return re.findall(r'"number">([\d.]*)<', cells)

    assert shown("validation_loss") == ["14", "34", ""]
    # Ten iterations in ten seconds, of which an evaluation took five.
    assert shown("tokens_per_second") == ["10", "10", ""]
    drawn = {one.name: one for one in draw_all(view)}
    main, other = drawn["loss"].figure.axes
    assert main.get_legend_handles_labels()[1] == ["training", "validation", "test"]
    assert other.get_title("left") == "load_balancing_loss, coefficient 0.01"
    assert drawn["speed"].figure.axes[0].get_lines()[0].get_ydata()[1:].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("types", "coefficients", "expected"),
    [
        ("aux_loss", 0.01, ["0.01", "", ""]),
        ("['aux_loss', 'global_aux_loss']", "[0.01, 0.002]", ["0.01", "0.002", "0.5"]),
        ("sinkhorn", None, ["", "", ""]),
    ],
)
def test_losses_have_their_coefficients(types: str, coefficients: Any, expected: list[str]) -> None:
    names = ["load_balancing_loss", "global_load_balancing_loss", "group_load_balancing_loss"]
    settings = {"moe-router-load-balancing-type": types}
    if coefficients is not None:
        settings["moe-aux-loss-coeff"] = coefficients
    if expected[2]:
        settings["grove-group-aux-loss-coeff"] = 0.5
    run = replace(RUN, settings=settings)
    losses = {"lm loss": 3.0} | dict.fromkeys(names, 1.0)
    drawn = by_name([interval(run=run, losses=losses)])["loss"]
    titles = dict(
        axes.get_title("left").partition(", coefficient ")[::2] for axes in drawn.figure.axes
    )
    assert [titles[name] for name in names] == expected


def test_a_job_is_called_as_w_and_b_calls_it(tmp_path: Path) -> None:
    assert View.of(recorded(tmp_path / "folder", RUN, number=1)).name == "folder"
    named = replace(RUN, settings={"wandb-exp-name": "seven"})
    assert View.of(recorded(tmp_path / "other", named, number=1)).name == "seven"


def test_names_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    odd = "<b>$\\frac$ & 'c'"
    run = replace(RUN, layers=(odd, "2"), settings={"wandb-exp-name": odd, odd: odd})
    for name in "abc":
        writer = Writer(tmp_path / name / "grove_metrics")
        own = replace(run, id=name, settings={**run.settings, "seed": odd})
        writer.run(own)
        for number in (1, 2):
            losses = {"lm loss": 3.0, odd: 1.0}
            writer.interval(interval(run=own, iteration=10 * number, time=number, losses=losses))
    for number in (1, 2, 3):
        result = grove_report(
            *(tmp_path / name for name in "abc"[:number]), "--out", tmp_path / f"{number}.html"
        )
        assert result.exit_code == 0, result.output
        text = (tmp_path / f"{number}.html").read_text()
        assert "<b>$" not in text
        assert "&lt;b&gt;$\\frac$ &amp; &#x27;c&#x27;" in text


def test_names_break_between_words_alone(tmp_path: Path) -> None:
    view = View(name="it", intervals=[interval()])
    page = write_report(view, [], tmp_path / "page.html")[0].read_text()
    assert '<td class="name"><code>rank_pairs_imbalance</code></td>' in page
    assert "td.name { white-space: nowrap; }" in page
    assert not re.search(r"\bcode \{[^}]*anywhere", page)


def test_what_is_not_there_is_said_and_not_drawn() -> None:
    single = replace(RUN, ranks=1)
    whole = [[0, 1], [2, 3], [4, 5], [6, 7]]
    drawn = by_name([interval((whole, whole), single, losses={})])
    assert {name: one.read for name, one in drawn.items() if one.figure is None} == {
        "loss": "The record holds no losses.",
        "dead": "No expert was without tokens in any interval.",
        "ranks": "One expert-parallel rank: it has all the work.",
        "bias": "The router has no expert bias.",
        "speed": "Too few intervals to know how many tokens were trained a second.",
    }


@pytest.mark.long
def test_one_interval_is_enough(tmp_path: Path) -> None:
    folder = recorded(tmp_path, RUN, number=1)
    assert grove_report(folder, "--out", tmp_path / "a" / "b.html").exit_code == 0
    assert (tmp_path / "a" / "b-loss.png").is_file()


@pytest.mark.filterwarnings("error")
def test_an_interval_without_tokens_is_drawn_around() -> None:
    nothing = interval(([], []), losses={"lm loss": float("nan")})
    drawn = by_name([interval(), replace(nothing, iteration=20), interval(iteration=30)])
    assert drawn["balance"].figure is not None
    by_name([nothing])


@pytest.mark.long
def test_the_same_record_gives_the_same_page(tmp_path: Path) -> None:
    folder = recorded(tmp_path, RUN, number=2)
    pages = []
    for name in ("a.html", "b.html"):
        assert grove_report(folder, "--out", tmp_path / name).exit_code == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "has no routing.jsonl and no grove_metrics/routing.jsonl"),
        (lambda folder: Writer(folder).run(RUN), "holds no interval (0); let the job report once"),
        (
            lambda folder: (folder / "routing.jsonl").write_text("{}\n"),
            "line (1) is not a line of a record; it is damaged",
        ),
    ],
)
def test_without_a_record_it_exits_2_and_says_why(make: Any, expected: str, tmp_path: Path) -> None:
    make(tmp_path)
    result = grove_report(tmp_path)
    assert result.exit_code == 2
    assert expected in result.output
    assert not list(tmp_path.glob("report*"))


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", RUN, number=1)
    (tmp_path / "file").touch()
    result = grove_report(folder, "--out", tmp_path / "file" / "page.html")
    assert result.exit_code == 2
    assert "file" in result.output
    result = grove_report(folder, "--out", tmp_path / "page.pdf")
    assert result.exit_code == 2
    assert "does not end in (.html)" in result.output


def test_without_matplotlib_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = grove_report(recorded(tmp_path, RUN, number=1))
    assert result.exit_code == 2
    assert "pip install 'grove-megatron[report]'" in result.output


def test_names_with_markup_are_text(tmp_path: Path) -> None:
    odd = '<script>"$\\frac{&$'
    run = replace(RUN, id=odd, dispatcher=odd, layers=(odd, f"{odd} 2"), settings={odd: odd})
    writer = Writer(tmp_path)
    for name in (run.id, "last"):
        writer.run(replace(run, id=name))
        for one in a_training(replace(run, id=name), 2, 40):
            writer.interval(replace(one, losses={odd: 1.0}))
    result = grove_report(tmp_path)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;&quot;$\\frac{&amp;$" in page
