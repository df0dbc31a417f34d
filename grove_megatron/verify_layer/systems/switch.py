"""Switch Transformer: one expert a token, weighed by its probability; ReLU experts.

transformers 4.46.3, models/switch_transformers/modeling_switch_transformers.py; arXiv 2101.03961.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from ..layout import Take
from ..pieces import pre_softmax, router_flags
from ..sequence_loss import AfterDrops, dropped_are_of_the_first
from ..settings import Settings
from ..system import ROUTING, Loss, System, seq_aux, z

NAMES = ("switch",)
_DROPPED = "dropped_tokens_zero"
_ZERO = f"y_{_DROPPED}"


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    settings.choice("top_k", 1)
    capacity = settings.inside("expert_capacity").size(settings.variant)

    def parameters(take: Take) -> dict[str, Tensor]:
        found = {"router.weight": take("router.classifier.weight", experts, hidden)}
        for e in range(experts):
            one = f"experts.expert_{e}"
            found[f"experts.{e}.linear_fc1.weight"] = take(f"{one}.wi.weight", width, hidden)
            found[f"experts.{e}.linear_fc2.weight"] = take(f"{one}.wo.weight", hidden, width)
        return found

    limits = capacity < settings.sequence
    limit = ["--grove-expert-capacity", str(capacity), "--grove-capacity-scope", "sequence"]
    limit = [*limit, "--moe-token-drop-policy", "position"] if limits else []
    # Theirs counts what is dropped, and counts it for the first expert.
    after = AfterDrops(dropped_are_of_the_first)
    theirs = Loss(after.name, 1.0, own=after) if limits else seq_aux(1.0)

    def routing(extras: Mapping[str, Tensor]) -> Tensor:
        chosen = F.one_hot(extras["expert"], experts).bool()
        return chosen & extras["kept"].bool().unsqueeze(1)

    return System(
        flags=[
            *(*router_flags(settings), *pre_softmax(False)),
            *("--moe-ffn-hidden-size", str(width), *limit),
        ],
        fields={"activation_func": F.relu, "gated_linear_unit": False},
        parameters=parameters,
        losses={"hf_aux": theirs, "paper_aux": seq_aux(1.0), "z": z(1.0)},
        extras=ROUTING | {"expert", "kept", _ZERO},
        needs_extras=frozenset({"expert", "kept"}),
        routing=routing,
        prepare=_of_the_paper,
    )


def _of_the_paper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is dropped is 0; transformers 4 multiplies the token itself by its probability."""
    if f"grad_{_DROPPED}.x" not in tensors:
        return tensors
    kept = {n: t for n, t in tensors.items() if not n.startswith(("grad.", f"grad_{_DROPPED}."))}
    grads = {
        name.replace(f"grad_{_DROPPED}.", "grad.", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"grad_{_DROPPED}.")
    }
    return kept | grads | {"y": tensors[_ZERO]}
