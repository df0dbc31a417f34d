"""REINFORCE: experts are drawn in training, and what was drawn learns from the loss it led to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.policy import Learn
from ..exclusions import carrying_problems, selector_problems
from ..part import Part, Seen, widened


@dataclass
class Settings:
    """REINFORCE."""

    grove_reinforce_coeff: float = 1.0
    """Weight of the policy's gradient with --grove-router-selector reinforce. 1: that of the
    expected loss, of every token's own."""

    grove_reinforce_baseline_coeff: float = 0.01
    """Weight of the squared error of the baseline, a linear map of the token that learns what its
    loss is."""


class Policy(torch.nn.Module):
    """Draws K of softmax(z) without putting back; weighed by the scoring.

    Args:
        topk: K.
        hidden_size: H.
        config: scales, dtype.
    """

    reads_logits = True

    def __init__(self, topk: int, hidden_size: int, config: Any) -> None:
        super().__init__()
        self.topk = topk
        self.scales = (config.grove_reinforce_coeff, config.grove_reinforce_baseline_coeff)
        kind = {"dtype": config.params_dtype}
        self.weight = torch.nn.Parameter(torch.zeros(1, hidden_size, **kind))
        self.bias = torch.nn.Parameter(torch.zeros(1, **kind))

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        """[T, K], in the order in which they are drawn; in evaluation the best."""
        scores_TE = widened(z_TE)
        if seen.training:
            # The largest of z + Gumbel noise are such a draw (arXiv 1903.06059).
            uniform_TE = seen.draws.uniform(scores_TE)
            scores_TE = scores_TE - torch.log(-torch.log(uniform_TE))
        return scores_TE.topk(self.topk, dim=1).indices

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> None:
        """As the scoring does."""

    def baseline(self, x_TH: Tensor) -> Tensor:
        """[T] fp32 or wider: the loss that is expected of each."""
        wide = torch.promote_types(x_TH.dtype, torch.float32)
        # It learns from tokens and teaches them nothing.
        rows = torch.nn.functional.linear(
            x_TH.detach().to(wide), self.weight.to(wide), self.bias.to(wide)
        )
        return rows.squeeze(1)

    def learn(self, reward: Tensor, z_TE: Tensor, chosen: Tensor, x_TH: Tensor) -> Tensor:
        """``reward`` as it is; in the backward pass z and the baseline get their gradients.

        Args:
            reward: [S, B, 4], see functional/policy.py.
        """
        log_T = log_probability(widened(z_TE), chosen)
        handed: Tensor = Learn.apply(  # type: ignore[no-untyped-call]
            reward, log_T, self.baseline(x_TH), self.scales
        )
        return handed


def log_probability(z_TE: Tensor, index_TK: Tensor) -> Tensor:
    """log of how likely a token draws these experts in this order, [T]."""
    total_T = z_TE.new_zeros(z_TE.shape[0])
    for k in range(index_TK.shape[1]):
        gone_TE = torch.zeros_like(z_TE, dtype=torch.bool).scatter(1, index_TK[:, :k], True)
        left_TE = z_TE.masked_fill(gone_TE, float("-inf"))
        drawn_T = z_TE.gather(1, index_TK[:, k : k + 1]).squeeze(1)
        total_T = total_T + drawn_T - torch.logsumexp(left_TE, dim=1)
    return total_T


class Reference:
    """Token by token and draw by draw."""

    reads_logits = True

    def __init__(self, config: Any, weight: Tensor, bias: Tensor) -> None:
        self.topk, self.weight, self.bias = config.moe_router_topk, weight, bias

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        rows = []
        uniform = seen.draws.uniform(z_TE) if seen.training else None
        for t, z in enumerate(z_TE):
            noise = [0.0] * len(z)
            if uniform is not None:
                noise = [-float(torch.log(-torch.log(u))) for u in uniform[t]]
            order = sorted(range(len(z)), key=lambda e: -(float(z[e]) + noise[e]))
            rows.append(order[: self.topk])
        return torch.tensor(rows)

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> None:
        """As the scoring does."""


def rules(settings: Any) -> list[Problem]:
    check, name = Check(settings), "grove_router_selector"
    sentence = (
        "{mtp_num_layers} have losses of their own, which {grove_router_selector} would not learn "
        "from; remove one of them"
    )
    return [
        *check.finite("grove_reinforce_coeff", "1 is the gradient of the expected loss"),
        *check.finite("grove_reinforce_baseline_coeff", "0 learns none"),
        *check.those({sentence: bool(settings.mtp_num_layers)}),
        *selector_problems(settings, weighs=False),
        *carrying_problems(settings, name),
    ]


PARTS = (
    Part(
        slot="selector",
        name="reinforce",
        help="drawn in training, and taught by the loss of the token, less a learned baseline",
        source="arXiv 1511.06297, section 3; arXiv 2202.01169, section 3.3 (RL-R)",
        settings=Settings,
        formula="training:   e_TK = the K largest of z[t, i] - log(-log u[t, i])\n"
        "            u uniform in [0, 1)\n"
        "evaluation: e_TK = the K largest of z[t, i]\n"
        "d z: coeff (loss_T - B_T) d log pi(e_TK | z_TE), beside the gradient of the weights\n"
        "B_T = x_TH a_H + c, which learns to be loss_T",
        when="For experiments with choices that learn from what they led to, not from the "
        "weights alone. The gradient is unbiased for a token's own loss and of high "
        "variance, training draws its choice, and losses travel to every layer in four more "
        "columns beside the hidden states. Data-parallel ranks draw alike unless "
        "--data-parallel-random-init is given.",
        is_on=lambda s: s.grove_router_selector == "reinforce",
        build=lambda c: Policy(c.moe_router_topk, c.hidden_size, c),
        reference=Reference,
        rules=rules,
        needs=frozenset({"reward"}),
        draws=True,
        tried="--grove-router-selector reinforce",
        weights={"weight": ("1", "H"), "bias": ("1",)},
        free=("grove_reinforce_coeff", "grove_reinforce_baseline_coeff"),
    ),
)
