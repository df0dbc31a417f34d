"""BASE layers: balanced assignment, one expert a token, mixed with the token itself by a sigmoid.

facebookresearch/fairseq@3d262bb fairseq/modules/base_layer.py; arXiv 2103.16716. What they mix,
a (x + u) + (1 - a) x, is x + a u: a layer of Megatron's makes a u, and the connection around it
adds x. So what is compared is y - x, with its gradients.
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
        flags=[
            *("--num-experts", str(experts), "--moe-router-topk", "1"),
            # Exact, in so small a layer.
            *("--grove-router-selector", "base", "--grove-base-precision", "1e-6"),
        ],
        training=not settings.variant.startswith("eval"),
        prepare=_without_input,
        parameters=parameters,
        experts=partial(EachExpert, partial(SublayerExpert, hidden, width, sublayers, eps)),
        extras=frozenset({"expert", "alpha", "counts", "objective", "scores"}),
        needs_extras=frozenset({"expert"}),
        routing=routing,
    )


def _without_input(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """y - x, and its gradient of x."""
    tensors = dict(tensors)
    x, r = tensors.get("x"), tensors.get("r")
    for name, other in {"y": x, "grad.x": r}.items():
        if name in tensors and other is not None and tensors[name].shape == other.shape:
            tensors[name] = tensors[name] - other
    return tensors
