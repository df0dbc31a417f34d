"""Which folders a job claims, and what a check of its flags says of them."""

import json
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.checks.problem import Problem
from grove_megatron.failure.member import last_acts
from grove_megatron.training import folder_lock, one_job
from grove_megatron.training.lock_beat import LOCK


def job(**given: Any) -> Namespace:
    names = ("save", "grove_metrics_dir", "non_persistent_global_ckpt_dir")
    settings: dict[str, Any] = dict.fromkeys(names)
    settings |= {
        "enable_msc": False,
        "skip_train": False,
        "fake_process_group": False,
        "inprocess_restart": False,
    }
    return Namespace(**settings | {"distributed_timeout_minutes": 1} | given)


@pytest.fixture
def other() -> folder_lock.Owner:
    """The process that runs the tests, as another job."""
    return replace(folder_lock._this_process(), token="another")


def held(folder: Path) -> bool:
    return (folder / LOCK).exists()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def lock(tmp_path: Path, other: folder_lock.Owner) -> Iterator[Path]:
    (tmp_path / LOCK).write_text(json.dumps(asdict(other)))
    yield tmp_path
    assert json.loads((tmp_path / LOCK).read_text()) == asdict(other)


def test_every_folder_that_is_written_is_held_until_the_end(tmp_path: Path) -> None:
    save, metrics, often = (tmp_path / name for name in ("save", "metrics", "often"))
    args = job(
        save=str(save), grove_metrics_dir=str(metrics), non_persistent_global_ckpt_dir=str(often)
    )
    block = one_job.writing_alone()
    block.__enter__()
    assert one_job.claim(args, []) == []
    assert held(save)
    assert held(metrics)
    assert held(often)
    (save / "latest_checkpointed_iteration.txt").write_text("1")
    # As contextlib does for a block that ends with sys.exit(16).
    assert not block.__exit__(SystemExit, SystemExit(16), None)
    assert not held(save)
    assert not metrics.exists()


@pytest.mark.parametrize(
    "given",
    [
        {"save": None},
        {"save": "msc://bucket/x"},
        {"enable_msc": True},
        {"skip_train": True},
        {"fake_process_group": True},
        # Its processes come and go inside of the job.
        {"inprocess_restart": True},
    ],
)
def test_where_nothing_is_written_nothing_is_held(given: dict[str, Any], tmp_path: Path) -> None:
    with one_job.writing_alone():
        assert one_job.claim(job(**{"save": str(tmp_path / "x")} | given), []) == []
        assert not (tmp_path / "x").exists()


def test_one_folder_by_two_names_is_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "save")
    args = job(save=str(tmp_path / "save"), grove_metrics_dir=str(tmp_path / "link"))
    with one_job.writing_alone():
        assert one_job.claim(args, []) == []
        assert held(tmp_path / "save")


def test_beside_other_problems_nothing_is_made(lock: Path, tmp_path: Path) -> None:
    args = job(save=str(lock), grove_metrics_dir=str(tmp_path / "metrics"))
    with one_job.writing_alone():
        (problem,) = one_job.claim(args, [Problem.of_text("another problem")])
        assert str(problem).startswith(f"--save ({lock}) is written to by another job ")
        assert not (tmp_path / "metrics").exists()
    assert [*map(str, one_job.lock_problems(args))] == [str(problem)]
    assert one_job.lock_notices(args) == []


def test_a_folder_that_this_job_holds_is_not_another_s(tmp_path: Path) -> None:
    """A script may call validate_args twice, and be refused the second time."""
    args = job(save=str(tmp_path))
    with one_job.writing_alone():
        assert one_job.claim(args, []) == []
        assert one_job.claim(args, [Problem.of_text("another problem")]) == []


def test_a_thread_that_ends_the_process_finds_the_release_under_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Among the last acts until it is done, and waited for by who comes second."""
    folder = tmp_path / "save"
    ending: list[threading.Thread] = []
    waited: list[bool] = []
    original = folder_lock.FolderLocks._end_beat

    def end_beat(locks: folder_lock.FolderLocks) -> None:
        if not ending:
            acts = [act for act in last_acts if act == locks.release]
            ending.extend(threading.Thread(target=act) for act in acts)
            for thread in ending:
                thread.start()
            time.sleep(0.2)
            waited.extend(thread.is_alive() for thread in ending)
        original(locks)

    with one_job.writing_alone():
        assert one_job.claim(job(save=str(folder)), []) == []
        assert held(folder)
        monkeypatch.setattr(folder_lock.FolderLocks, "_end_beat", end_beat)
    for thread in ending:
        thread.join(60)
    assert waited == [True]
    assert not held(folder)


def test_what_is_on_another_machine_is_a_notice(tmp_path: Path, other: folder_lock.Owner) -> None:
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(other, machine="m2", host="h2"))))
    started = time.monotonic()
    (notice,) = one_job.lock_notices(job(save=str(tmp_path)))
    assert notice.startswith(f"--save ({tmp_path}) has the lock of a job on another machine (")
    assert " on h2, since " in notice
    assert one_job.lock_problems(job(save=str(tmp_path))) == []
    assert time.monotonic() - started < folder_lock.GONE_SECONDS
