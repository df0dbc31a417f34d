"""Tables of the documents are those of the results files."""

from dataclasses import replace
from pathlib import Path

import pytest

from grove_megatron.benchmarks import tables
from grove_megatron.benchmarks.records import Row, Value, append_rows, rows_of

from .test_records import ENVIRONMENT, SETTINGS

DISPATCH = replace(SETTINGS, benchmark="dispatch")


def run(timestamp: str, stock: float, grove: float, ranks: int = 2) -> list[Row]:
    def value(variant: str, quantity: str, number: float) -> Value:
        return replace(Value.once(variant, "", quantity, "", number), p20=1.0, p80=9.0)

    values = [
        value("stock", "time", stock),
        value("stock", "rows_per_token", 8.0),
        value("stock", "sent_bytes", 1000.0),
        value("grove", "time", grove),
        value("grove", "rows_per_token", 2.0),
        value("grove", "sent_bytes", 250.0),
        value("grove", "metadata_share", 0.0123),
    ]
    settings = replace(DISPATCH, ranks=ranks)
    return rows_of(settings, replace(ENVIRONMENT, timestamp=timestamp), values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    append_rows(tmp_path / "results" / "dispatch.csv", run("2026-01-01", 4.0, 1.0))
    return tmp_path


TEXT = "before\n<!-- table: results/dispatch.csv -->\nold\n<!-- end -->\nafter\n"


def test_a_table_replaces_what_stands_between_the_marks(folder: Path) -> None:
    text = tables.filled(TEXT, folder)
    assert text.startswith("before\n<!-- table: results/dispatch.csv -->\n| Ranks |")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| 2 ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == [
        *("4.0 (1.0-9.0)", "1.0 (1.0-9.0)", "0.250", "2.00 of 8.00", "0.250", "1.23%")
    ]
    assert "commit `0123456789ab+dirty`" in text
    assert tables.filled(text, folder) == text


def test_the_latest_run_of_a_shape_counts_and_other_shapes_stay(folder: Path) -> None:
    file = folder / "results" / "dispatch.csv"
    append_rows(file, run("2026-01-03", 4.0, 3.0))
    append_rows(file, run("2026-01-02", 4.0, 2.0))
    append_rows(file, run("2025-01-01", 4.0, 2.6, ranks=4))
    lines = [line.split("|") for line in tables.filled(TEXT, folder).splitlines()]
    ratios = [cells[5].strip() for cells in lines if cells[1:2] and cells[1].strip().isdigit()]
    assert ratios == ["0.750", "0.650"]


def test_without_results_the_document_says_so(tmp_path: Path) -> None:
    assert tables.filled(TEXT, tmp_path) == TEXT.replace("old\n", tables.NOTHING)


def test_check_finds_a_document_that_differs_and_write_mends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = folder / "README.md"
    document.write_text(TEXT)
    monkeypatch.setattr(tables, "DOCUMENTS", (document,))
    assert tables.main(["--check"]) == 1
    assert document.read_text() == TEXT
    assert str(document) in capsys.readouterr().out
    assert tables.main(["--write"]) == 0
    assert tables.main(["--check"]) == 0
    append_rows(folder / "results" / "dispatch.csv", run("2026-02-01", 4.0, 2.0))
    assert tables.main(["--check"]) == 1
    assert tables.main(["--chekc"]) == 2


def test_the_documents_of_this_repository_fit_their_results() -> None:
    assert tables.main(["--check"]) == 0
    marked = [tables._MARKED.findall(d.read_text()) for d in tables.DOCUMENTS]
    assert len(marked[0]) == 4


def test_every_benchmark_has_a_layout() -> None:
    from grove_megatron.benchmarks.layouts import lines_of
    from grove_megatron.benchmarks.shape import PRESETS

    for name in PRESETS:
        time = Value.once("grove", "grouped", "time", "ms", 2.0)
        rows = rows_of(replace(SETTINGS, benchmark=name), ENVIRONMENT, [time])
        header, lines = lines_of([rows])
        assert lines
        assert {len(line) for line in lines} == {len(header)}
