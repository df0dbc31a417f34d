"""The preflight of machines, on real ranks: nodes are told apart as the launcher tells them.

Ranks of this machine stand for nodes, with a folder of its own each, where a path that is not
absolute is another folder on every one.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Job, Ranks

from .flags import MODEL
from .launching import two_nodes
from .machines_job import AHEAD_SECONDS

LOOK = "tests.integration.machines_job:look"
EP4 = ["--expert-model-parallel-size", "4"]
SHORT = ["--seconds", "2"]


def look(
    ranks: Ranks,
    folder: Path,
    *more: str,
    per_node: int = 2,
    faults: dict[str, Any] | None = None,
    of_rank: dict[str, list[str]] | None = None,
) -> tuple[Job, dict[str, Any]]:
    """The job, and what it has kept."""
    record = folder / "record.json"
    argv = [*MODEL, *EP4, *SHORT, "--json", str(record), *more]
    arguments = (str(folder), argv, per_node, faults or {}, of_rank or {})
    job = ranks.run(4, LOOK, *arguments, folder=folder, timeout=300)
    assert record.exists(), job.log(0)[-4000:]
    return job, json.loads(record.read_text())


def test_a_healthy_cluster(ranks: Ranks, tmp_path: Path) -> None:
    shared = ["--save", str(tmp_path / "ckpt"), "--save-interval", "5"]
    job, found = look(ranks, tmp_path, *shared)
    assert job.check().codes == [0] * 4
    assert found["problems"] == []
    said = job.log(0)
    assert "no problem found with the machines" in said
    assert not any("no problem found" in job.log(rank) for rank in (1, 2, 3))
    assert [rank["node"] for rank in found["ranks"]] == ["0", "0", "1", "1"]
    # One clock: what is measured is what the method is off by.
    (clock,) = (one for one in found["reached"] if one["node"] == "1")
    assert abs(clock["offset"]) <= clock["uncertainty"] + 0.05
    assert [(one["flag"], one["unseen"]) for one in found["seen"]] == [("--save", [])] * 2
    assert [*tmp_path.glob(".grove_machines_*")] == []
    measured = found["measured"]
    assert [(one["one"], one["other"]) for one in measured["between"]] == [("0", "1")]
    assert [(one["one"], one["other"]) for one in measured["inside"]] == [("0", "1"), ("2", "3")]
    (crossing,) = measured["crossings"]
    # 32 tokens of 32 numbers in fp32, each to one rank of four with the chance that it is met.
    assert crossing["ranks"] == [0, 1, 2, 3]
    met = 4 * (1 - (6 * 5) / (8 * 7))
    assert crossing["sent"] == 3 * int(32 * met / 4 * 32 * 4)
    assert all(one["gigabytes"] > 0 and not one["wrong"] for one in measured["between"])
    (border,) = (one for one in found["borders"] if one["kind"] == "EP")
    assert (border["count"], border["crossing"], border["most"]) == (1, 1, 2)
    # Half of the ranks are on the other node; of two nodes both are met unless all 2 of 8 are in 4.
    assert found["rows_abroad"]["flat"] == pytest.approx(met / 2)
    assert found["rows_abroad"]["by_node"] == pytest.approx(2 * (1 - (4 * 3) / (8 * 7)) / 2)
    assert "nodes 0-1" in said
    assert "are one machine" in said


def test_everything_that_is_wrong_is_said_at_once(ranks: Ranks, tmp_path: Path) -> None:
    own = ["--save", "ckpt", "--save-interval", "5", "--grove-metrics-dir", str(tmp_path / "run")]
    faults = {"clock": 1, "wrong": [2, 0], "crossed": [3, 1]}
    of_rank = {"3": ["--lr", "2e-2"]}
    job, found = look(ranks, tmp_path, *own, faults=faults, of_rank=of_rank)
    assert job.codes == [2] * 4
    for problem in found["problems"]:
        assert problem in job.log(0)
    assert "nothing was started" not in "".join(job.log(rank) for rank in (1, 2, 3))
    lines = "\n".join(found["problems"])
    assert "--lr (0.01 on ranks 0-2; 0.02 on rank 3) differs between ranks; " in lines
    ahead = re.search(r"clock of node 1 \(\+([\d.]+) s of rank 0's", lines)
    assert ahead
    assert float(ahead[1]) == pytest.approx(AHEAD_SECONDS, abs=1)
    assert "--save (ckpt) is not shared: within 1 s node 0 did not see what node 1 wrote" in lines
    # The metrics have a folder that both see.
    assert "--grove-metrics-dir" not in lines
    assert "bytes between nodes 0 and 1 (gloo) were not those that were sent; " in lines
    assert (
        "bytes of the all-to-all from rank 3 (node 1) to rank 1 (node 0) (gloo) were not" in lines
    )
    assert len(found["problems"]) == 5
    assert [*tmp_path.glob("node*/.grove_machines_*")] == []


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_slow_pair_is_named(strict: bool, ranks: Ranks, tmp_path: Path) -> None:
    more = ["--seconds", "20", "--bytes", "65536", *["--strict"] * strict]
    job, found = look(ranks, tmp_path, *more, per_node=1, faults={"late": [2, 1]})
    assert job.codes == [2 * strict] * 4
    slow = r"nodes 1 and 2 \(\S+ GB/s\) is \S+ of the median of 6 pairs \(.* ranks 1-2\)"
    where = found["problems" if strict else "warnings"]
    assert [line for line in where if re.match(slow, line)], where
    assert found["warnings" if strict else "problems"] == []


def test_a_wall_between_nodes_is_found_before_anybody_waits(ranks: Ranks, tmp_path: Path) -> None:
    job, found = look(ranks, tmp_path, faults={"wall": 1})
    assert job.codes == [2] * 4
    (line,) = found["problems"]
    assert re.match(
        r"node 1 \(\S+\) cannot be reached from node 0: Connection refused \(port", line
    )
    assert found["measured"]["backend"] == ""


def test_one_process_is_a_job_too(ranks: Ranks, tmp_path: Path) -> None:
    """And one of a script of its own, with a flag that grove_megatron.pretrain refuses."""
    argv = ["-m", "grove_megatron.run", __file__, *MODEL, "--fim-data"]
    argv += ["--save", "ckpt", "--save-interval", "5"]
    job = ranks.run(1, LOOK, str(tmp_path), argv, 1, {}, folder=tmp_path, timeout=300)
    assert job.check().codes == [0]
    assert "1 rank on 1 node, cpu" in job.log(0)
    assert "no problem found with the machines" in job.log(0)


@pytest.mark.long
def test_two_launchers(tmp_path: Path) -> None:
    argv = [*MODEL, "--expert-model-parallel-size", "2", *SHORT]
    argv += ["--save", str(tmp_path / "ckpt"), "--save-interval", "5"]
    with two_nodes("-m", "grove_megatron.machines", *argv, per_node=1) as nodes:
        said = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "2 ranks on 2 nodes, cpu" in said[0]
    assert "no problem found with the machines" in said[0]
    assert "no problem" not in said[1]
