"""What experts, and the groups that Megatron limits a token to, need of each other."""

from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ...checks.experts import adjugate_width_problems, group_problems, topk_problems
from ...checks.problem import Problem
from ...checks.ranks import (
    adjugates_over_ranks,
    capacity_over_ranks,
    experts_over_ranks,
    groups_over_ranks,
    whole_norm_over_ranks,
)
from ...checks.rules import Check
from ...model.settings import expert_tensor_parallel_size, has_adjugates, has_grove_layers
from ...switches import refusals
from ..flags import table
from ..parts import router_parts
from ..sizes import ffn_hidden_size


def experts(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """Their layers, widths and balancing."""
    check = Check(args)
    if not args.num_experts:
        if args.expert_model_parallel_size > 1:
            yield check.problem(
                "{expert_model_parallel_size} needs {num_experts}; set it, or remove the size"
            )
        return
    if not has_grove_layers(args):
        yield from topk_problems(args, args.num_experts)
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


def over_ranks(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """Experts and groups over expert-parallel ranks, and what else a Grove layer needs of ranks.

    Of a job the configuration says the same (:func:`...config.grove_problems`).
    """
    if has_adjugates(args):
        yield from group_problems(args, args.num_experts)
    if not args.num_experts:
        return
    if has_grove_layers(args):
        yield from _of_a_token(args)
    if has_adjugates(args):
        yield from adjugate_width_problems(args)
        yield from groups_over_ranks(args)
        if args.grove_adjugate_ffn_hidden_size:
            yield from adjugates_over_ranks(args, expert_tensor_parallel_size(args))
    else:
        yield from experts_over_ranks(args, args.num_experts)
    if not has_grove_layers(args):
        return
    yield from whole_norm_over_ranks(args)
    if args.grove_expert_capacity is not None or args.moe_expert_capacity_factor is not None:
        yield from capacity_over_ranks(args)
    yield from refusals(args)


def _of_a_token(args: Namespace) -> Iterator[Problem]:
    """Experts that a Grove router chooses, those without an FFN among them."""
    check = Check(args)
    for row in table()["parts"]:
        if row.get("columns"):
            yield from check.at_least(row["setting"], 0, "leave it out for none")
            yield from check.at_most(row["setting"], 10**6, "correct it")
    yield from topk_problems(args, args.num_experts, router_parts(args).local_experts)
