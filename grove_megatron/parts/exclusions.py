"""What goes with a selector, and with what travels beside the hidden states, and what does not."""

from typing import Any

from ..checks.problem import Problem
from ..checks.rules import Check
from . import registry
from .scoring.softmax import OWN_SELECTION
from .slots import Choices

_NAME = "grove_router_selector"


def selector_problems(
    settings: Any, *, weighs: bool = True, capacity: bool = True
) -> list[Problem]:
    """What reads scores, or replaces a choice, beside a selector that makes it.

    Args:
        settings: a configuration or an argument namespace.
        weighs: does the selector weigh what it selects, so that no scoring does?
        capacity: does what it selects go with a capacity?
    """
    check, others = Check(settings), registry.active(settings)
    why = "which selects experts by a rule of its own"
    broken = {
        f"{{{name}}} is set beside {{{_NAME}}}, {why}; remove one of them": bool(
            getattr(settings, name, None)
        )
        for name in (
            *("moe_router_enable_expert_bias", "moe_router_group_topk", "moe_router_fusion"),
            *("moe_enable_routing_replay", "moe_router_force_biased"),
            *("moe_router_force_load_balancing",),
            *(("moe_router_topk_scaling_factor", "moe_router_pre_softmax") if weighs else ()),
        )
    } | {
        f"{{{name}}} is set beside {{{_NAME}}}, which gives every expert as many tokens; remove "
        "one of them": not capacity and getattr(settings, name) is not None
        for name in ("moe_expert_capacity_factor", "grove_expert_capacity")
    }
    if settings.grove_group_score != Choices.grove_group_score:
        broken[f"{{grove_group_score}} is of limits, and {{{_NAME}}} knows none; remove it"] = True
    problems = [*check.those(broken)]
    for kind, _ in balancing(settings):
        if kind in OWN_SELECTION:
            sentence = f"{{moe_router_load_balancing_type}} selects experts, as does {{{_NAME}}}; "
            one = Check(settings, moe_router_load_balancing_type=kind)
            problems.append(one.problem(sentence + "use none"))
    if not weighs:
        return problems
    problems += _of_scoring(settings)
    idle = [part for part in others if part.slot in ("keep", "weigh", "loss")]
    idle += [part for part in others if part.slot == "local"]
    return problems + [
        check.problem(
            f"{{{registry.setting(part)}}} is set beside {{{_NAME}}}, {why} and weighs them so; "
            "remove one of them"
        )
        for part in idle
    ]


def balancing(settings: Any) -> list[tuple[str, float]]:
    """What Megatron balances by, and what each weighs."""
    kinds, weights = settings.moe_router_load_balancing_type, settings.moe_aux_loss_coeff
    kinds = [kinds] if isinstance(kinds, str) else kinds
    weights = weights if isinstance(weights, list) else [weights] * len(kinds)
    return [*zip(kinds, weights, strict=False)]


def balance_losses(settings: Any) -> list[tuple[str, float]]:
    """Those of them that are losses."""
    losses = ("aux_loss", "seq_aux_loss", "global_aux_loss")
    return [(kind, weight) for kind, weight in balancing(settings) if kind in losses]


def _of_scoring(settings: Any) -> list[Problem]:
    check = Check(settings)
    losses = any(weight for _, weight in balance_losses(settings))
    scoring = settings.grove_num_groups and settings.grove_router_scoring
    # A configuration has made it of softmax, see config.py.
    rewritten = ("sigmoid",) if hasattr(settings, "num_moe_experts") else ()
    return [
        *check.those(
            {
                "{moe_aux_loss_coeff} is of a loss that balances scores, and "
                f"{{{_NAME}}} reads none; use 0": losses,
                f"{{moe_router_score_function}} is read by no router with {{{_NAME}}}; remove it": (
                    settings.moe_router_score_function not in ("softmax", *rewritten)
                ),
                f"{{grove_router_scoring}} is read by no router with {{{_NAME}}}; remove it": (
                    scoring not in (0, None, Choices.grove_router_scoring)
                ),
                f"{{grove_aux_loss_counts}} is of losses, and {{{_NAME}}} has none; remove it": (
                    settings.grove_aux_loss_counts != Choices.grove_aux_loss_counts
                ),
            }
        )
    ]


def carrying_problems(settings: Any, name: str) -> list[Problem]:
    """Where a layer gets other tokens than the one before, or its stages are run one by one.

    Args:
        name: the setting for whose part something travels beside the hidden states.
    """
    check = Check(settings)
    broken = {
        f"{{{name}}} is beside {{overlap_moe_expert_parallel_comm}}, whose schedule runs layers in "
        "pieces and has no place for what one hands to the next; remove one of them": (
            settings.overlap_moe_expert_parallel_comm
        ),
        **{
            f"{{{name}}} excludes {{{other}}}, which gives an MLP other tokens than the layer; "
            "remove one of them": getattr(settings, other, 1) > 1
            for other in ("mlp_chunks_for_training", "mlp_chunks_for_prefill")
        },
        # Only a command line has it.
        f"{{{name}}} excludes {{fake_process_group}} with several pipeline stages, which are told "
        "each other's shapes; remove one of them": (
            getattr(settings, "fake_process_group", False)
            and settings.pipeline_model_parallel_size > 1
        ),
    }
    return list(check.those(broken))
