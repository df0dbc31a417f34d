"""Hash layers: a fixed table gives every token id its expert; ReLU experts with biases.

facebookresearch/ParlAI@a29567f hash_ladder.py; arXiv 2106.04426.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from ..experts import EachExpert, ReluExpert
from ..layout import Take
from ..settings import Settings
from ..system import System

NAMES = ("hash", "hash layer")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width = settings.size("expert_intermediate_size")
    settings.choice("weight", 1)

    def parameters(take: Take) -> dict[str, Tensor]:
        found = {}
        for e in range(experts):
            for linear, (into, out) in {1: (hidden, width), 2: (width, hidden)}.items():
                ours, theirs = f"experts.{e}.linear{linear}", f"linears{linear}.{e}"
                found[f"{ours}.weight"] = take(f"{theirs}.weight", out, into)
                found[f"{ours}.bias"] = take(f"{theirs}.bias", out)
        return found

    def routing(extras: Mapping[str, Tensor]) -> Tensor:
        return F.one_hot(extras["expert"], experts).bool()

    return System(
        flags=["--num-experts", str(experts), "--moe-router-topk", "1"],
        parameters=parameters,
        experts=partial(EachExpert, partial(ReluExpert, hidden, width)),
        extras=frozenset({"expert", "token_ids", "hash_table", "bin_load", "token_freq"}),
        needs_extras=frozenset({"expert", "token_ids", "hash_table"}),
        routing=routing,
        waits_for="a fixed table from token ids to experts",
    )
