"""What the benchmarks count of collectives is what was handed over."""

from pathlib import Path

from tests.multirank.traffic_cases import HIDDEN, ROW_BYTES
from tests.ranks import Ranks


def test_every_collective_is_counted_once_with_its_rows_and_bytes(
    ranks: Ranks, tmp_path: Path
) -> None:
    job = ranks.run(2, "tests.multirank.traffic_cases:collectives", str(tmp_path), folder=tmp_path)
    for rows, result in zip((3, 7), job.check().results(), strict=True):
        assert result["sent"] == [
            ["alltoall_base_", rows * ROW_BYTES, rows],
            ["alltoall_base_", rows * (ROW_BYTES + 8), rows],
            ["alltoall_base_", rows * 4, None],
            ["alltoall_base_", rows * (ROW_BYTES - 4), None],
            ["alltoall_base_", 2 * HIDDEN * 8, None],
            ["_allgather_base_", 40, None],
            ["allreduce_", 56, None],
        ]
        assert result["outside"] == 0
        assert result["crossings"] == [rows, rows]
        assert result["total"] == sum(sent for _, sent, _ in result["sent"])
        assert result["metadata"] == result["total"] - 2 * rows * ROW_BYTES


def test_the_backward_pass_is_counted(ranks: Ranks, tmp_path: Path) -> None:
    job = ranks.run(2, "tests.multirank.traffic_cases:backward", str(tmp_path), folder=tmp_path)
    for result in job.check().results():
        assert result == {"forward": 1, "both": 2, "rows": [4, 4]}
