"""ST-MoE and GShard: two experts, the second by chance; GEGLU experts with biases.

lucidrains/st-moe-pytorch@d94e65d st_moe_pytorch.py; arXiv 2202.08906, 2006.16668.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ..experts import EachExpert, GegluExpert
from ..layout import Take
from ..pieces import router_flags
from ..sequence_loss import AfterDrops, first_kept
from ..settings import Settings
from ..system import Loss, System, counted, seq_aux, z

NAMES = ("st_moe", "ST-MoE / GShard second-expert policy")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_hidden")
    settings.choice("top_k", 2)
    variant = settings.inside("variants").inside(_file(settings.variant))
    threshold, capacity = variant.number("threshold"), variant.size("capacity")
    # Of first choices. The authors' code counts those that are not dropped.
    published = counted(seq_aux(1.0), "first")
    limits = capacity < settings.sequence
    limit = ["--grove-expert-capacity", str(capacity), "--grove-capacity-scope", "sequence"]
    limit += ["--grove-capacity-first-choices", "--moe-token-drop-policy", "position"]
    after = AfterDrops(first_kept)
    theirs = Loss(after.name, 1.0, own=after) if limits else published

    def parameters(take: Take) -> dict[str, Tensor]:
        found = {"router.weight": take("gate.to_gates.weight", experts, hidden)}
        for e in range(experts):
            ours, theirs = f"experts.{e}", f"experts.experts.{e}.net"
            found |= {
                f"{ours}.linear1.weight": take(f"{theirs}.0.weight", 2 * width, hidden),
                f"{ours}.linear1.bias": take(f"{theirs}.0.bias", 2 * width),
                f"{ours}.mult_bias": take(f"{theirs}.1.mult_bias", width),
                f"{ours}.linear2.weight": take(f"{theirs}.2.weight", hidden, width),
                f"{ours}.linear2.bias": take(f"{theirs}.2.bias", hidden),
            }
        return found

    def routing(extras: Mapping[str, Tensor]) -> Tensor:
        return extras["routing_weights"] != 0

    extras = ("router_logits", "router_probs", "routing_weights", "top2_gate", "top2_idx")
    return System(
        flags=[
            *(*router_flags(settings), "--grove-second-expert-threshold", str(threshold)),
            *(limit if limits else ()),
        ],
        parameters=parameters,
        experts=partial(EachExpert, partial(GegluExpert, hidden, width)),
        losses={"balance": theirs, "balance_predrop": published, "z": z(1.0)},
        draws="uniform",
        extras=frozenset({*extras, "uniform", "second_wanted", "kept"}),
        needs_extras=frozenset({"routing_weights", "uniform"}),
        routing=routing,
    )


def _file(variant: str) -> str:
    return "layer.safetensors" if variant == "default" else f"layer.{variant}.safetensors"
