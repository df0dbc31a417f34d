"""What the diffs of ``examples/cluster/diffs`` add to a script: it becomes a job of a Grove MoE.

The scripts here are invented: they set the variables that the diffs add to, and call what the
published ones call. ``tests/integration/test_guides.py`` runs the published ones.
"""

import os
import subprocess
from pathlib import Path

import pytest

from grove_megatron.runtime import cpu
from grove_megatron.training.doctor import diagnose
from grove_megatron.training.doctor_command import job_command

DIFFS = Path(__file__).parents[3] / "examples" / "cluster" / "diffs" / "core_v0.19.0"
MODEL = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --max-position-embeddings 64 "
    "--seq-length 64 --micro-batch-size 1 --train-iters 2 --lr 1e-3 --eval-interval 1 --bf16 "
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 100 --moe-token-dispatcher-type "
    "alltoall --moe-grouped-gemm --normalization RMSNorm --swiglu --disable-bias-linear"
)
MIXTRAL = """
DISTRIBUTED_ARGS=(--nproc_per_node 8 --nnodes 4)
MOE_ARGS=(--num-experts 8 --moe-router-topk 2)
MODEL_PARALLEL_ARGS=(--expert-model-parallel-size 8)
{added}
torchrun ${{DISTRIBUTED_ARGS[@]}} pretrain_gpt.py {model} \\
    ${{MOE_ARGS[@]}} ${{MODEL_PARALLEL_ARGS[@]}}
"""
QWEN3 = """
MODEL_ARGS="--num-experts 128 --moe-router-topk 8 --expert-model-parallel-size 8"
{added}
MLM_DEFAULT_ARGS="--modelopt-enabled --distributed-timeout-minutes 60 --export-te-mcore-model"
PRETRAIN_EXE=some/where/pretrain_gpt.py
{more}
torchrun --nproc_per_node 8 --nnodes 4 ${{PRETRAIN_EXE}} {model} \\
    ${{MODEL_ARGS}} ${{MLM_DEFAULT_ARGS}}
"""


def added(name: str) -> str:
    lines = (DIFFS / name).read_text().splitlines()
    return "\n".join(x[1:] for x in lines if x.startswith("+") and not x.startswith("+++"))


def scripts() -> dict[str, str]:
    mixtral = added("mixtral_8x7b/train_mixtral_8x7b_distributed.patch")
    qwen3 = [added(f"qwen3_30b_a3b/{name}.patch") for name in ("Qwen3-30B-A3B", "train")]
    return {
        "mixtral": MIXTRAL.format(added=mixtral, model=MODEL),
        "qwen3": QWEN3.format(added=qwen3[0], more=qwen3[1], model=MODEL),
    }


def started(script: str, **variables: str) -> list[str]:
    """The words of torchrun, as bash gives them to it."""
    text = f'set -euo pipefail\ntorchrun() {{ printf "%s\\0" torchrun "$@"; }}\n{script}'
    done = subprocess.run(
        ["bash", "-c", text], env=os.environ | variables, capture_output=True, check=True
    )
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize(("name", "groups"), [("mixtral", 4), ("qwen3", 64)])
def test_the_job_is_a_grove_moe_that_doctor_passes(name: str, groups: int) -> None:
    job = job_command(started(scripts()[name]))
    assert job.own_script
    assert job.processes == 32
    with cpu():
        found = diagnose(job.flags, job.processes, "cuda", per_node=8, own_script=True)
    assert [*map(str, found.problems)] == []
    assert f" in {groups} groups of 2 with an adjugate each" in " ".join(
        " ".join(found.plan).split()
    )


@pytest.mark.parametrize("name", ["mixtral", "qwen3"])
def test_it_starts_by_grove_megatron_run_with_the_groups_of_a_variable(name: str) -> None:
    words = started(scripts()[name], GROVE_NUM_GROUPS="8", GROVE_ADJUGATE_FFN_HIDDEN_SIZE="24")
    module = words.index("-m")
    assert words[module + 1] == "grove_megatron.run"
    assert words[module + 2].endswith("pretrain_gpt.py")
    assert words[words.index("--grove-num-groups") + 1] == "8"
    assert words[words.index("--grove-adjugate-ffn-hidden-size") + 1] == "24"
    assert not {"--modelopt-enabled", "--export-te-mcore-model"} & {*words}
    assert name == "mixtral" or "--distributed-timeout-minutes" in words
