"""Wheels in parts are whole again, or not there at all."""

import zipfile
from pathlib import Path

import pytest

from grove_megatron.benchmarks.kit.install import unpack
from grove_megatron.benchmarks.kit.parts import joined, split


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "big-1-py3-none-any.whl").write_bytes(bytes(range(250)))
    (folder / "small-1-py3-none-any.whl").write_bytes(b"abc")
    return folder


@pytest.mark.parametrize("place", ["bundle/te", "bundle-te"])
def test_they_are_joined_in_the_bundle_or_beside_it(
    place: str, wheels: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    parts = split(wheels, tmp_path / place, part_bytes=100)
    assert [part.stat().st_size for part in parts] == [100, 100, 50, 3]
    assert [p.name for p in joined(tmp_path / "bundle", None)] == [
        p.name for p in sorted(wheels.iterdir())
    ]
    into = tmp_path / "into"
    into.mkdir()
    for made in joined(tmp_path / "bundle", into):
        assert made.read_bytes() == (wheels / made.name).read_bytes()


def test_without_parts_there_are_none(tmp_path: Path) -> None:
    assert joined(tmp_path / "bundle", tmp_path) == []


def test_a_missing_part_is_named(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = split(wheels, tmp_path / "bundle-te", part_bytes=100)
    parts[1].unlink()
    assert joined(tmp_path / "bundle", tmp_path) == []
    assert f"without TransformerEngine: no {parts[1].name}" in capsys.readouterr().err


def test_a_damaged_part_is_noticed(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = split(wheels, tmp_path / "bundle-te", part_bytes=100)
    parts[1].write_bytes(bytes(100))
    assert joined(tmp_path / "bundle", tmp_path) == []
    assert "big-1-py3-none-any.whl is damaged" in capsys.readouterr().err


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no wheels; name the folder that pip wrote them to"):
        split(tmp_path, tmp_path / "te")


def test_a_wheel_s_files_go_where_they_belong(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("a/__init__.py", "a-1.data/purelib/b.py", "a-1.data/scripts/a", "c.so"):
            archive.writestr(name, name)
    unpack(wheel, tmp_path / "site")
    found = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*.*")}
    assert found == {"a/__init__.py", "b.py", "c.so"}


def test_a_file_outside_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../b.py", "")
    with pytest.raises(ValueError, match=r"has a file \(\.\./b\.py\) outside"):
        unpack(wheel, tmp_path / "site")
    assert not (tmp_path / "b.py").exists()
