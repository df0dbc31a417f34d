"""Who may write into a folder, with real processes as the other job."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grove_megatron.training import folder_lock, lock_beat
from grove_megatron.training.folder_lock import FolderLocks, Owner, look
from grove_megatron.training.lock_beat import LOCK


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "GONE_SECONDS", 1.0)
    monkeypatch.setattr(folder_lock, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(folder_lock, "_SETTLE_SECONDS", 0.2)


@pytest.fixture
def locks() -> Iterator[FolderLocks]:
    made = FolderLocks()
    yield made
    made.release()


@pytest.fixture
def other() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def owner(pid: int) -> Owner:
    """Of a process on this machine."""
    ours = folder_lock._this_process()
    return replace(ours, pid=pid, started=folder_lock._started(pid), token=f"of {pid}")


def lock(folder: Path, owner: Owner) -> Owner:
    (folder / LOCK).write_text(json.dumps(asdict(owner)))
    return owner


def take(locks: FolderLocks, folder: Path) -> tuple[list[str], list[str]]:
    """Problems, and what was said."""
    said: list[str] = []
    return [*map(str, locks.take({"--save": folder}, said.append))], said


def test_a_lock_names_its_owner_and_is_removed_in_the_end(
    locks: FolderLocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tmp_path / "a" / "save"
    assert take(locks, save) == ([], [])
    found = json.loads((save / LOCK).read_text())
    assert found["pid"] == os.getpid()
    assert found["host"] == os.uname().nodename
    assert os.listdir(save) == [LOCK]
    # Twice by one job.
    beat = locks._beat
    assert take(locks, save) == ([], [])
    assert locks._beat is beat
    # Another folder, that one process counts in too.
    assert locks.take({"--grove-metrics-dir": tmp_path / "records"}, print) == []
    assert beat is not None
    assert beat.poll() is not None
    locks.release()
    # What it has made and written nothing into.
    assert not save.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert folder_lock._this_process().job == "SLURM_JOB_ID 12"


def test_a_second_job_is_refused_while_the_first_lives(
    locks: FolderLocks, tmp_path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    first = lock(tmp_path, replace(owner(other.pid), job="SLURM_JOB_ID 7"))
    problems, said = take(locks, tmp_path)
    assert problems == [
        f"--save ({tmp_path}) is written to by another job (SLURM_JOB_ID 7, process {other.pid} on "
        f"{first.host}, since {first.since}); wait for its end or end it, or give another folder "
        f"(the lock is {tmp_path / LOCK})"
    ]
    assert said == []
    locks.release()
    assert folder_lock._read(tmp_path) == first
    # Whatever way it ends. A process that nobody has waited for yet is one that has ended.
    other.kill()
    while Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    problems, said = take(locks, tmp_path)
    assert problems == []
    assert said == [f"{tmp_path / LOCK} is of a job that is gone ({first}); this one takes it over"]
    assert os.listdir(tmp_path) == [LOCK]


def test_all_folders_or_none(
    locks: FolderLocks, tmp_path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    records = tmp_path / "records"
    records.mkdir()
    lock(records, owner(other.pid))
    folders = {"--save": tmp_path / "save", "--grove-metrics-dir": records}
    (problem,) = locks.take(folders, print)
    assert str(problem).startswith(f"--grove-metrics-dir ({records}) is written to by another job ")
    assert not (tmp_path / "save").exists()


def test_a_process_of_the_same_number_is_not_the_owner(
    locks: FolderLocks, tmp_path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    lock(tmp_path, replace(owner(other.pid), started="1"))
    assert look(tmp_path, print) is None
    assert take(locks, tmp_path)[0] == []


def test_an_owner_on_another_machine_is_watched(tmp_path: Path) -> None:
    # A process that does not run here.
    elsewhere = lock(tmp_path, replace(owner(os.getpid()), machine="m2", host="h2", pid=2**22))
    said: list[str] = []
    assert look(tmp_path, said.append) is None
    assert said == [
        f"{tmp_path / LOCK} names a job of another machine ({elsewhere}); waiting up to 1 s to see "
        "whether it lives"
    ]
    assert look(tmp_path, said.append, wait=False) == elsewhere
    opened = os.open(tmp_path, os.O_RDONLY)
    threading.Timer(0.3, lock_beat._beat, [opened, elsewhere.token, 1]).start()
    assert look(tmp_path, said.append) == elsewhere
    os.close(opened)
    # It ends while somebody watches.
    threading.Timer(0.3, os.unlink, [tmp_path / LOCK]).start()
    assert look(tmp_path, said.append) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_what_is_no_lock_is_watched_too(text: str, locks: FolderLocks, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    started = time.monotonic()
    assert take(locks, tmp_path)[0] == []
    assert time.monotonic() - started > 1.0


def test_one_of_many_takes_over(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    lock(tmp_path, replace(owner(other.pid), started="1"))
    every = [FolderLocks() for _ in range(8)]
    got: list[bool] = []
    threads = [
        threading.Thread(target=lambda locks=locks: got.append(not take(locks, tmp_path)[0]))
        for locks in every
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for locks in every:
        locks.release()
    assert sorted(got) == [False] * 7 + [True]
    assert os.listdir(tmp_path) == []


def test_without_hard_links(
    locks: FolderLocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", link)
    assert take(locks, tmp_path) == ([], [])
    assert os.listdir(tmp_path) == [LOCK]
    assert take(FolderLocks(), tmp_path)[0]


def test_a_folder_that_cannot_be_is_a_problem(locks: FolderLocks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = take(locks, tmp_path / "file" / "save")[0]
    assert problem.startswith(f"--save ({tmp_path / 'file' / 'save'}) cannot be written on ")


def test_of_two_that_make_the_folder_the_second_hears_of_the_first(
    locks: FolderLocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tmp_path / "save"
    mkdir = Path.mkdir

    def after_the_other(folder: Path, **given: bool) -> None:
        mkdir(folder)
        lock(folder, owner(os.getppid()))
        mkdir(folder, **given)

    monkeypatch.setattr(Path, "mkdir", after_the_other)
    (problem,) = take(locks, save)[0]
    assert problem.startswith(f"--save ({save}) is written to by another job (")
    assert (save / LOCK).exists()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_a_sign_of_life_is_in_the_content_and_no_other_s_lock_is_written(
    tmp_path: Path, opened: int
) -> None:
    ours = lock(tmp_path, owner(os.getpid()))
    assert lock_beat._beat(opened, ours.token, 7)
    assert (tmp_path / LOCK).read_text() == f"{json.dumps(asdict(ours))}\n000000000007\n"
    assert lock_beat._beat(opened, ours.token, 8)
    assert folder_lock._read(tmp_path) == ours
    before = (tmp_path / LOCK).read_text()
    assert not lock_beat._beat(opened, "another", 9)
    assert (tmp_path / LOCK).read_text() == before


def test_a_lock_that_cannot_be_written_is_said_once(
    tmp_path: Path, opened: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pwrite(*_: object) -> None:
        raise OSError("no space")

    parents = iter([1, 1, 1, 2])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(lock_beat, "_LOOK_SECONDS", 0)
    ours = lock(tmp_path, owner(os.getpid()))
    assert lock_beat.main(1, ours.token, 0, [opened]) == 0
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"grove_megatron: {LOCK} cannot be written (no space); while that lasts")
    assert "\n" not in said


# A job that does nothing but hold a folder, in a process of its own.
JOB = """
import os, sys, time
from pathlib import Path
from grove_megatron.training.folder_lock import FolderLocks
from grove_megatron.training import folder_lock
folder_lock.BEAT_SECONDS = 0.2
def lost(line):
    print(line, flush=True)
    os._exit(7)
assert FolderLocks(lost).take({"--save": Path(sys.argv[1])}, print) == []
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(
    tmp_path: Path, subprocess_environment: dict[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path)],
        env=subprocess_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def changes(folder: Path, seconds: float) -> bool:
    before = folder_lock._content(folder)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if folder_lock._content(folder) != before:
            return True
    return False


def test_a_living_job_shows_it_until_it_is_killed(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert changes(tmp_path, 60)
    holder.kill()
    # Its end of the pipe for errors is closed when the small process beside it has gone too.
    holder.communicate(timeout=60)
    assert not changes(tmp_path, 1.0)
    assert look(tmp_path, print) is None


def test_a_job_that_was_taken_for_dead_is_told_and_not_killed(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    heir = lock(tmp_path, owner(os.getpid()))
    assert holder.wait(timeout=60) == 7
    said, _ = holder.communicate()
    assert said == (
        f"--save ({tmp_path}) has been taken over by another job ({heir}), which saw no sign of "
        "life of this one for 120 s; this one ends, before both write\n"
    )
    assert folder_lock._read(tmp_path) == heir


def test_a_lock_that_somebody_removed_ends_nothing(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    (tmp_path / LOCK).unlink()
    time.sleep(2 * lock_beat._LOOK_SECONDS + 0.3)
    assert holder.poll() is None
    assert not (tmp_path / LOCK).exists()
