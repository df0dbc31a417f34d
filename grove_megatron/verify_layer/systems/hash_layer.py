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
    vocabulary = settings.size("vocab")
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

    def check(tensors: Mapping[str, Tensor]) -> list[str]:
        """Ids are of the table, and what it says are experts."""
        tokens = settings.batch * settings.sequence
        wanted = {"token_ids": (tokens, vocabulary), "hash_table": (vocabulary, experts)}
        return [
            f"{name} is not {rows} whole numbers from 0 to {below - 1}"
            for name, (rows, below) in wanted.items()
            if tensors[name].is_floating_point()
            or tuple(tensors[name].shape) != (rows,)
            or not bool(((tensors[name] >= 0) & (tensors[name] < below)).all())
        ]

    return System(
        flags=[
            *("--num-experts", str(experts), "--moe-router-topk", "1"),
            *("--grove-router-selector", "hash", "--grove-hash-vocabulary", str(vocabulary)),
        ],
        parameters=parameters,
        experts=partial(EachExpert, partial(ReluExpert, hidden, width)),
        extras=frozenset({"expert", "token_ids", "hash_table", "bin_load", "token_freq"}),
        needs_extras=frozenset({"expert", "token_ids", "hash_table"}),
        routing=routing,
        buffers={"router.selector_hash.table": "hash_table"},
        ids="token_ids",
        check=check,
    )
