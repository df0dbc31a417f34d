"""``grove doctor``: what it reads from a command line, what it says, how it exits."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from grove_megatron.cli import app
from grove_megatron.runtime import cpu
from grove_megatron.training.checks import config_problems
from grove_megatron.training.doctor import diagnose
from grove_megatron.training.doctor_command import job_command
from grove_megatron.training.folder_lock import FolderLocks

from ..conftest import in_lines
from .command_lines import parsed, validated
from .test_rules import SOUND

config_problems = in_lines(config_problems)
diagnose = in_lines(diagnose)

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
        (f"{TORCHRUN} -m grove_megatron.run {__file__}", EP4, 8),
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


def test_a_script_that_is_not_there_is_a_problem_where_it_would_run() -> None:
    command = f"{TORCHRUN} -m grove_megatron.run nosuch/pretrain_gpt.py {SOUND} {EP4}"
    line = "script (nosuch/pretrain_gpt.py) is not a file; torchrun -m grove_megatron.run "
    result = doctor(f"--json --device cpu {command} --train-iters 0")
    assert result.exit_code == 2
    first, second = json.loads(result.stdout)["problems"]
    assert "--train-iters" in first
    assert second.startswith(line)
    result = doctor(f"--json --device cuda {command}")
    assert result.exit_code == 0
    notices = json.loads(result.stdout)["notices"]
    assert [one for one in notices if one.startswith(f"on this machine: {line}")]


FLAGS = ["--num-layers", "2", "--save", "x"]


@pytest.mark.parametrize(
    ("before", "own_script", "processes"),
    [
        ("srun --ntasks 8 python -m grove_megatron.pretrain", False, None),
        ("srun --ntasks 8 python -u pretrain_gpt.py", True, None),
        ("mpirun -np 8 --bind-to none python -m grove_megatron.run a/train.py", True, None),
        ("python -m grove_megatron.pretrain", False, None),
        ("srun --ntasks 8 python -m my.training", True, None),
        ("bin/train", True, None),
        ("torchrun --nproc-per-node 4 pretrain_gpt.py", True, 4),
        ("torchrun --nproc-per-node 4 -m grove_megatron.pretrain", False, 4),
        ("torchrun --nproc-per-node 4 -m grove_megatron.run a/train.py", True, 4),
        ("torchrun --nproc-per-node 4 -m my.training", True, 4),
        ("python -m torch.distributed.launch --nproc_per_node 8 --use_env x.py", True, 8),
        ("srun --ntasks-per-node 1 torchrun --nproc-per-node 4 pretrain_gpt.py", True, 4),
        ("-m grove_megatron.pretrain", False, None),
        ("-m grove_megatron.run a/train.py", True, None),
        ("-m my.training", True, None),
        ("a/train.py", True, None),
        ("", False, None),
    ],
)
def test_the_flags_are_those_behind_the_program(
    before: str, own_script: bool, processes: int | None
) -> None:
    job = job_command([*before.split(), *FLAGS])
    assert job.flags == FLAGS
    assert (job.own_script, job.processes) == (own_script, processes)


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


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ("", "2 a token and layer, one for each of its experts"),
        ("--grove-dispatch", "1.857 a token and layer, one to every rank it needs, its own"),
    ],
)
def test_a_plain_model_is_planned_with_the_rows_of_its_dispatch(flags: str, rows: str) -> None:
    plain = re.sub(r"--grove-\S+ \S+ ?", "", SOUND)
    assert "grove" not in plain
    result = doctor(f"{plain} {EP4} {flags}")
    assert result.exit_code == 0, result.stdout
    assert f"rows sent {rows}" in " ".join(result.stdout.split())
    assert "adjugate" not in result.stdout
    numbers = json.loads(doctor(f"--json {plain} {EP4} {flags}").stdout)["numbers"]
    assert numbers["rows_per_token"] == pytest.approx(float(rows.split()[0]), abs=5e-4)


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


PLAIN = SOUND.partition(" --grove-num-groups")[0]
GPUS = "--transformer-impl transformer_engine --swiglu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        # In the words of Megatron each sounds like something that is missing here.
        ("--cross-entropy-loss-fusion --cross-entropy-fusion-impl te", "Transformer Engine cross"),
        ("--position-embedding-type relative --transformer-impl local", "Local transformer impl"),
        (
            "--delay-wgrad-compute --transformer-impl local --bf16 --expert-model-parallel-size 4 "
            "--overlap-moe-expert-parallel-comm",
            "Delaying wgrad compute is only",
        ),
        ("--fp8-format hybrid --fp8-recipe custom", "fp8_quantizer_factory must be provided"),
        ("--fp8-param-gather --fp8-format hybrid", "--fp8-param-gather only supported"),
        ("--fp4-format e2m1 --fp8-format hybrid", "--fp4-format and --fp8-format cannot"),
        ("--ckpt-format fsdp_dtensor", "--ckpt-format fsdp_dtensor is only tested"),
        ("--non-persistent-ckpt-type local", "Tried to use local checkpointing without"),
        ("--fine-grained-activation-offloading --transformer-impl local", "Fine-grained activat"),
        ("--exp-avg-dtype bf16", "exp_avg_dtype can only be fp32 when not using"),
        ("--use-precision-aware-optimizer --bf16", "only supported with distributed optimizer"),
        # Behind what is missing here.
        ("--qk-clip --weight-decay-incr-style linear", "args.start_weight_decay is not None"),
        ("--qk-clip --qk-clip-alpha 2", "--qk-clip-alpha must be between"),
        ("--fp4-format e2m1 --use-precision-aware-optimizer --fp16 --bf16", "not args.bf16"),
    ],
)
def test_what_holds_whatever_is_installed_is_a_problem(flags: str, said: str) -> None:
    with cpu():
        found = diagnose(f"{PLAIN} {GPUS} {flags}".split(), 4, "cuda")
    (problem,) = found.problems
    assert said in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--qk-clip", "--qk-clip is only supported with TE >= 2.9.0"),
        ("--log-max-attention-logit", "only supported with TE >= 2.9.0"),
        ("--fp4-format e2m1", "--fp4-format requires Transformer Engine >="),
        ("--fp8-format hybrid", "Only transformer-engine>=1.7.0 supports MoE FP8"),
        ("--position-embedding-type rope", "apply_rope_fusion is not available"),
        ("--moe-permute-fusion", "fused permutation is not available"),
        (
            "--non-persistent-ckpt-type local --non-persistent-local-ckpt-dir x",
            "nvidia_resiliency_ext is required",
        ),
        (
            "--use-megatron-fsdp --ckpt-format fsdp_dtensor --use-distributed-optimizer",
            "FSDP requires CUDA_DEVICE_MAX_CONNECTIONS",
        ),
        ("--overlap-dispatch-backward-with-experts-wgrad", "TE version >= 2.3.0 is required"),
        (
            "--use-precision-aware-optimizer --use-distributed-optimizer --bf16",
            "requires FusedAdam from TransformerEngine",
        ),
    ],
)
def test_what_depends_on_what_is_installed_is_a_note(flags: str, said: str) -> None:
    before = dict(os.environ)
    with cpu():
        found = diagnose(f"{PLAIN} {GPUS} {flags}".split(), 4, "cuda")
    assert found.problems == []
    (note,) = [notice for notice in found.notices if "installed here" in notice]
    assert note.startswith("with what is installed here: ")
    assert said in note
    assert dict(os.environ) == before
    assert "nvidia_resiliency_ext" not in sys.modules


def test_what_cannot_be_parsed_is_listed_with_all_other_problems() -> None:
    wrong = "--zzzzzz --lr fast --optimizer adm --min-lr 1 --grove-num-groups 3"
    result = doctor(f"--json {SOUND} {wrong}")
    assert result.exit_code == 2
    assert [line.partition(";")[0] for line in json.loads(result.stdout)["problems"]] == [
        "--zzzzzz is no flag of Megatron or grove_megatron",
        "--lr (fast) is not a number",
        "--optimizer (adm) is not one of adam, sgd, muon, dist_muon, lion, soap, adaptive_muon",
        "--grove-num-groups (3) does not divide --num-experts (8)",
        "--min-lr (1.0) is above --lr (0.001)",
    ]
    assert "usage:" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--checkpoint-activations", "--checkpoint-activations (True) is an older name at"),
        ("--hybrid-override-pattern M*", "--hybrid-override-pattern (M*) makes Megatron"),
        ("--enable-cuda-graph", "--enable-cuda-graph (True) on the CPU runtime needs a GPU"),
    ],
)
def test_older_names_are_refused_as_what_they_mean(flags: str, line: str) -> None:
    (problem,) = diagnose([*SOUND.split(), *flags.split()], 1, "cpu").problems
    assert problem.startswith(line)
    assert "(Megatron, " not in problem


def test_what_megatron_makes_of_an_older_name_is_looked_at_too() -> None:
    (problem,) = config_problems(validated(parsed("--enable-cuda-graph")))
    assert problem.startswith("--cuda-graph-impl (local) cannot capture a dispatch")


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks of a job on another machine")
def test_without_a_vocabulary_all_but_the_embedding_is_planned() -> None:
    flags = SOUND.replace(
        "NullTokenizer --vocab-size 96", "HuggingFaceTokenizer --tokenizer-model some/where"
    )
    found = diagnose(flags.split(), 1, "cuda")
    assert found.problems == []
    text = " ".join(" ".join(found.plan).split())
    assert "vocabulary not known: --tokenizer-model (some/where), which is not on this" in text
    assert " beside embedding and output layer: " in text
    assert "embedding and logits are not counted" in text
    whole = diagnose(SOUND.split(), 1, "cuda").numbers
    assert (found.numbers["vocabulary_rows"], whole["vocabulary_rows"]) == (None, 128)
    embedding = 128 * 32
    assert whole["params_total"] - found.numbers["params_total"] == embedding


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks of a job on another machine")
def test_a_plan_counts_the_tokens_of_the_job_s_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({f"t{n}": n for n in range(300)}))
    words = SOUND.replace("NullTokenizer", "GPT2BPETokenizer")
    found = diagnose([*words.split(), "--vocab-file", str(tmp_path / "vocab.json")], 1, "cuda")
    assert found.problems == []
    # --vocab-size (96) is not what the job will take.
    assert found.numbers["vocabulary_rows"] == 384
    assert any(line.startswith("vocabulary  384 rows: 300 tokens (") for line in found.plan)
    flags = [*words.split(), "--vocab-file", str(tmp_path / "vocab.json")]
    (problem,) = diagnose([*flags, "--padded-vocab-size", "256"], 1, "cuda").problems
    assert problem.startswith("--padded-vocab-size (256) is below the vocabulary (300) of --token")


def test_a_job_is_judged_by_the_memory_of_its_gpus() -> None:
    plan = doctor(f"--gpu-memory 80 {SOUND}")
    assert plan.exit_code == 0
    assert "verdict     fits: a rank needs 0.00 of 80 GiB with the margin; the" in plan.stdout
    small = doctor(f"--json --gpu-memory 1e-5 {SOUND}")
    assert small.exit_code == 2
    found = json.loads(small.stdout)
    (problem,) = found["problems"]
    assert problem.startswith("--gpu-memory (1e-05 GiB) is below what a rank needs (0.00")
    assert any(line.startswith("verdict     does not fit: ") for line in found["plan"])
    assert found["numbers"]["fits_gpu_memory"] is False
    # Of a GPU, wherever it is looked at: layers of a CPU need several times as much.
    assert found["device"] == "cuda"
    assert "note: --gpu-memory is of a GPU, so this is for --device cuda" in plan.stdout
    on_cpu = doctor(f"--device cpu --gpu-memory 80 {SOUND}")
    assert "on cpu" in on_cpu.stdout.splitlines()[0]


def test_only_the_job_s_device_is_named() -> None:
    """The command itself may run on a machine without one."""
    result = doctor(f"--device cuda --world-size 4 {SOUND} {EP4} --bf16 --swiglu")
    assert "runtime CPU" not in result.output
    assert result.stdout.splitlines()[0] == (
        "grove_megatron: no problem found, 4 processes on cuda"
    )


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--fim-data", "--fim-data (True) is not a mode of grove_megatron.pretrain"),
        ("--data-path a", "--mock-data (True) excludes --data-path (a)"),
    ],
)
def test_what_the_own_entry_lacks_is_no_problem_of_another_script(flags: str, begin: str) -> None:
    job = "torchrun --nproc-per-node 1 -m"
    own = doctor(f"--json {job} grove_megatron.pretrain {SOUND} {flags}")
    (line,) = json.loads(own.stdout)["problems"]
    assert line.startswith(begin)
    foreign = doctor(f"--json {job} grove_megatron.run {__file__} {SOUND} {flags}")
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
        ("--gpu-memory 0", "--gpu-memory (0) is not above 0"),
        ("--gpu-memory nan", "--gpu-memory (nan) is not above 0"),
    ],
)
def test_its_own_options_are_checked(words: str, line: str) -> None:
    result = doctor(f"{words} {SOUND}")
    assert result.exit_code == 2
    assert line in result.stderr


ON_A_MACHINE = (
    "--save /proc/there/run --save-interval 5 --load missing --finetune "
    "--tokenizer-type HuggingFaceTokenizer --tokenizer-model /missing"
)


def test_files_and_folders_are_looked_at_with_all_else() -> None:
    found = diagnose(f"{SOUND} {ON_A_MACHINE} --min-lr 1".split(), 1, "cpu")
    assert [line.partition(" (")[0] for line in found.problems] == [
        "--min-lr",
        "--finetune",
        "--save",
        "--tokenizer-model",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks of a job for another machine")
def test_files_and_folders_of_another_machine_are_noted_alone() -> None:
    found = diagnose(f"{SOUND} {ON_A_MACHINE}".split(), 1, "cuda")
    assert found.problems == []
    noted = [line for line in found.notices if line.startswith("on this machine: ")]
    assert [line.split()[3] for line in noted] == ["--finetune", "--save", "--tokenizer-model"]


@pytest.mark.parametrize("nodes", ["two", "1:x", ""])
def test_a_number_of_nodes_that_is_none_is_refused(nodes: str) -> None:
    job = ["torchrun", f"--nnodes={nodes}", "-m", "grove_megatron.pretrain", *SOUND.split()]
    result = CliRunner().invoke(app, ["doctor", *job])
    assert result.exit_code == 2
    assert f"--nnodes ({nodes}) is not a number or two" in result.stderr
