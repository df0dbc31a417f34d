"""Options of the commands that move weights: what does not go together is refused at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from grove_megatron.checkpoint.hf_config import config_of
from grove_megatron.cli import app

from .architectures import GROVE
from .stored_weights import random_weights


def refused(*arguments: str) -> list[str]:
    """The lines of a refusal, without their numbers."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2, done.output
    lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")]
    assert f"{len(lines)} problem" in done.stderr
    return [line.partition(". ")[2] for line in lines]


def test_a_parent_and_something_to_make_are_needed() -> None:
    parent, result = refused("upcycle")
    assert parent == "--hf (None) and --load (None): the parent is one of them"
    assert result == "nothing to make: give --save, --save-hf or --check"
    assert refused("upcycle", "--hf", "a", "--load", "b", "--check")[0].startswith("--hf (a) and")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topk", "3"], "--topk (3) does nothing without a dense parent's --num-experts"),
        (["--granularity", "2"], "--granularity (2) does nothing without a dense parent's"),
        (["--ckpt-step", "5"], "--ckpt-step (5) does nothing without --load"),
        (["--hf-config", "c"], "--hf-config (c) does nothing without --load"),
        (["--write-grove-keys"], "--write-grove-keys (True) does nothing without --save-hf"),
        (["--expert-model-parallel-size", "2"], "--expert-model-parallel-size 2: no such option"),
        (
            ["--num-experts", "4", "--group-size", "0", "--grouping", "g.json"],
            "--grouping (g.json) does nothing without a --group-size above 0",
        ),
        (
            ["--num-experts", "4", "--group-size", "0", "--grove-adjugate-scale", "0.1"],
            "--adjugate-scale (0.1) does nothing without a --group-size above 0",
        ),
        (
            ["--group-size", "2", "--grove-num-groups", "4"],
            "--group-size and --grove-num-groups say the same",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(arguments: list[str], message: str) -> None:
    (problem,) = refused("upcycle", "--hf", "a", "--save", "b", *arguments)
    assert problem.startswith(message)


def test_a_dtype_is_of_what_is_made() -> None:
    (problem,) = refused("upcycle", "--hf", "a", "--check", "--dtype", "bf16")
    assert problem.startswith("--dtype (bf16) does nothing without --save or --save-hf")


def test_skipped_tensors_cannot_be_checked() -> None:
    (problem,) = refused("upcycle", "--hf", "a", "--check", "--skip", "t")
    assert problem.startswith("--skip has no place in --check")


def test_torchrun_is_for_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    (problem,) = refused("upcycle", "--hf", "a", "--save", "b")
    assert problem.startswith("torchrun is for --check alone")


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A Qwen3-MoE folder of random weights."""
    plain = replace(
        GROVE, num_groups=0, adjugate_ffn_hidden_size=0, adjugate_scale=0.0, expert_bias=False
    )
    folder = tmp_path / "parent"
    folder.mkdir()
    save_file(random_weights(plain), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_of(plain, None, "float32")))
    return folder


def test_groups_by_their_number_are_groups_by_their_size(parent: Path, tmp_path: Path) -> None:
    experts, made = GROVE.num_experts, []
    for name, flags in (
        ("size", ["--group-size", "2", "--adjugate-ffn-hidden-size", "128"]),
        ("number", ["--grove-num-groups", str(experts // 2)]),
    ):
        out = tmp_path / name
        done = CliRunner().invoke(
            app, ["upcycle", "--hf", str(parent), "--save-hf", str(out), *flags]
        )
        assert done.exit_code == 0, done.output
        made.append((out / "model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_both_destinations_are_looked_at_before_one_is_made(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    both = ["--save-hf", str(tmp_path / "hf"), "--save", str(tmp_path / "there")]
    (problem,) = refused("upcycle", "--hf", str(parent), *both)
    assert problem.startswith(f"{tmp_path / 'there'} is there already")
    assert not (tmp_path / "hf").exists()


def test_a_number_of_groups_that_does_not_divide_is_refused(parent: Path) -> None:
    number = str(GROVE.num_experts - 1)
    (problem,) = refused("upcycle", "--hf", str(parent), "--check", "--grove-num-groups", number)
    assert problem.startswith(f"--grove-num-groups ({number}) does not divide the experts")


def test_settings_that_the_release_does_not_read_need_code_that_does(
    parent: Path, tmp_path: Path
) -> None:
    made = tmp_path / "megatron"
    sizes = ["--group-size", "3", "--adjugate-ffn-hidden-size", "8"]
    done = CliRunner().invoke(app, ["upcycle", "--hf", str(parent), "--save", str(made), *sizes])
    assert done.exit_code == 0, done.output
    export = ["export", "--load", str(made), "--hf"]
    for problem in refused(*export, str(tmp_path / "hf"), "--no-modeling"):
        assert problem.endswith("leave out --no-modeling, or --write-grove-keys for other code")
    for i, flags in enumerate(([], ["--no-modeling", "--write-grove-keys"])):
        done = CliRunner().invoke(app, [*export, str(tmp_path / f"{i}"), *flags])
        assert done.exit_code == 0, done.output
        config = json.loads((tmp_path / f"{i}" / "config.json").read_text())
        assert config["parallel_expert_intermediate_size"] == 8
        assert ("auto_map" in config) is (not flags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--hf (None), --load (None), --layer (None): give one of them"),
        (["--hf", "a", "--layer", "b"], "--hf (a), --load (None), --layer (b): give one of them"),
        (["--load", "a"], "--load (a) needs --golden (None); name the reference"),
        (["--layer", "a", "--golden", "b"], "--golden (b) does nothing without --hf or --load"),
        (["--layer", "a", "--ckpt-step", "3"], "--ckpt-step (3) does nothing without --load"),
        (["--hf", "a", "--variant", "b"], "--variant (b) does nothing without --layer"),
        (["--hf", "a", "--dtype", "fp64"], "--dtype (fp64) does nothing without --layer"),
        (["--layer", "a", "--dtype", "bf16"], "--dtype (bf16) is not one of (fp32, fp64)"),
        (["--layer", "a"], "--layer (a): config.json cannot be read"),
    ],
)
def test_what_verify_cannot_compare_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    (problem,) = refused("verify", *arguments)
    assert problem.startswith(message)
