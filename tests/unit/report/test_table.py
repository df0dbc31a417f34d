"""The table of a comparison: what is in its cells, and which columns it has."""

from dataclasses import replace

import pytest

from grove_megatron.report.compared import Compared, compared
from grove_megatron.report.table import columns, html_table, markdown_table
from grove_megatron.report.view import View
from tests.unit.report.jobs import a_run, a_view


def cells(of: Compared) -> list[dict[str, str]]:
    """Of the rows of the Markdown table, by title."""
    head, rule, *rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in markdown_table(of).splitlines()
        if line.startswith("|")
    ]
    assert len(rule) == len(head)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_row_is_a_system_with_the_mean_and_range_of_its_seeds() -> None:
    views = [
        *(a_view(f"s-{n}", [3.0 + n], run=a_run(str(n), seed=n)) for n in (1, 2)),
        a_view("t", [4.0], run=a_run("t", lr=7, sizes={"parameters": (10_000, 800, 400)})),
    ]
    of = compared(views)
    one, two = cells(of)
    assert one == {
        "system": "s",
        "seeds": "2",
        "iteration": "10",
        "training loss": "4.5000 (4.0000..5.0000)",
        "MaxVio": "2.9",
        "dead experts": "8",
        "pairs per token": "1.625",
        "rows per token": "1.375",
        "tokens/s": "–",
        "parameters": "2,200",
        "active": "1,300",
    }
    assert (two["system"], two["seeds"], two["training loss"]) == ("t", "1", "4.0000")
    assert two["parameters"] == "11,200"
    assert "4.5000<small>(4.0000..5.0000)</small>" in html_table(of)
    assert "mean (lowest..highest)" in markdown_table(of)
    assert "lowest" not in markdown_table(compared(views[1:]))


def test_runs_that_end_apart_have_a_column_of_their_common_iteration() -> None:
    longer = a_view("b", [9.0, 2.0, 1.0], run=a_run("b", train_iters=40), validation={30: 1.0})
    shorter = a_view("a", [9.0, 3.0], run=a_run("a"), validation={20: 4.0})
    both = replace(longer, evaluations=[*longer.evaluations, *shorter.evaluations])
    one, two = cells(compared([shorter, both]))
    assert (one["iteration"], two["iteration"]) == ("20", "30 of 40")
    assert (one["training loss at 20"], two["training loss at 20"]) == ("3.0000", "2.0000")
    assert (one["at iteration"], two["at iteration"]) == ("20", "30")
    assert (one["validation loss"], two["validation loss"]) == ("4.0000", "1.0000")
    assert two["validation loss at 20"] == "4.0000"
    (only,) = cells(compared([both]))
    assert not [title for title in only if " at " in title or title.startswith("at ")]


def test_seeds_that_end_apart_or_lack_a_figure_say_so() -> None:
    views = [
        a_view("s-1", [9.0, 3.0], run=a_run("1", seed=1), validation={20: 4.0}),
        a_view("s-2", [9.0], run=a_run("2", seed=2), validation={10: 5.0}),
        a_view("s-3", [9.0, 3.0], run=a_run("3", seed=3)),
    ]
    (row,) = cells(compared(views))
    assert row["iteration"] == "10..20"
    assert row["at iteration"] == "10..20"
    assert row["validation loss"] == "4.5000 (4.0000..5.0000, of 2)"
    nothing = compared([a_view("a"), a_view("b", every=7, run=a_run("b", lr=2))])
    assert "No iteration was reported by all runs" in markdown_table(nothing)
    assert not [title for title in cells(nothing)[0] if " at " in title]


def test_a_repeated_seed_is_said() -> None:
    views = [a_view(f"s-{n}", run=a_run(str(n), seed=seed)) for n, seed in enumerate((7, 7, 8))]
    assert "s: several runs have the same seed (7)." in markdown_table(compared(views))
    views = [a_view(f"s-{n}", run=a_run(str(n), seed=n)) for n in range(3)]
    assert "same seed" not in markdown_table(compared(views))


@pytest.mark.parametrize(("drops", "expected"), [(False, []), (True, ["dropped share"])])
def test_dropped_pairs_have_a_column_where_they_can_be(drops: bool, expected: list[str]) -> None:
    run = a_run("b", lr=2, sizes={"drops": drops})
    of = compared([a_view("a"), a_view("b", run=run)])
    assert [c.title for c in columns(of) if "dropped" in c.title] == expected
    if drops:
        assert [row["dropped share"] for row in cells(of)] == ["–", "0.1875"]


def test_a_measure_named_dropped_has_a_column_too() -> None:
    of = compared([a_view("a")])
    (row,) = of.every_row
    row.figures["dropped"] = 0.25
    (shown,) = cells(of)
    assert shown["dropped"] == "0.25"


def test_a_run_without_validation_asks_for_no_common_iteration() -> None:
    of = compared([a_view("a", validation={10: 4.0}), a_view("b", run=a_run("b", lr=2))])
    one, two = cells(of)
    assert (one["validation loss"], two["validation loss"]) == ("4.0000", "–")
    assert not [title for title in one if "at " in title]


def test_names_are_no_markdown() -> None:
    view = View(name="<b>|[a](b)`*\n$", intervals=a_view("x").intervals)
    line = markdown_table(compared([view])).splitlines()[2]
    assert line.startswith("| \\<b\\>\\|\\[a\\](b)\\`\\* \\$ | 1 |")
