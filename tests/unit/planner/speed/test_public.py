"""What is planned of public measurements, and the page that says so."""

import subprocess
import sys

import pytest

from grove_megatron.planner.speed.cluster import SLACK
from grove_megatron.planner.speed.public.rows import CALIBRATES, public_rows, slack
from grove_megatron.planner.speed.public.table import PAGE, text

ROWS = public_rows()


def test_the_page_is_as_the_code_makes_it():
    assert PAGE.read_text(encoding="utf-8") == text()


def test_one_row_calibrates_and_a_cluster_goes_by_it():
    assert slack(ROWS) == pytest.approx(SLACK, abs=5e-4)
    (row,) = [row for row in ROWS if row.name == CALIBRATES]
    assert row.error(slack(ROWS)) == pytest.approx(0, abs=1e-12)


def test_enough_rows_are_predicted_and_most_are_near():
    counted = [row for row in ROWS if not row.not_comparable and row.name != CALIBRATES]
    assert len(counted) > 70
    assert len({row.row["machine"] for row in counted}) >= 6
    near = [row for row in counted if abs(row.error(SLACK)) <= 0.1]
    # Measured: 67 of 79.
    assert len(near) > 0.8 * len(counted)


def test_memory_is_within_a_tenth_of_what_was_allocated():
    found = [(row.name, *row.memory) for row in ROWS if row.memory is not None]
    assert len(found) > 40
    for name, measured, planned in found:
        assert planned == pytest.approx(measured, rel=0.08), name


def test_the_command_says_whether_the_page_is_as_the_code_makes_it():
    command = [sys.executable, "-m", "grove_megatron.planner.speed.public", "--check"]
    assert subprocess.run(command, check=False).returncode == 0
