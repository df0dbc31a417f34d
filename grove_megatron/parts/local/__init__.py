"""Slot ``local``: experts that need no FFN, computed where the token is."""

from typing import Any

from ...checks.problem import Problem
from ...checks.rules import Check
from ..scoring.softmax import OWN_SELECTION


def rules(settings: Any, name: str) -> list[Problem]:
    """Of the number ``name`` of one kind."""
    check = Check(settings)
    kinds = "--grove-zero-experts, --grove-copy-experts and --grove-constant-experts"
    balancing = settings.moe_router_load_balancing_type
    broken = {
        "{moe_router_load_balancing_type} selects among --num-experts in a way of Megatron's own, "
        f"not among {kinds}; use another, or remove them": any(
            own in balancing for own in OWN_SELECTION
        ),
        f"{{{name}}} is negative; 0 is none": getattr(settings, name) < 0,
        "{moe_router_topk} leaves a token with one expert, which may be one without an FFN, "
        f"{kinds}; use 2 or more": settings.moe_router_topk < 2,
        "{overlap_moe_expert_parallel_comm} has a schedule with no place for what a token computes "
        f"on its own rank, {kinds}; remove it or them": settings.overlap_moe_expert_parallel_comm,
        f"{{moe_router_fusion}} routes to --num-experts alone, not to {kinds}; remove it or them": (
            settings.moe_router_fusion
        ),
        **{
            f"{{{other}}} is over blocks of --num-experts, and {kinds} are beside them; remove it "
            "or them": bool(getattr(settings, other))
            for other in (
                "moe_router_num_groups",
                "grove_group_aux_loss_coeff",
                "grove_device_loss_coeff",
                "grove_communication_loss_coeff",
            )
        },
    }
    return list(check.those(broken))
