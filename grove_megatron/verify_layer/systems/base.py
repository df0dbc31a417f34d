"""BASE layers: balanced assignment, one expert a token, mixed with the token itself by a sigmoid.

facebookresearch/fairseq@3d262bb fairseq/modules/base_layer.py; arXiv 2103.16716.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from ..experts import EachExpert, SublayerExpert
from ..layout import Take
from ..settings import Settings
from ..system import System

NAMES = ("base", "BASE layer")


def system(settings: Settings) -> System:
    experts, hidden = settings.size("num_experts"), settings.size("hidden_size")
    width, sublayers = settings.size("expert_intermediate_size"), settings.size("base_sublayers")
    eps = settings.number("layernorm_eps")
    settings.choice("activation", "relu")

    def parameters(take: Take) -> dict[str, Tensor]:
        found = {"router.weight": take("expert_centroids", experts, hidden)}
        for e in range(experts):
            for s in range(sublayers):
                ours, theirs = f"experts.{e}.sublayers.{s}", f"experts.{e}.{s}"
                for name, shape in {
                    "norm.weight": (hidden,),
                    "norm.bias": (hidden,),
                    "ff1.weight": (width, hidden),
                    "ff1.bias": (width,),
                    "ff2.weight": (hidden, width),
                    "ff2.bias": (hidden,),
                }.items():
                    found[f"{ours}.{name}"] = take(f"{theirs}.{name}", *shape)
        return found

    def routing(extras: Mapping[str, Tensor]) -> Tensor:
        return F.one_hot(extras["expert"], experts).bool()

    return System(
        flags=["--num-experts", str(experts), "--moe-router-topk", "1"],
        parameters=parameters,
        experts=partial(EachExpert, partial(SublayerExpert, hidden, width, sublayers, eps)),
        extras=frozenset({"expert", "alpha", "counts", "objective", "scores"}),
        needs_extras=frozenset({"expert"}),
        routing=routing,
        waits_for="a balanced assignment, and an expert that is the token itself",
    )
