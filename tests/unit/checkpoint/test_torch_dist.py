"""torch.distributed.checkpoint reads what is written, and what it writes is read; damage is named.

What Megatron itself reads and writes is in tests/integration/test_convert.py.
"""

import json
import pickle
import random
from argparse import Namespace
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.serialization import load_common_state_dict
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from grove_megatron.checkpoint.pickles import Opaque
from grove_megatron.checkpoint.torch_dist import (
    COMMON,
    FORMAT,
    Record,
    RecordWriter,
    TorchDistReader,
    write_metadata,
)
from grove_megatron.checkpoint.transforms import Shape
from tests.integration.checkpoints import tensors as read_by_torch

WHOLE = {
    "experts": torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5),
    "norm": torch.arange(6.0).to(torch.bfloat16),
}
Cut = tuple[str, Shape, Shape]


def write(folder: Path, cuts: list[list[Cut]], whole: dict[str, Tensor] = WHOLE) -> Path:
    """A checkpoint of one file for each list of (key, offsets, shape)."""
    records: list[Record] = []
    for number, here in enumerate(cuts):
        name = f"__{number}_0.distcp"
        with RecordWriter(folder / name, name) as writer:
            for key, offsets, shape in here:
                places = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
                writer.add(key, offsets, whole[key][places])
            if number == 0:
                writer.add_object(COMMON, [{"iteration": 7}])
        records += writer.records
    write_metadata(folder, {key: tuple(t.shape) for key, t in whole.items()}, records)
    return folder


NORM: Cut = ("norm", (0,), (6,))
# As a sink writes it: one matrix each.
ONE_BY_ONE: list[list[Cut]] = [
    [NORM, *(("experts", (0, e, 0, 0), (1, 1, 4, 5)) for e in range(3))],
    [("experts", (1, e, 0, 0), (1, 1, 4, 5)) for e in range(3)],
]
# As two tensor-parallel ranks write it, the one by columns and the other by rows.
BY_COLUMNS: list[list[Cut]] = [
    [NORM, *(("experts", (i, e, 0, 0), (1, 1, 4, 2)) for i in range(2) for e in range(3))],
    [("experts", (i, e, 0, 2), (1, 1, 4, 3)) for i in range(2) for e in range(3)],
]
GATE_UP_BY_ROWS: list[list[Cut]] = [
    [
        *([NORM] if rank == 0 else []),
        *(
            ("experts", (i, e, 2 * half + rank, 0), (1, 1, 1, 5))
            for i in range(2)
            for e in range(3)
            for half in range(2)
        ),
    ]
    for rank in range(2)
]
# Several experts, or layers, in one record.
MANY_AT_ONCE: list[list[Cut]] = [
    [NORM, ("experts", (0, 0, 0, 0), (2, 2, 4, 5))],
    [("experts", (0, 2, 0, 0), (2, 1, 3, 5)), ("experts", (0, 2, 3, 0), (2, 1, 1, 5))],
]
CUTS = {
    "one by one": ONE_BY_ONE,
    "by columns": BY_COLUMNS,
    "gate and up by rows": GATE_UP_BY_ROWS,
    "many at once": MANY_AT_ONCE,
}


@pytest.mark.parametrize("name", CUTS)
def test_every_region_is_read_however_it_was_cut(name: str, tmp_path: Path) -> None:
    reader = TorchDistReader(write(tmp_path, CUTS[name]))
    assert set(reader.tensors) == set(WHOLE)
    for key, whole in WHOLE.items():
        assert reader.shape(key) == tuple(whole.shape)
        assert reader.dtype(key) == whole.dtype
        assert reader.problems(key) == []
    for layer in range(2):
        for expert in range(3):
            found = reader.region("experts", (layer, expert), (4, 5))
            assert torch.equal(found, WHOLE["experts"][layer, expert])
    assert torch.equal(reader.region("norm", (), (6,)), WHOLE["norm"])


@pytest.mark.parametrize("name", CUTS)
def test_torch_reads_what_is_written(name: str, tmp_path: Path) -> None:
    found = read_by_torch(write(tmp_path, CUTS[name]))
    assert found.keys() == WHOLE.keys()
    for key, tensor in WHOLE.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


def test_megatron_reads_what_is_not_sharded(tmp_path: Path) -> None:
    assert load_common_state_dict(str(write(tmp_path, ONE_BY_ONE))) == {"iteration": 7}


def _make(folder: Path) -> Path:
    folder.mkdir()
    return folder


class _Command:
    """A pickle of this makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return _make, (self.folder,)


def _common(folder: Path, content: dict[str, Any]) -> None:
    with RecordWriter(folder / "__0_0.distcp", "__0_0.distcp") as writer:
        writer.add_object(COMMON, [content])
    write_metadata(folder, {}, writer.records)


def _legacy_common(folder: Path, content: dict[str, Any]) -> None:
    torch.save(content, folder / "common.pt")
    write_metadata(folder, {}, [])


@pytest.mark.parametrize("save", [_common, _legacy_common])
def test_arguments_are_read_and_nothing_of_foreign_classes_runs(
    save: Callable[[Path, dict[str, Any]], None], tmp_path: Path
) -> None:
    args = Namespace(
        num_layers=2,
        params_dtype=torch.bfloat16,
        attention_backend=AttnBackend.flash,
        where=Path("here"),
        config=OptimizerConfig(lr=0.5),
        command=_Command(tmp_path / "made"),
    )
    save(tmp_path, {"args": args, "iteration": 7})
    for _ in range(2):
        common = TorchDistReader(tmp_path).common()
    assert common["iteration"] == 7
    assert common["args"].num_layers == 2
    assert common["args"].params_dtype == torch.bfloat16
    assert isinstance(common["args"].command, Opaque)
    assert not (tmp_path / "made").exists()


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    dcp.save(WHOLE, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "metadata.json").write_text(json.dumps(FORMAT))
    reader = TorchDistReader(tmp_path)
    assert reader.problems("experts") == []
    assert torch.equal(reader.region("experts", (1, 2), (4, 5)), WHOLE["experts"][1, 2])
    assert torch.equal(reader.region("norm", (), (6,)), WHOLE["norm"])


def test_the_start_of_a_padded_tensor_is_read(tmp_path: Path) -> None:
    embedding = torch.arange(8 * 3.0).reshape(8, 3)
    cuts: list[list[Cut]] = [[("e", (0, 0), (4, 3))], [("e", (4, 0), (4, 3))]]
    reader = TorchDistReader(write(tmp_path, cuts, {"e": embedding}))
    assert torch.equal(reader.region("e", (), (5, 3)), embedding[:5])
    assert torch.equal(reader.region("e", (), (3, 3)), embedding[:3])


def test_a_view_takes_no_more_room_than_its_entries(tmp_path: Path) -> None:
    whole = torch.zeros(1000, 1000)
    with RecordWriter(tmp_path / "f", "f") as writer:
        writer.add("t", (0, 0), whole[:1])
    assert writer.records[0].length < 10_000


def test_a_record_survives_json(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "f", "f") as writer:
        writer.add("t", (0, 0), torch.zeros(2, 3, dtype=torch.bfloat16))
        writer.add_object("o", [None])
    for record in writer.records:
        assert Record.of(json.loads(json.dumps(vars(record)))) == record


# ---------------------------------------------------------------------------------------- damage


def test_a_hole_is_found(tmp_path: Path) -> None:
    cuts = [ONE_BY_ONE[0], ONE_BY_ONE[1][:-1]]
    reader = TorchDistReader(write(tmp_path, cuts))
    (problem,) = reader.problems("experts")
    assert "experts" in problem
    assert str(tmp_path) in problem
    assert f"100 of {prod(WHOLE['experts'].shape)} elements" in problem


def test_a_part_is_looked_at_by_itself(tmp_path: Path) -> None:
    cuts = [MANY_AT_ONCE[0], MANY_AT_ONCE[1][:-1]]
    reader = TorchDistReader(write(tmp_path, cuts))
    assert reader.problems("experts", (0, 1)) == []
    (problem,) = reader.problems("experts", (0, 2))
    assert problem == f"experts [0, 2, 0, 0] in {tmp_path} has 15 of 20 elements"


def test_a_hole_under_an_overlap_is_found(tmp_path: Path) -> None:
    """As many elements as there should be, but some of them twice."""
    cuts: list[list[Cut]] = [[("norm", (0,), (4,)), ("norm", (2,), (2,))]]
    reader = TorchDistReader(write(tmp_path, cuts, {"norm": WHOLE["norm"]}))
    with pytest.raises(ValueError, match="norm has no record of all of") as raised:
        reader.region("norm", (), (6,))
    assert str(tmp_path) in str(raised.value)


def test_a_missing_and_a_short_file_are_found(tmp_path: Path) -> None:
    write(tmp_path, BY_COLUMNS)
    (tmp_path / "__1_0.distcp").unlink()
    problems = TorchDistReader(tmp_path).problems("experts")
    assert len(problems) == 6
    assert all(f"{tmp_path / '__1_0.distcp'} (absent) should have experts [" in p for p in problems)


def test_a_short_file_is_found(tmp_path: Path) -> None:
    write(tmp_path, BY_COLUMNS)
    file = tmp_path / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    (problem,) = TorchDistReader(tmp_path).problems("experts")
    assert str(file) in problem
    assert "was cut short: experts [1, 2, 0, 2]" in problem


def test_a_record_that_metadata_does_not_place_is_found(tmp_path: Path) -> None:
    write(tmp_path, ONE_BY_ONE)
    with (tmp_path / ".metadata").open("rb") as opened:
        metadata = pickle.load(opened)
    del metadata.storage_data[MetadataIndex("norm", torch.Size([0]))]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert TorchDistReader(tmp_path).problems("norm") == [f"norm [0] is in no file of {tmp_path}"]


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def instead(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no metadata.json": (without("metadata.json"), "metadata.json cannot be read"),
    "metadata.json not JSON": (instead("metadata.json", b"{"), "metadata.json cannot be read"),
    "metadata.json a list": (instead("metadata.json", b"[]"), "metadata.json cannot be read"),
    "another format": (instead("metadata.json", b'{"sharded_backend": "zarr"}'), "format zarr"),
    "no .metadata": (without(".metadata"), ".metadata cannot be read"),
    "an empty .metadata": (instead(".metadata", b""), ".metadata cannot be read"),
    "a short .metadata": (cut(".metadata"), ".metadata cannot be read"),
    "a .metadata of noise": (instead(".metadata", bytes(range(256))), ".metadata cannot be read"),
    "another pickle": (instead(".metadata", pickle.dumps([1])), ".metadata cannot be read"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_an_incomplete_folder_is_refused(damage: str, tmp_path: Path) -> None:
    write(tmp_path, ONE_BY_ONE)
    harm, expected = BROKEN[damage]
    harm(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)) as raised:
        TorchDistReader(tmp_path)
    assert expected in str(raised.value)


def test_damaged_arguments_are_named(tmp_path: Path) -> None:
    write(tmp_path, ONE_BY_ONE)
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match="common_state") as raised:
        TorchDistReader(tmp_path).common()
    assert str(tmp_path / "__0_0.distcp") in str(raised.value)


def test_a_checkpoint_without_arguments_says_so(tmp_path: Path) -> None:
    write_metadata(tmp_path, {}, [])
    with pytest.raises(ValueError, match=r"common_state.* cannot be read: there is no such record"):
        TorchDistReader(tmp_path).common()


def test_a_flipped_byte_of_what_torch_saved_is_found(tmp_path: Path) -> None:
    dcp.save(WHOLE, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "metadata.json").write_text(json.dumps(FORMAT))
    (file,) = tmp_path.glob("*.distcp")
    content = bytearray(file.read_bytes())
    # The last bytes of an entry, in the middle of the tensor.
    at = content.find(WHOLE["experts"][1, 2].numpy().tobytes())
    assert at > 0
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"experts .* do not have the checksum that") as raised:
        TorchDistReader(tmp_path).region("experts", (1, 2), (4, 5))
    assert str(file) in str(raised.value)


def test_a_damaged_record_is_an_error_that_names_it_or_reads_as_a_tensor(tmp_path: Path) -> None:
    """Flipped bytes: nothing but a ValueError, whatever torch makes of them."""
    write(tmp_path, [[NORM]])
    file = tmp_path / "__0_0.distcp"
    content, messages = file.read_bytes(), []
    (record,) = [r for r in TorchDistReader(tmp_path)._records.values() if r.offset == 0]
    chosen = random.Random(0).sample(range(record.length), 300)
    for at in chosen:
        changed = bytearray(content)
        changed[at] ^= 0xFF
        file.write_bytes(changed)
        try:
            found = TorchDistReader(tmp_path).region("norm", (), (6,))
            assert found.shape == (6,)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(f"{file}: norm [0]" in message for message in messages)
