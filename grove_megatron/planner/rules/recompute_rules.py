"""What is computed again, and what is overlapped, beside what."""

from argparse import Namespace
from collections.abc import Iterator

from ...checks.problem import Problem
from ...checks.rules import Check
from ..sizes import model_chunks

RECOMPUTE_MODULES = (
    *("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe"),
    *("shared_experts", "gdn_norm_out"),
)
"""What ``--recompute-modules`` may name."""


def is_selective(args: Namespace) -> bool:
    """Are single modules computed again?"""
    return bool(args.recompute_granularity == "selective" or args.recompute_activations)


def recompute(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """What the backward pass computes again."""
    check = Check(args)
    kind, method = args.recompute_granularity, args.recompute_method
    selective, modules = is_selective(args), args.recompute_modules or []
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


def overlap(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """What runs beside what."""
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
