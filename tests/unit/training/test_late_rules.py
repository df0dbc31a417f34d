"""What Megatron would find out later is one line with its fix before the job."""

import inspect
import re
from importlib.util import find_spec
from typing import Any

import pytest

from grove_megatron.runtime import cpu
from grove_megatron.training import gpt
from grove_megatron.training.checks import command_line_problems, model_config
from grove_megatron.training.late_rules import late_problems

from ..conftest import in_lines
from .command_lines import parsed, validated

command_line_problems = in_lines(command_line_problems)
late_problems = in_lines(late_problems)

DATA = "--data-path a"
PARTS = "--train-data-path a --valid-data-path b"
BOTH = "--full-validation --multiple-validation-sets"
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
PP4 = "--pipeline-model-parallel-size 4"

# Flags, processes, what the only line begins with, and a part of its fix.
BROKEN: list[tuple[str, int, str, str]] = [
    # Numbers
    ("--train-iters 0", 1, "--train-iters (0) is below 1", "use 1"),
    ("--seed 0", 1, "--seed (0) is below 1", "use 1"),
    ("--log-interval 0", 1, "--log-interval (0) is below 1", "use 1"),
    ("--eval-interval 0", 1, "--eval-interval (0) is below 1", "use 1"),
    ("--eval-iters -1", 1, "--eval-iters (-1) is below 0", "use 0"),
    ("--num-workers -1", 1, "--num-workers (-1) is below 0", "use 0"),
    ("--ddp-num-buckets 0", 1, "--ddp-num-buckets (0) is below 1", "use 1"),
    ("--weight-decay -0.1", 1, "--weight-decay (-0.1) is below 0", "use 0"),
    ("--check-weight-hash-across-dp-replicas-interval 0", 1, "--check-weight-hash", "use 1"),
    (
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 0",
        1,
        "--recompute-num-layers (0) is below 1",
        "use 1",
    ),
    ("--adam-beta2 1.5", 1, "--adam-beta2 (1.5) is not below 1", "fraction"),
    ("--attention-dropout 10", 1, "--attention-dropout (10.0) is above 1", "fraction"),
    # Batches
    (
        "--train-samples 3 --global-batch-size 4",
        1,
        "--train-samples (3) is below --global-batch-size (4)",
        "raise it",
    ),
    (
        "--step-batch-size-schedule 0:2",
        1,
        "--step-batch-size-schedule (0:2) needs --train-samples (None)",
        "use it",
    ),
    (
        "--step-batch-size-schedule 0:2 --train-samples 8 --global-batch-size 2",
        1,
        "--step-batch-size-schedule (0:2) excludes --global-batch-size (2)",
        "remove one",
    ),
    (
        "--step-batch-size-schedule 8:2 --train-samples 8",
        1,
        "--step-batch-size-schedule (8:2) is not a schedule: first schedule entry must have",
        "from 0 up",
    ),
    (
        "--step-batch-size-schedule 2 --train-samples 8",
        1,
        "--step-batch-size-schedule (2) is not a schedule: Invalid schedule entry",
        "TOKENS:BATCH",
    ),
    (
        "--step-batch-size-schedule 0:2,64:3 --train-samples 8",
        2,
        "--step-batch-size-schedule (0:2,64:3) has a batch (3) that is not a multiple",
        "multiples",
    ),
    (
        "--step-batch-size-schedule 0:4,64:2 --train-samples 8",
        1,
        "--step-batch-size-schedule (0:4,64:2) goes down",
        "let it grow",
    ),
    # Learning rate and weight decay
    (
        "--lr-warmup-iters 5 --train-iters 5",
        1,
        "--lr-warmup-iters (5) is not below --train-iters (5)",
        "lower it",
    ),
    (
        "--lr-warmup-samples 9 --train-samples 20 --lr-decay-samples 8",
        1,
        "--lr-warmup-samples (9) is not below --lr-decay-samples (8)",
        "lower it",
    ),
    ("--lr-warmup-fraction 1.0", 1, "--lr-warmup-fraction (1.0) is not below 1", "fraction"),
    ("--lr-decay-style WSD", 1, "--lr-decay-style (WSD) needs --lr-wsd-decay-iters", "say how"),
    ("--lr-warmup-init 1", 1, "--lr-warmup-init (1.0) is above --lr (0.001)", "lower it"),
    (
        "--override-opt-param-scheduler --use-checkpoint-opt-param-scheduler",
        1,
        "--override-opt-param-scheduler (True) excludes",
        "remove one",
    ),
    (
        "--weight-decay-incr-style linear --start-weight-decay 0.2 --end-weight-decay 0.1",
        1,
        "--start-weight-decay (0.2) is above --end-weight-decay (0.1)",
        "only grows",
    ),
    ("--optimizer muon --fp16", 1, "--optimizer (muon) excludes --fp16 (True)", "--bf16"),
    # Data
    *[
        (f"{DATA} --split={split}", 1, f"--split ({split}) is not up to three numbers", "969")
        for split in ("-1,1,0", "90,abc5,5", "1,2,3,4", "9e1,5,5", "1;2", "nan", "90%,10", "1,,2")
    ],
    (f"{DATA} --split 0,0,0", 1, "--split (0,0,0) adds up to 0", "969"),
    (f"{DATA} --split 0,1,0", 1, "--split (0,1,0) leaves nothing to train on", "raise its first"),
    (
        f"{DATA} --split 100,0,0",
        1,
        "--split (100,0,0) leaves nothing to evaluate",
        "--eval-iters 0",
    ),
    (f"{DATA} --split 1", 1, "--split (1) leaves nothing to evaluate on", "--eval-iters 0"),
    (f"{PARTS} --split 9,1,0", 1, "--split (9,1,0) excludes data that are given in", "remove one"),
    (
        "--per-split-data-args-path f --split 9,1,0",
        1,
        "--split (9,1,0) excludes data that are given in parts (--per-split-data-args-path)",
        "remove one",
    ),
    ("--data-args-path f", 1, "--data-args-path (f) needs --split (None)", "969"),
    ("--train-data-path a", 1, "--valid-data-path (None) is needed with --eval-iters", "give it"),
    (
        "--dataloader-fast-cache-load --data-path a --data-cache-path c",
        1,
        "--dataloader-fast-cache-load (True) excludes data that --split",
        "--train-data-path",
    ),
    (
        "--dataloader-defer-npy-index-mmap",
        1,
        "--dataloader-defer-npy-index-mmap (True) needs --data-cache-path (None)",
        "folder",
    ),
    # Evaluation
    ("--full-validation", 1, "--full-validation (True) works with --multiple", "--eval-iters"),
    (
        f"{PARTS} --multiple-validation-sets",
        1,
        "--multiple-validation-sets (True) works with --full-validation (False)",
        "--eval-iters",
    ),
    ("--validation-set-names a b", 1, "--validation-set-names (a b) needs --multiple", "add it"),
    (
        f"{PARTS} {BOTH} --eval-micro-batch-size 1 --validation-set-names a b",
        1,
        "--validation-set-names (a b) are not as many as the sets of validation data (b)",
        "give a name for each",
    ),
    (f"{PARTS} {BOTH} --test-data-path c", 1, "--test-data-path (c) excludes", "remove it"),
    (
        f"{PARTS} {BOTH} {TP2} --micro-batch-size 2",
        2,
        "--full-validation (True) and --multiple-validation-sets (True) read one sample",
        "--eval-micro-batch-size 1",
    ),
    # Documents
    (
        "--reset-position-ids --position-embedding-type rope",
        1,
        "--reset-position-ids (True) changes nothing with --position-embedding-type (rope)",
        "remove it",
    ),
    (
        "--reset-position-ids --use-rotary-position-embeddings",
        1,
        "--reset-position-ids (True) changes nothing with --position-embedding-type (rope)",
        "remove it",
    ),
    (
        "--reset-attention-mask --no-create-attention-mask-in-dataloader",
        1,
        "--reset-attention-mask (True) changes nothing with --no-create-attention-mask",
        "remove one",
    ),
    (
        "--reset-attention-mask --transformer-impl transformer_engine",
        1,
        "--reset-attention-mask (True) changes nothing with --transformer-impl (transformer_engi",
        "--dataloader-inter-document-masking",
    ),
    (
        "--reset-attention-mask --window-size 4,0",
        1,
        "--reset-attention-mask (True) is overruled by --window-size ((4, 0))",
        "remove one",
    ),
    (
        f"--reset-attention-mask {PP4} --num-layers 4",
        4,
        "--reset-attention-mask (True) reaches the first and the last pipeline stage alone",
        "two at most",
    ),
    # Files
    (
        "--wandb-project p --tensorboard-dir t",
        1,
        "--wandb-project (p) needs --wandb-save-dir (None) or --save (None)",
        "give one",
    ),
    (
        "--wandb-project p --wandb-save-dir w",
        1,
        "--wandb-project (p) gets no losses without --tensorboard-dir (None)",
        "add it",
    ),
    ("--save-wgrads-interval 2", 1, "--save-wgrads-interval (2) needs --save (None)", "folder"),
    ("--enable-ft-package", 1, "--enable-ft-package (True) needs --save (None)", "folder"),
    # Profiles, skipped iterations, phases
    ("--profile --profile-step-start 12", 1, "--profile-step-end (12) is not above", "raise it"),
    (
        "--profile --use-pytorch-profiler",
        1,
        "--use-pytorch-profiler (True) needs --tensorboard-dir (None)",
        "add it",
    ),
    (
        f"--iterations-to-skip 3 5 {PP4} --num-layers 4",
        4,
        "--iterations-to-skip (3 5) reads data on every pipeline stage",
        "two stages",
    ),
    (
        "--phase-transition-iterations 4,8",
        1,
        "--phase-transition-iterations (4,8) needs --train-samples (None)",
        "use it",
    ),
]


def problems(flags: str, ranks: int) -> list[str]:
    """Of a job without --train-iters and --mock-data, where others are given in their place."""
    args = parsed(flags, ranks=ranks)
    args.mock_data = "data-path" not in flags
    if args.train_samples is not None:
        args.train_iters = None
    return late_problems(args, ranks)


@pytest.mark.parametrize(("flags", "ranks", "begin", "fix"), BROKEN, ids=[b[0] for b in BROKEN])
def test_it_is_one_line_with_its_fix(flags: str, ranks: int, begin: str, fix: str) -> None:
    (line,) = problems(flags, ranks)
    assert line.startswith(begin)
    assert fix in line.rpartition("; ")[2]
    assert re.match(r"--[a-z0-9-]+ \(", line)


@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        ("", 1),
        ("--use-tp-pp-dp-mapping --pipeline-model-parallel-size 2", 4),
        ("--num-distributed-optimizer-instances 2 --use-distributed-optimizer", 2),
        ("--reset-attention-mask --reset-position-ids --eod-mask-loss", 1),
        ("--reset-attention-mask --pipeline-model-parallel-size 2", 2),
        ("--reset-attention-mask --bf16", 1),  # without the fused kernels
        *[
            (f"{DATA} --split {split}", 1)
            for split in ("969,30,1", "99,1,0", "98,2", ".9,.1,0", "969/30/1", "99.5,0.5,0.")
        ],
        (f"{DATA} --split 100,0,0 --eval-iters 0", 1),
        (f"{DATA} --split 0,1,0 --skip-train", 1),
        (PARTS, 1),
        (f"{PARTS} {BOTH} --pipeline-model-parallel-size 2", 2),
        ("--data-args-path f --split 1,1,1", 1),
        ("--train-data-path a --eval-iters 0", 1),
        ("--step-batch-size-schedule 0:2,64:4 --train-samples 80", 2),
        # The small batches are behind a run that goes on with more processes.
        ("--step-batch-size-schedule 0:2,64:4 --train-samples 80 --load here", 4),
        ("--lr-warmup-fraction 0.5 --train-iters 10", 1),
        ("--lr-decay-style WSD --lr-wsd-decay-iters 2", 1),
        ("--lr-warmup-iters 5 --train-iters 5 --skip-train", 1),
        ("--wandb-project p --tensorboard-dir t --save s --save-interval 1", 1),
        ("--profile --use-pytorch-profiler --tensorboard-dir t", 1),
        ("--iterations-to-skip 3 --pipeline-model-parallel-size 2", 2),
        ("--non-persistent-save-interval 2 --non-persistent-ckpt-type global --save s", 1),
        ("--train-samples 4 --global-batch-size 4", 1),
    ],
)
def test_what_works_is_not_refused(flags: str, ranks: int) -> None:
    assert problems(flags, ranks) == []


@pytest.mark.skipif(find_spec("emerging_optimizers") is not None, reason="it is installed")
def test_an_optimizer_of_another_package_is_known_before_the_model() -> None:
    args = parsed("--optimizer muon --grove-kernel megatron")
    (line,) = command_line_problems(args, 1, "cpu")
    assert line.startswith("--optimizer (muon) needs the package emerging-optimizers (not")


def megatrons(flags: str) -> Any:
    """What Megatron makes of the flags of a plain model."""
    with cpu():
        return model_config(validated(parsed(flags, plain=True)))


def test_what_the_table_calls_dropped_is_dropped() -> None:
    """Where Megatron no longer drops it, the row has to go."""
    rope = "--position-embedding-type rope --use-rope-scaling --rope-scaling-factor 32"
    config = megatrons(f"{rope} --num-query-groups 1 --use-mup --mup-width-mult 3")
    assert config.rope_scaling_factor == 8.0
    assert config.transformer.num_query_groups == 2  # heads
    assert config.transformer.mup_width_mult == 1.0
    with pytest.raises(TypeError, match="scaled_init_method"):
        megatrons("--init-method-xavier-uniform")


def test_what_the_table_says_freezes_nothing_is_read_by_no_builder() -> None:
    from megatron.training import training
    from megatron.training.models import dist_utils, gpt

    assert "freeze_all_layers" in inspect.getsource(training.get_model)
    assert "freeze_all_layers" not in inspect.getsource(training.setup_model_and_optimizer)
    for module in (dist_utils, gpt):
        assert "freeze_all_layers" not in inspect.getsource(module)


def test_fused_softmax_reads_no_mask() -> None:
    args = parsed("--reset-attention-mask --bf16")
    args.masked_softmax_fusion = True  # Megatron's default
    (line,) = late_problems(args, 1)
    assert line.endswith("; add --no-masked-softmax-fusion")


def test_all_are_listed_with_the_others() -> None:
    lines = command_line_problems(
        parsed(f"{DATA} --split 1,x --seed 0 --rampup-batch-size 2 2 8 --wandb-project p"), 1, "cpu"
    )
    assert [line.partition(" (")[0] for line in lines] == [
        "--rampup-batch-size",
        "--seed",
        "--split",
        "--wandb-project",
        "--wandb-project",
    ]


def test_a_plain_run_is_megatrons_own() -> None:
    args = parsed("--rampup-batch-size 2 2 8 --seed 0 --split 1,x", plain=True)
    assert command_line_problems(args, 1, "cpu") == []


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--dataloader-type external --eval-interval 1", "--dataloader-type (external) needs"),
        ("--skip-train", "--train-iters (None) is needed"),
    ],
)
def test_what_the_own_entry_has_not(flags: str, begin: str) -> None:
    args = parsed(flags)
    if args.skip_train:
        args.train_iters = None
    (line,) = map(str, gpt.entry_problems(args))
    assert line.startswith(begin)
