"""Flags that do nothing are said to, and every one that nothing reads is in the table."""

import argparse
import re
from argparse import Action
from functools import cache
from pathlib import Path

import pytest

from grove_megatron.switches import Idle, idle, refused
from grove_megatron.training.idle_flags import _options, idle_flags
from grove_megatron.training.megatrons_flags import megatrons_flags

from ..conftest import in_lines
from .command_lines import parsed

idle_flags = in_lines(idle_flags)

ROWS = [pytest.param(row, id=row.names or row.group) for row in idle()]
# What a row is about a use beside, by the first of its names or all of them.
BESIDE = {
    "--lr-wsd-decay-samples": "--lr-decay-style WSD",
    "--lr-wsd-decay-iters": "--train-samples 8 --lr-decay-style WSD",
    "--start-eval-at-iter": "--eval-iters 0",
    "--min-lr": "--lr-decay-style constant",
    "--lr-decay-iters": "--lr-decay-style constant",
    "--adam-beta1": "--optimizer sgd",
    "--weight-decay": "--weight-decay-incr-style linear",
    "--moe-aux-loss-coeff": "--moe-router-load-balancing-type none",
    "--ckpt-fully-parallel-load-exchange-algo": "--load ckpt",
    "--one-logger-project": "--no-one-logger",
    "--vocab-size": "--tokenizer-type GPT2BPETokenizer",
    "--tokenizer-model": "--tokenizer-type NullTokenizer",
    "--tokenizer-special-tokens": "--tokenizer-type NullTokenizer",
    "--null-tokenizer-eod-id": "--tokenizer-type GPT2BPETokenizer",
}
# What no other option of Megatron reads, and is asked of by name, or is of its validation alone.
KNOWN = {
    # Made into another setting by Megatron's validation.
    *("encoder_num_layers", "use_rotary_position_embeddings", "recompute_activations"),
    *("grad_reduce_in_bf16", "encoder_seq_length", "no_weight_decay_cond_type"),
    "cuda_graph_scope_deprecated",
    *("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"),
    # Refused by it.
    *("batch_size", "warmup", "model_parallel_size", "checkpoint_activations"),
    # Read by this package: training/gpt.py and its refusals.
    *("data_cache_path", "per_dataset_sequences_path", "mock_data", "check_for_spiky_loss"),
    *("dataloader_fast_cache_load", "dataloader_defer_npy_index_mmap", "fim_data", "help"),
    *("fim_prefix_token", "fim_middle_token", "fim_suffix_token", "fim_pad_token"),
    *("fim_eod_token", "inprocess_restart", "use_checkpoint_args"),
    # Copied by prefix into the optimizer.
    *("muon_momentum", "muon_split_qkv", "muon_nesterov", "muon_fp32_matmul_prec"),
    *("muon_coefficient_type", "muon_num_ns_steps", "muon_tp_mode", "muon_extra_scale_factor"),
}


def example(flag: str, action: Action, default: object) -> str:
    """The flag with a value that is not the default."""
    if action.nargs == 0:
        return flag
    if action.choices:
        choice = next(c for c in action.choices if c != default)
        return f"{flag} {getattr(choice, 'name', choice)}"
    for value in ("7", "0.7", "[1,1]", "1,1", "SIGINT", "word"):
        try:
            made = action.type(value) if callable(action.type) else value
        except (ValueError, TypeError, KeyError, argparse.ArgumentTypeError, SyntaxError):
            continue
        if made != default:
            return f"{flag} {value}"
    raise AssertionError(flag)


@pytest.mark.parametrize("row", ROWS)
def test_what_does_nothing_is_said(row: Idle) -> None:
    parser, defaults = megatrons_flags()
    options = list(_options(row, parser))
    assert options
    beside = BESIDE.get(row.names, "")
    if not row.when(parsed(beside)):
        beside = BESIDE.get(options[0][0], "")
    for flag, action in options:
        words = example(flag, action, getattr(defaults, action.dest))
        args = parsed(f"{beside} {words}")
        if row.group and not row.when(args):
            continue  # the one option that the others are of
        lines = [line for line in idle_flags(args) if line.startswith(flag)]
        assert any(line.endswith(f" does nothing{row.reason}") for line in lines), (words, lines)


def test_a_sound_command_line_has_none() -> None:
    assert list(idle_flags(parsed())) == []


@pytest.mark.parametrize(
    "flags",
    [
        "--wandb-project p --wandb-exp-name e",
        "--profile --profile-step-start 2",
        "--exit-signal-handler --exit-signal SIGINT",
        "--lr-decay-style WSD --lr-wsd-decay-iters 1",
        "--mtp-num-layers 1 --mtp-detach-heads --position-embedding-type rope",
        "--async-save --use-persistent-ckpt-worker",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--position-embedding-type yarn --mscale 2 --no-yarn-correction-range-round-to-int",
        "--fp16 --initial-loss-scale 256 --hysteresis 3",
        "--fp16 --loss-scale 128",
        "--optimizer sgd --sgd-momentum 0.5",
        "--optimizer lion --adam-beta1 0.8",
        "--optimizer muon --muon-momentum 0.8 --adam-eps 1e-6",
        "--optimizer muon --muon-scalar-optimizer lion --lion-beta1 0.8",
        "--weight-decay 0.2",
        "--lr-warmup-iters 1 --lr-warmup-init 1e-5 --min-lr 1e-5 --lr-decay-iters 3",
        "--lr-decay-style constant --lr-warmup-fraction 0.5 --lr-decay-iters 3",
        "--moe-router-load-balancing-type aux_loss seq_aux_loss --moe-aux-loss-coeff 0.1 0.1",
        "--overlap-grad-reduce --ddp-bucket-size 1000",
        "--position-embedding-type rope --rotary-interleaved --no-rope-freq 2",
        "--use-rotary-position-embeddings --rotary-interleaved",
        "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 1 "
        "--microbatch-group-size-per-virtual-pipeline-stage 2",
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--save ckpt --save-interval 1 --no-save-optim",
        "--pretrained-checkpoint ckpt --no-load-optim",
        "--load ckpt --override-opt_param-scheduler --ckpt-fully-parallel-load",
        "--tokenizer-type HuggingFaceTokenizer --tokenizer-model m --trust-remote-code",
        "--tokenizer-type SentencePieceTokenizer --tokenizer-model m --chat-template c",
        "--eval-iters 1 --eval-global-batch-size 2",
        "--fp8-format hybrid --fp8-recipe tensorwise --fp8-margin 1",
    ],
)
def test_what_acts_is_not_said_to_do_nothing(flags: str) -> None:
    args = parsed(flags)
    if "--tokenizer-type" in flags:
        args.vocab_size = None  # of the one that the others have
    assert list(idle_flags(args)) == []


@cache
def words_of_megatron() -> frozenset[str]:
    """Every attribute that Megatron asks an object for, and every string without blanks, but in
    the two files that make and validate the flags."""
    import megatron.training

    root = Path(next(iter(megatron.training.__path__))).parent
    words: set[str] = set()
    for path in root.rglob("*.py"):
        if path.name not in ("arguments.py", "yaml_arguments.py"):
            source = path.read_text(encoding="utf-8")
            words |= set(re.findall(r"\.(\w+)", source))
            words |= set(re.findall(r"""["'](\w+)["']""", source))
    return frozenset(words)


def test_every_option_that_nothing_reads_is_in_the_table() -> None:
    parser, _ = megatrons_flags()
    in_table = {row.setting for row in refused()}
    for row in idle():
        in_table |= {action.dest for _, action in _options(row, parser)}
    unread = {action.dest for action in parser._actions} - words_of_megatron()
    assert unread - in_table - KNOWN == set()
    assert {"rampup_batch_size", "openai_gelu", "use_flash_attn"} <= unread


def test_megatron_ignores_the_flag_but_not_the_schedule_that_is_offered() -> None:
    """What the refusal of --rampup-batch-size says to use acts, and what it refuses does not."""
    from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

    schedule = StepBatchsizeNumMicroBatchesCalculator(1, 1, False, 0, "0:2 64:8", 8)
    sizes = []
    for samples in (0, 7, 8, 100):
        schedule.update(samples, consistency_check=True)
        sizes.append(schedule.get_current_global_batch_size())
    assert sizes == [2, 2, 8, 8]


def test_the_line_has_flag_value_and_reason() -> None:
    assert list(idle_flags(parsed("--use-flash-attn"))) == [
        "--use-flash-attn (True) does nothing: an older name; --attention-backend flash asks for it"
    ]
