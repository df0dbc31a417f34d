"""The page says what passed, failed, was cut off, and was left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.kit.journal import JOURNAL, note, notes
from grove_megatron.benchmarks.kit.summary import summary, write_summary
from grove_megatron.benchmarks.records import Value, append_rows, rows_of
from tests.unit.benchmarks.test_records import ENVIRONMENT, SETTINGS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run on a card that was killed within its last item."""
    names = [
        "environment",
        "test_kernels",
        "bench_step",
        "test_layer",
        "test_bridge",
        "test_one_gpu",
    ]
    note(
        tmp_path,
        "start",
        at="2026-11-28T12:00:00Z",
        seconds=480.0,
        card="name, clocks\nNVIDIA H100, 1980 MHz",
        versions={"torch": "2.11.0"},
        triton="there is all",
        items=[*names, "test_switches"],
    )
    note(tmp_path, "imported", seconds=9.5, cuda=True, forks=True, failed="")
    for name in names[:4]:
        note(tmp_path, "begun", item=name, small=False)
        if name.startswith("test"):
            note(tmp_path, "collected", item=name, count=4)
        if name == "test_kernels":
            for test, outcome, text in (
                ("a", "passed", ""),
                ("b", "failed", "AssertionError: off by 3"),
                ("c", "skipped", "needs two"),
            ):
                note(tmp_path, "test", item=name, test=test, outcome=outcome, seconds=1, text=text)
        if name == "test_layer":
            note(tmp_path, "test", item=name, test="d", outcome="passed", seconds=1, text="")
            continue
        end = {
            "environment": (0, None, 0),
            "test_kernels": (1, 60.0, 0),
            "bench_step": (3, None, 0),
        }
        code, cut_off, rows = end[name]
        note(
            tmp_path,
            "ended",
            item=name,
            code=code,
            seconds=12.25,
            cut_off=cut_off,
            rows=rows,
            last="the last line" if code else "",
        )
    note(tmp_path, "left out", item="test_bridge", why="needs megatron.bridge (not installed)")
    return tmp_path


def test_every_result_is_there(results: Path) -> None:
    page = summary(results)
    for line in (
        "2026-11-28T12:00:00Z, 480 s given. torch 2.11.0. there is all.",
        "    NVIDIA H100, 1980 MHz",
        "Not ended: it runs, or was killed.",
        "| environment | 12.2 | done |",
        "| test_kernels | 12.2 | 1 failed, 1 passed, 1 skipped, 1 not run; "
        "**cut off** after 60 s |",
        "| bench_step | 12.2 | **failed** (exit code 3) |",
        "| test_layer |  | 1 passed, 3 not run; not ended |",
        "- test_kernels: 1, needs two",
        "- test_bridge: needs megatron.bridge (not installed)",
        "- test_one_gpu: not reached",
        "- test_switches: not reached",
    ):
        assert line in page.splitlines(), page
    assert "**b**\n\n```text\nAssertionError: off by 3\n```" in page
    assert "**bench_step**\n\n```text\nthe last line\n```" in page
    assert "No CUDA" not in page


def test_a_run_without_a_card_says_so(results: Path) -> None:
    note(results, "imported", seconds=9.5, cuda=False, forks=True, failed="ImportError: no x")
    page = summary(results)
    assert "No time below says anything of a GPU" in page
    assert "**Importing failed:** ImportError: no x" in page


def test_figures_are_in_tables(results: Path) -> None:
    settings = replace(SETTINGS, benchmark="step")
    values = [
        Value.milliseconds(name, "grouped", Samples((seconds,) * 3))
        for name, seconds in (("plain", 0.2), ("naive", 0.4), ("grove", 0.1))
    ]
    values.append(Value.milliseconds("grove", "grouped", Samples((0.01,)), quantity="watch of x"))
    append_rows(results / "rows.csv", rows_of(settings, ENVIRONMENT, values))
    page = summary(results)
    assert "### step" in page
    assert "| 0.500 |" in page
    assert "- watch of x: 10.000 (10.000-10.000) ms" in page


def test_a_line_that_was_cut_off_is_passed_over(results: Path) -> None:
    before = list(notes(results))
    with (results / JOURNAL).open("a") as file:
        file.write('{"kind": "test", "item": "test_la')
    assert list(notes(results)) == before
    write_summary(results)
    assert (results / "SUMMARY.md").read_text() == summary(results)
    assert not (results / "SUMMARY.new").exists()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no results.jsonl; name one that run.sh has written"):
        list(notes(tmp_path))
