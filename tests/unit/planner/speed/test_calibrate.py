from dataclasses import fields, replace
from pathlib import Path

import pytest

from grove_megatron.checks.problem import Refusal
from grove_megatron.planner.inputs import Layout, Sizes, Training
from grove_megatron.planner.speed.calibrate import calibrated, measured_step, taken
from grove_megatron.planner.speed.machines import machine
from grove_megatron.planner.speed.step import step

from ..models import GROVE_33B
from .machines_here import ROUND, cluster

HEAD = (
    "timestamp,benchmark,preset,tokens,hidden,variant,kernel,dtype,ranks,device,processor,"
    "quantity,p50"
)
JOB = Sizes(model=GROVE_33B, layout=Layout(), training=Training(sequence_length=4096))


def results(
    tmp_path: Path,
    *rows: tuple[str, str, str, float],
    processor: str = "a GPU",
    device: str = "cuda",
    dtype: str = "bf16",
) -> Path:
    """A file of benchmark, variant, quantity and figure."""
    lines = [
        f"now,{benchmark},33b,4096,2048,{variant},k,{dtype},8,{device},{processor},{quantity},{figure}"
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


@pytest.mark.parametrize("slack", [0.9, 2.5])
def test_a_measured_step_is_what_is_planned_then(slack):
    seconds = slack * step(JOB, cluster()).total
    found = measured_step(cluster(), JOB, seconds)
    assert step(JOB, found).total == pytest.approx(seconds)
    # Not on top of what it was.
    again = measured_step(found, JOB, seconds)
    assert again.slack == pytest.approx(found.slack)


def test_a_step_of_another_job_is_refused_with_the_planned_one():
    planned = step(JOB, cluster()).total
    for seconds, said in (
        (planned / 100, r"is an MFU of \d+%, above 100%, where"),
        (planned * 3.1, r"is 3.1 of the planned [\d.]+ s, not between 0.5 and 3"),
    ):
        with pytest.raises(Refusal, match=rf"--measured-step \(.*\) {said}"):
            measured_step(cluster(), JOB, seconds)


def test_a_step_half_as_long_as_its_parts_is_refused():
    slow = cluster(achieved=5e13, grouped=4e13)
    planned = step(JOB, slow).total
    with pytest.raises(Refusal, match=r"is 0\.4 of the planned"):
        measured_step(slow, JOB, 0.4 * planned)


def test_results_of_another_machine_are_refused(tmp_path):
    rows = ("kernels", "take_rows", "gigabytes", 2000.0)
    of_cpu = results(tmp_path, rows, processor="AMD EPYC", device="cpu")
    with pytest.raises(Refusal, match=r"has results of a cpu \(AMD EPYC\), not of round GPUs"):
        calibrated(cluster(), of_cpu)
    here = replace(cluster(), machine=machine("h200"))
    for other in ("NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"):
        with pytest.raises(Refusal, match=rf"another GPU \({other}\) than h200"):
            calibrated(here, results(tmp_path, rows, processor=other))
    assert calibrated(here, results(tmp_path, rows, processor="NVIDIA H200")) is not None


def test_copies_are_of_the_jobs_dtype_and_it_is_said_what_was_taken(tmp_path):
    path = results(tmp_path, ("kernels", "take_rows", "gigabytes", 2000.0), dtype="fp32")
    with pytest.raises(Refusal, match="has no results of either"):
        calibrated(cluster(), path)
    found = calibrated(cluster(), path, "fp32")
    assert taken(cluster(), found) == ["--calibrate: copies (GB/s) 2000, not 1000"]


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
        (
            f"{HEAD}\nnow,kernels,33b,1,1,up,k,bf16,8,cuda,x,tflops,fast\n",
            "is not a number",
        ),
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
