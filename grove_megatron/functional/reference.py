"""The Grove layer as the paper writes it, one token at a time: the oracle, for reading.

Slow on purpose. Everything fast in this package is tested against these lines, with every
gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Expert = Callable[[Tensor], Tensor]


def swiglu(x: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    """``fc2 @ (silu(gate x) * (up x))`` with fc1 = [gate; up] of shape [2F, H], fc2 of [H, F]."""
    gate, up = (fc1 @ x).chunk(2)
    return fc2 @ (torch.nn.functional.silu(gate) * up)


def grove_layer(
    x_TH: Tensor,
    probs_TE: Tensor,
    routing_map_TE: Tensor,
    experts: Sequence[Expert],
    adjugates: Sequence[Expert],
    scale: float,
) -> Tensor:
    """arXiv 2508.07785, Eq. 3-5: y = sum_i w_i E_i(x) + scale * sum_j (sum_{i in G_j} w_i) A_j(x).

    Args:
        x_TH: [T, H] layer inputs.
        probs_TE: [T, E] combine weights.
        routing_map_TE: [T, E] bool, the selected experts; any number per token.
        experts: E callables [H] -> [H].
        adjugates: G callables [H] -> [H]; group j holds experts j*E/G .. (j+1)*E/G - 1. None of
            them in a plain MoE.
        scale: of the adjugate term.
    """
    outputs = []
    for x, probs, selected in zip(x_TH, probs_TE, routing_map_TE, strict=True):
        y = torch.zeros_like(x)
        chosen = selected.nonzero().flatten().tolist()
        for i in chosen:
            y = y + probs[i] * experts[i](x)
        for j, adjugate in enumerate(adjugates):
            weights = [probs[i] for i in chosen if i * len(adjugates) // len(experts) == j]
            if weights:
                y = y + scale * torch.stack(weights).sum() * adjugate(x)
        outputs.append(y)
    return torch.stack(outputs) if outputs else torch.zeros_like(x_TH)


def grove_routing(
    logits_TE: Tensor, topk: int, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Eq. 6, 9, 10 with the renormalisation of the released model.

    Select on sigmoid(z) + b, without gradient; weigh by the softmax over the selected logits.
    Ties go to the lowest index.

    Returns:
        probs_TE [T, E] in the dtype of the logits and routing_map_TE [T, E] bool.
    """
    probs_TE = torch.zeros_like(logits_TE)
    routing_map_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
    rows = []
    for t, logits in enumerate(logits_TE):
        score = torch.sigmoid(logits.detach())
        if bias_E is not None:
            score = score + bias_E
        order = sorted(range(len(logits)), key=lambda i: (-score[i].item(), i))
        chosen = torch.tensor(order[:topk])
        routing_map_TE[t, chosen] = True
        rows.append(torch.zeros_like(logits).scatter(0, chosen, torch.softmax(logits[chosen], 0)))
    return (torch.stack(rows) if rows else probs_TE), routing_map_TE
