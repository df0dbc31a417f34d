"""``grove report``: one page that needs nothing else, of small and of large models."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer import Typer
from typer.testing import CliRunner

from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.report.command import report
from grove_megatron.report.figures import draw_all
from grove_megatron.report.page import write_report
from grove_megatron.report.record import Run, Writer
from grove_megatron.report.shown import Drawn
from tests.unit.report.intervals import RUN, a_training, interval

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
NAMES += ("sharing", "traffic", "ranks", "bias")


def grove_report(*arguments: object) -> Result:
    app = Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def recorded(folder: Path, run: Run, number: int, tokens: int = 40) -> Path:
    writer = Writer(folder)
    writer.run(run)
    for one in a_training(run, number, tokens):
        writer.interval(one)
    return folder


def by_name(intervals: Any) -> dict[str, Drawn]:
    return {drawn.name: drawn for drawn in draw_all(list(intervals))}


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
    assert "<td><code>&lt;a&gt; &amp; &#x27;b&#x27;</code></td>" in page
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


def test_megatrons_all_gather_is_not_measured_by_what_ours_would_send(tmp_path: Path) -> None:
    run = replace(RUN, dispatcher="allgather")
    rows = np.full((2, 2), 4)
    one = interval(run=run, rows=rows, sent_tokens=np.array([4, 4]))
    drawn = by_name([one])["traffic"]
    assert "brings every token to all 2 expert-parallel rank(s)" in drawn.read
    labels = drawn.figure.axes[0].get_legend_handles_labels()[1]
    assert "rows of uniform routing: 2.00" in labels
    page = write_report([one], [], tmp_path / "page.html")[0].read_text()
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
    expected = np.maximum(first / first.mean(), 0.25)
    assert shown[first > 0, 0] == pytest.approx(expected[first > 0])
    # No token at all is below the colours, and the arrow of the colour bar says so.
    assert (shown[3] < 0.25).all()


def test_what_is_not_there_is_said_and_not_drawn() -> None:
    single = replace(RUN, ranks=1)
    whole = [[0, 1], [2, 3], [4, 5], [6, 7]]
    drawn = by_name([interval((whole, whole), single, losses={})])
    assert {name: one.read for name, one in drawn.items() if one.figure is None} == {
        "loss": "The record holds no losses.",
        "dead": "No expert was without tokens in any interval.",
        "ranks": "One expert-parallel rank: it has all the work.",
        "bias": "The router has no expert bias.",
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
