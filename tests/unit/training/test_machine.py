"""Folders that cannot be written and disks that are too small, found before the job."""

import os
from pathlib import Path

import pytest

from grove_megatron.training import machine
from grove_megatron.training.checks import machine_problems
from grove_megatron.training.disk import checkpoint_bytes, disk_notice, disk_problems
from grove_megatron.training.machine import (
    _FILES,
    _FOLDERS,
    cache_notice,
    folder_problems,
    why_not_writable,
)

from ..conftest import in_lines
from .data import write_tokens

machine_problems = in_lines(machine_problems)
disk_problems = in_lines(disk_problems)
folder_problems = in_lines(folder_problems)

SAVE = "--save {} --save-interval 10 --train-iters 100 --vocab-size 96"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def test_a_folder_that_is_there_or_can_be_made_is_writable(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b", Path("a")):
        assert why_not_writable(folder) is None
    assert [*tmp_path.iterdir()] == []


def test_why_a_folder_is_not_writable_is_said(tmp_path, file):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder, why in (
        (file, f"{file} is not a folder"),
        (file / "a" / "b", f"{file} is not a folder"),
        (tmp_path / "link", f"a link to {tmp_path / 'gone'}, which is not there"),
        (tmp_path / ("x" * 300), "ame too long"),
        # Where root too may not write.
        (Path("/proc/self/ckpt"), "No such file or directory"),
    ):
        assert why in (why_not_writable(folder) or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    assert why_not_writable(tmp_path / "a") == "Permission denied"


@pytest.mark.parametrize("name", [*_FOLDERS, *_FILES])
def test_every_place_to_write_to_is_looked_at(parse, file, name):
    args = parse()
    setattr(args, name, str(file / "there"))
    needed = {**_FOLDERS, **_FILES}[name]
    if needed is not None:
        assert [*folder_problems(args)] == []
        setattr(args, needed, True)
    (problem,) = folder_problems(args)
    flag = f"--{name.replace('_', '-')}"
    assert problem.startswith(
        f"{flag} ({file / 'there'}) cannot be written: {file} is not a folder; use another f"
    )


def test_a_file_needs_its_folder(parse, tmp_path):
    flag = "--result-rejected-tracker-filename"
    assert [*folder_problems(parse(f"{flag} {tmp_path / 'rejected'}"))] == []
    for path, why in (
        (tmp_path / "a" / "b", f"{tmp_path / 'a'} is not there"),
        (tmp_path, "it is"),
    ):
        (problem,) = folder_problems(parse(f"{flag} {path}"))
        assert why in problem


def test_one_rank_of_a_node_looks(parse, file, monkeypatch):
    args = parse(f"--save {file / 'there'} --save-interval 1 --tokenizer-type NullTokenizer")
    assert len(machine_problems(args, 4)) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert machine_problems(args, 4) == []


@pytest.mark.parametrize("flags", ["--save s3://bucket/run", "--save msc://bucket/run"])
def test_an_object_store_is_left_to_its_client(parse, flags):
    assert [*folder_problems(parse(flags))] == []


def test_a_dump_of_the_flight_recorder_is_a_file_or_in_a_folder(parse, tmp_path):
    flag = "--flight-recorder-dump-path"
    for path in (tmp_path, tmp_path / "dump"):
        assert [*folder_problems(parse(f"{flag} {path}"))] == []
    for path, why in ((tmp_path / "a" / "b", "is not there"), (Path("/proc/self"), "")):
        (problem,) = folder_problems(parse(f"{flag} {path}"))
        assert problem.startswith(f"{flag} ({path}) cannot be written: ")
        assert why in problem


def test_a_map_of_parameter_groups_is_a_folder_that_a_restart_writes_again(parse, tmp_path):
    for path in (tmp_path, tmp_path / "a" / "b"):
        assert [*folder_problems(parse(f"--dump-param-to-param-group-map {path}"))] == []


def test_the_profiler_writes_beside_the_folder_of_tensorboard(parse, tmp_path, file):
    flags = f"--tensorboard-dir {tmp_path / 'board'} --profile --use-pytorch-profiler"
    assert [*folder_problems(parse(flags))] == []
    (tmp_path / "torch_profile").symlink_to(file)
    (tmp_path / "chakra").symlink_to(file)
    (problem,) = folder_problems(parse(flags))
    assert problem == (
        f"--tensorboard-dir ({tmp_path / 'board'}) puts the traces of --use-pytorch-profiler into "
        f"{tmp_path / 'torch_profile'}, which cannot be written: {tmp_path / 'torch_profile'} is "
        "not a folder; use another folder"
    )
    assert len([*folder_problems(parse(f"{flags} --pytorch-profiler-collect-chakra"))]) == 2
    assert [*folder_problems(parse(flags.replace("--profile ", "")))] == []


class TestTheOrderOfSamples:
    """Megatron's index: written by the first job, and read alone by those after it."""

    @pytest.fixture
    def read_only(self, monkeypatch, tmp_path):
        """A folder of which root too is told that it cannot be written."""
        folder = tmp_path / "cache"
        folder.mkdir()
        real = why_not_writable

        def why(place):
            return "Read-only file system" if place.is_relative_to(folder) else real(place)

        monkeypatch.setattr(machine, "why_not_writable", why)
        return folder

    def test_it_goes_beside_the_data_without_a_path(self, parse, tmp_path):
        prefix = write_tokens(tmp_path / "text")
        assert [*folder_problems(parse(f"--data-path {prefix}"))] == []
        prefix.write_text("a file of the prefix's name")
        (problem,) = folder_problems(parse(f"--data-path {prefix}"))
        begin = f"--data-cache-path (None) puts an index of samples into {prefix}/c"
        assert problem.startswith(begin)
        assert [*folder_problems(parse(f"--data-path {prefix} --data-cache-path {tmp_path}"))] == []

    def test_a_folder_that_is_there_is_looked_at_too(self, parse, tmp_path):
        prefix = write_tokens(tmp_path / "text")
        (tmp_path / "text" / "cache").mkdir(parents=True)
        assert [*folder_problems(parse(f"--data-path {prefix}"))] == []
        (tmp_path / "text" / "cache" / "GPTDataset_indices").write_text("a file")
        (problem,) = folder_problems(parse(f"--data-path {prefix}"))
        assert "GPTDataset_indices is not a folder; give another folder" in problem

    def test_what_is_full_and_read_only_is_noted(self, parse, read_only):
        args = parse(f"--data-cache-path {read_only}")
        (problem,) = folder_problems(args)
        assert problem == (
            f"--data-cache-path ({read_only}) cannot be written: Read-only file system; give "
            "another folder"
        )
        assert cache_notice(args) is None
        (read_only / "a-document_index.npy").write_text("")
        assert [*folder_problems(args)] == []
        assert cache_notice(args) == (
            f"--data-cache-path ({read_only}) cannot be written (Read-only file system); an order "
            "of samples that is not there yet would end the job"
        )

    @pytest.mark.parametrize(
        "flag", ["--dataloader-fast-cache-load", "--dataloader-defer-npy-index-mmap"]
    )
    def test_what_is_never_written_has_to_be_there(self, parse, read_only, flag):
        (read_only / "a-document_index.npy").write_text("")
        args = parse(f"--data-cache-path {read_only} {flag}")
        assert [*folder_problems(args)] == []
        assert cache_notice(args) is None
        missing = read_only / "missing"
        (problem,) = folder_problems(parse(f"--data-cache-path {missing} {flag}"))
        assert problem == (
            f"--data-cache-path ({missing}) cannot be read: No such file or directory; "
            f"{flag} (True) needs the folder that a job without it has filled"
        )


def test_a_checkpoint_has_the_size_that_megatron_writes(parse, tmp_path):
    """Counted by hand: 2 bytes of weight and 12 of optimizer; 4 and 8 in fp32."""
    fp32 = checkpoint_bytes(parse(SAVE.format(tmp_path)), 1)
    bf16 = checkpoint_bytes(parse(SAVE.format(tmp_path) + " --bf16"), 1)
    weights = checkpoint_bytes(parse(SAVE.format(tmp_path) + " --bf16 --no-save-optim"), 1)
    assert (fp32, bf16) == (weights * 6, weights * 7)
    # 12 bytes of what is trained alone: 128 rows of 16, and 8 positions.
    only = f"{SAVE.format(tmp_path)} --bf16 --grove-train-only"
    assert checkpoint_bytes(parse(f"{only} embedding"), 1) == weights + 12 * 2176
    assert checkpoint_bytes(parse(f"{only} ."), 1) == bf16
    # Of an unknown vocabulary all but the embedding, which is less.
    assert 0 < checkpoint_bytes(parse("--save here"), 1) < fp32


def test_a_disk_without_room_for_a_checkpoint_is_refused(parse, tmp_path, monkeypatch):
    # 2 experts' layers of 10^7 x 10^7 are more than any disk here.
    large = f"{SAVE.format(tmp_path)} --hidden-size 10000000 --ffn-hidden-size 10000000"
    (problem,) = disk_problems(parse(large), 1)
    assert problem.startswith(f"--save ({tmp_path}) has ")
    assert "GiB free and a checkpoint needs (" in problem
    for without in ("--skip-train", "--save msc://there"):
        assert [*disk_problems(parse(f"{large} {without}"), 1)] == []
    # A file for each rank, of which this machine may have a few only.
    assert len([*disk_problems(parse(f"{large} --ckpt-format torch"), 2)]) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert [*disk_problems(parse(f"{large} --ckpt-format torch"), 2)] == []
    assert [*disk_problems(parse(SAVE.format(tmp_path)), 1)] == []


def test_a_disk_without_room_for_all_checkpoints_is_noted(parse, tmp_path):
    flags = f"{SAVE.format(tmp_path)} --save-interval 1 --train-iters {10**13}"
    assert "keeps 10000000000000 until" in disk_notice(parse(flags), 1)
    assert disk_notice(parse(SAVE.format(tmp_path)), 1) is None
    retained = f"{flags} --save-retain-interval {10**13}"
    assert disk_notice(parse(retained), 1) is None
    # Of a run that goes on, those to come; of one that does not, all.
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(f"{10**13 - 10**12}")
    assert "keeps 1000000000000 until" in disk_notice(parse(f"{flags} --load {tmp_path}"), 1)
    for all_of_them in ("", f"--load {tmp_path} --finetune"):
        assert "keeps 10000000000000 until" in disk_notice(parse(f"{flags} {all_of_them}"), 1)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(f"{10**13}")
    assert disk_notice(parse(f"{flags} --load {tmp_path}"), 1) is None
