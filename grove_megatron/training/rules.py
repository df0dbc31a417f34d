"""Megatron's own rules that command lines break most, all at once and with a fix.

Megatron 0.19 asserts them one after the other (training/arguments.py, transformer_config.py),
so a command line with five mistakes takes five starts, each of them in a queue.
"""

from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from math import lcm
from typing import Any

from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from ..checks.flags import flag_of
from ..checks.problem import Problem
from ..checks.rules import Check
from ..config import expert_tensor_parallel_size, moe_pattern
from .guarded import problems_of
from .latent_rules import latent_problems
from .sizes import ffn_hidden_size, model_chunks, split_layers

RECOMPUTE_MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe")
RECOMPUTE_MODULES += ("shared_experts", "gdn_norm_out")


def smallest_world_size(args: Namespace) -> int:
    """The fewest processes that the parallel sizes of a command line need."""
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    expert_tensor = expert_tensor_parallel_size(args)
    return lcm(
        max(tensor * args.context_parallel_size, 1) * max(pipeline, 1),
        max(args.expert_model_parallel_size * expert_tensor, 1) * max(pipeline, 1),
    )


def basic_problems(args: Namespace) -> list[Problem]:
    """Sizes that are missing or below 1; with such no other rule makes sense.

    Args:
        args: parsed, not yet validated.
    """
    return [*_missing(args), *_below_1(args), *_beyond_any(args)]


def megatron_problems(args: Namespace, world_size: int) -> list[Problem]:
    """What Megatron would refuse, at start or in the first iteration.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    sizes = (_sizes, _parallel, _widths, _latent, _batch, _pipeline, _experts)
    return [
        found
        for rule in (*sizes, _recompute, _overlap, _run)
        for found in problems_of(rule, args, world_size)
    ]


def megatron_notices(args: Namespace) -> Iterator[Problem]:
    """Flags that Megatron ignores without a word."""
    modules, shared = args.recompute_modules or [], args.moe_shared_expert_intermediate_size
    selective = _is_selective(args)
    rules = {
        "{recompute_modules} does nothing with {recompute_granularity}; selective reads it": (
            modules and not selective
        ),
        "{moe_router_num_groups} does nothing without {moe_router_group_topk}": (
            args.moe_router_num_groups and args.moe_router_group_topk is None
        ),
        "{moe_shared_expert_gate} does nothing without {moe_shared_expert_intermediate_size}": (
            args.moe_shared_expert_gate and not shared
        ),
    }
    yield from Check(args).those(rules)
    if "shared_experts" in modules and selective and not shared:
        yield Check(args, recompute_modules="shared_experts").problem(
            "{recompute_modules} does nothing without {moe_shared_expert_intermediate_size}"
        )


_NEEDED = {
    "num_layers": "give the size of the model",
    "hidden_size": "give the size of the model",
    "num_attention_heads": "give the size of the model",
    "max_position_embeddings": "give the size of the model",
    "seq_length": "give the tokens of a sample",
    "micro_batch_size": "give the samples of one forward pass",
}


def _missing(args: Namespace) -> Iterator[Problem]:
    # Megatron takes these names for the others.
    layers, tokens = args.encoder_num_layers or None, args.encoder_seq_length
    check = Check(
        args,
        num_layers=layers if args.num_layers is None else args.num_layers,
        seq_length=tokens if args.seq_length is None else args.seq_length,
    )
    for name, fix in _NEEDED.items():
        yield from check.missing(name, fix)


_POSITIVE = (
    "num_layers hidden_size num_attention_heads num_query_groups kv_channels ffn_hidden_size "
    "moe_ffn_hidden_size moe_layer_freq moe_router_num_groups moe_router_group_topk "
    "seq_length micro_batch_size global_batch_size eval_micro_batch_size "
    "eval_global_batch_size make_vocab_size_divisible_by tensor_model_parallel_size "
    "pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
    "expert_tensor_parallel_size num_layers_per_virtual_pipeline_stage "
    "num_virtual_stages_per_pipeline_rank microbatch_group_size_per_vp_stage"
).split()


def _below_1(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    for name in _POSITIVE:
        if isinstance(getattr(args, name, None), int):
            yield from check.at_least(name, 1)


# More than any model or machine has; what is counted one by one would take days.
_MOST = {
    **dict.fromkeys(("num_layers", "encoder_num_layers", "mtp_num_layers"), 10**5),
    **dict.fromkeys(("num_experts", "moe_router_topk", "grove_num_groups"), 10**6),
    **dict.fromkeys((name for name in _POSITIVE if name.endswith("_parallel_size")), 10**6),
    **dict.fromkeys(("num_virtual_stages_per_pipeline_rank", "recompute_num_layers"), 10**5),
}


def _beyond_any(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    for name, most in _MOST.items():
        if isinstance(getattr(args, name, None), int):
            yield from check.at_most(name, most, "correct it")


def _is_selective(args: Namespace) -> bool:
    return bool(args.recompute_granularity == "selective" or args.recompute_activations)


def _sizes(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    if args.kv_channels is None:
        fix = "use a number of heads that divides it, or give --kv-channels"
        yield from check.multiple("hidden_size", "num_attention_heads", fix)
    yield from check.at_least("max_position_embeddings", "seq_length", "raise it")
    yield from check.excludes("fp16", "bf16", "give one of them")


def _parallel(args: Namespace, world_size: int) -> Iterator[Problem]:
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    context, expert = args.context_parallel_size, args.expert_model_parallel_size
    expert_tensor = expert_tensor_parallel_size(args)
    dense, experts = tensor * pipeline * context, expert * expert_tensor * pipeline
    heads, tokens = args.num_attention_heads, args.seq_length
    groups = args.num_query_groups if args.group_query_attention else None
    split = tensor * context if args.sequence_parallel and tensor > 1 else 1
    trains = not (args.sequence_parallel or args.skip_train)
    rules = {
        "{tensor_model_parallel_size} x {pipeline_model_parallel_size} x "
        "{context_parallel_size} does not divide the number of processes "
        f"({world_size}); start a multiple of {dense}, or lower a size": world_size % dense,
        "{expert_model_parallel_size} x {expert_tensor_parallel_size} x "
        "{pipeline_model_parallel_size} does not divide the number of processes "
        f"({world_size}); start a multiple of {experts}, or lower a size": (world_size % experts),
        "{tensor_model_parallel_size} does not divide {num_attention_heads}; use a size that "
        "does": heads and heads % tensor,
        "{tensor_model_parallel_size} and {num_query_groups} do not divide each other; use a "
        "size that fits": groups and groups % tensor and tensor % groups,
        "{seq_length} is not a multiple of twice {context_parallel_size}; change one of them": (
            tokens and context > 1 and tokens % (2 * context)
        ),
        "{seq_length} is not a multiple of {tensor_model_parallel_size} x "
        "{context_parallel_size}, which --sequence-parallel splits it by; change one of "
        "them": tokens and tokens % split,
        "{tensor_model_parallel_size} with {num_experts} trains only with {sequence_parallel}; "
        "add it": args.num_experts and tensor > 1 and trains,
        "{disable_bias_linear} is needed with {expert_tensor_parallel_size}, over which "
        "experts are split; add it, or use --expert-tensor-parallel-size 1": (
            args.num_experts and expert_tensor > 1 and args.add_bias_linear
        ),
    }
    yield from Check(
        args, expert_tensor_parallel_size=expert_tensor, disable_bias_linear=False
    ).those(rules)


def _widths(args: Namespace, _: int) -> Iterator[Problem]:
    """What the tensor-parallel ranks get columns or rows of; a linear layer asserts equal parts
    (tensor_parallel/layers.py:965 and :1328 @ 0.19.2)."""
    tensor = args.tensor_model_parallel_size
    if tensor == 1 or args.num_layers is None:
        return
    pattern = moe_pattern(args) if args.num_experts else (False,)
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    channels = args.kv_channels or args.hidden_size // args.num_attention_heads
    shared = any(pattern) and args.moe_shared_expert_intermediate_size
    dense = 0 if all(pattern) else ffn_hidden_size(args)
    check = Check(args, ffn_hidden_size=dense, kv_channels=channels, num_query_groups=groups)
    widths = {
        "{ffn_hidden_size}": dense,
        "{moe_shared_expert_intermediate_size}": shared,
        # The projection before an MTP layer.
        "{hidden_size} with {mtp_num_layers}": args.mtp_num_layers and args.hidden_size,
        "{padded_vocab_size}": args.padded_vocab_size,
        # Keys and values; with fewer groups than ranks a rank holds a part of a head's.
        "{kv_channels} x 2 x {num_query_groups}": (
            not args.multi_latent_attention and tensor % groups == 0 and 2 * channels * groups
        ),
    }
    splits = " is not a multiple of {tensor_model_parallel_size}, which splits it; change one of "
    rules = {f"{width}{splits}them": size and size % tensor for width, size in widths.items()}
    yield from check.those(rules)


def _latent(args: Namespace, _: int) -> Iterator[Problem]:
    return latent_problems(args)


def _batch(args: Namespace, world_size: int) -> Iterator[Problem]:
    stages = args.pipeline_model_parallel_size
    parallel = args.tensor_model_parallel_size * stages * args.context_parallel_size
    if world_size % parallel:
        return
    micro, copies = args.micro_batch_size, world_size // parallel
    check = Check(args, eval_micro_batch_size=args.eval_micro_batch_size or micro)
    unit, scheduled = micro * copies, args.step_batch_size_schedule is not None
    # Megatron's default, which evaluations take beside a schedule too.
    batch = unit if scheduled or args.global_batch_size is None else args.global_batch_size
    if batch % unit and not args.decrease_batch_size_if_needed:
        yield check.problem(
            "{global_batch_size} is not a multiple of {micro_batch_size} x data-parallel size "
            f"({copies}); use a multiple of {unit}"
        )
        return
    trained: list[Problem] = []
    if not (scheduled or args.skip_train):
        trained += virtual_batch(args, batch // unit, "an iteration", "global_batch_size")
        yield from trained
    micro = args.eval_micro_batch_size or micro
    evaluated = args.eval_global_batch_size or batch
    if evaluated % (micro * copies):
        yield check.problem(
            f"{{eval_global_batch_size}}, by default the batch of training ({batch}), is not a "
            f"multiple of {{eval_micro_batch_size}} x data-parallel size ({copies}); use a "
            f"multiple of {micro * copies}"
        )
    elif args.eval_iters and not trained:
        microbatches = evaluated // (micro * copies)
        yield from virtual_batch(args, microbatches, "an evaluation", "eval_global_batch_size")


def virtual_batch(args: Namespace, microbatches: int, of: str, flag: str) -> Iterator[Problem]:
    """Do virtual stages get the microbatches they need, by the flag that says how many?

    Megatron says it in the first iteration, or evaluation (schedules.py:1134 @ 0.19.2).
    """
    check = Check(args)
    stages = args.pipeline_model_parallel_size
    if stages == 1 or model_chunks(args) <= 1:
        return
    group = args.microbatch_group_size_per_vp_stage or stages
    if not stages <= group <= microbatches or 0 < microbatches % group < stages:
        yield Problem(
            f"microbatches of {of}",
            microbatches,
            f"do not fit virtual stages in groups of ({group}): use at least "
            f"{check.said('pipeline_model_parallel_size')} of them, and a multiple of the group; "
            f"change {check.said(flag)}",
            about=("--pipeline-model-parallel-size", flag_of(flag)),
        )


_VIRTUAL = (
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "pipeline_model_parallel_layout",
)


def _pipeline(args: Namespace, _: int) -> Iterator[Problem]:
    stages, layers = args.pipeline_model_parallel_size, split_layers(args)
    check = Check(args, num_layers=layers)
    given = [name for name in _VIRTUAL if getattr(args, name) is not None]
    if len(given) > 1:
        all_of_them = " and ".join(f"{{{name}}}" for name in given)
        yield check.problem(f"{all_of_them} say the same; give one of them")
        return
    if args.pipeline_model_parallel_layout is not None:
        yield from _layout(args)
        return
    uneven = [
        name
        for name in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
        if getattr(args, name) is not None
    ]
    if uneven:
        fix = "use --num-virtual-stages-per-pipeline-rank"
        yield from check.excludes("num_layers_per_virtual_pipeline_stage", uneven[0], fix)
        return
    if layers % stages:
        yield check.problem(
            "{num_layers} is not a multiple of {pipeline_model_parallel_size}; use a size that "
            "divides it, or --decoder-first-pipeline-num-layers"
        )
        return
    for name in given:
        if layers // stages % getattr(args, name):
            yield check.problem(
                f"{{{name}}} does not divide the layers of a stage ({layers // stages}); use a "
                "number that does"
            )
        elif stages == 1 and model_chunks(args) > 1:
            sentence = f"{{{name}}} needs {{pipeline_model_parallel_size}} above 1; remove it"
            yield check.problem(sentence)


def _layout(args: Namespace) -> Iterator[Problem]:
    check = Check(args)
    letters, stages = args.pipeline_model_parallel_layout, args.pipeline_model_parallel_size
    try:
        chunks = PipelineParallelLayerLayout.get_num_stages_from_str(letters)
    except (AssertionError, ValueError) as error:
        sentence = "{pipeline_model_parallel_layout} cannot be read: {error}; correct it"
        yield check.problem(sentence, error=error)
        return
    if chunks % stages:
        yield check.problem(
            f"{{pipeline_model_parallel_layout}} has {chunks} stages, not a multiple of "
            "{pipeline_model_parallel_size}; change one of them"
        )


def _experts(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    if not args.num_experts:
        if args.expert_model_parallel_size > 1:
            yield check.problem(
                "{expert_model_parallel_size} needs {num_experts}; set it, or remove the size"
            )
        return
    pattern, both = args.moe_layer_freq, ("moe_ffn_hidden_size", "expert_tensor_parallel_size")
    check = Check(
        args,
        moe_ffn_hidden_size=args.moe_ffn_hidden_size or ffn_hidden_size(args),
        expert_tensor_parallel_size=expert_tensor_parallel_size(args),
        moe_layer_freq=str(pattern),
    )
    yield from check.multiple(*both, "change one of them", why=", which splits it")
    if isinstance(pattern, list) and args.num_layers and len(pattern) != args.num_layers:
        yield check.problem(
            f"{{moe_layer_freq}} has {len(pattern)} entries, not {{num_layers}}; give one for each "
            "layer"
        )
    kinds, coefficients = (
        _single(args.moe_router_load_balancing_type),
        _single(args.moe_aux_loss_coeff),
    )
    if isinstance(kinds, list) != isinstance(coefficients, list) or (
        isinstance(kinds, list) and len(kinds) != len(coefficients)
    ):
        yield check.problem(
            "{moe_aux_loss_coeff} does not fit {moe_router_load_balancing_type}; give one "
            "coefficient for each"
        )
    yield from _group_limited(args)


def _group_limited(args: Namespace) -> Iterator[Problem]:
    """Experts of a few groups alone, of Megatron's groups."""
    check = Check(args)
    groups, chosen = args.moe_router_num_groups, args.moe_router_group_topk
    topk = args.moe_router_topk
    both, why = ("moe_router_group_topk", "moe_router_num_groups"), ", which of them to select"
    yield from check.needs(*both, "give both or none", why=why)
    if not groups or chosen is None:
        return
    reached = args.num_experts // groups * chosen
    rules = {
        "{moe_router_num_groups} does not divide {num_experts}; use a number that does": (
            args.num_experts % groups
        ),
        "{moe_router_group_topk} is not between 1 and {moe_router_num_groups}; correct it": (
            not 1 <= chosen <= groups
        ),
        # Megatron then ranks groups by the sum of no score at all, and takes the same ones for
        # every token (moe_utils.py, group_limited_topk: topk // group_topk).
        "{moe_router_group_topk} is above {moe_router_topk}, so that no score would decide between "
        "groups; select fewer groups": chosen > topk,
        f"{{moe_router_topk}} is above the experts of {{moe_router_group_topk}} groups ({reached})"
        "; select more groups": topk > reached,
    }
    yield from islice(check.those(rules), 1)


def _single(value: Any) -> Any:
    """A list of one as that one, which is what Megatron makes of it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _recompute(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    kind, method = args.recompute_granularity, args.recompute_method
    selective, modules = _is_selective(args), args.recompute_modules or []
    if kind == "full":
        fix = "use uniform with --recompute-num-layers 1"
        yield from check.needs("recompute_granularity", "recompute_method", fix)
    if kind == "full" and method is not None:
        fix = "use 1, or the layers to recompute"
        yield from check.needs("recompute_method", "recompute_num_layers", fix)
    if selective and method is not None:
        yield check.problem(
            "{recompute_method} is of --recompute-granularity full, not (selective); remove it, or "
            "use --recompute-modules"
        )
    for module in modules:
        of_one = Check(args, recompute_modules=module)
        yield from of_one.one_of("recompute_modules", RECOMPUTE_MODULES, "correct it")
    if selective and "moe_act" in modules:
        of_one, fix = Check(args, recompute_modules="moe_act"), "add it, or recompute moe"
        yield from of_one.needs("recompute_modules", "moe_grouped_gemm", fix)


def _overlap(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    if args.optimizer != "dist_muon":
        fix = "add it, or remove the overlap"
        yield from check.needs("overlap_param_gather", "use_distributed_optimizer", fix)
    yield from check.needs("overlap_param_gather", "overlap_grad_reduce", "add it")
    if not args.overlap_moe_expert_parallel_comm:
        fix = "add it, or remove the delay"
        yield from check.needs("delay_wgrad_compute", "overlap_moe_expert_parallel_comm", fix)
        return
    modules = args.recompute_modules or []
    needs_it = "{overlap_moe_expert_parallel_comm} needs "
    unmet = {
        "{expert_model_parallel_size} above 1": args.expert_model_parallel_size <= 1,
        "--bf16 or --fp16 (False)": not (args.bf16 or args.fp16),
        f"--moe-token-dispatcher-type alltoall, not ({args.moe_token_dispatcher_type})": (
            args.moe_token_dispatcher_type not in ("alltoall", "flex")
        ),
        "no {recompute_granularity} of whole layers": args.recompute_granularity == "full",
        "no {recompute_modules} of whole MoE layers": "moe" in modules,
        "virtual stages beside {pipeline_model_parallel_size}": (
            args.pipeline_model_parallel_size > 1 and model_chunks(args) <= 1
        ),
    }
    fix = "; change one of them"
    yield from check.those({needs_it + need + fix: is_so for need, is_so in unmet.items()})


def _run(args: Namespace, _: int) -> Iterator[Problem]:
    check = Check(args)
    if not args.skip_train:
        yield from check.excludes("train_iters", "train_samples", "give one of them")
    yield from check.at_most("min_lr", "lr", "lower it")
    yield from check.needs("save", "save_interval", "say how often")
    yield from check.multiple("save_retain_interval", "save_interval", "use one that is")
