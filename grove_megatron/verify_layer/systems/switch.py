"""Switch Transformer: one expert a token, weighed by its probability; ReLU experts.

transformers 4.46.3, models/switch_transformers/modeling_switch_transformers.py; arXiv 2101.03961.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from ..layout import Take
from ..pieces import pre_softmax, router_flags
from ..settings import Settings
from ..system import ROUTING, System, seq_aux, z

NAMES = ("switch",)


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

    def routing(extras: Mapping[str, Tensor]) -> Tensor:
        chosen = F.one_hot(extras["expert"], experts).bool()
        return chosen & extras["kept"].bool().unsqueeze(1)

    return System(
        flags=[
            *(*router_flags(settings), *pre_softmax(False)),
            *("--moe-ffn-hidden-size", str(width)),
        ],
        fields={"activation_func": F.relu, "gated_linear_unit": False},
        parameters=parameters,
        # Of every sequence. Theirs and the paper's are the same as long as nothing is dropped.
        losses={"hf_aux": seq_aux(1.0), "paper_aux": seq_aux(1.0), "z": z(1.0)},
        extras=ROUTING | {"expert", "kept", "y_dropped_tokens_zero"},
        needs_extras=frozenset({"expert", "kept"}),
        routing=routing,
        waits_for=(
            None
            if capacity >= settings.sequence
            else "a capacity in tokens of a sequence, where Megatron's is of all tokens of a rank"
        ),
    )
