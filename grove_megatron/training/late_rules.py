"""What Megatron finds out after the model is built, at the first evaluation or save, or never.

Its validation of flags does not ask for these, so a job gets its machines and ends, or trains
something else (megatron-core 0.19.2). Here they are known before, all at once and with a fix.
"""

import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

from ..config import expert_tensor_parallel_size
from ..switches import flag_of
from .data_files import validation_prefixes
from .guarded import lines_of
from .rules import virtual_batch
from .sizes import model_chunks


def late_problems(args: Namespace, world_size: int) -> list[str]:
    """What would end or change the run later, one line each.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    run = (timeout_problems, _numbers, _groups, _steps, _optimizer, _data, _evaluation, _documents)
    rest = (_files, _profile, _skipped)
    return [line for rule in (*run, *rest) for line in lines_of(rule, args, world_size)]


def needed(args: Namespace, *, trains: bool = True) -> Iterator[str]:
    """What Megatron reads without asking whether it is there, one line each.

    Args:
        args: parsed, not yet validated.
        trains: will it run its training loop?
    """
    if trains:
        yield from _needed_to_train(args)
    if args.tokenizer_type == "NullTokenizer" and args.vocab_size is None:
        yield (
            "--tokenizer-type (NullTokenizer) needs --vocab-size (None); give the number of tokens"
        )
    if args.tokenizer_type == "HuggingFaceTokenizer" and args.tokenizer_model is None:
        yield (
            "--tokenizer-type (HuggingFaceTokenizer) needs --tokenizer-model (None); give its "
            "folder or name"
        )


def _needed_to_train(args: Namespace) -> Iterator[str]:
    if args.train_iters is None and args.train_samples is None:
        # With --skip-train too: it counts the samples that training would take.
        yield "--train-iters (None) is needed; say how long to train"
    if args.skip_train:
        return
    if args.lr is None:
        yield "--lr (None) is needed; give the learning rate"
    if args.eval_interval is None and not args.full_validation:
        yield (
            "--eval-interval (None) is needed; say how often to evaluate, and --eval-iters 0 for "
            "never"
        )


# Above, torch's clocks overflow; a year.
_MOST_MINUTES = 365 * 24 * 60


def timeout_problems(args: Namespace, _: int = 1) -> Iterator[str]:
    """Of the flag by which ranks wait for each other: to be known before they do."""
    minutes = args.distributed_timeout_minutes
    if not 1 <= minutes <= _MOST_MINUTES:
        yield (
            f"--distributed-timeout-minutes ({minutes}) is not between 1 and {_MOST_MINUTES}; "
            "correct it"
        )


# The least that is possible; below, the modulo or the division by an interval ends the job, or the
# loop over layers never does.
_LEAST: dict[int, str] = {
    1: "train_iters train_samples seed log_interval eval_interval tensorboard_log_interval "
    "log_memory_interval save_interval save_retain_interval save_params_interval "
    "save_activations_interval save_tokens_per_expert_interval save_wgrads_interval "
    "save_dgrads_interval check_weight_hash_across_dp_replicas_interval gpu_sniff_test_interval "
    "adlr_autoresume_interval ddp_num_buckets ddp_bucket_size num_distributed_optimizer_instances "
    "recompute_num_layers num_dataset_builder_threads dist_ckpt_workers lr_decay_iters "
    "lr_decay_samples",
    0: "eval_iters num_workers manual_gc_interval lr_warmup_iters lr_warmup_samples "
    "profile_step_start weight_decay start_weight_decay end_weight_decay adam_beta1 adam_beta2 "
    "adam_eps sgd_momentum attention_dropout hidden_dropout",
}
# Fractions: what they have to stay below, or may not be above.
_BELOW_1 = ("adam_beta1", "adam_beta2", "lr_warmup_fraction")
_AT_MOST_1 = ("attention_dropout", "hidden_dropout")


def _numbers(args: Namespace, _: int) -> Iterator[str]:
    for least, names in _LEAST.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and value < least:
                yield f"{flag_of(name)} ({value}) is below {least}; use {least} or more"
    for name in _BELOW_1:
        value = getattr(args, name)
        if value is not None and value >= 1:
            yield f"{flag_of(name)} ({value}) is not below 1; give a fraction"
    for name in _AT_MOST_1:
        if getattr(args, name) > 1:
            yield f"{flag_of(name)} ({getattr(args, name)}) is above 1; give a fraction"


def _groups(args: Namespace, world_size: int) -> Iterator[str]:
    """What is asserted when process groups and buffers are made."""
    stages, tensor = args.pipeline_model_parallel_size, args.tensor_model_parallel_size
    expert_tensor = expert_tensor_parallel_size(args)
    dense = world_size // (tensor * stages)
    expert = world_size // (expert_tensor * args.expert_model_parallel_size * stages)
    if args.use_tp_pp_dp_mapping and stages > 1 and dense // args.context_parallel_size != expert:
        yield (
            f"--use-tp-pp-dp-mapping (True) with --pipeline-model-parallel-size ({stages}) wants "
            f"as many copies of experts ({expert}) as of the rest "
            f"({dense // args.context_parallel_size}); remove it"
        )
    copies = args.num_distributed_optimizer_instances
    flag = f"--num-distributed-optimizer-instances ({copies})"
    if copies > 1 and not args.use_distributed_optimizer:
        yield f"{flag} needs --use-distributed-optimizer (False); add it, or remove the instances"
    if copies > 1 and (dense % copies or expert % copies):
        yield (
            f"{flag} does not divide the copies of the model ({dense}) and of experts ({expert}); "
            "use a number that does"
        )
    sharp = args.sharp_enabled_group
    if sharp and not args.use_sharp:
        yield f"--sharp-enabled-group ({sharp}) needs --use-sharp (False); add it"
    elif sharp == "dp_replica" and copies == 1:
        yield f"--sharp-enabled-group (dp_replica) needs {flag} above 1; use dp"
    if args.calculate_per_token_loss and args.ddp_average_in_collective:
        yield (
            "--calculate-per-token-loss (True) excludes --ddp-average-in-collective (True); remove "
            "one of them"
        )


def _steps(args: Namespace, world_size: int) -> Iterator[str]:
    """A schedule of batch sizes; of samples there are enough for one batch."""
    text, samples = args.step_batch_size_schedule, args.train_samples
    if text is None:
        if args.global_batch_size and samples and samples < args.global_batch_size:
            yield (
                f"--train-samples ({samples}) is below --global-batch-size "
                f"({args.global_batch_size}), so nothing would be trained; raise it"
            )
        return
    flag = f"--step-batch-size-schedule ({text})"
    if args.global_batch_size is not None:
        yield f"{flag} excludes --global-batch-size ({args.global_batch_size}); remove one of them"
    if samples is None and not args.skip_train:
        yield (
            f"{flag} needs --train-samples (None): with --train-iters, data and learning rate "
            "would end as if every batch were the smallest; use it"
        )
    parallel = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    copies = max(world_size // (parallel * args.context_parallel_size), 1)
    try:
        schedule = StepBatchsizeNumMicroBatchesCalculator(
            args.micro_batch_size,
            copies,
            args.decrease_batch_size_if_needed,
            1,  # of no rank that logs
            text,
            args.seq_length or args.encoder_seq_length,
        ).schedule
    except (AssertionError, ValueError, OverflowError) as error:
        yield f"{flag} is not a schedule: {error}; write TOKENS:BATCH TOKENS:BATCH, from 0 up"
        return
    sizes = [batch for _, batch in schedule]
    unit = args.micro_batch_size * copies
    # A run that goes on with more processes has left the small batches behind.
    for batch in sizes if args.load is None else sizes[-1:]:
        if batch % unit:
            yield (
                f"{flag} has a batch ({batch}) that is not a multiple of --micro-batch-size x "
                f"data-parallel size ({unit}); use multiples of that"
            )
        else:
            yield from virtual_batch(args, batch // unit, "an iteration", flag)
    if sizes != sorted(sizes):
        yield f"{flag} goes down, at which Megatron ends the job; let it grow"


def _optimizer(args: Namespace, _: int) -> Iterator[str]:
    """What the optimizer asserts, and then the scheduler of learning rate and weight decay."""
    if args.skip_train:
        return
    unit = "iters" if args.train_iters else "samples"
    total = getattr(args, f"train_{unit}")
    decay = getattr(args, f"lr_decay_{unit}") or total
    warmup = getattr(args, f"lr_warmup_{unit}")
    flag = f"--lr-warmup-{unit} ({warmup})"
    if args.lr_warmup_fraction is not None and decay:
        warmup = args.lr_warmup_fraction * decay
        flag = f"--lr-warmup-fraction ({args.lr_warmup_fraction})"
    if decay and not args.lr_warmup_fraction and warmup >= decay:
        given = f"--lr-decay-{unit}" if getattr(args, f"lr_decay_{unit}") else f"--train-{unit}"
        yield f"{flag} is not below {given} ({decay}), where the decay ends; lower it"
    if args.lr_decay_style == "WSD" and getattr(args, f"lr_wsd_decay_{unit}") is None:
        yield (
            f"--lr-decay-style (WSD) needs --lr-wsd-decay-{unit} (None); say how long it decays "
            "at the end"
        )
    if args.lr is not None and args.lr_warmup_init > args.lr:
        yield f"--lr-warmup-init ({args.lr_warmup_init}) is above --lr ({args.lr}); lower it"
    if args.override_opt_param_scheduler and args.use_checkpoint_opt_param_scheduler:
        yield (
            "--override-opt-param-scheduler (True) excludes --use-checkpoint-opt-param-scheduler "
            "(True); remove one of them"
        )
    start, end = args.start_weight_decay, args.end_weight_decay
    if start is not None and end is not None and start > end:
        yield (
            f"--start-weight-decay ({start}) is above --end-weight-decay ({end}); weight decay "
            "only grows"
        )
    if args.fp16 and args.optimizer not in ("adam", "sgd"):
        yield f"--optimizer ({args.optimizer}) excludes --fp16 (True); use --bf16"


_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_SPLIT = re.compile(rf"\s*{_NUMBER}(?:\s*[,/\s]\s*{_NUMBER}){{0,2}}\s*")


def _data(args: Namespace, _: int) -> Iterator[str]:
    """What the datasets take for parts of the data, and whether there is what is evaluated."""
    blended = args.data_path or args.data_args_path
    paths = {name: getattr(args, f"{name}_data_path") for name in ("train", "valid", "test")}
    per_split = any(paths.values()) or args.per_split_data_args_path
    if args.split is not None and not _SPLIT.fullmatch(args.split):
        yield (
            f"--split ({args.split}) is not up to three numbers with commas between, of which "
            "Megatron would take what looks like digits; write 969,30,1"
        )
        return
    if args.split is not None and per_split:
        yield (
            f"--split ({args.split}) excludes data that are given in parts "
            f"({_given_parts(args, paths)}); remove one of them"
        )
    if args.data_args_path and args.split is None:
        yield (
            f"--data-args-path ({args.data_args_path}) needs --split (None); give the parts, as "
            "969,30,1"
        )
    if blended and args.split is not None:
        yield from _parts(args, [float(n) for n in re.findall(_NUMBER, args.split)])
    elif any(paths.values()):
        if not paths["train"] and not args.skip_train:
            yield "--train-data-path (None) is needed; without it nothing would be trained"
        if not paths["valid"] and _evaluates(args):
            yield (
                f"--valid-data-path (None) is needed with --eval-iters ({args.eval_iters}); give "
                "it, or --eval-iters 0"
            )
    for name in ("dataloader_fast_cache_load", "dataloader_defer_npy_index_mmap"):
        if getattr(args, name) and args.data_cache_path is None:
            yield f"{flag_of(name)} (True) needs --data-cache-path (None); give the folder"
    if args.dataloader_fast_cache_load and blended:
        yield (
            "--dataloader-fast-cache-load (True) excludes data that --split divides; use "
            "--train-data-path and its relatives"
        )


def _given_parts(args: Namespace, paths: dict[str, Any]) -> str:
    names = [f"--{name}-data-path" for name, path in paths.items() if path]
    return ", ".join(names or ["--per-split-data-args-path"])


def _parts(args: Namespace, shares: list[float]) -> Iterator[str]:
    train, valid, _ = [*shares, 0.0, 0.0][:3]
    if not any(shares):
        yield f"--split ({args.split}) adds up to 0; give the parts, as 969,30,1"
        return
    if not train and not args.skip_train:
        yield f"--split ({args.split}) leaves nothing to train on; raise its first number"
    if not valid and _evaluates(args):
        yield (
            f"--split ({args.split}) leaves nothing to evaluate on, and --eval-iters "
            f"({args.eval_iters}) asks for it; raise its second number, or give --eval-iters 0"
        )


def _evaluates(args: Namespace) -> bool:
    return bool(args.eval_iters or args.full_validation)


def _evaluation(args: Namespace, _: int) -> Iterator[str]:
    full, many = args.full_validation, args.multiple_validation_sets
    if args.validation_set_names and not many:
        yield (
            f"--validation-set-names ({' '.join(args.validation_set_names)}) needs "
            "--multiple-validation-sets (False); add it"
        )
    if full != many:
        given, missing = ("full-validation", "multiple-validation-sets")[:: 1 if full else -1]
        yield (
            f"--{given} (True) works with --{missing} (False) alone, in Megatron 0.19; add it, or "
            "use --eval-iters"
        )
    if not (full and many):
        return
    both = "--full-validation (True) and --multiple-validation-sets (True)"
    if args.mock_data or args.data_path or args.data_args_path:
        yield f"{both} need sets of their own; use --train-data-path and --valid-data-path"
    names, sets = args.validation_set_names, validation_prefixes(args)
    if names and sets and len(names) != len(sets):
        yield (
            f"--validation-set-names ({' '.join(names)}) are not as many as the sets of validation "
            f"data ({' '.join(sets)}); give a name for each"
        )
    if args.test_data_path:
        yield (
            f"--test-data-path ({' '.join(args.test_data_path)}) excludes {both}, after which "
            "Megatron takes the test data for a list of sets; remove it"
        )
    split = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    micro = args.eval_micro_batch_size or args.micro_batch_size
    if split > 1 and micro > 1:
        yield (
            f"{both} read one sample at a time, not --eval-micro-batch-size ({micro}), which "
            "tensor- and pipeline-parallel ranks expect; use --eval-micro-batch-size 1"
        )
    if model_chunks(args) > 1:
        yield f"{both} do not work with virtual pipeline stages; remove one of them"


def _documents(args: Namespace, _: int) -> Iterator[str]:
    """Masks and positions that begin anew at every document: what in the model reads them?"""
    rotary = args.use_rotary_position_embeddings
    if args.reset_position_ids and (rotary or args.position_embedding_type != "learned_absolute"):
        kind = "rope" if rotary else args.position_embedding_type
        yield (
            f"--reset-position-ids (True) changes nothing with --position-embedding-type ({kind}), "
            "which reads no position of the data; remove it"
        )
    if not args.reset_attention_mask:
        return
    flag = "--reset-attention-mask (True)"
    if not args.create_attention_mask_in_dataloader:
        yield (
            f"{flag} changes nothing with --no-create-attention-mask-in-dataloader; remove one of "
            "them"
        )
    if args.transformer_impl != "local":
        yield (
            f"{flag} changes nothing with --transformer-impl ({args.transformer_impl}), whose "
            "causal attention reads no mask; use --dataloader-inter-document-masking with "
            "Megatron's own script, or --transformer-impl local"
        )
    elif args.masked_softmax_fusion and (args.bf16 or args.fp16):
        yield (
            f"{flag} changes nothing in fused softmax kernels, which read no mask; add "
            "--no-masked-softmax-fusion"
        )
    if args.window_size is not None:
        yield f"{flag} is overruled by --window-size ({args.window_size}); remove one of them"
    stages = args.pipeline_model_parallel_size * model_chunks(args)
    if stages > 2:
        yield (
            f"{flag} reaches the first and the last pipeline stage alone, not all ({stages}); use "
            "two at most"
        )


_DUMPS = ("params", "activations", "tokens_per_expert", "wgrads", "dgrads")


def _files(args: Namespace, _: int) -> Iterator[str]:
    """What is written where nothing says where to."""
    if args.wandb_project:
        flag = f"--wandb-project ({args.wandb_project})"
        if args.save is None and not args.wandb_save_dir:
            yield f"{flag} needs --wandb-save-dir (None) or --save (None) for its files; give one"
        if args.wandb_exp_name == "":
            yield f"{flag} needs a name, not --wandb-exp-name (); give one, or leave it out"
        if not args.tensorboard_dir:
            yield (
                f"{flag} gets no losses without --tensorboard-dir (None), behind which Megatron "
                "sends them; add it"
            )
    for what in _DUMPS:
        name = f"save_{what}_interval"
        value = getattr(args, name)
        if value is not None and args.save is None:
            yield f"{flag_of(name)} ({value}) needs --save (None); give the folder"
    every = args.non_persistent_save_interval
    if every and args.save is None:
        yield f"--non-persistent-save-interval ({every}) needs --save (None); give the folder"
    if args.enable_ft_package and args.save is None:
        yield "--enable-ft-package (True) needs --save (None) for its state; give the folder"


def _profile(args: Namespace, _: int) -> Iterator[str]:
    if not args.profile:
        return
    start, end = args.profile_step_start, args.profile_step_end
    if end <= start:
        yield f"--profile-step-end ({end}) is not above --profile-step-start ({start}); raise it"
    if args.use_pytorch_profiler and not args.tensorboard_dir:
        yield (
            "--use-pytorch-profiler (True) needs --tensorboard-dir (None), beside which it "
            "writes; add it"
        )


def _skipped(args: Namespace, _: int) -> Iterator[str]:
    """Iterations that are left out, and phases of the data."""
    skips = args.iterations_to_skip or args.result_rejected_tracker_filename
    stages, chunks = args.pipeline_model_parallel_size, model_chunks(args)
    if skips and (stages > 2 or chunks > 1):
        shown = skips if isinstance(skips, str) else " ".join(map(str, skips))
        name = (
            "result-rejected-tracker-filename" if isinstance(skips, str) else ("iterations-to-skip")
        )
        yield (
            f"--{name} ({shown}) reads data on every pipeline stage, and inner and virtual ones "
            f"({stages} x {chunks}) have none; use two stages at most"
        )
    if args.phase_transition_iterations and args.train_samples is None:
        yield (
            f"--phase-transition-iterations ({args.phase_transition_iterations}) needs "
            "--train-samples (None); use it in place of --train-iters"
        )
