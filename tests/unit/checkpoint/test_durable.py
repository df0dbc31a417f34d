"""What is written arrives whole, past the page cache or not."""

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from grove_megatron.checkpoint import durable
from grove_megatron.checkpoint.durable import DurableFile

CHUNK = 3 * 4096


@pytest.fixture(params=["direct", "never direct", "larger blocks"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A disk that takes direct writes, one that does not, and one that wants larger ones."""
    monkeypatch.setattr(durable, "_CHUNK", CHUNK)
    monkeypatch.setattr(durable, "_SYNC_BYTES", 2 * CHUNK)
    fcntl_, pwrite = fcntl.fcntl, os.pwrite

    def is_direct(file: int) -> bool:
        return bool(fcntl_(file, fcntl.F_GETFL) & os.O_DIRECT)

    def no_direct(file: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return fcntl_(file, command, value)

    def large_only(file: int, data: memoryview, offset: int) -> int:
        if is_direct(file):
            raise OSError(errno.EINVAL, "not a multiple of a block")
        return pwrite(file, data, offset)

    if request.param == "never direct":
        monkeypatch.setattr(fcntl, "fcntl", no_direct)
    if request.param == "larger blocks":
        monkeypatch.setattr(os, "pwrite", large_only)
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 5])
@pytest.mark.parametrize("piece", [1000, CHUNK, 10 * CHUNK])
def test_every_byte_arrives_in_its_place(disk: str, size: int, piece: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    with DurableFile(tmp_path / "f") as file:
        for start in range(0, size, piece):
            assert file.tell() == start
            assert file.write(content[start : start + piece]) == len(content[start : start + piece])
        assert file.tell() == size
    assert (tmp_path / "f").read_bytes() == content


def test_a_disk_that_takes_a_part_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_CHUNK", CHUNK)
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda file, data, at: pwrite(file, data[: min(len(data), 4096)], at)
    )
    content = random.Random(0).randbytes(5 * CHUNK + 77)
    with DurableFile(tmp_path / "f") as file:
        file.write(content)
    assert (tmp_path / "f").read_bytes() == content


def test_what_the_disk_says_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_CHUNK", CHUNK)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"), DurableFile(tmp_path / "f") as file:
        file.write(bytes(10))
    with pytest.raises(OSError, match="No space left"):
        DurableFile(tmp_path / "g").write(bytes(4 * CHUNK))


def test_a_file_that_is_there_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        DurableFile(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"old"
