"""Rows of results: written, read back, and what they say about where they come from."""

import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grove_megatron.benchmarks.environment import Environment, commit
from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.records import COLUMNS, Value, append_rows, read_rows, rows_of
from grove_megatron.benchmarks.shape import PRESETS, Settings

SETTINGS = Settings(
    benchmark="layer",
    preset="small",
    shape=PRESETS["layer"]["small"],
    ranks=2,
    threads=3,
    rounds=4,
    warmup=1,
)
ENVIRONMENT = Environment(
    timestamp="2026-01-02T03:04:05+00:00",
    device="cpu",
    processor='A "fast" one, 3 GHz',
    cores=2,
    torch="2.13.0",
    megatron_core="0.19.2",
    python="3.12.1",
    commit="0123456789ab+dirty",
)
TIME = Value.milliseconds("grove", "grouped", Samples((0.1, 0.2, 0.3)))
RATIO = Value.once("grove", "", "flop_ratio", "of plain", 1 / 3)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "results" / "layer.csv"
    rows = rows_of(SETTINGS, ENVIRONMENT, [TIME, RATIO])
    append_rows(file, rows[:1])
    append_rows(file, rows[1:])
    assert read_rows(file) == rows
    assert file.read_text().count("timestamp") == 1, "one header"


def test_a_row_says_what_was_measured_and_where() -> None:
    (row,) = rows_of(SETTINGS, ENVIRONMENT, [TIME])
    expected = {
        **asdict(ENVIRONMENT),
        **asdict(SETTINGS.shape),
        "benchmark": "layer",
        "preset": "small",
        "ranks": 2,
        "ranks_per_node": 0,
        "threads": 3,
        "variant": "grove",
        "kernel": "grouped",
        "quantity": "time",
        "unit": "ms",
        "p20": 140.0,
        "p50": 200.0,
        "p80": 260.0,
        "iterations": 3,
    }
    assert asdict(row) == expected
    assert set(COLUMNS) == set(expected)


def test_a_row_says_what_counted_as_a_node() -> None:
    settings = replace(SETTINGS, ranks=4, ranks_per_node=2)
    (row,) = rows_of(settings, ENVIRONMENT, [TIME])
    assert (row.ranks, row.ranks_per_node) == (4, 2)


def test_a_value_may_have_a_shape_and_ranks_of_its_own() -> None:
    shape = replace(SETTINGS.shape, tokens=7)
    (row,) = rows_of(SETTINGS, ENVIRONMENT, [replace(TIME, shape=shape, ranks=1)])
    assert (row.tokens, row.ranks) == (7, 1)


def test_a_file_with_other_columns_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "layer.csv"
    append_rows(file, rows_of(SETTINGS, ENVIRONMENT, [TIME]))
    file.write_text(file.read_text().replace("timestamp,", "when,", 1))
    with pytest.raises(ValueError, match=r"has columns \(when,"):
        read_rows(file)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path: Path) -> None:
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    checkout = package.parent
    assert commit(package) == "unknown", "no checkout"
    (package / "code.py").write_text("1")
    git(checkout, "init", "-q")
    assert commit(package) == "unknown", "no commit yet"
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert commit(package) == head
    (package / "README.md").write_text("words")
    (package / "results.csv").write_text("1,2")
    assert commit(package) == head, "documents and results are no code"
    (package / "code.py").write_text("2")
    assert commit(package) == f"{head}+dirty"
    installed = package / "site-packages" / "package"
    installed.mkdir(parents=True)
    assert commit(installed) == "unknown", "somebody else's checkout around it"
