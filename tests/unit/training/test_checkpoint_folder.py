"""What is said of a checkpoint folder that a run could not be resumed from."""

from pathlib import Path

import pytest

from grove_megatron.training.checkpoint_folder import (
    begins_at_random,
    checkpoint_folder_problem,
    checkpoints_to_load,
    nothing_to_load,
    read_at_start,
)

from ..conftest import in_lines

checkpoint_folder_problem = in_lines(checkpoint_folder_problem)
nothing_to_load = in_lines(nothing_to_load)

TRACKER = "latest_checkpointed_iteration.txt"


def complete(folder: Path, *iterations: int) -> None:
    for iteration in iterations:
        checkpoint = folder / f"iter_{iteration:07d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "metadata.json").write_text("{}")
        (checkpoint / ".metadata").write_text("")


@pytest.fixture
def problem(parse, tmp_path):
    def problem(written=None, flags="", load_arg="load"):
        if written is not None:
            (tmp_path / TRACKER).write_text(written)
        flag = f"--{load_arg.replace('_', '-')}"
        return checkpoint_folder_problem(parse(f"{flag} {tmp_path} {flags}"), load_arg)

    return problem


@pytest.mark.parametrize("written", ["", "2x", "\0\0", "-5"])
@pytest.mark.parametrize("load_arg", ["load", "pretrained_checkpoint"])
def test_a_damaged_tracker_is_named_with_the_last_complete_checkpoint(
    problem, tmp_path, written, load_arg
):
    complete(tmp_path, 10, 9)
    (tmp_path / "iter_0000020").mkdir()
    found = problem(written, load_arg=load_arg)
    assert found.startswith(f"{tmp_path / TRACKER} ({written}) does not name an iteration; ")
    assert found.endswith(
        f"write 10 into {tmp_path / TRACKER}: the last complete checkpoint in {tmp_path}"
    )


def test_a_tracker_that_cannot_be_read_is_named(problem, tmp_path):
    # A file of the kernel that nobody may read from its beginning, root neither.
    (tmp_path / TRACKER).symlink_to("/proc/self/mem")
    assert problem() == (
        f"{tmp_path / TRACKER} is there and cannot be read; give this job the right to"
    )


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ["run/iter_0000007"]),
        ("--ckpt-step 5", ["run/iter_0000005"]),
        ("--ckpt-step 6", []),
        (
            "--non-persistent-ckpt-type global",
            ["run/iter_0000007", "run/non_persistent/iter_0000009"],
        ),
        (
            "--non-persistent-ckpt-type global --non-persistent-global-ckpt-dir {}/often",
            ["often/iter_0000003", "run/iter_0000007"],
        ),
    ],
)
def test_what_megatron_takes_last_is_what_it_loads(parse, tmp_path, flags, names):
    for place, iteration in (("run", 5), ("run", 7), ("run/non_persistent", 9), ("often", 3)):
        (tmp_path / place / f"iter_{iteration:07d}").mkdir(parents=True)
        (tmp_path / place / TRACKER).write_text(str(iteration))
    args = parse(f"--load {tmp_path / 'run'} {flags.format(tmp_path)}")
    assert checkpoints_to_load(args, "load") == [tmp_path / name for name in names]


def test_without_any_complete_checkpoint_the_way_out_is_to_begin_again(problem, tmp_path):
    assert problem("").endswith(
        f"; no checkpoint in {tmp_path} is complete: remove that file to begin again"
    )


def test_a_half_written_checkpoint_is_named(problem, tmp_path):
    complete(tmp_path, 10, 20)
    (tmp_path / "iter_0000020" / "metadata.json").unlink()
    found = problem("20")
    assert found.startswith(
        f"{tmp_path / TRACKER} (20) names {tmp_path / 'iter_0000020'}, which is not complete; write"
    )
    assert "write 10 into" in found
    assert problem("30", "--ckpt-step 10") is None
    assert problem("10", "--ckpt-step 20").startswith("--ckpt-step (20) names ")


@pytest.mark.parametrize("written", ["10", "10\n", "0010"])
def test_a_complete_checkpoint_is_no_problem(problem, tmp_path, written):
    complete(tmp_path, 10)
    assert problem(written) is None


def test_a_released_one_is_found(problem, tmp_path):
    assert problem("release").startswith(f"{tmp_path / TRACKER} (release) names ")
    (tmp_path / "release" / "mp_rank_00").mkdir(parents=True)
    assert problem("release") is None


def test_torch_s_own_format_has_no_mark_but_its_index(problem, tmp_path):
    complete(tmp_path, 10)
    (tmp_path / "iter_0000010" / "metadata.json").unlink()
    assert problem("10", "--ckpt-format torch_dcp") is None
    assert problem("10") is not None


def test_a_run_that_begins_has_no_tracker(problem, tmp_path):
    assert problem() is None
    # Killed in its first save, before the tracker.
    complete(tmp_path, 10)
    assert problem() is None


@pytest.mark.parametrize("load_arg", ["load", "pretrained_checkpoint"])
def test_a_checkpoint_itself_is_not_the_folder_of_a_run(parse, tmp_path, load_arg):
    complete(tmp_path, 10)
    flag = f"--{load_arg.replace('_', '-')}"
    found = checkpoint_folder_problem(parse(f"{flag} {tmp_path / 'iter_0000010'}"), load_arg)
    assert found == (
        f"{flag} ({tmp_path / 'iter_0000010'}) is one checkpoint, not the folder of a run; give "
        f"{tmp_path}"
    )


def test_checkpoints_without_a_tracker_are_not_passed_over(problem, tmp_path):
    complete(tmp_path, 10, 20)
    assert problem().startswith(f"--load ({tmp_path}) has checkpoints and no {TRACKER}; write 20")
    assert problem(flags="--ckpt-step 10") is None
    assert problem(flags="--ckpt-step 999") == (
        f"--ckpt-step (999) names {tmp_path / 'iter_0000999'}, which is not complete; use one of "
        "10, 20"
    )


def test_a_step_of_a_folder_that_is_not_there_is_named(parse, tmp_path):
    folder = tmp_path / "typo"
    found = checkpoint_folder_problem(parse(f"--load {folder} --ckpt-step 999"), "load")
    assert found == (
        f"--ckpt-step (999) names {folder / 'iter_0000999'}, which is not complete; no checkpoint "
        f"in {folder} is complete"
    )


def test_megatron_takes_the_release_whatever_the_step(problem, tmp_path):
    complete(tmp_path, 10)
    assert problem("release", "--ckpt-step 10").startswith(
        f"--ckpt-step (10) is passed over by Megatron beside {tmp_path / TRACKER} (release); write"
    )


def test_what_a_run_begins_with_is_not_asked_for_once_it_has_saved(parse, tmp_path):
    run, start = tmp_path / "run", tmp_path / "start"
    both = parse(f"--load {run} --save {run} --pretrained-checkpoint {start}")
    assert read_at_start(both) == ("pretrained_checkpoint",)
    assert nothing_to_load(both) == [
        f"--pretrained-checkpoint ({start}) is not there; correct the path"
    ]
    run.mkdir()
    (run / TRACKER).write_text("10")
    assert read_at_start(both) == ("load",)
    assert nothing_to_load(both) == []
    assert read_at_start(parse("")) == ()


@pytest.mark.parametrize(
    "flag",
    [
        "--skip-train",
        "--finetune",
        "--exit-on-missing-checkpoint",
        "--use-checkpoint-args",
        "--override-ckpt-iteration 5",
        "--load-main-params-from-ckpt",
        "--ckpt-convert-format torch",
    ],
)
def test_what_needs_a_checkpoint_is_refused_without(parse, tmp_path, flag):
    folder = tmp_path / "typo"
    name, *value = flag.split()
    (problem,) = nothing_to_load(parse(f"{flag} --load {folder}"))
    assert problem.startswith(
        f"{name} ({value[0] if value else True}) needs a checkpoint and would"
    )
    assert problem.endswith(f": --load ({folder}) is not there; correct the path")
    (tmp_path / TRACKER).write_text("10")
    assert nothing_to_load(parse(f"{flag} --load {tmp_path}")) == []


def test_a_folder_of_something_else_is_said_to_be(parse, tmp_path):
    (problem,) = nothing_to_load(parse(f"--finetune --load {tmp_path}"))
    assert problem.endswith(f"holds no checkpoint (no {TRACKER}); correct the path")
    (tmp_path / "model.safetensors").write_text("")
    (problem,) = nothing_to_load(parse(f"--pretrained-checkpoint {tmp_path}"))
    assert problem.endswith(
        "is a model in Hugging Face format; make a checkpoint of it with grove import"
    )


@pytest.mark.parametrize("flag", ["--finetune", "--ckpt-step 5"])
def test_without_a_folder_nothing_is_loaded(parse, flag):
    (problem,) = nothing_to_load(parse(flag))
    assert problem.endswith(": --load (None) names none")


def test_a_run_that_loads_nothing_is_told_unless_it_begins(parse, tmp_path):
    typo = tmp_path / "typo"
    notice = begins_at_random(parse(f"--load {typo} --save {tmp_path}"))
    assert notice == (
        f"the run begins with random weights: --load ({typo}) is not there; correct the path"
    )
    # Its first start, and one after which there are flags to take from a checkpoint.
    begins = f"--load {typo} --save {tmp_path}/./typo"
    assert begins_at_random(parse(begins)) is None
    assert nothing_to_load(parse(f"{begins} --use-checkpoint-args")) == []
    assert nothing_to_load(parse(f"{begins} --skip-train")) != []
    assert begins_at_random(parse("--skip-train")).startswith("--skip-train (True) without --load")
    assert begins_at_random(parse("")) is None


@pytest.mark.parametrize(
    "flags",
    [
        "--non-persistent-ckpt-type local",
        "--non-persistent-ckpt-type global",
        "--non-persistent-ckpt-type global --non-persistent-global-ckpt-dir {0}/other",
        "--load msc://bucket/run",
    ],
)
def test_checkpoints_in_other_places_are_found(parse, tmp_path, flags):
    for folder in ("run/non_persistent", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / TRACKER).write_text("10")
    args = parse(f"--skip-train --load {tmp_path / 'run'} {flags.format(tmp_path)}")
    assert nothing_to_load(args) == []
    assert begins_at_random(args) is None


def test_a_release_without_a_tracker_is_not_passed_over(problem, tmp_path):
    complete(tmp_path, 10)
    (tmp_path / "iter_0000010").rename(tmp_path / "release")
    assert problem() == (
        f"--load ({tmp_path}) has release and no {TRACKER}; write release into {tmp_path / TRACKER}"
    )


def test_a_storage_client_is_asked_by_megatron(parse, tmp_path):
    (tmp_path / TRACKER).write_text("")
    args = parse(f"--load {tmp_path}")
    assert checkpoint_folder_problem(args, "load") is not None
    # The flag itself needs the client's package.
    args.enable_msc = True
    assert checkpoint_folder_problem(args, "load") is None
