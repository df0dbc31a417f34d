"""What Megatron finds out after the model is built, at the first evaluation or save, or never.

Its validation of flags does not ask for these, so a job gets its machines and ends, or trains
something else (megatron-core 0.19.2). Here they are known before, all at once and with a fix.
"""

import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

from ..checks.guarded import problems_of
from ..checks.problem import Problem
from ..checks.rules import Check
from ..planner.rules.pipeline_rules import virtual_batch
from ..planner.sizes import model_chunks
from .data_files import validation_prefixes


def late_problems(args: Namespace, world_size: int) -> list[Problem]:
    """What would end or change the run later.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    run = (timeout_problems, _numbers, _steps, _optimizer, _data, _evaluation, _documents)
    rest = (_files, _profile, _skipped)
    return [one for rule in (*run, *rest) for one in problems_of(rule, args, world_size)]


def needed(args: Namespace, *, trains: bool = True) -> Iterator[Problem]:
    """What Megatron reads without asking whether it is there.

    Args:
        args: parsed, not yet validated.
        trains: will it run its training loop?
    """
    check = Check(args)
    if trains:
        yield from _needed_to_train(args)
    if args.tokenizer_type == "NullTokenizer":
        yield from check.needs("tokenizer_type", "vocab_size", "give the number of tokens")
    if args.tokenizer_type == "HuggingFaceTokenizer":
        yield from check.needs("tokenizer_type", "tokenizer_model", "give its folder or name")


def _needed_to_train(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    if args.train_samples is None:
        # With --skip-train too: it counts the samples that training would take.
        yield from check.missing("train_iters", "say how long to train")
    if args.skip_train:
        return
    yield from check.missing("lr", "give the learning rate")
    if not args.full_validation:
        fix = "say how often to evaluate, and --eval-iters 0 for never"
        yield from check.missing("eval_interval", fix)


# Above, torch's clocks overflow; a year.
_MOST_MINUTES = 365 * 24 * 60


def timeout_problems(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """Of the flag by which ranks wait for each other: to be known before they do."""
    if not 1 <= args.distributed_timeout_minutes <= _MOST_MINUTES:
        most = f"{_MOST_MINUTES}; correct it"
        yield Check(args).problem(f"{{distributed_timeout_minutes}} is not between 1 and {most}")


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


def _numbers(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    for least, names in _LEAST.items():
        for name in names.split():
            yield from check.at_least(name, least)
    for name in _BELOW_1:
        value = getattr(args, name)
        if value is not None and value >= 1:
            yield check.problem(f"{{{name}}} is not below 1; give a fraction")
    for name in _AT_MOST_1:
        yield from check.at_most(name, 1, "give a fraction")


def _steps(args: Namespace, world_size: int) -> Iterator[Problem]:
    """A schedule of batch sizes; of samples there are enough for one batch."""
    check = Check(args)
    name, text = "step_batch_size_schedule", args.step_batch_size_schedule
    if text is None:
        why = ", so nothing would be trained"
        yield from check.at_least("train_samples", "global_batch_size", "raise it", why=why)
        return
    yield from check.excludes(name, "global_batch_size", "remove one of them")
    if not args.skip_train:
        why = ": with --train-iters, data and learning rate would end as if every batch were the "
        yield from check.needs(name, "train_samples", "use it", why=why + "smallest")
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
        yield check.problem(
            "{step_batch_size_schedule} is not a schedule: {error}; write TOKENS:BATCH "
            "TOKENS:BATCH, from 0 up",
            error=error,
        )
        return
    sizes = [batch for _, batch in schedule]
    unit = args.micro_batch_size * copies
    # A run that goes on with more processes has left the small batches behind.
    for batch in sizes if args.load is None else sizes[-1:]:
        if batch % unit:
            yield check.problem(
                f"{{step_batch_size_schedule}} has a batch ({batch}) that is not a multiple of "
                f"--micro-batch-size x data-parallel size ({unit}); use multiples of that"
            )
        else:
            yield from virtual_batch(args, batch // unit, "an iteration", name)
    if sizes != sorted(sizes):
        ends = "goes down, at which Megatron ends the job; let it grow"
        yield check.problem(f"{{step_batch_size_schedule}} {ends}")


def _optimizer(args: Namespace, _: int) -> Iterator[Problem]:
    """What the optimizer asserts, and then the scheduler of learning rate and weight decay."""
    check = Check(args)
    if args.skip_train:
        return
    unit = "iters" if args.train_iters else "samples"
    fraction, given = args.lr_warmup_fraction, getattr(args, f"lr_decay_{unit}")
    decay = given or getattr(args, f"train_{unit}")
    warmup, flag = getattr(args, f"lr_warmup_{unit}"), f"lr_warmup_{unit}"
    if fraction is not None and decay:
        warmup, flag = fraction * decay, "lr_warmup_fraction"
    end = f"lr_decay_{unit}" if given else f"train_{unit}"
    style = args.lr_decay_style == "WSD" and getattr(args, f"lr_wsd_decay_{unit}") is None
    rules = {
        f"{{{flag}}} is not below {{{end}}}, where the decay ends; lower it": (
            decay and not fraction and warmup >= decay
        ),
        f"{{lr_decay_style}} needs {{lr_wsd_decay_{unit}}}; say how long it decays at the "
        "end": style,
    }
    yield from check.those(rules)
    yield from check.at_most("lr_warmup_init", "lr", "lower it")
    both = ("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler")
    yield from check.excludes(*both, "remove one of them")
    both = ("start_weight_decay", "end_weight_decay")
    yield from check.at_most(*both, "weight decay only grows")
    if args.optimizer not in ("adam", "sgd"):
        yield from check.excludes("optimizer", "fp16", "use --bf16")


_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_SPLIT = re.compile(rf"\s*{_NUMBER}(?:\s*[,/\s]\s*{_NUMBER}){{0,2}}\s*")


def _data(args: Namespace, _: int) -> Iterator[Problem]:
    """What the datasets take for parts of the data, and whether there is what is evaluated."""
    check = Check(args)
    blended = args.data_path or args.data_args_path
    paths = {name: getattr(args, f"{name}_data_path") for name in ("train", "valid", "test")}
    if args.split is not None and not _SPLIT.fullmatch(args.split):
        yield check.problem(
            "{split} is not up to three numbers with commas between, of which Megatron would take "
            "what looks like digits; write 969,30,1"
        )
        return
    if args.split is not None and (any(paths.values()) or args.per_split_data_args_path):
        yield check.problem(
            f"{{split}} excludes data that are given in parts ({_given_parts(paths)}); remove one "
            "of them"
        )
    yield from check.needs("data_args_path", "split", "give the parts, as 969,30,1")
    if blended and args.split is not None:
        yield from _parts(args, [float(n) for n in re.findall(_NUMBER, args.split)])
    elif any(paths.values()):
        rules = {
            "{train_data_path} is needed; without it nothing would be trained": (
                not paths["train"] and not args.skip_train
            ),
            "{valid_data_path} is needed with {eval_iters}; give it, or --eval-iters 0": (
                not paths["valid"] and _evaluates(args)
            ),
        }
        yield from check.those(rules)
    for name in ("dataloader_fast_cache_load", "dataloader_defer_npy_index_mmap"):
        yield from check.needs(name, "data_cache_path", "give the folder")
    if args.dataloader_fast_cache_load and blended:
        yield check.problem(
            "{dataloader_fast_cache_load} excludes data that --split divides; use "
            "--train-data-path and its relatives"
        )


def _given_parts(paths: dict[str, Any]) -> str:
    names = [f"--{name}-data-path" for name, path in paths.items() if path]
    return ", ".join(names or ["--per-split-data-args-path"])


def _parts(args: Namespace, shares: list[float]) -> Iterator[Problem]:
    check = Check(args)
    train, valid, _ = [*shares, 0.0, 0.0][:3]
    if not any(shares):
        yield check.problem("{split} adds up to 0; give the parts, as 969,30,1")
        return
    rules = {
        "{split} leaves nothing to train on; raise its first number": (
            not train and not args.skip_train
        ),
        "{split} leaves nothing to evaluate on, and {eval_iters} asks for it; raise its second "
        "number, or give --eval-iters 0": not valid and _evaluates(args),
    }
    yield from check.those(rules)


def _evaluates(args: Namespace) -> bool:
    return bool(args.eval_iters or args.full_validation)


def _evaluation(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    full, many = args.full_validation, args.multiple_validation_sets
    yield from check.needs("validation_set_names", "multiple_validation_sets", "add it")
    if full != many:
        given, other = ("full_validation", "multiple_validation_sets")[:: 1 if full else -1]
        alone = "alone, in Megatron 0.19; add it, or use --eval-iters"
        yield check.problem(f"{{{given}}} works with {{{other}}} {alone}")
    if not (full and many):
        return
    names, sets = args.validation_set_names, validation_prefixes(args)
    split = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    micro = args.eval_micro_batch_size or args.micro_batch_size
    both = "{full_validation} and {multiple_validation_sets}"
    check = Check(args, eval_micro_batch_size=micro)
    rules = {
        f"{both} need sets of their own; use --train-data-path and --valid-data-path": (
            args.mock_data or args.data_path or args.data_args_path
        ),
        f"{both} read one sample at a time, not {{eval_micro_batch_size}}, which tensor- and "
        "pipeline-parallel ranks expect; use --eval-micro-batch-size 1": (split > 1 and micro > 1),
        f"{both} do not work with virtual pipeline stages; remove one of them": (
            model_chunks(args) > 1
        ),
        f"{{test_data_path}} excludes {both}, after which Megatron takes the test data for a "
        "list of sets; remove it": args.test_data_path,
    }
    yield from check.those(rules)
    if names and sets and len(names) != len(sets):
        yield check.problem(
            "{validation_set_names} are not as many as the sets of validation data ({sets}); give "
            "a name for each",
            sets=" ".join(sets),
        )


def _documents(args: Namespace, _: int) -> Iterator[Problem]:
    """Masks and positions that begin anew at every document: what in the model reads them?"""
    kind = "rope" if args.use_rotary_position_embeddings else args.position_embedding_type
    check = Check(args, position_embedding_type=kind)
    if args.reset_position_ids and kind != "learned_absolute":
        yield check.problem(
            "{reset_position_ids} changes nothing with {position_embedding_type}, which reads no "
            "position of the data; remove it"
        )
    if not args.reset_attention_mask:
        return
    is_local = args.transformer_impl == "local"
    stages = args.pipeline_model_parallel_size * model_chunks(args)
    nothing = "{reset_attention_mask} changes nothing"
    rules = {
        f"{nothing} with --no-create-attention-mask-in-dataloader; remove one of them": (
            not args.create_attention_mask_in_dataloader
        ),
        f"{nothing} with {{transformer_impl}}, whose causal attention reads no mask; use "
        "--dataloader-inter-document-masking with Megatron's own script, or "
        "--transformer-impl local": not is_local,
        f"{nothing} in fused softmax kernels, which read no mask; add --no-masked-softmax-fusion": (
            is_local and args.masked_softmax_fusion and (args.bf16 or args.fp16)
        ),
        "{reset_attention_mask} is overruled by {window_size}; remove one of them": (
            args.window_size is not None
        ),
        "{reset_attention_mask} reaches the first and the last pipeline stage alone, not all "
        f"({stages}); use two at most": stages > 2,
    }
    yield from check.those(rules)


_DUMPS = ("params", "activations", "tokens_per_expert", "wgrads", "dgrads")


def _files(args: Namespace, _: int) -> Iterator[Problem]:
    """What is written where nothing says where to."""
    check = Check(args)
    nowhere = args.save is None and not args.wandb_save_dir
    rules = {
        "{wandb_project} needs {wandb_save_dir} or {save} for its files; give one": nowhere,
        "{wandb_project} needs a name, not {wandb_exp_name}; give one, or leave it out": (
            args.wandb_exp_name == ""
        ),
        "{wandb_project} gets no losses without {tensorboard_dir}, behind which Megatron sends "
        "them; add it": not args.tensorboard_dir,
    }
    yield from check.those(rules if args.wandb_project else {})
    dumps = [f"save_{what}_interval" for what in _DUMPS]
    for name in (*dumps, "non_persistent_save_interval"):
        yield from check.needs(name, "save", "give the folder")
    yield from check.needs("enable_ft_package", "save", "give the folder", why=" for its state")


def _profile(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    if not args.profile:
        return
    if args.profile_step_end <= args.profile_step_start:
        yield check.problem("{profile_step_end} is not above {profile_step_start}; raise it")
    why = ", beside which it writes"
    yield from check.needs("use_pytorch_profiler", "tensorboard_dir", "add it", why=why)


def _skipped(args: Namespace, _: int) -> Iterator[Problem]:
    """Iterations that are left out, and phases of the data."""
    check = Check(args)
    stages, chunks = args.pipeline_model_parallel_size, model_chunks(args)
    names = ("iterations_to_skip", "result_rejected_tracker_filename")
    given = [name for name in names if getattr(args, name)]
    if given and (stages > 2 or chunks > 1):
        yield check.problem(
            f"{{{given[0]}}} reads data on every pipeline stage, and inner and virtual ones "
            f"({stages} x {chunks}) have none; use two stages at most"
        )
    fix = "use it in place of --train-iters"
    yield from check.needs("phase_transition_iterations", "train_samples", fix)
