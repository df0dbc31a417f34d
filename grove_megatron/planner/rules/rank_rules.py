"""What the sizes of tensor, context, data and expert parallelism have to divide."""

from argparse import Namespace
from collections.abc import Iterator
from math import prod

from ...checks.problem import Problem
from ...checks.rules import Check
from ...model.settings import expert_tensor_parallel_size, moe_pattern
from ..sizes import ffn_hidden_size
from .pipeline_rules import virtual_batch


def ranks(args: Namespace, world_size: int) -> Iterator[Problem]:
    """Sizes, the processes of the job, and what is divided by the sizes."""
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


def widths(args: Namespace, _: int = 1) -> Iterator[Problem]:
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


def batch(args: Namespace, world_size: int) -> Iterator[Problem]:
    """Samples of an iteration and of an evaluation, and the microbatches of each rank."""
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


def copies(args: Namespace, world_size: int) -> Iterator[Problem]:
    """Ranks that share weights, as process groups and buffers assert them when they are made."""
    check = Check(args)
    stages, tensor = args.pipeline_model_parallel_size, args.tensor_model_parallel_size
    expert_tensor = expert_tensor_parallel_size(args)
    dense = world_size // (tensor * stages)
    expert = world_size // (expert_tensor * args.expert_model_parallel_size * stages)
    replicas = dense // args.context_parallel_size
    copies, sharp = args.num_distributed_optimizer_instances, args.sharp_enabled_group
    rules = {
        "{use_tp_pp_dp_mapping} with {pipeline_model_parallel_size} wants as many copies of "
        f"experts ({expert}) as of the rest ({replicas}); remove it": (
            args.use_tp_pp_dp_mapping and stages > 1 and replicas != expert
        ),
        "{num_distributed_optimizer_instances} needs {use_distributed_optimizer}; add it, or "
        "remove the instances": copies > 1 and not args.use_distributed_optimizer,
        "{num_distributed_optimizer_instances} does not divide the copies of the model "
        f"({dense}) and of experts ({expert}); use a number that does": (
            copies > 1 and (dense % copies or expert % copies)
        ),
        "{sharp_enabled_group} needs {num_distributed_optimizer_instances} above 1; use dp": (
            args.use_sharp and sharp == "dp_replica" and copies == 1
        ),
    }
    yield from check.those(rules)
    yield from check.needs("sharp_enabled_group", "use_sharp", "add it")


def context(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """What needs tensor or context parallelism of some kind."""
    check = Check(args)
    tensor, size = args.tensor_model_parallel_size, args.context_parallel_size
    sizes = args.hierarchical_context_parallel_sizes
    rules = {
        "{hierarchical_context_parallel_sizes} do not multiply to {context_parallel_size}; change "
        "one of them": sizes and prod(sizes) != size,
        "{tp_comm_overlap} needs {sequence_parallel} with {tensor_model_parallel_size} above 1; "
        "remove the overlap": args.tp_comm_overlap and not (args.sequence_parallel and tensor > 1),
        "{distribute_saved_activations} needs {tensor_model_parallel_size} above 1; remove it": (
            args.distribute_saved_activations and tensor == 1
        ),
    }
    yield from check.those(rules)
