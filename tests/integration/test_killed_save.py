"""A job that is killed while it saves goes on, with the same command, as if it had not been."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.integration.flags import MODEL
from tests.integration.killed_run import SECONDS
from tests.integration.launching import launch, processes_that_name, torchrun
from tests.ranks import Job, Ranks

TRACKER = "latest_checkpointed_iteration.txt"
SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
KILLED = "tests.integration.killed_run:train_and_be_killed"
EP2 = ["--expert-model-parallel-size", "2"]


@dataclass
class Killed:
    """One command, started again and again."""

    ranks: Ranks
    folder: Path
    iterations: int

    @property
    def argv(self) -> list[str]:
        until = ["--train-iters", str(self.iterations), "--lr-decay-iters", str(self.iterations)]
        saved = str(self.folder / "saved")
        return [*MODEL, *EP2, *until, "--save", saved, "--load", saved, "--save-interval", "1"]

    def start(self, name: str, save: int = 0, when: float | str = 0.0, *more: str) -> Job:
        folder = self.folder / name
        argv = [*self.argv, *more]
        return self.ranks.run(2, KILLED, str(folder), argv, save, when, folder=folder)

    def last(self) -> int | None:
        """The iteration of the tracker file."""
        tracker = self.folder / "saved" / TRACKER
        return int(tracker.read_text()) if tracker.exists() else None


Undisturbed = Callable[[int], tuple[list[dict[str, Any]], float]]


@pytest.fixture(scope="module")
def undisturbed(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What the same command records if nobody kills it, and the seconds of an average save."""

    @cache
    def run(iterations: int) -> tuple[list[dict[str, Any]], float]:
        job = Killed(ranks, tmp_path_factory.mktemp("whole"), iterations).start("undisturbed")
        results = job.check().results()
        seconds = [float(line) for line in (job.folder / SECONDS).read_text().split()]
        return results, sum(seconds) / len(seconds)

    return run


def assert_the_end_is_the_same(job: Job, whole: list[dict[str, Any]]) -> None:
    for a, b in zip(whole, job.check().results(), strict=True):
        assert b["losses"]
        assert b["losses"] == a["losses"][-len(b["losses"]) :]
        assert b["grad_norms"] == a["grad_norms"][-len(b["losses"]) :]
        assert b["parameters"] == a["parameters"]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_a_job_killed_in_its_saves_ends_as_if_it_had_not_been(
    kills: int, ranks: Ranks, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"the kills again: KILL_SEED={seed}")
    draw = random.Random(seed)
    # No attempt gets further than two iterations.
    iterations = 2 * kills + 2
    whole, seconds = undisturbed(iterations)
    killed = Killed(ranks, tmp_path, iterations)
    for attempt in range(kills):
        before = killed.last()
        save, when = draw.randint(1, 2), draw.uniform(0, seconds)
        job = killed.start(f"attempt{attempt}", save, when)
        assert job.codes == [-9, -9], job.log()[-6000:]
        assert_resumed(job, before)
        # The save before that of the kill was complete, that one is or is not.
        done = [(before or 0) + save - 1, (before or 0) + save]
        assert (killed.last() or 0) in done, (save, when)
    before = killed.last()
    job = killed.start("end")
    assert_the_end_is_the_same(job, whole)
    assert_resumed(job, before)


def assert_resumed(job: Job, iteration: int | None) -> None:
    if iteration is None:
        assert "will start from random" in job.log()
    else:
        assert f"at iteration {iteration}\n" in job.log()


@pytest.mark.long
def test_a_kill_never_leaves_an_empty_tracker(
    ranks: Ranks, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    killed = Killed(ranks, tmp_path, 6)
    assert killed.start("attempt", 5, TRACKER).codes == [-9, -9]
    assert killed.last() == 4
    job = killed.start("end")
    assert_resumed(job, 4)
    assert_the_end_is_the_same(job, undisturbed(6)[0])


@pytest.mark.parametrize("more", [[], ["--use-checkpoint-args"]], ids=["flags", "checkpoint-args"])
def test_an_empty_tracker_is_refused_by_every_entry(
    more: list[str], ranks: Ranks, tmp_path: Path
) -> None:
    killed = Killed(ranks, tmp_path, 2)
    tracker = tmp_path / "saved" / TRACKER
    (tracker.parent / "iter_0000001").mkdir(parents=True)
    (tracker.parent / "iter_0000001" / "metadata.json").write_text("{}")
    tracker.write_text("")
    for how, script in (("train", []), ("run_script", [SCRIPT])):
        folder, argv = tmp_path / how, [*script, *killed.argv, *more]
        target = f"tests.integration.recorded_run:{how}"
        job = ranks.run(2, target, str(folder), argv, folder=folder)
        assert job.codes == [2, 2], job.log()
        assert f"1. {tracker} () does not name an iteration; write 1 into {tracker}: " in job.log()


@pytest.mark.long
def test_a_checkpoint_half_written_over_is_refused_with_the_last_complete_one(
    ranks: Ranks, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    killed = Killed(ranks, tmp_path, 6)
    killed.start("first").check()
    # The last iteration once more, over what the tracker names.
    assert killed.start("again", 1, "__0_0", "--ckpt-step", "5").codes == [-9, -9]
    refused = killed.start("refused")
    assert refused.codes == [2, 2]
    saved = tmp_path / "saved"
    assert (
        f"{saved / TRACKER} (6) names {saved / 'iter_0000006'}, which is not complete; write 5 "
        f"into {saved / TRACKER}: the last complete checkpoint in {saved}"
    ) in refused.log()
    (saved / TRACKER).write_text("5")
    assert_the_end_is_the_same(killed.start("end"), undisturbed(6)[0])


@pytest.mark.long
def test_the_launcher_and_all_ranks_can_be_killed(
    ranks: Ranks, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, seconds = undisturbed(6)
    killed = Killed(ranks, tmp_path, 6)
    for name in ("attempt", "end"):
        (tmp_path / name).mkdir()
    job = torchrun("-m", "tests.integration.killed_run")
    attempt = [*job, str(tmp_path / "attempt"), "2", str(seconds / 2), *killed.argv]
    assert launch(attempt, GROVE_RUNTIME="cpu").code == -9
    assert not processes_that_name(str(tmp_path / "attempt"))
    killed_at = killed.last()
    assert killed_at in (1, 2)
    end = launch([*job, str(tmp_path / "end"), "0", "0", *killed.argv], GROVE_RUNTIME="cpu")
    assert end.code == 0, end.output
    assert f"at iteration {killed_at}\n" in end.output
    assert_the_end_is_the_same(Job(tmp_path / "end", [0, 0]), whole)
