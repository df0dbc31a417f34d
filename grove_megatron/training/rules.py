"""Megatron's own rules that command lines break most, all at once and with a fix.

Megatron 0.19 asserts them one after the other (training/arguments.py, transformer_config.py),
so a command line with five mistakes takes five starts, each of them in a queue.
"""

from argparse import Namespace
from collections.abc import Iterator
from math import lcm
from typing import Any

from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from ..config import expert_tensor_parallel_size, moe_pattern
from ..switches import flag_of
from .guarded import lines_of
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


def basic_problems(args: Namespace) -> list[str]:
    """Sizes that are missing or below 1, one line each; with such no other rule makes sense.

    Args:
        args: parsed, not yet validated.
    """
    return [*_missing(args), *_below_1(args), *_beyond_any(args)]


def megatron_problems(args: Namespace, world_size: int) -> list[str]:
    """What Megatron would refuse, at start or in the first iteration, one line each.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    sizes = (_sizes, _parallel, _widths, _batch, _pipeline, _experts)
    return [
        line
        for rule in (*sizes, _recompute, _overlap, _run)
        for line in lines_of(rule, args, world_size)
    ]


def megatron_notices(args: Namespace) -> Iterator[str]:
    """Flags that Megatron ignores without a word, one line each."""
    modules = args.recompute_modules or []
    if modules and not _is_selective(args):
        yield (
            f"--recompute-modules ({' '.join(modules)}) does nothing with --recompute-granularity "
            f"({args.recompute_granularity}); selective reads it"
        )
    elif "shared_experts" in modules and not args.moe_shared_expert_intermediate_size:
        yield (
            "--recompute-modules (shared_experts) does nothing without "
            "--moe-shared-expert-intermediate-size (None)"
        )
    if args.moe_router_num_groups and args.moe_router_group_topk is None:
        yield (
            f"--moe-router-num-groups ({args.moe_router_num_groups}) does nothing without "
            "--moe-router-group-topk (None)"
        )
    if args.moe_shared_expert_gate and not args.moe_shared_expert_intermediate_size:
        yield (
            "--moe-shared-expert-gate (True) does nothing without "
            "--moe-shared-expert-intermediate-size (None)"
        )
    sign = args.grove_router_scoring == "softmax" and args.moe_router_enable_expert_bias
    if sign and args.grove_bias_update_rule == "rms":
        yield (
            "--grove-bias-update-rule (rms) is of --grove-router-scoring grove; with (softmax) the "
            "expert bias moves by Megatron's rule, sign"
        )


def _missing(args: Namespace) -> Iterator[str]:
    for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"):
        # Megatron takes this name for the first.
        if getattr(args, name) is None and not (name == "num_layers" and args.encoder_num_layers):
            yield f"{flag_of(name)} (None) is needed; give the size of the model"
    if args.seq_length is None and args.encoder_seq_length is None:
        yield "--seq-length (None) is needed; give the tokens of a sample"
    if args.micro_batch_size is None:
        yield "--micro-batch-size (None) is needed; give the samples of one forward pass"


_POSITIVE = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "moe_ffn_hidden_size",
    "moe_layer_freq",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "seq_length",
    "micro_batch_size",
    "global_batch_size",
    "eval_micro_batch_size",
    "eval_global_batch_size",
    "make_vocab_size_divisible_by",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "microbatch_group_size_per_vp_stage",
)


def _below_1(args: Namespace) -> Iterator[str]:
    for name in _POSITIVE:
        value = getattr(args, name, None)
        if isinstance(value, int) and value < 1:
            flag = _SPELLED.get(name, flag_of(name))
            yield f"{flag} ({value}) is below 1; use 1 or more"


# More than any model or machine has; what is counted one by one would take days.
_MOST = {
    **dict.fromkeys(("num_layers", "encoder_num_layers", "mtp_num_layers"), 10**5),
    **dict.fromkeys(("num_experts", "moe_router_topk", "grove_num_groups"), 10**6),
    **dict.fromkeys((name for name in _POSITIVE if name.endswith("_parallel_size")), 10**6),
    **dict.fromkeys(("num_virtual_stages_per_pipeline_rank", "recompute_num_layers"), 10**5),
}


def _beyond_any(args: Namespace) -> Iterator[str]:
    for name, most in _MOST.items():
        value = getattr(args, name, None)
        if isinstance(value, int) and value > most:
            yield f"{flag_of(name)} ({value}) is above {most}; correct it"


# Flags whose name is not that of the setting.
_SPELLED = {
    "microbatch_group_size_per_vp_stage": "--microbatch-group-size-per-virtual-pipeline-stage",
}


def _is_selective(args: Namespace) -> bool:
    return bool(args.recompute_granularity == "selective" or args.recompute_activations)


def _sizes(args: Namespace, _: int) -> Iterator[str]:
    heads = args.num_attention_heads
    if args.hidden_size and heads and args.hidden_size % heads and args.kv_channels is None:
        yield (
            f"--hidden-size ({args.hidden_size}) is not a multiple of --num-attention-heads "
            f"({heads}); use a number of heads that divides it, or give --kv-channels"
        )
    positions = args.max_position_embeddings
    if args.seq_length and positions and positions < args.seq_length:
        yield (
            f"--max-position-embeddings ({positions}) is below --seq-length ({args.seq_length}); "
            "raise it"
        )
    if args.fp16 and args.bf16:
        yield "--fp16 (True) excludes --bf16 (True); give one of them"


def _parallel(args: Namespace, world_size: int) -> Iterator[str]:
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    context, expert = args.context_parallel_size, args.expert_model_parallel_size
    expert_tensor = expert_tensor_parallel_size(args)
    dense = tensor * pipeline * context
    if world_size % dense:
        yield (
            f"--tensor-model-parallel-size ({tensor}) x --pipeline-model-parallel-size "
            f"({pipeline}) x --context-parallel-size ({context}) does not divide the number of "
            f"processes ({world_size}); start a multiple of {dense}, or lower a size"
        )
    experts = expert * expert_tensor * pipeline
    if world_size % experts:
        yield (
            f"--expert-model-parallel-size ({expert}) x --expert-tensor-parallel-size "
            f"({expert_tensor}) x --pipeline-model-parallel-size ({pipeline}) does not divide the "
            f"number of processes ({world_size}); start a multiple of {experts}, or lower a size"
        )
    if args.num_attention_heads and args.num_attention_heads % tensor:
        yield (
            f"--tensor-model-parallel-size ({tensor}) does not divide --num-attention-heads "
            f"({args.num_attention_heads}); use a size that does"
        )
    groups = args.num_query_groups if args.group_query_attention else None
    if groups and groups % tensor and tensor % groups:
        yield (
            f"--tensor-model-parallel-size ({tensor}) and --num-query-groups ({groups}) do not "
            "divide each other; use a size that fits"
        )
    if args.seq_length and context > 1 and args.seq_length % (2 * context):
        yield (
            f"--seq-length ({args.seq_length}) is not a multiple of twice --context-parallel-size "
            f"({context}); change one of them"
        )
    split = tensor * context if args.sequence_parallel and tensor > 1 else 1
    if args.seq_length and args.seq_length % split:
        yield (
            f"--seq-length ({args.seq_length}) is not a multiple of --tensor-model-parallel-size "
            f"({tensor}) x --context-parallel-size ({context}), which --sequence-parallel splits "
            "it by; change one of them"
        )
    if args.num_experts and tensor > 1 and not (args.sequence_parallel or args.skip_train):
        yield (
            f"--tensor-model-parallel-size ({tensor}) with --num-experts ({args.num_experts}) "
            "trains only with --sequence-parallel (False); add it"
        )
    if args.num_experts and expert_tensor > 1 and args.add_bias_linear:
        yield (
            f"--disable-bias-linear (False) is needed with --expert-tensor-parallel-size "
            f"({expert_tensor}), over which experts are split; add it, or use "
            "--expert-tensor-parallel-size 1"
        )


def _widths(args: Namespace, _: int) -> Iterator[str]:
    """What the tensor-parallel ranks get columns or rows of; a linear layer asserts equal parts
    (tensor_parallel/layers.py:965 and :1328 @ 0.19.2)."""
    tensor = args.tensor_model_parallel_size
    if tensor == 1 or args.num_layers is None:
        return
    pattern = moe_pattern(args) if args.num_experts else (False,)
    widths = {
        "--ffn-hidden-size ({})": 0 if all(pattern) else ffn_hidden_size(args),
        "--moe-shared-expert-intermediate-size ({})": (
            any(pattern) and args.moe_shared_expert_intermediate_size
        ),
        # The projection before an MTP layer.
        f"--hidden-size ({{}}) with --mtp-num-layers ({args.mtp_num_layers})": (
            args.mtp_num_layers and args.hidden_size
        ),
        "--padded-vocab-size ({})": args.padded_vocab_size,
    }
    for name, width in widths.items():
        if width and width % tensor:
            yield (
                f"{name.format(width)} is not a multiple of --tensor-model-parallel-size "
                f"({tensor}), which splits it; change one of them"
            )
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    channels = args.kv_channels or args.hidden_size // args.num_attention_heads
    # Keys and values; with fewer groups than ranks a rank holds a part of a head's.
    if tensor % groups == 0 and 2 * channels * groups % tensor:
        yield (
            f"--kv-channels ({channels}) x 2 x --num-query-groups ({groups}) is not a multiple of "
            f"--tensor-model-parallel-size ({tensor}), which splits it; change one of them"
        )


def _batch(args: Namespace, world_size: int) -> Iterator[str]:
    stages = args.pipeline_model_parallel_size
    parallel = args.tensor_model_parallel_size * stages * args.context_parallel_size
    if world_size % parallel:
        return
    micro, copies = args.micro_batch_size, world_size // parallel
    unit, scheduled = micro * copies, args.step_batch_size_schedule is not None
    # Megatron's default, which evaluations take beside a schedule too.
    batch = unit if scheduled or args.global_batch_size is None else args.global_batch_size
    if batch % unit and not args.decrease_batch_size_if_needed:
        yield (
            f"--global-batch-size ({batch}) is not a multiple of --micro-batch-size ({micro}) x "
            f"data-parallel size ({copies}); use a multiple of {unit}"
        )
        return
    trained: list[str] = []
    if not (scheduled or args.skip_train):
        flag = f"--global-batch-size ({args.global_batch_size})"
        trained += virtual_batch(args, batch // unit, "an iteration", flag)
        yield from trained
    micro = args.eval_micro_batch_size or micro
    evaluated = args.eval_global_batch_size or batch
    flag = f"--eval-global-batch-size ({args.eval_global_batch_size})"
    if evaluated % (micro * copies):
        yield (
            f"{flag}, by default the batch of training ({batch}), is not a multiple of "
            f"--eval-micro-batch-size ({micro}) x data-parallel size ({copies}); use a multiple "
            f"of {micro * copies}"
        )
    elif args.eval_iters and not trained:
        yield from virtual_batch(args, evaluated // (micro * copies), "an evaluation", flag)


def virtual_batch(args: Namespace, microbatches: int, of: str, flag: str) -> Iterator[str]:
    """Do virtual stages get the microbatches they need? One line if not.

    Megatron says it in the first iteration, or evaluation (schedules.py:1134 @ 0.19.2).
    """
    stages = args.pipeline_model_parallel_size
    if stages == 1 or model_chunks(args) <= 1:
        return
    group = args.microbatch_group_size_per_vp_stage or stages
    if not stages <= group <= microbatches or 0 < microbatches % group < stages:
        yield (
            f"microbatches of {of} ({microbatches}) do not fit virtual stages in groups of "
            f"({group}): use at least --pipeline-model-parallel-size ({stages}) of them, and a "
            f"multiple of the group; change {flag}"
        )


def _pipeline(args: Namespace, _: int) -> Iterator[str]:
    stages, layers = args.pipeline_model_parallel_size, split_layers(args)
    first, last = args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers
    each = args.num_layers_per_virtual_pipeline_stage
    virtual = args.num_virtual_stages_per_pipeline_rank
    letters = args.pipeline_model_parallel_layout
    said = {
        "--num-layers-per-virtual-pipeline-stage": each,
        "--num-virtual-stages-per-pipeline-rank": virtual,
        "--pipeline-model-parallel-layout": letters,
    }
    given = [f"{flag} ({value})" for flag, value in said.items() if value is not None]
    if len(given) > 1:
        yield f"{given[0]} and {' and '.join(given[1:])} say the same; give one of them"
        return
    if letters is not None:
        try:
            chunks = PipelineParallelLayerLayout.get_num_stages_from_str(letters)
        except (AssertionError, ValueError) as error:
            yield f"{given[0]} cannot be read: {error}; correct it"
            return
        if chunks % stages:
            yield (
                f"{given[0]} has {chunks} stages, not a multiple of --pipeline-model-parallel-size "
                f"({stages}); change one of them"
            )
        return
    if each is not None and (first is not None or last is not None):
        name, uneven = ("first", first) if first is not None else ("last", last)
        yield (
            f"{given[0]} excludes --decoder-{name}-pipeline-num-layers ({uneven}); use "
            "--num-virtual-stages-per-pipeline-rank"
        )
        return
    if first is not None or last is not None:
        return
    if layers % stages:
        yield (
            f"--num-layers ({layers}) is not a multiple of --pipeline-model-parallel-size "
            f"({stages}); use a size that divides it, or --decoder-first-pipeline-num-layers"
        )
        return
    if each is not None and layers // stages % each:
        yield (
            f"--num-layers-per-virtual-pipeline-stage ({each}) does not divide the layers of a "
            f"stage ({layers // stages}); use a number that does"
        )
        return
    if virtual is not None and layers // stages % virtual:
        yield (
            f"--num-virtual-stages-per-pipeline-rank ({virtual}) does not divide the layers of a "
            f"stage ({layers // stages}); use a number that does"
        )
        return
    if given and stages == 1 and model_chunks(args) > 1:
        yield (f"{given[0]} needs --pipeline-model-parallel-size ({stages}) above 1; remove it")


def _experts(args: Namespace, _: int) -> Iterator[str]:
    experts, parallel = args.num_experts, args.expert_model_parallel_size
    if not experts:
        if parallel > 1:
            yield (
                f"--expert-model-parallel-size ({parallel}) needs --num-experts (None); set it, or "
                "remove the size"
            )
        return
    split = expert_tensor_parallel_size(args)
    width = args.moe_ffn_hidden_size or ffn_hidden_size(args)
    if width % split:
        yield (
            f"--moe-ffn-hidden-size ({width}) is not a multiple of --expert-tensor-parallel-size "
            f"({split}), which splits it; change one of them"
        )
    pattern = args.moe_layer_freq
    if isinstance(pattern, list) and args.num_layers and len(pattern) != args.num_layers:
        yield (
            f"--moe-layer-freq ({pattern}) has {len(pattern)} entries, not --num-layers "
            f"({args.num_layers}); give one for each layer"
        )
    kinds, coefficients = (
        _single(args.moe_router_load_balancing_type),
        _single(args.moe_aux_loss_coeff),
    )
    if isinstance(kinds, list) != isinstance(coefficients, list) or (
        isinstance(kinds, list) and len(kinds) != len(coefficients)
    ):
        yield (
            f"--moe-aux-loss-coeff ({coefficients}) does not fit --moe-router-load-balancing-type "
            f"({kinds}); give one coefficient for each"
        )
    groups, chosen = args.moe_router_num_groups, args.moe_router_group_topk
    if groups is None and chosen is not None:
        yield (
            f"--moe-router-group-topk ({chosen}) needs --moe-router-num-groups (None), which of "
            "them to select; give both or none"
        )
    elif groups and chosen is not None:
        if experts % groups:
            yield (
                f"--moe-router-num-groups ({groups}) does not divide --num-experts ({experts}); "
                "use a number that does"
            )
        elif not 1 <= chosen <= groups:
            yield (
                f"--moe-router-group-topk ({chosen}) is not between 1 and --moe-router-num-groups "
                f"({groups}); correct it"
            )
        elif chosen > args.moe_router_topk:
            # Megatron then ranks groups by the sum of no score at all, and takes the same ones for
            # every token (moe_utils.py, group_limited_topk: topk // group_topk).
            yield (
                f"--moe-router-group-topk ({chosen}) is above --moe-router-topk "
                f"({args.moe_router_topk}), so that no score would decide between groups; select "
                "fewer groups"
            )
        elif args.moe_router_topk > experts // groups * chosen:
            yield (
                f"--moe-router-topk ({args.moe_router_topk}) is above the experts of "
                f"--moe-router-group-topk ({chosen}) groups ({experts // groups * chosen}); select "
                "more groups"
            )


def _single(value: Any) -> Any:
    """A list of one as that one, which is what Megatron makes of it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _recompute(args: Namespace, _: int) -> Iterator[str]:
    kind, method = args.recompute_granularity, args.recompute_method
    selective = _is_selective(args)
    if kind == "full" and method is None:
        yield (
            "--recompute-granularity (full) needs --recompute-method (None); use uniform with "
            "--recompute-num-layers 1"
        )
    elif kind == "full" and args.recompute_num_layers is None:
        yield (
            f"--recompute-method ({method}) needs --recompute-num-layers (None); use 1, or the "
            "layers to recompute"
        )
    if selective and method is not None:
        yield (
            f"--recompute-method ({method}) is of --recompute-granularity full, not (selective); "
            "remove it, or use --recompute-modules"
        )
    modules = args.recompute_modules or []
    for module in modules:
        if module not in RECOMPUTE_MODULES:
            yield (
                f"--recompute-modules ({module}) is not one of ({', '.join(RECOMPUTE_MODULES)}); "
                "correct it"
            )
    if selective and "moe_act" in modules and not args.moe_grouped_gemm:
        yield (
            "--recompute-modules (moe_act) needs --moe-grouped-gemm (False); add it, or recompute "
            "moe"
        )


def _overlap(args: Namespace, _: int) -> Iterator[str]:
    sharded = args.use_distributed_optimizer or args.optimizer == "dist_muon"
    if args.overlap_param_gather and not sharded:
        yield (
            "--overlap-param-gather (True) needs --use-distributed-optimizer (False); add it, or "
            "remove the overlap"
        )
    if args.overlap_param_gather and not args.overlap_grad_reduce:
        yield "--overlap-param-gather (True) needs --overlap-grad-reduce (False); add it"
    if not args.overlap_moe_expert_parallel_comm:
        if args.delay_wgrad_compute:
            yield (
                "--delay-wgrad-compute (True) needs --overlap-moe-expert-parallel-comm (False); "
                "add it, or remove the delay"
            )
        return
    flag = "--overlap-moe-expert-parallel-comm (True)"
    needs = {
        f"--expert-model-parallel-size ({args.expert_model_parallel_size}) above 1": (
            args.expert_model_parallel_size > 1
        ),
        "--bf16 or --fp16 (False)": args.bf16 or args.fp16,
        f"--moe-token-dispatcher-type alltoall, not ({args.moe_token_dispatcher_type})": (
            args.moe_token_dispatcher_type in ("alltoall", "flex")
        ),
        f"no --recompute-granularity ({args.recompute_granularity}) of whole layers": (
            args.recompute_granularity != "full"
        ),
        f"no --recompute-modules ({' '.join(args.recompute_modules or [])}) of whole MoE layers": (
            "moe" not in (args.recompute_modules or [])
        ),
        f"virtual stages beside --pipeline-model-parallel-size "
        f"({args.pipeline_model_parallel_size})": (
            args.pipeline_model_parallel_size == 1 or model_chunks(args) > 1
        ),
    }
    for need, met in needs.items():
        if not met:
            yield f"{flag} needs {need}; change one of them"


def _run(args: Namespace, _: int) -> Iterator[str]:
    both = args.train_iters is not None and args.train_samples is not None
    if both and not args.skip_train:
        yield (
            f"--train-iters ({args.train_iters}) excludes --train-samples ({args.train_samples}); "
            "give one of them"
        )
    if args.lr is not None and args.min_lr is not None and args.min_lr > args.lr:
        yield f"--min-lr ({args.min_lr}) is above --lr ({args.lr}); lower it"
    if args.save is not None and args.save_interval is None:
        yield f"--save ({args.save}) needs --save-interval (None); say how often"
    kept = args.save_retain_interval
    if kept and args.save_interval and kept % args.save_interval:
        yield (
            f"--save-retain-interval ({kept}) is not a multiple of --save-interval "
            f"({args.save_interval}); use one that is"
        )
