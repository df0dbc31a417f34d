"""``grove plan``: what it takes, says and refuses, without torch or Megatron."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from grove_megatron.cli import app
from grove_megatron.presets.table import PRESETS

from ..choice.test_layouts import JOB

SMALL = JOB.replace("--seq-length 2048 --global-batch-size 16 ", "")
FIXED = "--tensor-model-parallel-size 1 --context-parallel-size 1 --pipeline-model-parallel-size 2"


def plan(words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words.split()])


def numbers(words: str, *, code: int = 0) -> dict[str, Any]:
    result = plan(f"--json {words}")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_without_torch_or_megatron(subprocess_environment: dict[str, str]) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'megatron', 'numpy', 'safetensors', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "from grove_megatron.cli import app\n"
        "app(sys.argv[1:], standalone_mode=True)\n"
    )
    words = ["plan", "--json", "--nodes", "4", "--grove-preset", "moe++-0.6b", *FIXED.split()]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=subprocess_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpus"] == 32
    assert found["layouts"][0]["fits"]


def test_the_table_and_the_numbers_say_the_same() -> None:
    words = f"--nodes 4 --price 2 {SMALL} {FIXED}"
    found, text = numbers(words), plan(words).stdout
    best = found["layouts"][0]
    assert best["seconds"]
    assert sum(best["seconds"].values()) == pytest.approx(best["step_seconds"])
    assert f"{best['tokens_per_second_gpu']:,.0f}" in text
    assert f"{best['cost_per_trillion_tokens']:,.0f}" in text
    assert " ".join(best["flags"]) in text.replace("\n", " ")
    assert len(found["layouts"]) == 10
    assert found["fit"] >= 10
    assert "a token has 2 of 8 experts; 1 to 2 adjugates, 1.857 expected" in text
    assert found["assumed"][:2] == ["--seq-length", "4096"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_planned(name: str) -> None:
    sizes = "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1"
    sizes += " --context-parallel-size 1 --expert-model-parallel-size 4 --micro-batch-size 1"
    found = numbers(f"--nodes 16 --memory 4000 --grove-preset {name} {sizes}")
    assert found["layouts"][0]["numbers"]["params_total"] == PRESETS[name].built


def test_a_model_of_hugging_face(golden_folder: Path) -> None:
    for path in (golden_folder, golden_folder / "config.json"):
        found = numbers(f"--hf {path} --gpus-per-node 1")
        assert found["layouts"][0]["numbers"]["vocabulary_rows"] == 128
    result = plan("--hf nosuch")
    assert result.exit_code == 2
    assert "--hf (nosuch) has no config.json" in result.stderr


def test_a_launchers_line_says_how_many_there_are() -> None:
    line = f"torchrun --nnodes 2 --nproc-per-node 4 -m grove_megatron.pretrain {JOB} {FIXED}"
    found = numbers(line)
    assert (found["gpus"], found["nodes"]) == (8, 2)
    assert numbers(f"--nodes 1 {line}")["gpus"] == 4


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("--nodes 0 --memory -1 --price 0", ["nodes (0)", "memory_gib (-1)", "price (0)"]),
        ("--machine h1000", ["--machine (h1000) is not one of b200"]),
        ("--machine h100 --cluster x.toml", ["--machine (h100) and --cluster both say"]),
        ("--cluster nosuch.toml", ["--cluster (nosuch.toml) cannot be read"]),
        ("--top 0", ["--top (0) is below 1"]),
        ("--num-layer 4 --hidden-size x", ["--num-layer is no flag", "--hidden-size (x) is not a"]),
        ("--use-checkpoint-args --yaml-cfg x", ["--yaml-cfg is read by", "--use-checkpoint-args"]),
        ("--swiglu --moe-router-topk 3", ["--moe-router-topk (3) differs from"]),
    ],
)
def test_what_is_wrong_is_said_at_once(words: str, lines: list[str]) -> None:
    result = plan(f"--grove-preset qwen1.5-moe-a2.7b {words}")
    assert result.exit_code == 2
    for line in lines:
        assert line in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert json.loads(plan(f"--json --grove-preset dbrx {words}").stdout)["layouts"] == []


def test_a_layout_that_cannot_be_is_said_with_its_reason() -> None:
    words = f"--as-given --gpus-per-node 4 {JOB} --micro-batch-size 1"
    found = numbers(f"{words} --expert-model-parallel-size 3", code=2)
    assert "--expert-model-parallel-size (3)" in found["problems"][0]
    result = plan(f"--all --gpus-per-node 4 {JOB} --num-attention-heads 6 --kv-channels 16")
    assert "refused: --tensor-model-parallel-size 4" in result.stdout
    assert "does not divide --num-attention-heads (6)" in result.stdout


def test_nothing_fits_says_what_would() -> None:
    words = f"--memory 0.03 --gpus-per-node 4 {SMALL} {FIXED}"
    found = numbers(words, code=2)
    assert found["fit"] == 0
    assert found["too_large"] > 0
    assert 1 <= len(found["changes"]) <= 3
    text = plan(words).stdout
    assert "no layout fits 0.03 GiB" in text
    assert all(one["change"] in text.replace("\n", " ") for one in found["changes"])


def test_a_page_has_the_layouts(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    found = numbers(f"--nodes 4 --page {page} {SMALL} {FIXED}")
    text = page.read_text(encoding="utf-8")
    assert "6 layers on 32 h100 GPUs" in text
    assert f"{found['layouts'][0]['tokens_per_second_gpu']:,.0f}" in text


AS_IT_IS = f"--as-given --gpus-per-node 4 {JOB} --micro-batch-size 1"
STOCK = AS_IT_IS[: AS_IT_IS.index("--grove")] + AS_IT_IS[AS_IT_IS.index("--seq-length") :]


def test_options_file_and_flags_are_refused_at_once(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('machine = "h100"\nhbm_tb_s = -1\nbandwidth = 3\n', encoding="utf-8")
    words = f"--cluster {mine} --nodes 0 --top 0 --imbalance 0.2 --nosuch 3"
    result = plan(words)
    assert result.exit_code == 2
    for said in ("--top (0)", "--imbalance (0.2)", "bandwidth (3)", "hbm_tb_s (-1.0)", "nodes (0)"):
        assert said in result.stderr, result.stderr
    assert "--nosuch is no flag" in result.stderr
    assert "6 problems" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--micro-batch-size 0", "--micro-batch-size (0) is below 1"),
        ("--expert-model-parallel-size 0", "--expert-model-parallel-size (0) is below 1"),
        ("--global-batch-size 255", "--global-batch-size (255) is not a multiple"),
    ],
)
def test_a_measured_step_asks_the_rules_first(words: str, said: str) -> None:
    result = plan(f"--measured-step 1 --gpus-per-node 4 {JOB} {words}")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "cannot be checked" not in result.stderr


def test_all_rules_against_a_command_line_as_it_stands_are_said() -> None:
    words = "--expert-model-parallel-size 3 --moe-router-topk 9"
    found = numbers(f"{AS_IT_IS} {words}", code=2)["problems"]
    assert [one for one in found if one.startswith("--expert-model-parallel-size (3)")]
    assert [one for one in found if one.startswith("--moe-router-topk (9)")]


@pytest.mark.parametrize(
    "flag",
    [
        "--optimizer-cpu-offload",
        "--fine-grained-activation-offloading",
        "--offload-modules attn_norm",
        "--fp4-format e2m1",
        "--fp8-param-gather",
    ],
)
def test_what_changes_memory_and_is_not_known_is_refused(flag: str) -> None:
    result = plan(f"{AS_IT_IS} {flag}")
    assert result.exit_code == 2
    assert f"{flag.split()[0]} (" in result.stderr
    assert "is not known to the planner" in result.stderr


@pytest.mark.parametrize(
    "flag",
    [
        "--window-size 128,0",
        "--moe-shared-expert-overlap",
        "--delay-wgrad-compute --overlap-moe-expert-parallel-comm --expert-model-parallel-size 2",
        "--attention-backend unfused",
        "--transformer-impl local",
    ],
)
def test_what_changes_time_alone_is_noted(flag: str) -> None:
    words = f"{AS_IT_IS} {flag}"
    if "shared" in flag:
        # Groups refuse it.
        words = f"{STOCK} --moe-grouped-gemm --moe-shared-expert-intermediate-size 64 {flag}"
    (note,) = numbers(words)["notes"]
    assert note.startswith(f"not planned: {flag.split()[0]} (")
    assert f"note: {note}" in plan(words).stdout
    assert numbers(AS_IT_IS)["notes"] == []


def test_experts_one_after_the_other_are_noted() -> None:
    assert numbers(STOCK)["notes"] == [
        "not planned: --moe-grouped-gemm (False), which changes the time of a step"
    ]
    assert numbers(f"{STOCK} --moe-grouped-gemm")["notes"] == []


def test_all_as_json_has_no_table_and_a_dense_model_no_column_of_experts() -> None:
    result = plan(f"--all --json --nodes 4 {SMALL} {FIXED}")
    assert "tokens/s/GPU" not in result.output
    dense = SMALL[: SMALL.index("--num-experts")] + "--vocab-size 1000 --swiglu "
    dense += "--max-position-embeddings 4096 --tokenizer-type NullTokenizer"
    assert "ETP" not in plan(f"--gpus-per-node 4 {dense}").stdout
