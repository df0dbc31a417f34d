"""What is said of a checkpoint folder that a run could not be resumed from."""

from pathlib import Path

import pytest

from grove_megatron.training.checkpoint_folder import checkpoint_folder_problem

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
