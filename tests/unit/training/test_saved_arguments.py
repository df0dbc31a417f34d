"""Doctor and every start read what a checkpoint says of its job, and nothing in it runs."""

import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from megatron.core.transformer.enums import AttnBackend
from megatron.training.checkpointing import load_args_from_checkpoint
from torch.distributed.checkpoint.metadata import Metadata

from grove_megatron.checkpoint import torch_dist as torch_dist_module
from grove_megatron.checkpoint.pickles import TRUST
from grove_megatron.checkpoint.torch_dist import COMMON, RecordWriter, write_metadata
from grove_megatron.training.checks import restore_from_checkpoint
from grove_megatron.training.doctor import diagnose
from grove_megatron.training.preflight import preflight
from grove_megatron.training.saved_arguments import look_into, saved_arguments

from ..conftest import in_lines
from ..planted import KINDS, Planted
from .command_lines import parsed
from .test_rules import SOUND

diagnose = in_lines(diagnose)
preflight = in_lines(preflight)

TRACKER = "latest_checkpointed_iteration.txt"
LOADED = ("load", "pretrained_checkpoint")
Write = Callable[[Path, object, object], None]


def torch_dist(folder: Path, args: object, other: object) -> None:
    with RecordWriter(folder / "__0_0.distcp", "__0_0.distcp") as writer:
        writer.add_object(COMMON, [{"args": args, "iteration": 7}])
        writer.add_object("rng_state/shard_0_1", [other])
    write_metadata(folder, {}, writer.records)


def before_0_19(folder: Path, args: object, other: object) -> None:
    torch_dist(folder, None, other)
    torch.save({"args": args, "iteration": 7}, folder / "common.pt")


def legacy(folder: Path, args: object, other: object) -> None:
    for name, content in {
        "mp_rank_00_000/model_optim_rng.pt": {"args": args, "iteration": 7},
        "mp_rank_01_000/model_optim_rng.pt": {"args": args, "iteration": 7},
        "mp_rank_01_000/distrib_optimizer.pt": {"state": other},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save(content, folder / name)


def torch_dcp(folder: Path, args: object, other: object) -> None:
    dcp.save({"args": args, "iteration": 7, "rng_state": other}, checkpoint_id=folder, no_dist=True)


FORMATS: dict[Write, str] = {
    torch_dist: "torch_dist",
    before_0_19: "torch_dist",
    legacy: "torch",
    torch_dcp: "torch_dcp",
}
formats = pytest.mark.parametrize("write", FORMATS)
ARGS = Namespace(num_experts=8, attention_backend=AttnBackend.flash, grove_num_groups=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "ckpt" / "iter_0000007"
    place.mkdir(parents=True)
    (place.parent / TRACKER).write_text("7")
    return place


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def load(
    folder: Path, write: Write = torch_dist, load_arg: str = "load", more: str = ""
) -> Namespace:
    flag = f"--{load_arg.replace('_', '-')}"
    return parsed(f"{flag} {folder.parent} --ckpt-format {FORMATS[write]} {more}")


@formats
@pytest.mark.parametrize("load_arg", LOADED)
def test_the_arguments_are_those_that_megatron_reads(
    write: Write, load_arg: str, folder: Path
) -> None:
    write(folder, ARGS, {"state": torch.zeros(2)})
    args = load(folder, write, load_arg)
    assert [line for line in preflight(args) if "loaded" in line] == []
    found = saved_arguments(args, load_arg)
    _, megatrons = load_args_from_checkpoint(args, load_arg=load_arg)
    assert isinstance(found, Namespace)
    assert (found.num_experts, found.grove_num_groups) == (8, 4)
    assert (megatrons.num_experts, megatrons.grove_num_groups) == (8, 4)


@formats
@pytest.mark.parametrize("kind", ["a command", "a function of a package"])
@pytest.mark.parametrize("place", ["arguments", "one of them", "another object"])
def test_a_start_refuses_what_would_run_and_runs_nothing(
    place: str, kind: str, write: Write, folder: Path, marker: Path
) -> None:
    planted = KINDS[kind](marker)
    args = {"arguments": planted, "one of them": Namespace(a=planted)}.get(place, ARGS)
    write(folder, args, planted if place == "another object" else None)
    found = [line for line in preflight(load(folder, write)) if TRUST in line]
    # All files of the ranks have the arguments.
    assert len(found) == (2 if write is legacy and place != "another object" else 1)
    assert str(folder) in found[0]
    assert f"or set {TRUST}=1 to have Megatron load it all the same" in found[0]
    assert not marker.exists()


@pytest.mark.parametrize("write", [torch_dist, torch_dcp])
@pytest.mark.parametrize("load_arg", LOADED)
def test_a_planted_index_is_refused_everywhere(
    write: Write, load_arg: str, folder: Path, marker: Path
) -> None:
    write(folder, ARGS, None)
    (folder / ".metadata").write_bytes(pickle.dumps(KINDS["a command"](marker)))
    args = load(folder, write, load_arg)
    (problem,) = (line for line in preflight(args) if ".metadata" in line)
    assert "is not read: it names posix.system" in problem
    assert TRUST in problem
    with pytest.raises(ValueError, match=r"is not read: it names posix\.system"):
        restore_from_checkpoint(load(folder, write, load_arg, "--use-checkpoint-args"))
    assert not marker.exists()


@pytest.mark.parametrize("more", ["", "--use-checkpoint-args"])
def test_doctor_refuses_a_planted_index(more: str, folder: Path, marker: Path) -> None:
    torch_dist(folder, ARGS, None)
    (folder / ".metadata").write_bytes(pickle.dumps(KINDS["a command"](marker)))
    flags = f"{SOUND} --load {folder.parent} {more}".split()
    problems = diagnose(flags, 1, "cpu").problems
    assert [line for line in problems if "is not read: it names posix.system" in line]
    assert not marker.exists()


def test_a_checkpoint_beside_the_last_one_is_looked_at_too(folder: Path, marker: Path) -> None:
    torch_dist(folder, ARGS, None)
    beside = folder.parent / "non_persistent" / "iter_0000009"
    beside.mkdir(parents=True)
    (beside.parent / TRACKER).write_text("9")
    torch_dist(beside, Planted(print), KINDS["a command"](marker))
    args = load(folder, more="--non-persistent-ckpt-type global")
    found = [line for line in preflight(args) if TRUST in line]
    assert len(found) == 2
    assert all(str(beside) in line for line in found)
    assert not marker.exists()


def test_a_checkpoint_that_local_ones_may_not_replace_is_looked_at(
    folder: Path, marker: Path
) -> None:
    more = "--non-persistent-ckpt-type local --non-persistent-local-ckpt-dir somewhere"
    torch_dist(folder, ARGS, KINDS["a command"](marker))
    (problem,) = (line for line in preflight(load(folder, more=more)) if TRUST in line)
    assert "rng_state/shard_0_1 is not to be loaded" in problem
    (folder / ".metadata").write_bytes(pickle.dumps(KINDS["a command"](marker)))
    (problem,) = (line for line in preflight(load(folder, more=more)) if TRUST in line)
    assert ".metadata is not read" in problem
    assert not marker.exists()


def test_who_trusts_the_file_has_megatron_read_it(
    folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_dist(folder, Namespace(a=KINDS["a command"](marker), **vars(ARGS)), None)
    monkeypatch.setenv(TRUST, "1")
    found = saved_arguments(load(folder), "load")
    assert found is not None
    assert found.num_experts == 8
    assert marker.exists()


@pytest.mark.parametrize("content", [[1], {"args": [1]}, {"args": "x"}])
@pytest.mark.parametrize("write", [before_0_19, legacy])
def test_arguments_that_are_none_are_named(write: Write, content: object, folder: Path) -> None:
    write(folder, ARGS, None)
    for file in (*folder.glob("common.pt"), *folder.glob("*/model_optim_rng.pt")):
        torch.save(content, file)
    with pytest.raises(ValueError, match=str(folder)):
        saved_arguments(load(folder), "load")


@pytest.mark.parametrize("write", [torch_dist, torch_dcp])
def test_the_index_is_read_once_and_no_object_is_mapped(
    write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, ARGS, None)
    read: list[Path] = []

    def read_metadata(file: Path) -> Metadata:
        read.append(file)
        return original(file)

    original = torch_dist_module.read_metadata
    monkeypatch.setattr(torch_dist_module, "read_metadata", read_metadata)
    monkeypatch.setattr(torch_dist_module, "MappedFile", None)
    saved, problems = look_into(load(folder, write), "load")
    assert saved is not None
    assert saved.num_experts == 8
    assert problems == []
    assert read == [folder / ".metadata"]


def test_a_damaged_file_is_named_where_megatron_would_end_with_exit_0(folder: Path) -> None:
    legacy(folder, ARGS, None)
    (folder / "mp_rank_00_000" / "model_optim_rng.pt").write_bytes(b"noise")
    found = [line for line in preflight(load(folder, legacy)) if "model_optim" in line]
    assert "mp_rank_00_000/model_optim_rng.pt cannot be read" in found[0]
    assert TRUST not in found[0]


@pytest.mark.parametrize("left", ["half", "nothing"])
def test_a_file_that_was_cut_short_is_named_where_megatron_would_say_eof(
    left: str, folder: Path
) -> None:
    torch_dist(folder, ARGS, None)
    file = folder / "__0_0.distcp"
    # The common record is the first, and is read.
    size = max(
        record.offset + record.length
        for record in torch_dist_module.read_metadata(folder / ".metadata").storage_data.values()
    )
    if left == "half":
        with file.open("r+b") as opened:
            opened.truncate(size - 1)
        wanted = f"{file} ({size - 1} bytes) was cut short: its last record ends at byte {size}; "
    else:
        file.unlink()
        wanted = f"{file} (absent) should have {size} bytes; "
    found = [line for line in preflight(load(folder)) if str(file) in line]
    assert found[0].startswith(wanted)
    assert found[0].endswith(f"restore it, or name another iteration in {folder.parent / TRACKER}")
