"""Our files are read by the safetensors library, the library's by us; damage is named."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from grove_megatron.checkpoint.mapped import MappedFile
from grove_megatron.checkpoint.safetensors_io import (
    Entry,
    SafetensorsWriter,
    bytes_of,
    read_header,
    read_tensor,
)

from .safetensors_files import entry, put

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TENSORS = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a.weight": torch.tensor([0.5, -1.5], dtype=torch.bfloat16),
    "ünïcode": torch.tensor(1.25, dtype=torch.float16),
    "empty": torch.empty(3, 0),
}


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    announced = [(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    with SafetensorsWriter(file, announced) as writer:
        for tensor in tensors.values():
            writer.add(tensor)


def read(file: Path) -> dict[str, Tensor]:
    mapped = MappedFile(file)
    return {n: read_tensor(mapped, file, n, e) for n, e in read_header(file).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bytes_of(found[name]) == bytes_of(tensor), name


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write(file, TENSORS)
    assert_equal(load_file(file), TENSORS)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    # The library aligns tensors so, and so may others assume.
    assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 8 == 0


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(read(tmp_path / "model.safetensors"), TENSORS)


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_any_tensors_come_back(
    shapes: list[list[int]], dtype: torch.dtype, seed: int, tmp_path_factory: Any
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"t{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(shapes)
    }
    folder = tmp_path_factory.mktemp("any")
    write(folder / "ours", tensors)
    assert_equal(read(folder / "ours"), tensors)
    assert_equal(load_file(folder / "ours"), tensors)


def test_a_tensor_can_come_in_pieces_and_views(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    with SafetensorsWriter(tmp_path / "f", [("t", torch.float32, (6, 4))]) as writer:
        writer.add(whole.T[:2])
        writer.add(whole.T[2:])
    assert torch.equal(read(tmp_path / "f")["t"], whole.T)


@pytest.mark.parametrize("given_rows", [1, 3])
def test_more_or_less_than_announced_is_a_fault(given_rows: int, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="than was announced"),
        SafetensorsWriter(tmp_path / "f", [("t", torch.float32, (2, 4))]) as writer,
    ):
        writer.add(torch.zeros(given_rows, 4))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        SafetensorsWriter(tmp_path / "f", [])
    assert (tmp_path / "f").read_bytes() == b"mine"


# ---------------------------------------------------------------------------------------- damage

SOUND = {"a": entry("F32", [2], 0, 8), "b": entry("BF16", [2, 2], 8, 16)}
DATA = bytes(16)

# Header changes, and what the message has to say beside the file.
BAD_HEADERS: dict[str, tuple[Any, list[str]]] = {
    "not JSON": (b'{"a": ', ["damaged header"]),
    "not UTF-8": (b'{"\xff": 1}', ["damaged header"]),
    "a list": (b"[1, 2]", ["it is not a JSON object"]),
    "deeply nested": (b"[" * 100_000, ["damaged header"]),
    "a name twice": (b'{"a": 1, "a": 2}', ["a is there twice"]),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 16]}}, ["a has a damaged header entry"]),
    "an entry that is no object": ({"a": 7}, ["a has a damaged header entry: 7"]),
    "three offsets": (
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}},
        ["a has a damaged"],
    ),
    "a negative size": ({"a": entry("F32", [-4], 0, 16)}, ["a has a damaged header entry"]),
    "a size that is a fraction": (
        {"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}},
        ["a has a damaged header entry"],
    ),
    "an unknown dtype": ({"a": entry("F31", [4], 0, 16)}, ["a has an unknown dtype (F31)"]),
    "a dtype that does not fit": (
        SOUND | {"b": entry("F32", [2, 2], 8, 16)},
        ["b, F32 [2, 2], needs 16 bytes", "has 8"],
    ),
    "a shape that does not fit": (
        SOUND | {"b": entry("BF16", [2, 3], 8, 16)},
        ["b, BF16 [2, 3], needs 12 bytes", "has 8"],
    ),
    "offsets the wrong way round": (SOUND | {"b": entry("BF16", [2, 2], 16, 8)}, ["b", "-8"]),
    "an overlap": (
        SOUND | {"b": entry("BF16", [2, 2], 4, 12)},
        ["b at byte", "overlaps the tensor before it"],
    ),
    "a hole": ({"a": entry("F32", [2], 0, 8), "b": entry("BF16", [2], 12, 16)}, ["b", "a hole"]),
    "a hole at the start": ({"b": entry("BF16", [2, 2], 8, 16)}, ["b", "follows a hole"]),
    "data after the last tensor": ({"a": entry("F32", [2], 0, 8)}, ["goes on after its last"]),
    "more than the file has": (SOUND | {"c": entry("F32", [1], 16, 20)}, ["was cut short: c"]),
}


@pytest.mark.parametrize("damage", BAD_HEADERS)
def test_a_damaged_header_is_named(damage: str, tmp_path: Path) -> None:
    header, expected = BAD_HEADERS[damage]
    file = tmp_path / "model.safetensors"
    put(file, header, DATA)
    with pytest.raises(ValueError, match=r"model\.safetensors") as raised:
        read_header(file)
    for part in expected:
        assert part in str(raised.value)


def test_every_damaged_entry_is_listed(tmp_path: Path) -> None:
    header = {"a": entry("F31", [2], 0, 8), "b": entry("BF16", [9], 8, 16), "c": 1}
    put(tmp_path / "f", header, DATA)
    with pytest.raises(ValueError, match="a has an unknown dtype") as raised:
        read_header(tmp_path / "f")
    assert "b, BF16 [9]" in str(raised.value)
    assert "c has a damaged header entry" in str(raised.value)


def test_the_sound_one_is_read(tmp_path: Path) -> None:
    put(tmp_path / "f", SOUND, DATA)
    begin = 8 + int.from_bytes((tmp_path / "f").read_bytes()[:8], "little")
    assert read_header(tmp_path / "f") == {
        "a": Entry("F32", (2,), begin, begin + 8),
        "b": Entry("BF16", (2, 2), begin + 8, begin + 16),
    }


@pytest.mark.parametrize("length", [0, 3, 7, 2**63, 10**9])
def test_a_wrong_length_is_named(length: int, tmp_path: Path) -> None:
    put(tmp_path / "f", SOUND, DATA, length)
    with pytest.raises(ValueError, match=f"{tmp_path / 'f'}"):
        read_header(tmp_path / "f")


def test_no_file_shorter_than_it_should_be_is_read(tmp_path: Path) -> None:
    write(tmp_path / "whole", TENSORS)
    content = (tmp_path / "whole").read_bytes()
    for size in range(len(content)):
        (tmp_path / "f").write_bytes(content[:size])
        with pytest.raises(ValueError, match=str(tmp_path / "f")):
            read_header(tmp_path / "f")


def test_a_flipped_byte_of_the_header_is_an_error_or_another_header(tmp_path: Path) -> None:
    """Nothing but a ValueError; a name can change unseen here, and is then an unknown one."""
    write(tmp_path / "whole", TENSORS)
    content = (tmp_path / "whole").read_bytes()
    sound = read_header(tmp_path / "whole")
    end = 8 + int.from_bytes(content[:8], "little")
    messages = []
    for at in range(end):
        for mask in (0x01, 0x80):
            changed = bytearray(content)
            changed[at] ^= mask
            (tmp_path / "f").write_bytes(changed)
            try:
                found = read_header(tmp_path / "f")
            except ValueError as error:
                messages.append(str(error))
                continue
            same = {n: e for n, e in found.items() if n in sound}
            assert len(found) == len(sound)
            # What has kept its name has kept its bytes; another dtype of their size shows later.
            for name, one in same.items():
                assert (one.start, one.end) == (sound[name].start, sound[name].end)
    assert len(messages) > end
    assert all(str(tmp_path / "f") in message for message in messages)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write(file, TENSORS)
    entries = read_header(file)
    os.truncate(file, file.stat().st_size - 1)
    expected = "ünïcode cannot be read: the file ends at byte"
    with pytest.raises(ValueError, match=expected) as raised:
        read_tensor(MappedFile(file), file, "ünïcode", entries["ünïcode"])
    assert str(file) in str(raised.value)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder cannot be read"):
        read_header(tmp_path / "folder")
    with pytest.raises(ValueError, match="absent is missing"):
        read_header(tmp_path / "absent")
