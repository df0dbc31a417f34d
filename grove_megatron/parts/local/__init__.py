"""Slot ``local``: experts that need no FFN, computed where the token is."""

from typing import Any

from ...checks.problem import Problem
from ...checks.rules import Check
from ..part import experts_of


def rules(settings: Any, name: str) -> list[Problem]:
    """Of the number ``name`` of one kind."""
    check = Check(settings, num_experts=experts_of(settings))
    devices = "is over blocks of --num-experts, and {%s} are beside them; remove one of them"
    broken = {
        f"{{{name}}} is negative; 0 is none": getattr(settings, name) < 0,
        f"{{{name}}} needs tokens of several experts, {{moe_router_topk}}; use 2 or more": (
            settings.moe_router_topk < 2
        ),
        f"{{{name}}} is beside {{overlap_moe_expert_parallel_comm}}, whose schedule has no place "
        "for what a token computes on its own rank; remove one of them": (
            settings.overlap_moe_expert_parallel_comm
        ),
        f"{{{name}}} excludes {{moe_router_fusion}}, which routes to --num-experts alone; remove "
        "one of them": settings.moe_router_fusion,
        **{
            f"{{{other}}} {devices % name}": bool(getattr(settings, other))
            for other in (
                "moe_router_num_groups",
                "grove_group_aux_loss_coeff",
                "grove_device_loss_coeff",
                "grove_communication_loss_coeff",
            )
        },
    }
    return list(check.those(broken))
