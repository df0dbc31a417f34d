"""Megatron's own rules that command lines break most, all at once and with a fix.

Those of sizes and layouts are the planner's (:mod:`..planner.rules.validity`), which knows them
without Megatron; here are those of a run.
"""

from argparse import Namespace
from collections.abc import Iterator

from ..checks.guarded import problems_of
from ..checks.problem import Problem
from ..checks.rules import Check
from ..planner.rules.basic_rules import basic_problems as basic_problems
from ..planner.rules.basic_rules import smallest_world_size as smallest_world_size
from ..planner.rules.recompute_rules import is_selective
from ..planner.rules.validity import layout_problems


def megatron_problems(args: Namespace, world_size: int) -> list[Problem]:
    """What Megatron would refuse, at start or in the first iteration.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    return [
        found for rule in (layout_problems, _run) for found in problems_of(rule, args, world_size)
    ]


def megatron_notices(args: Namespace) -> Iterator[Problem]:
    """Flags that Megatron ignores without a word."""
    modules, shared = args.recompute_modules or [], args.moe_shared_expert_intermediate_size
    selective = is_selective(args)
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


def _run(args: Namespace, _: int = 1) -> Iterator[Problem]:
    check = Check(args)
    if not args.skip_train:
        yield from check.excludes("train_iters", "train_samples", "give one of them")
    yield from check.at_most("min_lr", "lr", "lower it")
    both = ("calculate_per_token_loss", "ddp_average_in_collective")
    yield from check.excludes(*both, "remove one of them")
    yield from check.needs("save", "save_interval", "say how often")
    yield from check.multiple("save_retain_interval", "save_interval", "use one that is")
