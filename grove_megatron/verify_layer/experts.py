"""Expert modules of forms that Megatron's MLP does not have.

They stand where Megatron's SequentialMLP stands in the layer spec, and are called as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OneExpert = Callable[[], nn.Module]


class EachExpert(nn.Module):
    """This rank's experts, a module each: E_e(x) * weight, the biases weighed too.

    Args:
        one: makes an expert, rows [n, H] to rows [n, H].
        num_local_experts: on this rank.
        config: names the dtype and the device of the weights.
        others: what Megatron's builders are told beside that.
    """

    def __init__(self, one: OneExpert, num_local_experts: int, config: Any, **others: Any) -> None:
        super().__init__()
        self.local_experts = nn.ModuleList(one() for _ in range(num_local_experts))
        self.to(torch.cuda.current_device(), config.params_dtype)
        for parameter in self.parameters():
            # Megatron's mark of an expert's parameter.
            parameter.allreduce = False  # type: ignore[attr-defined]

    def forward(self, x: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """As Megatron's MoELayer calls experts.

        Args:
            x: [N, H], rows by expert.
            tokens_per_expert: [L] int64, their counts.
            probs: [N], the weight of every row.

        Returns:
            [N, H], and None for a bias.
        """
        parts = torch.split(x, tokens_per_expert.tolist())
        outputs = [expert(rows) for expert, rows in zip(self.local_experts, parts, strict=True)]
        return torch.cat(outputs) * probs.unsqueeze(1).to(x.dtype), None

    def backward_dw(self) -> None:
        """Nothing is delayed."""


class ReluExpert(nn.Module):
    """Hash layers: W2 relu(W1 x + b1) + b2 (ParlAI@a29567f hash_ladder.py:190-204)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden, width)
        self.linear2 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] -> [n, H]"""
        y: Tensor = self.linear2(F.relu(self.linear1(x)))
        return y


class GegluExpert(nn.Module):
    """ST-MoE: W2 (value * gelu(gate) * mult) + b2, with the value before the gate in W1 x + b1.

    st-moe-pytorch@d94e65d st_moe_pytorch.py, GEGLU and Expert; gelu by erf.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden, 2 * width)
        self.mult_bias = nn.Parameter(torch.ones(width))
        self.linear2 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] -> [n, H]"""
        value, gate = self.linear1(x).chunk(2, dim=-1)
        y: Tensor = self.linear2(value * F.gelu(gate) * self.mult_bias)
        return y


class SublayerExpert(nn.Module):
    """BASE: a stack of x + W2 relu(W1 LN(x) + b1) + b2 (fairseq@3d262bb base_layer.py:117-140).

    What it adds to x: the rest is the connection around the layer.
    """

    def __init__(self, hidden: int, width: int, sublayers: int, eps: float) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(_Sublayer(hidden, width, eps) for _ in range(sublayers))

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] -> [n, H], without the input."""
        added = torch.zeros_like(x)
        for sublayer in self.sublayers:
            added = added + sublayer(x + added)
        return added


class _Sublayer(nn.Module):
    def __init__(self, hidden: int, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.ff1 = nn.Linear(hidden, width)
        self.ff2 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ff2(F.relu(self.ff1(self.norm(x))))
        return y
