from dataclasses import fields
from pathlib import Path

import pytest

from grove_megatron.checks.problem import Refusal
from grove_megatron.planner.inputs import Layout, Sizes, Training
from grove_megatron.planner.speed.calibrate import calibrated, measured_step
from grove_megatron.planner.speed.step import step

from ..models import GROVE_33B
from .machines_here import ROUND, cluster

HEAD = "timestamp,benchmark,preset,tokens,hidden,variant,kernel,dtype,ranks,processor,quantity,p50"
JOB = Sizes(model=GROVE_33B, layout=Layout(), training=Training(sequence_length=4096))


def results(tmp_path: Path, *rows: tuple[str, str, str, float], processor: str = "a GPU") -> Path:
    """A file of benchmark, variant, quantity and figure."""
    lines = [
        f"now,{benchmark},33b,4096,2048,{variant},k,bf16,8,{processor},{quantity},{figure}"
        for benchmark, variant, quantity, figure in rows
    ]
    path = tmp_path / "results.csv"
    path.write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    return path


def test_rates_of_products_and_copies_are_taken(tmp_path):
    path = results(
        tmp_path,
        ("kernels", "owner_rows", "tflops", 300.0),
        ("kernels", "owner_rows", "matmul_share", 0.5),
        ("kernels", "take_rows", "gigabytes", 2000.0),
    )
    found = calibrated(cluster(), path).machine
    assert found.achieved == pytest.approx(600e12)
    assert found.grouped == pytest.approx(300e12)
    assert found.bandwidth == pytest.approx(2e12)
    changed = {"achieved", "grouped", "bandwidth"}
    same = {f.name for f in fields(ROUND)} - changed
    assert all(getattr(found, name) == getattr(ROUND, name) for name in same)


def test_an_exchange_is_what_its_time_leaves_beside_moving_rows(tmp_path):
    path = results(
        tmp_path,
        ("dispatch", "grove", "sent_bytes", 1e8),
        # 0.4 ms of it go by in memory, at 10^12 bytes a second.
        ("dispatch", "grove", "time", 1.4),
    )
    near = calibrated(cluster(), path).machine.near
    assert near.seconds("all_to_all", 1e8) == pytest.approx(1e-3)
    assert near.seconds("all_gather", 1e8) == ROUND.near.seconds("all_gather", 1e8)


@pytest.mark.parametrize("seconds", [1.0, 123.0])
def test_a_measured_step_is_what_is_planned_then(seconds):
    found = measured_step(cluster(), JOB, seconds)
    assert step(JOB, found).total == pytest.approx(seconds)
    # Not on top of what it was.
    again = measured_step(found, JOB, seconds)
    assert again.slack == pytest.approx(found.slack)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_of_no_time_is_refused(seconds):
    with pytest.raises(Refusal, match=r"--measured-step \(.*\) is not above 0"):
        measured_step(cluster(), JOB, seconds)


def test_what_says_nothing_of_the_machine_is_refused(tmp_path):
    with pytest.raises(Refusal, match="has no results of either"):
        calibrated(cluster(), results(tmp_path, ("convert", "import", "time", 3.0)))


def test_results_of_two_machines_are_refused(tmp_path):
    path = results(tmp_path, ("kernels", "owner_rows", "tflops", 300.0))
    both = path.read_text() + path.read_text().splitlines()[1].replace("a GPU", "b GPU") + "\n"
    path.write_text(both)
    with pytest.raises(Refusal, match=r"several machines \(a GPU, b GPU\)"):
        calibrated(cluster(), path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "lacks the columns benchmark"),
        ("", "lacks the columns"),
        (f"{HEAD}\nnow,kernels,33b,1,1,owner_rows,k,bf16,8,x,tflops,fast\n", "is not a number"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, said):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(Refusal, match=said):
        calibrated(cluster(), path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"--calibrate .* cannot be read"):
        calibrated(cluster(), tmp_path / "none.csv")
