"""How many experts and groups a model may have, asked without importing Megatron."""

from collections.abc import Iterator
from typing import Any

from .problem import Problem
from .ranks import divisors
from .rules import Check


def topk_problems(settings: Any, num_experts: int, local: int = 0) -> Iterator[Problem]:
    """Experts of a token: one at least, and as many as there are at most.

    Args:
        settings: a configuration or an argument namespace.
        num_experts: routed experts, 1 or more.
        local: columns of the router beyond those.
    """
    beside = f" and {local} without an FFN" if local else ""
    is_so = not 1 <= settings.moe_router_topk <= num_experts + local
    rule = (
        f"{{moe_router_topk}} is not between 1 and {{num_experts}}{beside}; choose the experts per "
        "token"
    )
    yield from Check(settings, num_experts=num_experts).those({rule: is_so})


def group_problems(settings: Any, num_experts: int | None) -> Iterator[Problem]:
    """Groups, which divide the experts.

    Args:
        settings: as above, with groups.
        num_experts: routed experts, None or 0 for a dense model.
    """
    check = Check(settings, num_experts=num_experts)
    groups = settings.grove_num_groups
    rules = {
        "{grove_num_groups} is set for a dense model, {num_experts}; set --num-experts, or remove "
        "the --grove-* flags": not num_experts,
        "{grove_num_groups} is negative; leave it out for a plain MoE": num_experts and groups < 0,
    }
    yield from check.those(rules)
    if num_experts and groups > 0:
        fix = f"use one of {divisors(num_experts)}"
        yield from check.divides("grove_num_groups", "num_experts", fix)


def adjugate_width_problems(settings: Any) -> Iterator[Problem]:
    """The width of an adjugate, which groups need."""
    width = settings.grove_adjugate_ffn_hidden_size
    if width is None or width <= 0:
        yield Check(settings).problem(
            "{grove_adjugate_ffn_hidden_size} is not positive beside {grove_num_groups}; give the "
            "width of an adjugate expert"
        )
