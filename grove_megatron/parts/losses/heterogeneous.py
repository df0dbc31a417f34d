"""The balance loss of MoE++, by which experts without an FFN are asked for less often or more."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from .. import registry
from ..part import Balance, Part


@dataclass
class Settings:
    """Balance of experts with and without an FFN."""

    grove_heterogeneous_loss_coeff: float = 0.0
    """Weight of a balance loss in which local experts count --grove-local-tau times (MoE++: 0.01).
    0: none."""

    grove_local_tau: float = 0.75
    """How much a local expert counts in --grove-heterogeneous-loss-coeff, and how many tokens one
    with an FFN takes of --moe-expert-capacity-factor for each of a local one. Below 1, tokens skip
    FFNs more often than if all experts were balanced."""


class HeterogeneousLoss:
    """beta * sum_i eta_i f_i P_i, f_i the tokens of expert i over all tokens, P_i its mean share.

    Balanced where f is as 1 / eta: the routed experts get tau N_F / (tau N_F + N_L) of the pairs.
    """

    name = "heterogeneous_load_balancing_loss"

    def __init__(self, local: int, tau: float, coefficient: float) -> None:
        self.local, self.tau, self.coefficient = local, tau, coefficient

    def __call__(self, balance: Balance) -> Tensor:
        load_E, tokens = balance.totals(balance.counted_TE.sum(0))
        eta_E = torch.ones_like(load_E)
        eta_E[len(eta_E) - self.local :] = self.tau
        # The mean over the tokens of all ranks is the sum of what each adds to it.
        share_E = balance.distribution_TE.sum(0) / tokens
        return self.coefficient * (eta_E * load_E / tokens * share_E).sum()


class Reference(HeterogeneousLoss):
    """Expert by expert."""

    def __call__(self, balance: Balance) -> Tensor:
        tokens, columns = int(balance.seen.tokens(balance.counted_TE)), balance.counted_TE.shape[1]
        total = balance.distribution_TE.new_zeros(())
        for i in range(columns):
            eta = 1.0 if i < columns - self.local else self.tau
            f = int(balance.counted_TE[:, i].sum()) / tokens
            total = total + eta * f * balance.distribution_TE[:, i].sum() / tokens
        return self.coefficient * total


def tau_rules(settings: Any, name: str) -> list[Problem]:
    """Of what reads --grove-local-tau."""
    check = Check(settings)
    sentence = (
        f"{{{name}}} is of experts with an FFN and without, --grove-zero-experts, "
        "--grove-copy-experts or --grove-constant-experts; give some, or remove it"
    )
    return [
        *check.finite("grove_local_tau", "0.75 is the paper's", above=True),
        *check.those({sentence: not registry.local_experts(settings)}),
    ]


def rules(settings: Any) -> list[Problem]:
    name = "grove_heterogeneous_loss_coeff"
    return [*Check(settings).finite(name, "0 is none"), *tau_rules(settings, name)]


def _of(kind: type[HeterogeneousLoss], config: Any) -> HeterogeneousLoss:
    local, tau = registry.local_experts(config), config.grove_local_tau
    return kind(local, tau, config.grove_heterogeneous_loss_coeff)


PARTS = (
    Part(
        slot="loss",
        name="heterogeneous",
        help="balance in which experts without an FFN count otherwise",
        source="arXiv 2410.07348",
        settings=Settings,
        switch="grove_heterogeneous_loss_coeff",
        formula="loss = coeff sum_i eta_i (counted_i / T) mean_t p[t, i]\n"
        "eta_i = 1 for an expert with an FFN, tau for one without",
        when="Beside experts without an FFN: tau says how many tokens one with an FFN is to have "
        "for each of one without. A small tau skips more FFNs and saves more; what that "
        "costs in quality has to be measured.",
        is_on=lambda s: bool(s.grove_heterogeneous_loss_coeff),
        build=lambda config: _of(HeterogeneousLoss, config),
        reference=lambda config: _of(Reference, config),
        rules=rules,
        tried="--grove-heterogeneous-loss-coeff 0.1 --grove-zero-experts 2",
        free=("grove_heterogeneous_loss_coeff", "grove_local_tau"),
    ),
)
