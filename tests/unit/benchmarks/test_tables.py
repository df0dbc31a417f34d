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


def test_every_machine_has_a_table_of_its_own(folder: Path) -> None:
    file = folder / "results" / "dispatch.csv"
    other = replace(ENVIRONMENT, processor="another")
    rows = [replace(row, processor=other.processor) for row in run("2026-01-03", 4.0, 3.0)]
    append_rows(file, [*rows, *run("2026-01-04", 4.0, 2.0, ranks=4)])
    text = tables.filled(TEXT, folder)
    assert tables.filled(text, folder) == text
    one, two = text.split("| Ranks |")[1:]
    assert [line[4] for line in cells(f"||{one}")] == ["0.250", "0.500"]
    assert [line[4] for line in cells(f"||{two}")] == ["0.750"]
    assert (f"{ENVIRONMENT.processor}, " in one, "another, " in two) == (True, True)
    assert f"{ENVIRONMENT.processor}, " not in two


def test_without_results_the_document_says_so(tmp_path: Path) -> None:
    assert tables.filled(TEXT, tmp_path) == TEXT.replace("old\n", tables.NOTHING)


def nodes() -> list[Row]:
    """A run on nodes of two, of the shape of the other."""
    rows = run("2026-01-05", 4.0, 2.0, ranks=4)
    variants = {"stock": (4.0, 4.0), "grove": (2.0, 2.0), "hierarchical": (3.0, 1.0)}
    for name, (time, leaving) in variants.items():
        for quantity, number in (("time", time), ("leaving_rows_per_token", leaving)):
            rows.append(replace(rows[0], variant=name, quantity=quantity, p50=number))
    hop = replace(rows[0], variant="hierarchical", quantity="node_rows_per_token", p50=1.5)
    inside = replace(rows[0], variant="hierarchical", quantity="rows_per_token", p50=2.5)
    return [replace(row, ranks_per_node=2) for row in [*rows, hop, inside]]


def cells(text: str) -> list[list[str]]:
    """Of the lines of a table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_runs_on_nodes_have_a_table_of_their_own(folder: Path) -> None:
    file = folder / "results" / "dispatch.csv"
    append_rows(file, run("2026-01-04", 4.0, 2.0, ranks=4))
    append_rows(file, nodes())
    assert [line[0] for line in cells(tables.filled(TEXT, folder))] == ["2", "4"]
    marked = TEXT.replace("dispatch.csv", "dispatch.csv as nodes")
    text = tables.filled(marked, folder)
    assert tables.filled(text, folder) == text
    found = {line[2]: line for line in cells(text)}
    assert list(found) == ["stock", "grove", "hierarchical"]
    assert found["hierarchical"][0] == "4 on 2 nodes"
    assert found["hierarchical"][4:] == ["0.750", "1.50 + 2.50", "1.00"]
    assert "2026-01-05" in text
    assert "2026-01-04" not in text, "whose run is not shown"


def test_a_table_of_nothing_that_belongs_into_it_says_so(folder: Path) -> None:
    marked = TEXT.replace("dispatch.csv", "dispatch.csv as nodes")
    assert tables.NOTHING in tables.filled(marked, folder)


def test_the_summary_has_a_line_for_every_result_of_a_folder(folder: Path) -> None:
    def value(variant: str, kernel: str, quantity: str, number: float) -> Value:
        return Value.once(variant, kernel, quantity, "", number)

    layer = [
        *(value(v, "sequential", "time", t) for v, t in (("plain", 4.0), ("grove", 6.0))),
        *(value(v, "grouped", "time", t) for v, t in (("plain", 5.0), ("grove", 4.4))),
        value("naive", "sequential", "time", 1.0),
        value("naive", "grouped", "time", 8.0),
        value("grove", "", "flop_ratio", 1.08),
    ]
    step = [value(v, "grouped", "time", t) for v, t in (("plain", 10.0), ("grove", 9.0))]
    step.append(value("grove", "grouped", "rows_per_token", 2.0))
    for name, values in (("layer", layer), ("step", step), ("scaling", step)):
        rows = rows_of(replace(SETTINGS, benchmark=name), ENVIRONMENT, values)
        append_rows(folder / "results" / f"{name}.csv", rows)
    append_rows(folder / "results" / "dispatch.csv", nodes())
    text = tables.filled("<!-- table: results as summary -->\n<!-- end -->\n", folder)
    found = cells(text)
    assert [line[0].split(":")[0] for line in found] == [
        "dispatch, 2 ranks",
        "dispatch, 4 ranks on nodes of 2, hierarchical",
        "layer",
        "training step, 2 ranks",
    ]
    assert "64 experts x 256 (grouped), 32 adjugates x 64" in found[2][0], "the fastest"
    assert [line[1:] for line in found] == [
        ["0.250", "", "0.250 of the rows"],
        ["0.750", "", "0.250 of rows between nodes"],
        ["1.100", "0.550", "1.080 of the operations"],
        ["0.900", "", "0.250 of the rows"],
    ]


def test_strategies_and_single_kernels_are_two_tables_of_one_file(tmp_path: Path) -> None:
    values = [
        Value.once("owner_rows", "", "time", "ms", 3.0),
        Value.once("owner_rows", "", "flop_ratio", "", 1.08),
        Value.once("separate", "", "time", "ms", 4.0),
        Value.once("experts_only", "", "time", "ms", 2.5),
        Value.once("experts_only_triton", "", "time", "ms", 2.0),
        Value.once("take_rows", "torch", "time", "ms", 1.0),
        Value.once("take_rows", "torch", "copy_share", "", 0.7),
        Value.once("take_rows", "triton", "copy_share", "", 0.9),
    ]
    rows = rows_of(replace(SETTINGS, benchmark="kernels"), ENVIRONMENT, values)
    found = {line[1]: line for line in cells(tables.table(rows))}
    assert list(found) == ["owner_rows", "separate", "experts_only", "experts_only_triton"]
    assert found["owner_rows"][3:6] == ["1.000", "1.500", "1.080"]
    assert found["separate"][3:6] == ["1.333", "2.000", ""]
    (line,) = cells(tables.table(rows, "single"))
    assert line[1:] == ["take_rows", "torch", "1.00 (1.00-1.00)", "", "70%", "", ""]


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
    assert [len(found) for found in marked] == [10, 1]


def test_every_benchmark_has_a_layout() -> None:
    from grove_megatron.benchmarks.layouts import LAYOUTS
    from grove_megatron.benchmarks.shape import PRESETS

    assert set(PRESETS) < set(LAYOUTS)
    for name, layout in LAYOUTS.items():
        benchmark = {"nodes": "dispatch", "single": "kernels", "summary": "layer"}.get(name, name)
        kernel = "" if name == "kernels" else "grouped"
        time = Value.once("grove", kernel, "time", "ms", 2.0)
        settings = replace(SETTINGS, benchmark=benchmark, ranks_per_node=2)
        rows = rows_of(replace(settings, ranks_per_node=None), ENVIRONMENT, [time])
        lines = [*layout.lines(rows), *layout.lines(rows_of(settings, ENVIRONMENT, [time]))]
        assert lines
        assert {len(line) for line in lines} == {len(layout.header)}
