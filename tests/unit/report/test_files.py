"""Files of a report are all new, or all as they were."""

from pathlib import Path

import pytest

from grove_megatron.report.files import write_files


def test_files_are_written_where_there_was_no_folder(tmp_path: Path) -> None:
    files = {tmp_path / "a" / "b.html": b"page", tmp_path / "a" / "c.png": b"figure"}
    assert write_files(files) == [*files]
    assert {file: file.read_bytes() for file in (tmp_path / "a").iterdir()} == files


def test_what_was_there_stays_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "a.html"
    old.write_bytes(b"old")

    def full(file: Path, content: bytes) -> None:
        if b"second" in content:
            raise OSError("no space")
        with file.open("wb") as opened:
            opened.write(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_files({old: b"new", tmp_path / "b.png": b"second"})
    assert [*tmp_path.iterdir()] == [old]
    assert old.read_bytes() == b"old"
