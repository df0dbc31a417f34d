"""``grove doctor``: what it reads from a command line, what it says, how it exits."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from grove_megatron.cli import app
from grove_megatron.training.doctor import diagnose
from grove_megatron.training.folder_lock import FolderLocks

from .test_rules import SOUND

TORCHRUN = "torchrun --nnodes 2 --nproc-per-node 4"
EP4 = "--expert-model-parallel-size 4"


def doctor(words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words.split()])


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("before", "after", "processes"),
    [
        ("", "", 1),
        ("", EP4, 4),
        ("", f"{EP4} --pipeline-model-parallel-size 2", 8),
        ("--world-size 8", EP4, 8),
        ("python -m grove_megatron.pretrain", EP4, 4),
        (f"{TORCHRUN} -m grove_megatron.pretrain", EP4, 8),
        (f"--world-size 16 {TORCHRUN} -m grove_megatron.pretrain", "--global-batch-size 16", 16),
        (f"{TORCHRUN} -m grove_megatron.run a/pretrain_gpt.py", EP4, 8),
        (
            "srun python -m torch.distributed.run --nproc-per-node 4 -m grove_megatron.pretrain",
            EP4,
            4,
        ),
    ],
)
def test_the_processes_are_those_of_the_command(before: str, after: str, processes: int) -> None:
    result = doctor(f"--json {before} {SOUND} {after}")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["world_size"] == processes
    assert found["problems"] == []


def test_torchrun_has_said_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    result = doctor(f"--json {SOUND} {EP4}")
    assert (result.exit_code, result.stdout) == (0, "")  # rank 0 speaks
    assert os.environ["RANK"] == "3"
    monkeypatch.setenv("RANK", "0")
    assert json.loads(doctor(f"--json {SOUND} {EP4}").stdout)["world_size"] == 4


def test_a_node_of_a_dispatch_in_two_hops_has_the_ranks_of_the_command() -> None:
    flags = f"{SOUND} {EP4} --grove-hierarchical-dispatch"
    job = "torchrun --nnodes 2 --nproc-per-node 2 -m grove_megatron.pretrain"
    assert doctor(f"{job} {flags}").exit_code == 0
    alone = doctor(flags)
    assert alone.exit_code == 2
    assert "needs LOCAL_WORLD_SIZE (unset)" in alone.stdout


def test_what_it_will_do_is_said_in_words_and_numbers() -> None:
    flags = f"{SOUND} {EP4} --swiglu --disable-bias-linear --grove-metrics-dir there"
    words = doctor(flags)
    lines = words.stdout.splitlines()
    assert lines[0].startswith("grove_megatron: no problem found, 4 processes on ")
    assert any(line.startswith("EP ranks    0: experts 0 to 1, groups and adj") for line in lines)
    assert max(map(len, lines)) <= 80
    found = json.loads(doctor(f"--json {flags}").stdout)
    noted = [f"note: {notice}" for notice in found["notices"]]
    assert [*found["plan"], *noted] == lines[1:]
    assert noted == ["note: layers, experts, norms and optimizer: torch, on the CPU"]
    for name in ("params_total", "params_active", "rows_per_token", "memory", "flops_per_token"):
        assert found["numbers"][name]


def test_every_problem_is_one_numbered_line() -> None:
    result = doctor(f"{SOUND} --grove-num-groups 3 --min-lr 1 --micro-batch-size 3")
    assert result.exit_code == 2
    heading, *lines = result.stdout.splitlines()
    assert heading.startswith("grove_megatron: 3 problems, 1 process on ")
    assert [line.partition(" (")[0] for line in lines] == [
        "  1. --grove-num-groups",
        "  2. --global-batch-size",
        "  3. --min-lr",
    ]


def test_problems_are_json_too() -> None:
    result = doctor(f"--json {SOUND} --min-lr 1")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    (line,) = found["problems"]
    assert line.startswith("--min-lr (1.0) is above --lr (0.001)")
    assert found["plan"] == []
    assert found["numbers"] == {}


def test_what_only_megatron_checks_is_shown_with_its_place() -> None:
    found = diagnose(f"{SOUND} --save-interval 5 --ckpt-fully-parallel-load".split(), 1, "cpu")
    assert found.problems == []
    found = diagnose(f"{SOUND} --weight-decay-incr-style linear".split(), 1, "cpu")
    (line,) = found.problems
    assert "(Megatron, megatron/training/arguments.py:" in line


def test_what_needs_a_gpu_is_refused_for_a_cpu_alone() -> None:
    flags = [*SOUND.split(), "--moe-permute-fusion"]
    assert "on the CPU runtime needs TransformerEngine" in diagnose(flags, 1, "cpu").problems[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
@pytest.mark.parametrize(
    "flags",
    [
        "--transformer-impl transformer_engine --bf16",
        "--transformer-impl transformer_engine --bf16 --moe-permute-fusion",
        "--transformer-impl transformer_engine --bf16 --fp8-format hybrid",
        "--grove-kernel triton --bf16 --transformer-impl local",
    ],
)
def test_a_job_for_gpus_elsewhere_is_not_judged_by_what_is_installed_here(flags: str) -> None:
    # Megatron's default, which SOUND changes.
    words = SOUND.replace("--transformer-impl local", "--swiglu")
    result = doctor(f"--json --device cuda --world-size 4 {words} {EP4} {flags}")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["problems"]) == (0, [])
    assert any("there is no CUDA here" in notice for notice in found["notices"])


def test_a_flag_that_there_is_not_is_one_line_with_the_nearest() -> None:
    result = doctor(f"--json {SOUND} --moe-router-topkk 2 --grove-num-group=3 --zzzzzz")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"] == [
        "--moe-router-topkk is no flag of Megatron or grove_megatron; use --moe-router-topk, or "
        "remove it",
        "--grove-num-group is no flag of Megatron or grove_megatron; use --grove-num-groups, or "
        "remove it",
        "--zzzzzz is no flag of Megatron or grove_megatron; remove it",
    ]
    assert "usage:" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--checkpoint-activations", "--checkpoint-activations (True) is an older name at which"),
        ("--hybrid-override-pattern M*", "--hybrid-override-pattern (M*) makes Megatron take"),
        # Known once Megatron has made the new flag of it.
        ("--enable-cuda-graph", "--cuda-graph-impl (local) cannot capture a dispatch"),
    ],
)
def test_older_names_are_refused_as_what_they_mean(flags: str, line: str) -> None:
    (problem,) = diagnose([*SOUND.split(), *flags.split()], 1, "cpu").problems
    assert problem.startswith(line)
    assert "(Megatron, " not in problem


def test_where_megatron_leaves_the_doctor_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron.training.arguments.validate_args", lambda *_: sys.exit())
    (problem,) = diagnose(SOUND.split(), 1, "cpu").problems
    assert problem.startswith("Megatron ends the job here: ")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "without", ["--micro-batch-size 1 ", "--num-attention-heads 4 ", "--hidden-size 32 "]
)
def test_nothing_is_computed_with_sizes_that_are_not_there(without: str, device: str) -> None:
    assert without in SOUND
    words = [*SOUND.replace(without, "").split(), "--bf16"]
    (line,) = diagnose(words, 1, device).problems
    assert line.startswith(f"{without.split()[0]} (None) is needed; ")


def test_the_older_names_of_sizes_are_planned_too() -> None:
    words = SOUND.replace("--num-layers", "--encoder-num-layers")
    older = words.replace("--seq-length", "--encoder-seq-length").split()
    assert diagnose(older, 1, "cpu").numbers == diagnose(SOUND.split(), 1, "cpu").numbers


def test_processes_that_only_the_machine_knows_are_not_guessed_in_silence() -> None:
    job = "torchrun --nproc-per-node gpu -m grove_megatron.pretrain"
    result = doctor(f"{job} {SOUND} {EP4}")
    assert result.exit_code == 0
    assert "note: --nproc-per-node (gpu) is known where the job runs" in result.stdout


def test_megatron_s_default_dispatcher_is_noted_where_it_costs() -> None:
    flags = SOUND.replace("--moe-token-dispatcher-type alltoall ", "")
    assert "(allgather)" not in doctor(flags).stdout
    result = doctor(f"{flags} {EP4}")
    assert result.exit_code == 0
    assert "note: --moe-token-dispatcher-type (allgather), Megatron's default, sends" in (
        result.stdout
    )
    assert "4 a token and layer, one to every rank" in result.stdout


def test_what_the_planner_cannot_know_is_said() -> None:
    flags = SOUND.replace("NullTokenizer --vocab-size 96", "GPT2BPETokenizer")
    found = diagnose(flags.split(), 1, "cpu")
    assert found.problems == []
    (line,) = found.plan
    assert line.startswith("no plan: --vocab-size (None) is not known before the tokenizer is read")


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--sft", "--sft (True) is not a mode of grove_megatron.pretrain"),
        ("--data-path a", "--mock-data (True) excludes --data-path (a)"),
    ],
)
def test_what_the_own_entry_lacks_is_no_problem_of_another_script(flags: str, begin: str) -> None:
    job = "torchrun --nproc-per-node 1 -m"
    own = doctor(f"--json {job} grove_megatron.pretrain {SOUND} {flags}")
    (line,) = json.loads(own.stdout)["problems"]
    assert line.startswith(begin)
    foreign = doctor(f"--json {job} grove_megatron.run x.py {SOUND} {flags}")
    assert begin not in foreign.stdout


@pytest.mark.parametrize(
    ("without", "begin"),
    [
        ("--mock-data ", "--data-path (None) is needed; "),
        ("--vocab-size 96 ", "--tokenizer-type (NullTokenizer) needs --vocab-size (None); "),
        ("--eval-interval 100 ", "--eval-interval (None) is needed; "),
        ("--train-iters 10 ", "--train-iters (None) is needed; "),
        ("--lr 1e-3 ", "--lr (None) is needed; "),
    ],
)
def test_what_fails_only_when_data_are_read_is_found(without: str, begin: str) -> None:
    assert without in SOUND
    (line,) = diagnose(SOUND.replace(without, "").split(), 1, "cpu").problems
    assert line.startswith(begin)


def test_a_folder_that_another_job_writes_into_is_a_problem(tmp_path: Path) -> None:
    first = FolderLocks()
    assert first.take({"--save": tmp_path}, print) == []
    flags = [*SOUND.split(), "--save", str(tmp_path), "--save-interval", "5"]
    (problem,) = diagnose(flags, None, "cpu").problems
    assert problem.startswith(f"--save ({tmp_path}) is written to by another job (process ")
    first.release()
    assert diagnose(flags, None, "cpu").problems == []
    # It has claimed nothing itself.
    assert not any(tmp_path.iterdir())


def test_flags_of_a_checkpoint_that_is_not_there_cannot_be_known(tmp_path: Path) -> None:
    found = diagnose(["--use-checkpoint-args"], None, "cpu")
    (line,) = found.problems
    assert line.startswith("--use-checkpoint-args (True) needs --load (None); ")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    found = diagnose(["--use-checkpoint-args", "--load", str(tmp_path)], None, "cpu")
    assert len(found.problems) == 1
    assert str(tmp_path) in found.problems[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--device tpu", "--device (tpu) is not one of cpu, cuda"),
        ("--world-size 0", "--world-size (0) is below 1"),
    ],
)
def test_its_own_options_are_checked(words: str, line: str) -> None:
    result = doctor(f"{words} {SOUND}")
    assert result.exit_code == 2
    assert line in result.stderr
