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


def test_rows_are_told_apart_by_where_they_go(ranks: Ranks, tmp_path: Path) -> None:
    job = ranks.run(4, "tests.multirank.traffic_cases:hops", str(tmp_path), folder=tmp_path)
    for rank, result in enumerate(job.check().results()):
        assert result["hops"] == [[3, 3], [3, 3], [10, 8]]
        node, place = divmod(rank, 2)
        across, inside = [place, 2 + place], [2 * node, 2 * node + 1]
        to = [{str(r): n + 1 for n, r in enumerate(group)} for group in (across, inside)]
        everybody = [{str(r): n for r, n in enumerate(split)} for split in ([1, 2, 3, 4], [2] * 4)]
        assert result["to"] == [to[0], to[1], to[1], to[0], *everybody]
        # To the other node: of each crossing between nodes, and of the two to everybody.
        leaving = 2 * (1 if node else 2) + (3 if node else 7) + 4
        # Where every rank is a node, whatever does not stay on the rank.
        kept = 2 * (node + 1) + 2 * (place + 1) + rank + 1 + 2
        assert result["leaving"] == [4 * 3 + 18 - kept, leaving, 0]
