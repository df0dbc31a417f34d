"""When the tracker reports, and that a record that cannot be written does not end the job."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from grove_megatron.report.record import Writer, read_record
from grove_megatron.runtime import cpu
from grove_megatron.training import metrics
from grove_megatron.training.metrics import RoutingTracker
from tests.multirank.on_ranks import grove_config
from tests.unit.report.intervals import interval


def tracker(folder: Path) -> RoutingTracker:
    """As far as recording asks of it."""
    made = RoutingTracker.__new__(RoutingTracker)
    made._writer, made._begun, made._told = Writer(folder), False, False
    return made


def test_a_record_is_begun_once(tmp_path: Path) -> None:
    made = tracker(tmp_path)
    for iteration in (10, 20):
        made._record(interval(iteration=iteration))
    lines = (tmp_path / "routing.jsonl").read_text().splitlines()
    assert [json.loads(line).get("iteration") for line in lines] == [None, 10, 20]


def test_a_record_that_cannot_be_written_is_said_once_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    made = tracker(tmp_path / "file" / "metrics")
    made._record(interval(iteration=10))
    made._record(interval(iteration=20))
    said = capsys.readouterr().err
    assert said.count("grove_megatron:") == 1
    assert "the record of metrics in " in said
    assert "file/metrics cannot be written at iteration 10: [Errno 20] Not a directory" in said
    assert said.endswith("; the job goes on, and every further report tries again\n")
    (tmp_path / "file").unlink()
    made._record(interval(iteration=30))
    made._record(interval(iteration=40))
    record = read_record(made._writer.file)
    assert [i.iteration for i in record.intervals] == [30, 40]
    assert capsys.readouterr().err == ""


def test_a_disk_that_is_full_for_a_while_costs_what_came_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tracker(tmp_path)
    made._record(interval(iteration=10))
    file = tmp_path / "routing.jsonl"
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, a device that is always full")
    file.rename(tmp_path / "kept")
    file.symlink_to(full)
    made._record(interval(iteration=20))
    assert "No space left on device" in capsys.readouterr().err
    file.unlink()
    # What fitted on the disk of the line is still there.
    (tmp_path / "kept").rename(file)
    with file.open("ab") as torn:
        torn.write(b'{"run":"a","iteration":20,')
    made._record(interval(iteration=30))
    record = read_record(file)
    assert [i.iteration for i in record.intervals] == [10, 30]
    assert len(record.runs) == 1


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({}, [1, 4, 8, 10]),
        ({"train_iters": 12}, [1, 4, 8]),
        ({"train_iters": 12, "exit_interval": 7}, [1, 4, 7, 8]),
        ({"train_iters": None}, [1, 4, 8]),
    ],
)
def test_the_last_iterations_are_reported_too(settings: dict[str, Any], due: list[int]) -> None:
    made = RoutingTracker.__new__(RoutingTracker)
    made.interval, made._reported = 4, False
    made._args = Namespace(**{"train_iters": 10, "exit_interval": None} | settings)
    reported = []
    for iteration in range(1, 11):
        if made._is_due(iteration):
            reported.append(iteration)
            made._reported = True
    assert reported == due


@pytest.mark.parametrize("logs", [True, False])
def test_a_stage_without_layers_that_stands_for_a_job_has_nothing_to_report(
    logs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "logs_here", lambda: logs)
    config = grove_config(num_layers=2, grove_num_groups=2, grove_adjugate_ffn_hidden_size=4)
    args = Namespace(
        grove_metrics_interval=None,
        grove_metrics_dir=str(tmp_path),
        grove_metrics_coactivation=True,
        log_interval=1,
        train_iters=2,
        exit_interval=None,
    )
    with cpu():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        try:
            parallel_state.initialize_model_parallel(
                pipeline_model_parallel_size=2, create_gloo_process_groups=False
            )
            made = RoutingTracker([torch.nn.Linear(2, 2)], config, args)
            lines = [
                made.report(
                    1.0,
                    n,
                    track_names=[],
                    num_layers=2,
                    total_loss_dict={"advanced iterations": n, "lm loss": torch.ones(1)},
                )
                for n in (1, 2)
            ]
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
    assert lines == ["", ""]
    assert not (tmp_path / "routing.jsonl").exists()
    # Losses are followed only where somebody asks for their means.
    assert list(made._losses._now) == (["lm loss"] if logs else [])
