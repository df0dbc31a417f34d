"""The attention router of Yuan 2.0-M32: experts attend to each other before one is chosen."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...functional.expert_attention import expert_attention
from ..part import Part
from .two_layer import Settings


class AttentionGate(torch.nn.Module):
    """z_i = sum_j softmax_j(q_i k_j) v_j, where q, k, v [E] are the rows of W x; W [3E, H].

    The product with W is in the dtype of the tokens and what follows in fp32, as in the authors'
    code, whose --use-fp32-router is of the attention alone (Yuan2.0-M32@b403a2b router.py:260-291).
    Without --moe-router-dtype it is in fp32, too.
    """

    def __init__(self, columns: int, hidden_size: int, config: Any) -> None:
        super().__init__()
        kind = {"dtype": config.params_dtype}
        self.weight = torch.nn.Parameter(torch.empty(3 * columns, hidden_size, **kind))
        if config.perform_initialization:
            config.init_method(self.weight)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits [..., E] of tokens [..., H], in ``dtype``."""
        rows = F.linear(x, self.weight.to(x.dtype))
        wide = torch.promote_types(torch.promote_types(dtype, x.dtype), torch.float32)
        query, key, value = rows.to(wide).reshape(-1, rows.shape[-1]).chunk(3, dim=-1)
        return expert_attention(query, key, value).to(dtype).reshape(*x.shape[:-1], -1)


def reference(config: Any, weight: Tensor) -> Any:
    """Token by token and expert by expert."""

    def step(x: Tensor, dtype: torch.dtype) -> Tensor:
        rows = []
        for token in x.reshape(-1, x.shape[-1]):
            query, key, value = (weight @ token).chunk(3)
            logits = [(torch.softmax(q * key, dim=0) * value).sum() for q in query]
            rows.append(torch.stack(logits))
        return torch.stack(rows).reshape(*x.shape[:-1], -1)

    return step


PARTS = (
    Part(
        slot="gate",
        name="attention",
        help="logits by attention of the experts to each other",
        source="arXiv 2405.17976, section 2.1; IEIT-Yuan/Yuan2.0-M32@b403a2b router.py",
        settings=Settings,
        switch="grove_router_gate",
        formula="q_TE, k_TE, v_TE = the three blocks of x_TH W_YH^T, Y = 3 E\n"
        "z[t, i] = sum_j softmax_j(q[t, i] k[t, j]) v[t, j]",
        when="To train or load a model such as Yuan 2.0-M32, whose experts are chosen by how "
        "they relate to each other. It has three times the weights of one matrix, and E^2 "
        "products and exponentials a token in fp32, made again in the backward pass.",
        is_on=lambda s: s.grove_router_gate == "attention",
        build=lambda c: AttentionGate(c.num_moe_experts, c.hidden_size, c),
        reference=reference,
        tried="--grove-router-gate attention",
        weights={"weight": ("Y", "H")},
    ),
)
