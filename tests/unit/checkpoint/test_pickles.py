"""A checkpoint of a stranger is read, or refused; nothing in it runs."""

import importlib
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from typer.testing import CliRunner

from grove_megatron.checkpoint import pickles
from grove_megatron.checkpoint.golden import Golden
from grove_megatron.checkpoint.pickles import Opaque
from grove_megatron.checkpoint.torch_dist import (
    COMMON,
    RecordWriter,
    TorchDistReader,
    write_metadata,
)
from grove_megatron.checkpoint.verify import verify_megatron
from grove_megatron.checkpoint.weights import ConversionError
from grove_megatron.cli import app
from tests.unit.planted import KINDS, Planted, assert_it_would_run, saved

TENSOR = torch.arange(6.0)
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "ckpt" / "release"
    place.mkdir(parents=True)
    (place.parent / "latest_checkpointed_iteration.txt").write_text("release")
    return place


def write(folder: Path, common: object, **objects: object) -> None:
    """A checkpoint of one tensor with these objects."""
    with RecordWriter(folder / "__0_0.distcp", "__0_0.distcp") as writer:
        writer.add("norm", (0,), TENSOR)
        writer.add_object(COMMON, [common])
        for key, content in objects.items():
            writer.add_object(key, content)
    write_metadata(folder, {"norm": (6,)}, writer.records)


def metadata(folder: Path) -> Metadata:
    found: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return found


def _instead(folder: Path, planted: Planted) -> object:
    return planted


def _as_planner_data(folder: Path, planted: Planted) -> object:
    changed = metadata(folder)
    changed.planner_data = {"norm": planted}
    return changed


def _as_attribute(folder: Path, planted: Planted) -> object:
    changed = metadata(folder)
    changed.mcore_data = planted  # type: ignore[attr-defined]
    return changed


def _as_key(folder: Path, planted: Planted) -> object:
    return [metadata(folder), planted]


@kinds
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("place", [_instead, _as_planner_data, _as_attribute, _as_key])
def test_nothing_of_a_planted_index_runs(
    place: Callable[[Path, Planted], object],
    protocol: int,
    kind: str,
    folder: Path,
    marker: Path,
) -> None:
    write(folder, {})
    pickled = pickle.dumps(place(folder, KINDS[kind](marker)), protocol)
    (folder / ".metadata").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"\.metadata is not read: it names \S+, which is no"):
        TorchDistReader(folder)
    assert not marker.exists()
    assert_it_would_run(pickled, marker)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("torch", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "dataclass"),
        ("collections", "namedtuple"),
        ("pathlib", "os.system"),
        ("torch", "load"),
        ("numpy", "load"),
        ("builtins", "getattr"),
    ],
)
def test_no_name_leads_from_an_admitted_module_to_another(
    module: str, name: str, folder: Path, marker: Path
) -> None:
    write(folder, {})
    # PROTO 4, the name, ("touch ..."), call it
    text = f"touch {marker}".encode()
    pickled = (
        *(b"\x80\x04", bytes([0x8C, len(module)]), module.encode()),
        *(bytes([0x8C, len(name)]), name.encode(), b"\x93"),
        *(bytes([0x8C, len(text)]), text, b"\x85R."),
    )
    (folder / ".metadata").write_bytes(b"".join(pickled))
    with pytest.raises(ValueError, match=r"\.metadata is not read: it names"):
        TorchDistReader(folder)
    assert not marker.exists()


def _of_torch(folder: Path) -> None:
    dcp.save({"a": TENSOR, "b": {"c": [1]}, "d": Path("x")}, checkpoint_id=folder, no_dist=True)


def _of_a_plan(folder: Path) -> None:
    """Megatron keeps the plans of all ranks, see --ckpt-assume-constant-structure."""
    _of_torch(folder)
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner({"a": TENSOR, "o": 1}, is_coordinator=True)
    changed = metadata(folder)
    changed.all_local_plans = [planner.create_local_plan()]  # type: ignore[attr-defined]
    (folder / ".metadata").write_bytes(pickle.dumps(changed))


@pytest.mark.parametrize("make", [_of_torch, _of_a_plan])
def test_what_torch_and_megatron_write_is_read(make: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    assert pickles.read_metadata(folder / ".metadata") == metadata(folder)


def test_an_index_of_an_older_megatron_is_read(folder: Path) -> None:
    """Up to 0.15 it had classes of its own; 0.19 has empty ones of their names."""
    write(folder, {"iteration": 7})
    module = "megatron.core.dist_checkpointing.strategies.torch"
    names = {"__module__": module, "__qualname__": "MCoreMetadata"}
    old = type("MCoreMetadata", (Metadata,), names)
    found = old(**vars(metadata(folder)))
    found.mcore_data = {"norm": {}}  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(module), "MCoreMetadata", old)
        pickled = pickle.dumps(found)
    (folder / ".metadata").write_bytes(pickled)
    reader = TorchDistReader(folder)
    assert torch.equal(reader.region("norm", (), (6,)), TENSOR)
    assert reader.common() == {"iteration": 7}


def _no_table(changed: Metadata) -> None:
    changed.storage_data = []


def _outside(changed: Metadata) -> None:
    for place in changed.storage_data.values():
        place.relative_path = "../../secret"


def _no_size(changed: Metadata) -> None:
    changed.state_dict_metadata["norm"].size = "big"  # type: ignore[union-attr,assignment]


def _other_rank(changed: Metadata) -> None:
    changed.state_dict_metadata["norm"].size = torch.Size([2, 3])  # type: ignore[union-attr]


@pytest.mark.parametrize("harm", [_no_table, _outside, _no_size, _other_rank])
def test_an_index_that_torch_would_not_write_is_refused(
    harm: Callable[[Metadata], None], folder: Path
) -> None:
    write(folder, {})
    changed = metadata(folder)
    harm(changed)
    (folder / ".metadata").write_bytes(pickle.dumps(changed))
    with pytest.raises(ValueError, match=r"\.metadata cannot be read.* it is not what torch"):
        TorchDistReader(folder)


# ---------------------------------------------------------------------------------------- objects


def _as_record(folder: Path, content: object) -> None:
    write(folder, content)


def _as_common_pt(folder: Path, content: object) -> None:
    write(folder, {})
    torch.save(content, folder / "common.pt")


def has(read: Callable[[], dict[str, Any]], kind: type) -> bool:
    """Does a table of arguments hold such an object? One that is no table holds nothing."""
    try:
        args = read().get("args")
    except ValueError:
        return False
    return any(isinstance(found, kind) for found in (args, getattr(args, "num_layers", None)))


@kinds
@pytest.mark.parametrize("write_common", [_as_record, _as_common_pt])
@pytest.mark.parametrize(
    "around",
    [lambda p: p, lambda p: {"args": p}, lambda p: {"args": Namespace(num_layers=p)}],
    ids=["all of it", "the arguments", "one of them"],
)
def test_nothing_of_planted_arguments_runs(
    around: Callable[[Planted], object],
    write_common: Callable[[Path, object], None],
    kind: str,
    folder: Path,
    marker: Path,
) -> None:
    write_common(folder, around(KINDS[kind](marker)))
    reader = TorchDistReader(folder)
    if kind == "a function of a package":
        # As unknown as a class of a package that is not here.
        assert not has(reader.common, Planted)
    else:
        with pytest.raises(ValueError, match=r"common.* is not read: it names"):
            reader.common()
    (problem,) = reader.foreign_objects()
    assert "is not to be loaded: " in problem
    assert not marker.exists()


def test_reading_leaves_what_others_have_admitted(folder: Path) -> None:
    import megatron.core  # noqa: F401  (admits its own classes, Namespace among them)

    before = set(torch.serialization.get_safe_globals())
    assert Namespace in before
    write(folder, {"args": Namespace(a=Opaque())})
    reader = TorchDistReader(folder)
    reader.common()
    reader.foreign_objects()
    assert set(torch.serialization.get_safe_globals()) == before


@kinds
def test_nothing_of_a_planted_object_is_for_megatron(kind: str, folder: Path, marker: Path) -> None:
    write(folder, {}, rng_state=[KINDS[kind](marker)], other=[KINDS[kind](marker)], none=[None])
    found = TorchDistReader(folder).foreign_objects()
    assert ["rng_state is not to be loaded" in line for line in found] == [True, False]
    assert "other is not to be loaded" in found[1]
    assert TorchDistReader(folder).foreign_objects([COMMON, "none"]) == []
    assert not marker.exists()


def _state(content: object) -> list[torch.Tensor]:
    """As TransformerEngine keeps the state of FP8."""
    return [torch.frombuffer(bytearray(pickle.dumps(content)), dtype=torch.uint8)]


def test_a_state_of_fp8_is_let_through(folder: Path) -> None:
    content = {
        "scale_fwd": TENSOR,
        "extra_fp8_variables": OrderedDict(num_gemms=2, fp8_weights=[None, True]),
    }
    write(folder, {}, **{"a._extra_state/shard_0_1": _state(content), "b._extra_state/": [None]})
    assert TorchDistReader(folder).foreign_objects() == []


@kinds
def test_nothing_of_a_planted_state_runs(kind: str, folder: Path, marker: Path) -> None:
    write(folder, {}, **{"a._extra_state/shard_0_1": _state({"b": KINDS[kind](marker)})})
    (problem,) = TorchDistReader(folder).foreign_objects()
    assert "a._extra_state/shard_0_1 is not to be loaded: it names" in problem
    assert not marker.exists()


def test_what_is_harmless_elsewhere_is_looked_at_as_a_state(folder: Path, marker: Path) -> None:
    planted = _state({"b": KINDS["a command"](marker)})
    write(folder, {}, **{"a": planted, "b._extra_state/shard_0_1": planted})
    (problem,) = TorchDistReader(folder).foreign_objects()
    assert "b._extra_state/shard_0_1 is not to be loaded: it names" in problem


@kinds
def test_nothing_of_a_planted_tensor_runs(kind: str, folder: Path, marker: Path) -> None:
    write(folder, {})
    planted = saved(KINDS[kind](marker))
    (folder / "__0_0.distcp").write_bytes(planted)
    changed = metadata(folder)
    for place in changed.storage_data.values():
        place.offset, place.length = 0, len(planted)
    (folder / ".metadata").write_bytes(pickle.dumps(changed))
    with pytest.raises(ValueError, match=r"norm \[0\] cannot be read: it names") as refused:
        TorchDistReader(folder).region("norm", (), (6,))
    # Nothing of torch's advice to load it all the same.
    assert "weights_only" not in str(refused.value)
    assert not marker.exists()


# --------------------------------------------------------------------------------------- commands


@kinds
@pytest.mark.parametrize("command", [["export", "--hf"], ["upcycle", "--save"]], ids=str)
@pytest.mark.parametrize("place", ["index", "arguments"])
def test_a_command_refuses_and_runs_nothing(
    place: str, command: list[str], kind: str, folder: Path, marker: Path, tmp_path: Path
) -> None:
    planted = KINDS[kind](marker)
    write(folder, {"args": planted} if place == "arguments" else {})
    if place == "index":
        (folder / ".metadata").write_bytes(pickle.dumps(planted))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*command, str(out), "--load", str(folder.parent)])
    assert done.exit_code == 2, done.output
    assert "1 problem, nothing was made" in done.stderr
    assert str(folder) in done.stderr
    assert not marker.exists()
    assert not out.exists()


def test_verify_loads_nothing_that_would_run(
    golden_folder: Path, marker: Path, tmp_path: Path
) -> None:
    made = tmp_path / "megatron"
    done = CliRunner().invoke(app, ["import", "--hf", str(golden_folder), "--save", str(made)])
    assert done.exit_code == 0, done.output
    with RecordWriter(made / "release" / "__9_0.distcp", "__9_0.distcp") as writer:
        writer.add_object("rng_state/shard_0_1", [KINDS["a command"](marker)])
    changed, place = metadata(made / "release"), writer.records[0]
    changed.state_dict_metadata[place.key] = BytesStorageMetadata()
    changed.storage_data[MetadataIndex(place.key)] = _StorageInfo(place.file, 0, place.length)
    (made / "release" / ".metadata").write_bytes(pickle.dumps(changed))
    with pytest.raises(ConversionError, match="rng_state/shard_0_1 is not to be loaded: it names"):
        verify_megatron(made, None, golden_folder / "golden.safetensors", [])
    assert not marker.exists()


def test_a_pickle_in_place_of_a_golden_file_is_refused(marker: Path, tmp_path: Path) -> None:
    file = tmp_path / "golden.safetensors"
    file.write_bytes(saved(KINDS["a command"](marker)))
    with pytest.raises(ValueError, match=r"--golden .* is not a safetensors file"):
        Golden.read(file)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "model.safetensors.index.json", "config.json"),
        "grove_manifest.json",
    ],
)
def test_a_pickle_in_place_of_a_file_of_a_model_is_refused(
    name: str, golden_folder: Path, marker: Path, tmp_path: Path
) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for file in ("model.safetensors", "config.json"):
        (source / file).symlink_to((golden_folder / file).resolve())
    (source / name).unlink(missing_ok=True)
    (source / name).write_bytes(pickle.dumps(KINDS["a command"](marker)))
    done = CliRunner().invoke(app, ["import", "--hf", str(source), "--save", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert str(source / name) in done.stderr
    assert not marker.exists()


def test_the_pickles_of_these_tests_have_what_they_say(marker: Path) -> None:
    for make in KINDS.values():
        assert_it_would_run(pickle.dumps(make(marker)), marker)
