"""torchrun starts all ranks again, and they meet; a job goes on from what it has saved."""

from pathlib import Path

import pytest

from .flags import MODEL
from .launching import launch, processes_that_name, reported_steps, torchrun, two_nodes

pytestmark = pytest.mark.long
KILLED_AT = 5


def test_a_killed_job_goes_on_by_itself(tmp_path: Path) -> None:
    """On two nodes: the launcher of that whose ranks did not fail first may count no restart."""
    save = tmp_path / "save"
    argv = [*MODEL, "--expert-model-parallel-size", "2", "--train-iters", "9"]
    argv += ["--save", str(save), "--load", str(save), "--save-interval", "2"]
    # Rank 1 is killed; when the ranks are started again, rank 0 is late.
    job = ["-m", "tests.integration.failing_job", str(tmp_path), "1", str(KILLED_AT), "kill"]
    with two_nodes(*job, *argv, "--exit-interval", "7", per_node=1, restarts=1) as nodes:
        outputs = [node.communicate(timeout=500)[0] for node in nodes]
    output = "".join(outputs)
    assert [node.returncode for node in nodes] == [0, 0], output[-6000:]
    assert list(reported_steps(output)) == [1, 2, 3, 4, 5, 6, 7], output[-6000:]
    assert "at iteration 4\n" in output
    # Megatron leaves in the middle at --exit-interval.
    assert output.count("grove_megatron summary: ") == 1
    assert not (save / "grove_megatron.lock").exists()
    assert not processes_that_name(str(tmp_path))


@pytest.mark.parametrize(("nodes", "attempts"), [(1, 10), (2, 4)])
def test_every_attempt_meets(nodes: int, attempts: int, tmp_path: Path) -> None:
    """Ranks come 1.5 seconds apart, and one is killed in every attempt but the last."""
    script = str(Path(__file__).with_name("restarted_rank.py"))
    job = [script, str(tmp_path), str(attempts)]
    if nodes == 1:
        done = launch(torchrun("--max-restarts", str(attempts), *job), timeout=500)
        assert done.code == 0, done.output[-6000:]
    else:
        with two_nodes(*job, per_node=1, restarts=attempts) as launchers:
            outputs = [node.communicate(timeout=500)[0] for node in launchers]
        assert [node.returncode for node in launchers] == [0, 0], "".join(outputs)[-6000:]
    assert (tmp_path / "attempts").read_text().split() == ["2"] * attempts
