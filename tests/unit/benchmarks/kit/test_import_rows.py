"""Rows of another machine: all of them come, or none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grove_megatron.benchmarks.commands import app
from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.kit.import_rows import import_rows
from grove_megatron.benchmarks.records import Row, Value, append_rows, read_rows, rows_of
from grove_megatron.benchmarks.tables import table
from tests.unit.benchmarks.test_records import ENVIRONMENT, SETTINGS

CARD = replace(
    ENVIRONMENT,
    timestamp="2026-11-28T12:00:00+00:00",
    device="cuda",
    processor="NVIDIA H100 80GB HBM3",
    cores=16,
    torch="2.11.0",
    commit="0123456789ab",
)


def rows(benchmark: str, environment: Any = CARD) -> list[Row]:
    settings = replace(SETTINGS, benchmark=benchmark)
    values = [
        Value.milliseconds(name, "grouped", Samples((seconds,) * 3))
        for name, seconds in (("plain", 0.2), ("naive", 0.4), ("grove", 0.1))
    ]
    return rows_of(settings, environment, values)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    append_rows(tmp_path / "results" / "rows.csv", [*rows("layer"), *rows("step")])
    return tmp_path / "results"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    here = replace(ENVIRONMENT, timestamp="2026-11-01T12:00:00+00:00")
    append_rows(tmp_path / "into" / "layer.csv", rows("layer", here))
    return tmp_path / "into"


def test_rows_go_to_the_files_of_their_benchmarks(results: Path, into: Path) -> None:
    before = (into / "layer.csv").read_text()
    lines = import_rows(results, into)
    assert lines == [
        f"3 rows to {into}/{name}.csv: 2026-11-28T12:00:00+00:00, NVIDIA H100 80GB HBM3, "
        "torch 2.11.0, commit 0123456789ab"
        for name in ("layer", "step")
    ]
    assert (into / "layer.csv").read_text().startswith(before)
    assert read_rows(into / "layer.csv")[3:] == rows("layer")
    assert read_rows(into / "step.csv") == rows("step")
    assert sorted(path.name for path in into.iterdir()) == ["layer.csv", "step.csv"]


def test_the_tables_show_them_under_their_card(results: Path, into: Path) -> None:
    import_rows(results, into)
    shown = table(read_rows(into / "layer.csv"))
    cpu, card = shown.split("NVIDIA H100 80GB HBM3")
    assert ENVIRONMENT.processor in cpu
    assert "torch 2.11.0" in card
    assert "`0123456789ab`, 2026-11-28" in card


def test_a_second_time_nothing_changes(results: Path, into: Path) -> None:
    import_rows(results, into)
    before = {path.name: path.read_text() for path in into.iterdir()}
    lines = import_rows(results, into)
    assert {path.name: path.read_text() for path in into.iterdir()} == before
    assert all("are there already" in line for line in lines)
    assert len(lines) == 2


def test_rows_of_a_cpu_are_refused_or_said_to_be(tmp_path: Path, into: Path) -> None:
    append_rows(tmp_path / "cpu" / "rows.csv", rows("step", replace(CARD, device="cpu")))
    with pytest.raises(ValueError, match=r"^file \(rows.csv\) has rows of a CPU, .* give --cpu"):
        import_rows(tmp_path / "cpu", into)
    assert not (into / "step.csv").exists()
    (line,) = import_rows(tmp_path / "cpu", into, cpu=True)
    assert ", the CPU, " in line


WRONG = {
    "benchmark": ("other", "benchmark (other) is not one of"),
    "device": ("tpu", "device (tpu) is not one of (cpu, cuda)"),
    "torch": ("", "(torch) is empty"),
    "p20": (9e9, "p20 (9000000000.0), p50"),
    "p80": (float("inf"), "p80 (inf) are not in order"),
    "iterations": (0, "iterations (0) is below (1)"),
    "timestamp": ("yesterday", "timestamp (yesterday) is no time with its zone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_row_keeps_all_out(name: str, results: Path, into: Path) -> None:
    value, message = WRONG[name]
    given: dict[str, Any] = {name: value}
    append_rows(results / "rows.csv", [replace(rows("step")[0], **given)])
    before = (into / "layer.csv").read_text()
    with pytest.raises(ValueError, match=r"^file \(rows.csv\), line \(8\): ") as caught:
        import_rows(results, into)
    assert message in str(caught.value)
    assert (into / "layer.csv").read_text() == before
    assert [path.name for path in into.iterdir()] == ["layer.csv"]


def test_a_row_that_is_there_twice_is_refused(results: Path, into: Path) -> None:
    append_rows(results / "again.csv", rows("layer")[:1])
    with pytest.raises(ValueError, match=r"rows \(layer plain grouped time\) are there twice"):
        import_rows(results, into)


@pytest.mark.parametrize("cut", [100, 8, 1])
def test_a_file_that_was_cut_off_is_refused(cut: int, results: Path, into: Path) -> None:
    whole = (results / "rows.csv").read_text()
    (results / "rows.csv").write_text(whole[:-cut])
    with pytest.raises(ValueError, match=r"^file \(rows.csv\) ends within a line"):
        import_rows(results, into)


def test_the_command_refuses_a_folder_without_rows(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", str(tmp_path)])
    assert done.exit_code == 2
    assert "has no CSV files; name one that run.sh has written" in done.output
