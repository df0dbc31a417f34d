"""A destination appears whole; what was done before a kill is not done again."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.checkpoint.staging import Staging

JOB = {"source": "a", "options": [1]}
Usage = namedtuple("Usage", "total used free")


def add(staging: Staging, name: str, content: bytes = b"content") -> None:
    staging.temporary(name).write_bytes(content)
    staging.finished(name, {"name": name})


def journal(destination: Path) -> Path:
    return destination.with_name(destination.name + ".incomplete") / "journal.jsonl"


def test_the_destination_appears_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    destination = tmp_path / "made" / "out"
    staging = Staging(destination, JOB)
    add(staging, "a")
    add(staging, "folder/b", b"more")
    (staging.folder / "note").write_text("not in the journal")
    assert not destination.exists()
    staging.publish()
    assert {p.name: p.read_bytes() for p in destination.rglob("*") if p.is_file()} == {
        "a": b"content",
        "b": b"more",
        "note": b"not in the journal",
    }
    assert os.listdir(tmp_path / "made") == ["out"]


def test_an_empty_folder_is_filled_and_a_link_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    for destination in (tmp_path / "link", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        staging = Staging(destination, JOB)
        add(staging, "a")
        staging.publish()
        assert (destination / "a").read_bytes() == b"content"
    assert (tmp_path / "disk" / "out" / "a").exists()


def test_work_goes_on_after_the_files_that_are_done(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", JOB)
    add(staging, "done")
    staging.temporary("torn").write_bytes(b"half")
    (staging.folder / "unknown").write_bytes(b"")
    staging.close()
    again = Staging(tmp_path / "out", JOB)
    assert again.done == {"done": {"name": "done"}}
    assert [p.name for p in again.folder.rglob("*")] == ["done"]


def test_a_done_file_that_is_gone_or_has_another_size_is_made_again(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", JOB)
    for name in ("kept", "gone", "short"):
        add(staging, name)
    (staging.folder / "gone").unlink()
    (staging.folder / "short").write_bytes(b"con")
    staging.close()
    again = Staging(tmp_path / "out", JOB)
    assert set(again.done) == {"kept"}
    assert not (again.folder / "short").exists()


def test_a_file_that_is_written_again_is_not_done_until_it_is(tmp_path: Path) -> None:
    """A kill between its new name and the journal: same name, same size, other content."""
    staging = Staging(tmp_path / "out", JOB)
    add(staging, "a")
    staging.forget("a")
    assert staging.done == {}
    staging.temporary("a").write_bytes(b"CONTENT")
    (staging.folder / "a.tmp").rename(staging.folder / "a")
    staging.close()
    again = Staging(tmp_path / "out", JOB)
    assert again.done == {}
    add(again, "a")
    again.close()
    last = Staging(tmp_path / "out", JOB)
    assert last.done == {"a": {"name": "a"}}
    last.close()


def test_every_torn_journal_is_read(tmp_path: Path) -> None:
    """Cut after any byte, as a kill might; what is added then is read as well."""
    staging = Staging(tmp_path / "out", JOB)
    for name in ("a", "b"):
        add(staging, name)
    staging.close()
    whole = journal(tmp_path / "out").read_bytes()
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "out.incomplete", kept)
    for size in range(len(whole) + 1):
        shutil.rmtree(tmp_path / "out.incomplete")
        shutil.copytree(kept, tmp_path / "out.incomplete")
        journal(tmp_path / "out").write_bytes(whole[:size])
        torn = Staging(tmp_path / "out", JOB)
        expected = {"a", "b"} if size == len(whole) else set()
        expected |= {"a"} if size >= whole.index(b"\n", whole.index(b'"a"')) + 1 else set()
        assert set(torn.done) == expected
        add(torn, "c")
        torn.close()
        again = Staging(tmp_path / "out", JOB)
        assert set(again.done) == expected | {"c"}
        again.close()


@pytest.mark.parametrize(
    "job", [{"source": "b", "options": [1]}, {"source": "a", "options": [1, 2]}]
)
def test_another_jobs_work_is_not_continued(job: dict[str, Any], tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", JOB)
    add(staging, "a")
    staging.close()
    with pytest.raises(ValueError, match="was begun for another source or with other options"):
        Staging(tmp_path / "out", job)
    # Neither harmed nor held.
    assert set(Staging(tmp_path / "out", JOB).done) == {"a"}


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    Staging(tmp_path / "out", JOB).close()
    journal(tmp_path / "out").write_text('{"job": \n7\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl") as raised:
        Staging(tmp_path / "out", JOB)
    assert "remove" in str(raised.value)


def test_two_at_once_are_refused_in_one_process_and_in_two(tmp_path: Path) -> None:
    held = Staging(tmp_path / "out", JOB)
    with pytest.raises(ValueError, match=r"out\.incomplete is in use by another process"):
        Staging(tmp_path / "out", JOB)
    script = (
        "import sys; from pathlib import Path; from grove_megatron.checkpoint.staging import "
        "Staging; Staging(Path(sys.argv[1]), {})"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "is in use by another process" in other.stderr
    held.close()
    Staging(tmp_path / "out", JOB)


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_is_there_stays(kind: str, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    file = destination if kind == "file" else destination / "mine"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"mine")
    with pytest.raises(ValueError, match="out is there already; remove it"):
        Staging(destination, JOB)
    assert file.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for destination in (tmp_path / "file" / "out", Path("/proc/grove/out"), Path("/proc/grove")):
        with pytest.raises(ValueError, match=f"{destination} cannot be made"):
            Staging(destination, JOB)


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
    with pytest.raises(ValueError, match="out is a mount point; name a folder in it"):
        Staging(tmp_path / "out", JOB)


def test_room_counts_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(tmp_path / "out", JOB)
    add(staging, "a", bytes(100))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 950, 50))
    assert staging.room(150) == []
    (problem,) = staging.room(151)
    assert str(tmp_path / "out") in problem
    assert "needs 51 bytes more, and 50 are free" in problem


def test_the_journal_is_on_the_disk_after_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line about a file that could be lost would make a hole in the result."""
    staging = Staging(tmp_path / "out", JOB)
    synced: list[Any] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    add(staging, "a")
    assert synced[-1].endswith("journal.jsonl")
    line = journal(tmp_path / "out").read_text().splitlines()[-1]
    assert json.loads(line) == {"file": "a", "size": 7, "records": {"name": "a"}}
    staging.publish()
    assert str(tmp_path) in synced
