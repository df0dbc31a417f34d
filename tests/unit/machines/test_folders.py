"""Which folders of a job its nodes should share."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from grove_megatron.failure import job_store
from grove_megatron.machines import meeting
from grove_megatron.machines.folders import look, shared_folders
from grove_megatron.machines.records import Seen
from tests.unit.ranks_as_threads import of_ranks
from tests.unit.training.command_lines import parsed
from tests.unit.training.data import write_tokens


@pytest.mark.parametrize(
    ("flags", "folders"),
    [
        ("", []),
        ("--save a --grove-metrics-dir b", ["--save", "--grove-metrics-dir"]),
        # A part for each rank, which reads it again.
        ("--save a --ckpt-format torch --tensorboard-dir b", ["--tensorboard-dir"]),
        ("--save a --skip-train", []),
        ("--save msc://a --data-cache-path c", ["--data-cache-path"]),
        ("--data-cache-path c --dataloader-fast-cache-load", []),
    ],
)
def test_folders(flags: str, folders: list[str]) -> None:
    assert [*shared_folders(parsed(flags))] == folders


def test_without_a_cache_it_is_beside_the_data(tmp_path: Path) -> None:
    text = write_tokens(tmp_path / "text")
    args = parsed(f"--data-path {text}")
    args.mock_data = False
    found = shared_folders(args)
    assert found == {"--data-path": tmp_path / "text" / "cache" / "GPTDataset_indices"}


BOUND = 30.0
Looked = Callable[[str, list[Path]], list[Seen]]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    """What the nodes of a job saw of the folder that each has for a flag; nodes have two ranks."""

    def of(flag: str, folders: list[Path]) -> list[Seen]:
        node_of = tuple(str(node) for node in range(len(folders)) for _ in range(2))
        job = meeting.Meeting(node_of=node_of, token="word", timeout=timedelta(minutes=1))
        monkeypatch.setattr(meeting, "world", lambda: job_store.world())

        def call(rank: int) -> list[Seen]:
            return look(job, {flag: folders[rank // 2]}, BOUND)

        heard = of_ranks(job_store, len(node_of), call, monkeypatch)
        return [one for rank in sorted(heard) for one in heard[rank]]

    return of


def test_a_node_that_cannot_write_is_not_waited_for(looked: Looked, tmp_path: Path) -> None:
    """A path through a file, where nothing can be written or taken away either."""
    (tmp_path / "file").touch()
    begun = time.monotonic()
    seen = looked("--save", [tmp_path, tmp_path / "file" / "ckpt", tmp_path])
    assert time.monotonic() - begun < BOUND / 2
    assert [one.error for one in seen] == ["", "Not a directory", ""]
    assert [one.unseen for one in seen] == [()] * 3
    assert [one.seconds is None for one in seen] == [False, True, False]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_node_of_rank_0_alone_writes_a_cache(looked: Looked, tmp_path: Path) -> None:
    """Others only read it: there is one file, and a cache that rank 0 only reads has none."""
    (tmp_path / "file").touch()
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    seen = looked("--data-cache-path", [shared, shared])
    assert [(one.unseen, one.error) for one in seen] == [((), "")] * 2
    begun = time.monotonic()
    seen = looked("--data-cache-path", [tmp_path / "file" / "cache", own, own])
    assert time.monotonic() - begun < BOUND / 2
    assert [one.error for one in seen] == ["Not a directory", "", ""]
    assert [one.unseen for one in seen] == [()] * 3
