"""What Megatron measures of a run, asked of a machine without a GPU."""

from pathlib import Path

from tests.integration.flags import MODEL
from tests.ranks import Ranks

MEASURES = (
    "--log-device-memory-used --log-memory-interval 1 "
    "--profile --use-pytorch-profiler --profile-step-start 1 --profile-step-end 3 --nvtx-ranges "
    "--check-weight-hash-across-dp-replicas-interval 2 --train-sync-interval 1 "
    "--empty-unused-memory-level 2 --log-params-norm --log-num-zeros-in-grad "
    "--train-iters 4 --lr-decay-iters 4"
).split()


def test_measures_of_a_gpu_are_zero_and_those_of_a_cpu_are_taken(
    ranks: Ranks, tmp_path: Path
) -> None:
    flags = [*MODEL, *MEASURES, "--tensorboard-dir", str(tmp_path / "board" / "run")]
    job = ranks.run(
        1, "tests.integration.recorded_run:train", str(tmp_path), flags, folder=tmp_path
    )
    log = job.check().log()
    assert "total device memory used: 0.00" in log
    assert "iteration        4/       4" in log
    assert [p.name for p in (tmp_path / "board").rglob("rank-0.json.gz")] == ["rank-0.json.gz"]
