"""More than sixty command lines that cannot work, each refused with its reason and a fix."""

import argparse
import copy
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from grove_megatron.checks.guarded import FAILED
from grove_megatron.checks.problem import Problem
from grove_megatron.runtime import cpu
from grove_megatron.training import checks, late_rules, preflight, rules
from grove_megatron.training.checks import command_line_problems, refusal
from grove_megatron.training.doctor import _megatrons
from grove_megatron.training.rules import megatron_notices, smallest_world_size

from ..conftest import in_lines

command_line_problems = in_lines(command_line_problems)
megatron_notices = in_lines(megatron_notices)
_megatrons = in_lines(_megatrons)

SOUND = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 "
    "--max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 8 --train-iters 10 "
    "--lr 1e-3 --num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 32 "
    "--moe-token-dispatcher-type alltoall --mock-data --tokenizer-type NullTokenizer "
    "--vocab-size 96 --eval-interval 100 --disable-bias-linear "
    "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 16 "
    "--grove-adjugate-scale 0.3 --transformer-impl local"
)
Parse = Callable[[str], argparse.Namespace]
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
TP4 = "--tensor-model-parallel-size 4 --sequence-parallel"
PP2 = "--pipeline-model-parallel-size 2"

LATENT = "--multi-latent-attention"

# Flags, processes, what the only line begins with, and a part of its fix.
BROKEN: list[tuple[str, int, str, str]] = [
    # Sizes
    ("--num-attention-heads 5", 1, "--hidden-size (32) is not a multiple of", "divides it"),
    ("--max-position-embeddings 16", 1, "--max-position-embeddings (16) is below", "raise it"),
    ("--fp16 --bf16", 1, "--fp16 (True) excludes --bf16 (True)", "give one"),
    # Parallel sizes
    (f"{TP2} --expert-tensor-parallel-size 1", 3, "--tensor-model-parallel-size (2) x", "multiple"),
    (
        "--expert-model-parallel-size 2 --global-batch-size 9",
        3,
        "--expert-model-parallel-size (2) x",
        "a multiple of 2",
    ),
    ("--expert-model-parallel-size 0", 1, "--expert-model-parallel-size (0) is below 1", "use 1"),
    ("--tensor-model-parallel-size 0", 1, "--tensor-model-parallel-size (0) is below 1", "use 1"),
    ("--pipeline-model-parallel-size 0", 1, "--pipeline-model-parallel-size (0) is", "use 1"),
    ("--context-parallel-size 0", 1, "--context-parallel-size (0) is below 1", "use 1"),
    ("--tensor-model-parallel-size 2", 2, "--tensor-model-parallel-size (2) with --num", "add it"),
    (f"{TP2} BIASED", 2, "--disable-bias-linear (False) is needed with", "add it"),
    (
        f"{TP2} --num-attention-heads 1",
        2,
        "--tensor-model-parallel-size (2) does not divide --num-attention-heads (1)",
        "use a size",
    ),
    (
        f"{TP2} --group-query-attention --num-query-groups 3 --num-attention-heads 6 "
        "--kv-channels 8",
        2,
        "--tensor-model-parallel-size (2) and --num-query-groups (3)",
        "use a size",
    ),
    (f"{TP2} --seq-length 31", 2, "--seq-length (31) is not a multiple of --tensor", "change one"),
    (
        "--context-parallel-size 2 --seq-length 30",
        2,
        "--seq-length (30) is not a multiple of twice --context-parallel-size (2)",
        "change one",
    ),
    # Widths
    (
        f"{TP2} --moe-shared-expert-intermediate-size 15",
        2,
        "--moe-shared-expert-intermediate-size (15) is not a multiple of --tensor-model-parallel-s",
        "change one",
    ),
    (
        f"{TP2} --moe-layer-freq [0,1,1,1] --ffn-hidden-size 33",
        2,
        "--ffn-hidden-size (33) is not a multiple of --tensor-model-parallel-size (2)",
        "change one",
    ),
    (
        "--tensor-model-parallel-size 3 --sequence-parallel --expert-tensor-parallel-size 1 "
        "--swiglu --hidden-size 48 --num-attention-heads 6 --seq-length 30 --moe-layer-freq 2",
        3,
        "--ffn-hidden-size (128) is not a multiple of --tensor-model-parallel-size (3)",
        "change one",
    ),
    (
        f"{TP2} --mtp-num-layers 1 --hidden-size 33 --kv-channels 8",
        2,
        "--hidden-size (33) with --mtp-num-layers (1) is not a multiple of --tensor-model-parallel",
        "change one",
    ),
    (
        f"{TP2} --padded-vocab-size 97",
        2,
        "--padded-vocab-size (97) is not a multiple of --tensor-model-parallel-size (2)",
        "change one",
    ),
    (
        f"{TP4} --group-query-attention --num-query-groups 1 --kv-channels 3",
        4,
        "--kv-channels (3) x 2 x --num-query-groups (1) is not a multiple of --tensor-model",
        "change one",
    ),
    # Batches
    ("--micro-batch-size 0", 1, "--micro-batch-size (0) is below 1", "use 1"),
    ("--micro-batch-size 3", 1, "--global-batch-size (8) is not a multiple of", "a multiple of 3"),
    ("--global-batch-size 6", 4, "--global-batch-size (6) is not a multiple", "multiple of 4"),
    (
        "--eval-micro-batch-size 3",
        1,
        "--eval-global-batch-size (None), by default the batch of training (8), is not a multiple",
        "multiple of 3",
    ),
    ("--global-batch-size 0", 1, "--global-batch-size (0) is below 1", "use 1"),
    ("--num-attention-heads 0", 1, "--num-attention-heads (0) is below 1", "use 1"),
    ("--moe-layer-freq 0", 1, "--moe-layer-freq (0) is below 1", "use 1"),
    (
        f"{PP2} --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 7",
        2,
        "microbatches of an iteration (7) do not fit virtual stages in groups of (2)",
        "change",
    ),
    (
        f"{PP2} --pipeline-model-parallel-layout Et|t|t|tL --global-batch-size 7",
        2,
        "microbatches of an iteration (7) do not fit virtual stages in groups of (2)",
        "change",
    ),
    (
        f"{PP2} --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 4 "
        "--microbatch-group-size-per-virtual-pipeline-stage 3",
        2,
        "microbatches of an iteration (4) do not fit virtual stages in groups of (3)",
        "change",
    ),
    (
        f"{PP2} --pipeline-model-parallel-layout Et|t|ttL",
        2,
        "--pipeline-model-parallel-layout (Et|t|ttL) has 3 stages, not a multiple of",
        "change one",
    ),
    (
        f"{PP2} --num-layers-per-virtual-pipeline-stage 1 --decoder-first-pipeline-num-layers 1",
        2,
        "--num-layers-per-virtual-pipeline-stage (1) excludes --decoder-first-pipeline-num-layers",
        "use --num-virtual",
    ),
    # Pipeline
    (f"{PP2} --num-layers 3", 2, "--num-layers (3) is not a multiple of --pipeline", "divides it"),
    (
        "--num-layers-per-virtual-pipeline-stage 1",
        1,
        "--num-layers-per-virtual-pipeline-stage (1) needs --pipeline-model-parallel-size (1)",
        "remove it",
    ),
    (
        "--num-virtual-stages-per-pipeline-rank 2",
        1,
        "--num-virtual-stages-per-pipeline-rank (2) needs --pipeline-model-parallel-size (1)",
        "remove it",
    ),
    (
        f"{PP2} --num-layers-per-virtual-pipeline-stage 3",
        2,
        "--num-layers-per-virtual-pipeline-stage (3) does not divide the layers of a stage (2)",
        "use a number",
    ),
    (
        f"{PP2} --num-virtual-stages-per-pipeline-rank 3",
        2,
        "--num-virtual-stages-per-pipeline-rank (3) does not divide the layers of a stage (2)",
        "use a number",
    ),
    (
        f"{PP2} --num-virtual-stages-per-pipeline-rank 2 --num-layers-per-virtual-pipeline-stage 1",
        2,
        "--num-layers-per-virtual-pipeline-stage (1) and --num-virtual-stages",
        "give one",
    ),
    # Experts
    ("--moe-layer-freq [1,0,1]", 1, "--moe-layer-freq ([1, 0, 1]) has 3 entries", "each layer"),
    (
        "--moe-router-load-balancing-type aux_loss seq_aux_loss --moe-aux-loss-coeff 0.1",
        1,
        "--moe-aux-loss-coeff (",
        "one coefficient for each",
    ),
    ("--moe-router-group-topk 2", 1, "--moe-router-group-topk (2) needs", "both or none"),
    (
        "--moe-router-num-groups 4 --moe-router-group-topk 3",
        1,
        "--moe-router-group-topk (3) is above --moe-router-topk (2)",
        "select fewer",
    ),
    (
        "--moe-router-num-groups 3 --moe-router-group-topk 1",
        1,
        "--moe-router-num-groups (3) does not divide --num-experts (8)",
        "use a number",
    ),
    (
        "--moe-router-num-groups 4 --moe-router-group-topk 5",
        1,
        "--moe-router-group-topk (5) is not between 1 and --moe-router-num-groups (4)",
        "correct",
    ),
    (
        "--moe-router-num-groups 4 --moe-router-group-topk 1 --moe-router-topk 3",
        1,
        "--moe-router-topk (3) is above the experts of --moe-router-group-topk (1) groups (2)",
        "select more",
    ),
    ("--moe-router-topk 9", 1, "--moe-router-topk (9) is not between 1 and", "choose"),
    ("--moe-router-topk 1", 1, "--moe-router-topk (1) with --grove-router-scoring", "2 or more"),
    (
        f"{TP2} --moe-ffn-hidden-size 33",
        2,
        "--moe-ffn-hidden-size (33) is not a multiple of --expert-tensor-parallel-size (2)",
        "change one",
    ),
    # Latent attention
    (f"{LATENT} --group-query-attention", 1, "--multi-latent-attention (True) excludes", "one of"),
    (f"{LATENT} --rotary-interleaved", 1, "--multi-latent-attention (True) excludes", "one of"),
    (f"{LATENT} --attention-output-gate", 1, "--multi-latent-attention (True) excludes", "one of"),
    (f"{LATENT} --q-lora-rank 0", 1, "--q-lora-rank (0) is below 1", "leave it out"),
    (f"{LATENT} --kv-lora-rank 0", 1, "--kv-lora-rank (0) is below 1", "use 1"),
    (f"{LATENT} --qk-head-dim 0", 1, "--qk-head-dim (0) is below 1", "use 1"),
    (f"{LATENT} --v-head-dim 0", 1, "--v-head-dim (0) is below 1", "use 1"),
    (f"{LATENT} --qk-pos-emb-head-dim 0", 1, "--qk-pos-emb-head-dim (0) is below 2", "use 2"),
    (f"{LATENT} --qk-pos-emb-head-dim 3", 1, "--qk-pos-emb-head-dim (3) is not even", "even"),
    (
        f"{LATENT} --position-embedding-type yarn",
        1,
        "--position-embedding-type (yarn) gives positions",
        "--rope-type yarn",
    ),
    (f"{LATENT} --cache-mla-latents", 1, "--cache-mla-latents (True) is of generation", "remove"),
    (f"{LATENT} --qk-layernorm", 1, "--qk-layernorm (True) without --q-lora-rank (None)", "a rank"),
    (f"{TP2} {LATENT} --q-lora-rank 13", 2, "--q-lora-rank (13) is not a multiple of", "change"),
    (
        f"{TP2} {LATENT} --kv-lora-rank 13",
        2,
        "--kv-lora-rank (13) + --qk-pos-emb-head-dim (64) is not a multiple of",
        "change one",
    ),
    # Recompute
    ("--recompute-granularity full", 1, "--recompute-granularity (full) needs", "uniform"),
    (
        "--recompute-granularity selective --recompute-method uniform",
        1,
        "--recompute-method (uniform) is of --recompute-granularity full",
        "remove it",
    ),
    (
        "--recompute-granularity full --recompute-method uniform",
        1,
        "--recompute-method (uniform) needs --recompute-num-layers (None)",
        "use 1",
    ),
    (
        "--recompute-granularity selective --recompute-modules moe_act",
        1,
        "--recompute-modules (moe_act) needs --moe-grouped-gemm (False)",
        "add it",
    ),
    (
        "--recompute-granularity selective --recompute-modules experts",
        1,
        "--recompute-modules (experts) is not one of (core_attn, ",
        "correct it",
    ),
    # Overlap
    (
        "--overlap-param-gather --overlap-grad-reduce",
        1,
        "--overlap-param-gather (True) needs --use-distributed-optimizer (False)",
        "add it",
    ),
    (
        "--overlap-param-gather --use-distributed-optimizer",
        1,
        "--overlap-param-gather (True) needs --overlap-grad-reduce (False)",
        "add it",
    ),
    (
        "--overlap-moe-expert-parallel-comm --bf16",
        1,
        "--overlap-moe-expert-parallel-comm (True) needs --expert-model-parallel-size (1) above 1",
        "change one",
    ),
    (
        "--overlap-moe-expert-parallel-comm --expert-model-parallel-size 2",
        2,
        "--overlap-moe-expert-parallel-comm (True) needs --bf16 or --fp16 (False)",
        "change one",
    ),
    (
        "--overlap-moe-expert-parallel-comm --expert-model-parallel-size 2 --bf16 "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        2,
        "--overlap-moe-expert-parallel-comm (True) needs no --recompute-granularity (full)",
        "change one",
    ),
    (
        "--overlap-moe-expert-parallel-comm --expert-model-parallel-size 2 --bf16 "
        "--moe-token-dispatcher-type allgather",
        2,
        "--overlap-moe-expert-parallel-comm (True) needs --moe-token-dispatcher-type alltoall",
        "change one",
    ),
    (
        "--overlap-moe-expert-parallel-comm --expert-model-parallel-size 2 --bf16 "
        f"--micro-batch-size 1 {PP2}",
        4,
        "--overlap-moe-expert-parallel-comm (True) needs virtual stages beside",
        "change one",
    ),
    ("--delay-wgrad-compute", 1, "--delay-wgrad-compute (True) needs --overlap-moe", "remove"),
    # Process groups
    (
        "--use-tp-pp-dp-mapping --pipeline-model-parallel-size 2 --expert-model-parallel-size 2",
        4,
        "--use-tp-pp-dp-mapping (True) with --pipeline-model-parallel-size (2) wants",
        "remove it",
    ),
    (
        "--num-distributed-optimizer-instances 2",
        2,
        "--num-distributed-optimizer-instances (2) needs --use-distributed-optimizer (False)",
        "add it",
    ),
    (
        "--num-distributed-optimizer-instances 2 --use-distributed-optimizer "
        "--expert-model-parallel-size 2",
        2,
        "--num-distributed-optimizer-instances (2) does not divide the copies of the model (2) and "
        "of experts (1)",
        "use a number",
    ),
    ("--sharp-enabled-group dp", 1, "--sharp-enabled-group (dp) needs --use-sharp", "add it"),
    (
        "--use-sharp --sharp-enabled-group dp_replica",
        1,
        "--sharp-enabled-group (dp_replica) needs --num-distributed-optimizer-instances (1)",
        "use dp",
    ),
    (
        "--calculate-per-token-loss --ddp-average-in-collective",
        1,
        "--calculate-per-token-loss (True) excludes --ddp-average-in-collective (True)",
        "remove one",
    ),
    # The run
    ("--train-samples 100", 1, "--train-iters (10) excludes --train-samples (100)", "give one"),
    ("--min-lr 1", 1, "--min-lr (1.0) is above --lr (0.001)", "lower it"),
    ("--save here", 1, "--save (here) needs --save-interval (None)", "how often"),
    (
        "--save here --save-interval 10 --save-retain-interval 15",
        1,
        "--save-retain-interval (15) is not a multiple of --save-interval (10)",
        "use one",
    ),
    # Groups
    ("--grove-num-groups 3 --grove-adjugate-scale 0.05", 1, "--grove-num-groups (3)", "1, 2, 4, 8"),
    ("--grove-num-groups -4", 1, "--grove-num-groups (-4) is negative", "leave it out"),
    ("--grove-adjugate-ffn-hidden-size 0", 1, "--grove-adjugate-ffn-hidden-size (0)", "width"),
    (
        f"{TP2} --grove-adjugate-ffn-hidden-size 15",
        2,
        "--grove-adjugate-ffn-hidden-size (15) is not a multiple",
        "fits",
    ),
    ("--grove-adjugate-scale -1", 1, "--grove-adjugate-scale (-1.0)", "0.05"),
    ("--grove-adjugate-scale 0.7", 1, "--grove-adjugate-scale (0.7) is above groups", "lower it"),
    ("--grove-kernel grouped --transformer-impl transformer_engine", 1, "--grove-kernel", "local"),
]


@pytest.fixture(scope="module")
def parse() -> Parse:
    from megatron.training.arguments import add_megatron_arguments

    from grove_megatron.arguments import add_grove_arguments

    made = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    parser = add_grove_arguments(made)
    return lambda flags: parser.parse_args([*SOUND.split(), *flags.split()])


def test_a_list_of_one_is_that_one(parse: Parse) -> None:
    for kind, coefficient in ((["none"], 0.1), ("aux_loss", [0.1]), (["aux_loss"], [0.1])):
        args = parse("")
        args.moe_router_load_balancing_type, args.moe_aux_loss_coeff = kind, coefficient
        assert command_line_problems(args, 1, "cuda") == []


# Flags and processes that Megatron takes.
RIGHT: list[tuple[str, int]] = [
    ("", 1),
    ("--expert-model-parallel-size 4", 8),
    (f"{TP2} {PP2}", 4),
    (f"{TP2} --expert-tensor-parallel-size 1 --expert-model-parallel-size 4", 4),
    ("--recompute-activations --recompute-modules moe", 1),
    ("--recompute-modules moe", 1),
    ("--recompute-granularity selective --recompute-modules shared_experts", 1),
    ("--num-virtual-stages-per-pipeline-rank 1", 1),
    ("--num-layers-per-virtual-pipeline-stage 4", 1),
    (f"{PP2} --num-virtual-stages-per-pipeline-rank 1 --global-batch-size 7", 2),
    (
        f"{PP2} --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 9 "
        "--microbatch-group-size-per-virtual-pipeline-stage 3",
        2,
    ),
    (f"{PP2} --pipeline-model-parallel-layout Et|t|t|tL", 2),
    (f"{PP2} --num-layers 5 --account-for-embedding-in-pipeline-split", 2),
    (f"{PP2} --decoder-first-pipeline-num-layers 1", 2),
    (f"{PP2} --decoder-first-pipeline-num-layers 1 --decoder-last-pipeline-num-layers 3", 2),
    ("--decrease-batch-size-if-needed --global-batch-size 7 --eval-global-batch-size 4", 2),
    ("--tensor-model-parallel-size 2 --skip-train", 2),
    ("--skip-train --train-samples 100", 1),
    ("--moe-router-num-groups 4", 1),
    ("--moe-router-num-groups 4 --moe-router-group-topk 2", 1),
    ("--moe-shared-expert-gate", 1),
    (LATENT, 1),
    (f"{TP2} {LATENT} --q-lora-rank 12 --kv-lora-rank 6 --qk-layernorm", 2),
    # Not what its heads are made of.
    (f"{TP2} {LATENT} --kv-channels 1 --num-attention-heads 2", 2),
    (f"{LATENT} --cache-mla-latents --skip-train", 1),
    (f"{TP2} --group-query-attention --num-query-groups 1", 2),
    (f"{TP2} --kv-channels 16 --num-attention-heads 6", 2),
    ("--moe-layer-freq [0,1,1,0]", 1),
    (f"{PP2} --pipeline-model-parallel-layout Ettt|tL --global-batch-size 7", 2),
    # No layer has the width of dense ones, of a shared expert or of an MTP layer's projection.
    (f"{TP2} --ffn-hidden-size 33", 2),
    ("--moe-shared-expert-intermediate-size 15", 1),
    (f"{TP2} --expert-tensor-parallel-size 1 --moe-ffn-hidden-size 33", 2),
    (f"{TP2} --hidden-size 33 --kv-channels 8", 2),
    (f"{TP4} --group-query-attention --num-query-groups 1 --kv-channels 2", 4),
    (f"{TP4} --group-query-attention --num-query-groups 2 --kv-channels 3", 4),
]


@pytest.mark.parametrize(("flags", "ranks"), RIGHT, ids=[flags for flags, _ in RIGHT])
def test_what_megatron_takes_is_not_refused(flags: str, ranks: int, parse: Parse) -> None:
    args = parse(flags)
    args.rank, args.world_size = 0, ranks
    assert command_line_problems(args, ranks, "cuda") == []
    with cpu():
        assert _megatrons(copy.deepcopy(args)) == []


def test_experts_without_a_width_have_that_of_dense_layers(parse: Parse) -> None:
    args = parse("--swiglu --hidden-size 48 --expert-tensor-parallel-size 3 --global-batch-size 9")
    args.moe_ffn_hidden_size, args.grove_adjugate_ffn_hidden_size = None, 18
    (line,) = command_line_problems(args, 3, "cuda")
    assert line.startswith("--moe-ffn-hidden-size (128) is not a multiple of --expert-tensor-para")


VIRTUAL = f"{PP2} --num-layers-per-virtual-pipeline-stage 1"
SCHEDULE = "--train-samples 80 --step-batch-size-schedule"


@pytest.mark.parametrize(
    ("flags", "begin", "fix"),
    [
        (VIRTUAL, "an iteration (1)", "--global-batch-size (None)"),
        (f"{VIRTUAL} --eval-iters 0", "an iteration (1)", "--global-batch-size (None)"),
        (f"{VIRTUAL} --skip-train", "an evaluation (1)", "--eval-global-batch-size (None)"),
        (
            f"{VIRTUAL} --global-batch-size 8 --eval-global-batch-size 1",
            "an evaluation (1)",
            "--eval-global-batch-size (1)",
        ),
        (
            f"{VIRTUAL} {SCHEDULE} 0:1,64:8 --eval-global-batch-size 8",
            "an iteration (1)",
            "--step-batch-size-schedule (0:1,64:8)",
        ),
        # Beside a schedule Megatron evaluates one microbatch at a time.
        (f"{VIRTUAL} {SCHEDULE} 0:8", "an evaluation (1)", "--eval-global-batch-size (None)"),
        (f"{VIRTUAL} {SCHEDULE} 0:8 --eval-iters 0", "", ""),
        (f"{VIRTUAL} --global-batch-size 8 --eval-global-batch-size 1 --eval-iters 0", "", ""),
        (PP2, "", ""),
    ],
)
def test_virtual_stages_get_their_microbatches_in_every_batch(
    flags: str, begin: str, fix: str, parse: Parse
) -> None:
    args = parse(flags)
    if "--global-batch-size" not in flags.split():
        args.global_batch_size = None
    if args.train_samples:
        args.train_iters = None
    lines = command_line_problems(args, 2, "cuda")
    assert len(lines) == bool(begin)
    assert all(line.startswith(f"microbatches of {begin} do not fit virtual") for line in lines)
    assert all(line.endswith(f"; change {fix}") for line in lines)


@pytest.mark.parametrize(
    ("module", "check"),
    [
        (preflight, "_spec_problems"),
        (preflight, "_checkpoint_problems"),
        (rules, "_run"),
        (late_rules, "_steps"),
        (checks, "vocabulary_problems"),
        (checks, "saving_problems"),
    ],
)
def test_a_check_that_fails_is_one_line_beside_those_of_the_others(
    module: ModuleType, check: str, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Iterator[Problem]:
        yield Problem.of_text("what came before")
        raise OSError("unreadable")

    monkeypatch.setattr(module, check, fails)
    # Of the first, of the layout and of late_rules.py.
    wrong = parse("--grove-num-groups 3 --fp16 --bf16 --seed 0")
    lines = [*map(str, command_line_problems(wrong, 1, "cuda"))]
    for begin in ("what came", FAILED, "--grove-num-groups (3)", "--fp16 (True)", "--seed (0)"):
        assert len([line for line in lines if line.startswith(begin)]) == 1, begin


def test_there_are_more_than_sixty() -> None:
    assert len({flags for flags, *_ in BROKEN}) >= 60


@pytest.mark.parametrize(("flags", "ranks", "begin", "fix"), BROKEN, ids=[b[0] for b in BROKEN])
def test_what_cannot_work_is_one_line_with_its_fix(
    flags: str, ranks: int, begin: str, fix: str, parse: Parse
) -> None:
    args = parse(flags.removesuffix(" BIASED"))
    args.add_bias_linear = flags.endswith(" BIASED")
    (line,) = command_line_problems(args, ranks, "cuda")
    assert line.startswith(begin)
    assert fix in line.rpartition("; ")[2]
    assert re.match(r"(--[a-z0-9-]+|microbatches of an (iteration|evaluation)) \(", line)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("num_layers", "--num-layers"),
        ("hidden_size", "--hidden-size"),
        ("num_attention_heads", "--num-attention-heads"),
        ("max_position_embeddings", "--max-position-embeddings"),
        ("seq_length", "--seq-length"),
        ("micro_batch_size", "--micro-batch-size"),
    ],
)
def test_what_is_needed_is_named(name: str, flag: str, parse: Parse) -> None:
    args = parse("")
    setattr(args, name, None)
    (line,) = command_line_problems(args, 1, "cuda")
    assert line.startswith(f"{flag} (None) is needed; ")


def test_a_dense_model_has_no_expert_parallelism(parse: Parse) -> None:
    args = parse("--expert-model-parallel-size 2")
    args.num_experts = None
    lines = command_line_problems(args, 2, "cuda")
    assert [line.split(" (")[0] for line in lines] == [
        "--grove-num-groups",
        "--expert-model-parallel-size",
    ]


def test_ten_problems_are_ten_lines(parse: Parse) -> None:
    broken = (
        "--grove-num-groups 3 --grove-adjugate-scale -1 --moe-router-topk 9 --lr 1e-3 --min-lr 1 "
        "--recompute-granularity full --fp16 --bf16 --micro-batch-size 3 --save here "
        "--overlap-param-gather"
    )
    assert len(command_line_problems(parse(broken), 1, "cuda")) == 9 + 1


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--recompute-modules moe", "--recompute-modules (moe) does nothing with"),
        (
            "--recompute-granularity selective --recompute-modules shared_experts",
            "--recompute-modules (shared_experts) does nothing without",
        ),
        ("--moe-router-num-groups 4", "--moe-router-num-groups (4) does nothing without"),
        ("--moe-shared-expert-gate", "--moe-shared-expert-gate (True) does nothing without"),
    ],
)
def test_what_megatron_ignores_is_noted(flags: str, begin: str, parse: Parse) -> None:
    (line,) = megatron_notices(parse(flags))
    assert line.startswith(begin)
    assert [*megatron_notices(parse(""))] == []


def test_without_groups_megatron_checks_itself(parse: Parse) -> None:
    args = parse("--num-layers 3 --pipeline-model-parallel-size 2")
    args.grove_num_groups = args.grove_adjugate_ffn_hidden_size = None
    args.grove_adjugate_scale = 0.05
    assert command_line_problems(args, 2, "cuda") == []


@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        ("", 1),
        ("--expert-model-parallel-size 4", 4),
        (f"{TP2} {PP2}", 4),
        (f"{TP2} --expert-tensor-parallel-size 1 --expert-model-parallel-size 4", 4),
        ("--context-parallel-size 3 --expert-model-parallel-size 2", 6),
    ],
)
def test_the_fewest_processes(flags: str, ranks: int, parse: Parse) -> None:
    assert smallest_world_size(parse(flags)) == ranks


def test_what_megatron_asserts_is_shown_with_its_place() -> None:
    def check(value: int) -> None:
        assert value == 3, "the value should be 3"

    def bare(value: int) -> None:
        if value != 4:
            raise AssertionError  # as "assert value == 4" does outside of tests

    for function, said in ((check, "the value should be 3"), (bare, "raise AssertionError")):
        with pytest.raises(AssertionError) as raised:
            function(5)
        (line,) = map(str, refusal(raised.value))
        assert said in line
        assert "unit/training/test_rules.py:" in line
