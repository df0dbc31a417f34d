"""The file that names the checkpoint to resume from is old or new, never empty."""

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
