"""The file that names the checkpoint to resume from is old or new, never empty."""

import subprocess
import sys
from pathlib import Path

import pytest

from grove_megatron.checkpoint.layout import TRACKER
from grove_megatron.runtime.checkpoint_files import with_atomic_tracker


@pytest.fixture
def files():
    from megatron.core.msc_utils import maybe_msc

    return with_atomic_tracker(maybe_msc)


@pytest.fixture
def tracker(tmp_path: Path) -> Path:
    path = tmp_path / TRACKER
    path.write_text("10")
    return path


def test_the_old_one_stays_until_the_new_one_is_written(files, tracker: Path) -> None:
    with files.open(str(tracker), "w") as file:
        file.write("20")
        file.flush()
        assert tracker.read_text() == "10"
    assert tracker.read_text() == "20"
    assert [path.name for path in tracker.parent.iterdir()] == [TRACKER]


def test_the_old_one_stays_if_writing_fails(files, tracker: Path) -> None:
    with pytest.raises(OSError, match="full"):
        write_to_a_full_disk(files, tracker)
    assert tracker.read_text() == "10"


def write_to_a_full_disk(files, tracker: Path) -> None:
    with files.open(str(tracker), "w") as file:
        file.write("2")
        raise OSError("full")


def test_everything_else_is_megatron_s(files, tracker: Path) -> None:
    from megatron.core.msc_utils import maybe_msc

    with files.open(tracker) as file:
        assert file.read() == "10"
    with files.open(tracker, "r") as file:
        assert file.read() == "10"
    other = tracker.with_name("other.txt")
    with files.open(other, "w") as file:
        assert other.exists()
        file.write("here")
    assert other.read_text() == "here"
    assert files.os is maybe_msc.os
    assert files.path_isdir(tracker.parent)


JOB = """
import sys
from grove_megatron.runtime.checkpoint_files import with_manager_that_ends
from megatron.core.dist_checkpointing.strategies import filesystem_async

if __name__ == "__main__":
    make = with_manager_that_ends(filesystem_async.get_write_results_queue)
    queue = make()
    assert queue is filesystem_async._results_queue is make()
    queue.put(1)
    assert queue.get() == 1
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_the_manager_of_a_killed_rank_ends(
    tmp_path: Path, subprocess_environment: dict[str, str]
) -> None:
    (tmp_path / "job.py").write_text(JOB)
    job = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(tmp_path / "job.py")],
        env=subprocess_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.kill()
    # The end of the output: nobody is left who could write to it.
    job.communicate(timeout=120)
