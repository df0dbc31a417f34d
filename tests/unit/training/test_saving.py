"""Saves that would die, or delete what they should keep, once the first data are written."""

import pytest

from grove_megatron.training.checks import command_line_problems
from grove_megatron.training.saving import replaced_run, saving_problems

from ..conftest import in_lines
from .command_lines import parsed

command_line_problems = in_lines(command_line_problems)
saving_problems = in_lines(saving_problems)

TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture
def problems(parse, tmp_path):
    def problems(flags="", written=None):
        if written is not None:
            (tmp_path / TRACKER).write_text(written)
        return saving_problems(parse(f"--save {tmp_path} --save-interval 2 {flags}"))

    return problems


@pytest.mark.parametrize("written", [None, "4", "4\n"])
def test_iterations_can_be_counted_from(problems, written):
    assert problems("--save-retain-interval 4", written) == []


def test_an_imported_checkpoint_cannot_be_counted_from(problems, tmp_path):
    assert problems("", "release") == []
    assert problems("--save-retain-interval 4", "release") == [
        f"--save-retain-interval (4) cannot count from the release that --save ({tmp_path}) holds; "
        "save to another folder and give this one as --pretrained-checkpoint"
    ]


@pytest.mark.parametrize("written", ["", "4x"])
def test_a_damaged_tracker_cannot_be_counted_from(problems, written):
    (problem,) = problems("--save-retain-interval 4", written)
    assert f"{TRACKER} ({written}), which is not an iteration" in problem


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        (
            "--non-persistent-save-interval 1",
            "--non-persistent-save-interval (1) needs --non-persistent-ckpt-type (None)",
        ),
        (
            "--non-persistent-ckpt-type in_memory --non-persistent-save-interval 1",
            "--non-persistent-ckpt-type (in_memory) is not there",
        ),
        (
            "--non-persistent-ckpt-type global --ckpt-format torch",
            "--non-persistent-ckpt-type (global) excludes --ckpt-format (torch)",
        ),
        (
            "--non-persistent-ckpt-type local --non-persistent-save-interval 1 "
            "--dist-ckpt-optim-fully-reshardable",
            "--non-persistent-ckpt-type (local) excludes --dist-ckpt-optim-fully-reshardable",
        ),
        (
            "--non-persistent-ckpt-type global --non-persistent-save-interval 1 "
            "--save-retain-interval 4",
            "--save-retain-interval (4) excludes --non-persistent-save-interval (1)",
        ),
        ("--async-save --ckpt-format torch", "--async-save (True) excludes --ckpt-format"),
    ],
)
def test_what_a_later_save_dies_of_is_refused(problems, flags, begin):
    (problem,) = problems(flags)
    assert problem.startswith(begin)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            "--non-persistent-save-interval 2 --save s --save-interval 4",
            "--non-persistent-save-interval (2) needs --non-persistent-ckpt-type (None); use "
            "global",
        ),
        (
            "--async-save --ckpt-format torch",
            "--async-save (True) excludes --ckpt-format (torch); use torch_dist",
        ),
        (
            "--non-persistent-ckpt-type local --dist-ckpt-optim-fully-reshardable "
            "--use-distributed-optimizer",
            "--non-persistent-ckpt-type (local) excludes --dist-ckpt-optim-fully-reshardable "
            "(True); use global",
        ),
    ],
)
def test_it_is_said_once_whatever_is_saved(flags, line):
    said = command_line_problems(parsed(flags), 1, "cpu")
    assert [problem for problem in said if problem == line] == [line]


@pytest.mark.parametrize("name", ["save", "load", "pretrained-checkpoint"])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_whose_checkpoints_are_deleted_holds_no_others(problems, tmp_path, name, below):
    folder = tmp_path / "all"
    flags = f"--non-persistent-ckpt-type global --non-persistent-global-ckpt-dir {folder}"
    assert problems(flags) == []
    (problem,) = problems(f"{flags} --{name} {folder / below}")
    assert problem.startswith(
        f"--non-persistent-global-ckpt-dir ({folder}) holds --{name} ({folder / below}), and all"
    )
    (folder / "iter_best").mkdir(parents=True)
    (problem,) = problems(flags)
    assert "iter_best, which is not a checkpoint" in problem


def test_a_run_that_does_not_go_on_from_where_it_saves_is_told(parse, tmp_path):
    save = f"--save {tmp_path} --save-interval 2"
    assert replaced_run(parse(save)) is None
    (tmp_path / TRACKER).write_text("40")
    for flags in (save, f"{save} --load {tmp_path / 'other'}"):
        assert f"--save ({tmp_path}) holds a run up to iteration 40" in replaced_run(parse(flags))
    assert replaced_run(parse(f"{save} --load {tmp_path}/")) is None
    assert replaced_run(parse(f"{save} --load {tmp_path} --finetune")) == (
        f"--save ({tmp_path}) holds a run up to iteration 40 and --finetune (True) begins at 0: "
        "this run does not go on from it, and writes into it"
    )
    (tmp_path / TRACKER).write_text("release")
    assert replaced_run(parse(save)) is None
