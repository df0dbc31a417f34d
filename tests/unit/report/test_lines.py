"""The figure of a comparison: one colour a system, a band over its seeds."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from grove_megatron.report import draw
from grove_megatron.report.lines import Curve, lines, together
from grove_megatron.report.shown import Shown
from grove_megatron.report.view import View
from tests.unit.report.intervals import RUN, a_training
from tests.unit.report.jobs import a_run, a_view


def curve(name: str, *views: View) -> Curve:
    return Curve(name, [Shown.of(view) for view in views])


def panels(curves: Sequence[Curve], layers: bool = False) -> dict[str, Axes]:
    with draw.style():
        figure = lines(curves, layers).figure
    assert figure is not None
    return {axes.get_title("left"): axes for axes in figure.axes if axes.get_visible()}


def test_lines_of_seeds_are_put_together_where_all_of_them_are() -> None:
    gapped = np.array([1.0, 2.0, np.nan, 4.0])
    x, y = together([(np.array([10, 20, 30, 40]), gapped), (np.array([15, 45]), np.array([5, 8]))])
    assert x.tolist() == [10, 15, 20, 30, 40, 45]
    nan = np.nan
    expected = [[1, 1.5, 2, nan, 4, nan], [nan, 5, 5.5, 6.5, 7.5, 8]]
    assert np.array_equal(y, expected, equal_nan=True)


def test_a_system_is_one_colour_with_the_mean_and_the_range_of_its_seeds() -> None:
    a = curve("a", a_view("a-1", [5.0, 3.0, 1.0]), a_view("a-2", [7.0, 4.0]))
    b = curve("b", a_view("b", [8.0, 8.0, 8.0]))
    axes = panels([a, b])["lm loss, nats per token"]
    drawn = [line for line in axes.get_lines() if len(line.get_xdata())]
    colours = [to_hex(line.get_color()) for line in drawn]
    assert colours == [draw.COLOURS[0]] * 3 + [draw.COLOURS[1]]
    assert [line.get_linewidth() < 1 for line in drawn] == [True, True, False, False]
    mean = drawn[2]
    assert mean.get_xdata().tolist() == [10, 20, 30]
    assert np.array_equal(mean.get_ydata(), [6, 3.5, np.nan], equal_nan=True)
    (band,) = axes.collections
    points = {tuple(point) for path in band.get_paths() for point in path.vertices.tolist()}
    assert points == {(10, 5), (10, 7), (20, 3), (20, 4)}


def test_few_runs_show_the_range_over_their_layers() -> None:
    views = [a_view("a", [5.0, 3.0]), a_view("b", [5.0, 3.0])]
    both = [curve(view.name, view) for view in views]
    title = "MaxVio of the experts"
    assert len(panels(both, layers=True)[title].collections) == 2
    assert len(panels(both)[title].collections) == 0
    (path,) = panels(both, layers=True)[title].collections[0].get_paths()
    assert sorted(set(path.vertices[:, 1].tolist())) == pytest.approx([2, 3.8])


def test_many_systems_are_told_apart_and_named() -> None:
    views = [a_view(f"{'long ' * 40}{n}", run=a_run(str(n), lr=n)) for n in range(24)]
    with draw.style():
        drawn = lines([curve(view.name, view) for view in views], layers=False).figure
    assert drawn is not None
    (key,) = drawn.legends
    looks = {(line.get_color(), line.get_linestyle()) for line in key.get_lines()}
    assert len(looks) == 24
    names = [text.get_text() for text in key.get_texts()]
    assert len(set(names)) == 24
    drawn.draw_without_rendering()
    box = key.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawn.bbox.x1
    # Nothing is drawn over the names.
    assert box.y0 >= max(axes.get_tightbbox().y1 for axes in drawn.axes if axes.get_visible())


def test_a_number_that_no_run_has_is_no_panel() -> None:
    plain = [curve("a", a_view("a", run=replace(RUN, groups=0))), curve("b", a_view("b"))]
    titles = [*panels(plain)]
    assert "groups per token" in titles
    assert "share of routed pairs dropped" not in titles
    assert "RMS of the expert bias" not in titles
    assert "lm loss, validation" not in titles
    assert "tokens per second" not in titles
    assert "groups per token" not in panels(plain[:1])
    other = a_view("c", run=replace(RUN, drops=True), validation={10: 4.0})
    titles = [*panels([*plain, curve("c", other)])]
    assert "share of routed pairs dropped" in titles
    assert "lm loss, validation" in titles


def test_dead_experts_are_those_of_all_layers() -> None:
    axes = panels([curve("a", a_view("a", [5.0, 4.0]))])["dead experts, all layers"]
    assert axes.get_lines()[0].get_ydata().tolist() == [3 + 5] * 2


def test_every_validation_set_has_a_panel() -> None:
    view = a_view("a", validation={10: 2.0})
    (made,) = view.evaluations
    sets = [replace(made, of=f"validation-{n}", losses={"lm loss": n}) for n in (3, 4)]
    drawn = panels([curve("a", replace(view, evaluations=sets))])
    for n in (3, 4):
        points = drawn[f"lm loss, validation-{n}"].get_lines()[0].get_xydata()
        assert points.tolist() == [[10, n]]


def test_a_single_value_is_seen() -> None:
    axes = panels([curve("a", a_view("a", [5.0]))])["lm loss, nats per token"]
    marked = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in marked] == [[[10, 5]]]


def test_the_last_half_of_the_loss_is_large_enough_to_see() -> None:
    views = [
        View(name="a", intervals=list(a_training(RUN, 8, tokens=5))),
        View(name="b", intervals=list(a_training(a_run("b"), 3, tokens=5))),
    ]
    axes = panels([curve(view.name, view) for view in views])["lm loss, the last half"]
    assert axes.get_xlim() == (40, 80)
    losses = [i.losses["lm loss"] for i in views[0].intervals if i.iteration >= 40]
    low, high = axes.get_ylim()
    assert low < min(losses) < max(losses) < high
    assert high - low < 1.2 * (max(losses) - min(losses))
    few = panels([curve("b", views[1])])
    assert "lm loss, the last half" not in few


@pytest.mark.filterwarnings("error")
def test_seeds_that_never_ran_together_are_drawn() -> None:
    late = a_view("b", [4.0, 3.0])
    late = replace(late, intervals=[replace(i, iteration=i.iteration + 90) for i in late.intervals])
    axes = panels([curve("a", a_view("a", [6.0, 5.0]), late)])["lm loss, nats per token"]
    assert axes.get_xlim() == (0, 110)
    assert [line.get_xdata().tolist() for line in axes.get_lines()[:2]] == [[10, 20], [100, 110]]
