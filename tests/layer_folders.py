"""Folders with one layer, made here at any size: a plain MoE in a few slow lines of fp64 torch."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

MARGIN = 2e-3
"""Between the last selected probability and the next: fp32 selects the same."""


def write_qwen2_moe(
    folder: Path,
    *,
    hidden: int = 7,
    experts: int = 8,
    topk: int = 3,
    width: int = 5,
    shared_width: int = 9,
    tokens: int = 11,
    normalised: bool = False,
    seed: int = 1,
) -> Path:
    """A folder of Qwen2-MoE's form, which has everything: experts, a shared one with a gate.

    Args:
        folder: to write.
        hidden, experts, topk, width, shared_width, tokens: sizes.
        normalised: are the weights divided by their sum?
        seed: of all numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    random = partial(_random, generator)
    w = {"gate.weight": random(experts, hidden), "shared_expert_gate.weight": random(1, hidden)}
    widths = {f"experts.{e}": width for e in range(experts)} | {"shared_expert": shared_width}
    for name, f in widths.items():
        w[f"{name}.gate_proj.weight"] = random(f, hidden)
        w[f"{name}.up_proj.weight"] = random(f, hidden)
        w[f"{name}.down_proj.weight"] = random(hidden, f)
    x = _clear_rows(w["gate.weight"], tokens, topk, generator).requires_grad_()
    r = random(tokens, hidden).detach()
    logits = x @ w["gate.weight"].T
    p = logits.softmax(-1)
    chosen = torch.zeros_like(p).scatter(1, p.topk(topk).indices, 1.0)
    weights = p * chosen
    if normalised:
        weights = weights / weights.sum(-1, keepdim=True)

    def mlp(name: str) -> Tensor:
        gate, up, down = (w[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    y = sum(weights[:, e, None] * mlp(f"experts.{e}") for e in range(experts))
    y = y + torch.sigmoid(x @ w["shared_expert_gate.weight"].T) * mlp("shared_expert")
    balance = experts / (topk * tokens) * (chosen.sum(0) * p.mean(0)).sum()
    losses = {"switch_aux": balance, "hf_aux": topk * balance}
    losses["z"] = logits.logsumexp(-1).square().mean()
    config = {
        "system": "qwen2_moe",
        "hidden_size": hidden,
        "num_tokens": tokens,
        "num_experts": experts,
        "top_k": topk,
        "expert_intermediate_size": width,
        "shared_expert_intermediate_size": shared_width,
        "norm_topk_prob": normalised,
    }
    others = {"r": r, "y": y, "routing_map": chosen.to(torch.uint8)}
    return _write(folder, config, {"x": x} | _weights(w), others, losses)


def write_noisy_topk(
    folder: Path,
    *,
    hidden: int = 7,
    experts: int = 8,
    topk: int = 3,
    width: int = 5,
    tokens: int = 11,
    seed: int = 1,
) -> Path:
    """A folder of noisy top-k gating (arXiv 1701.06538, Eq. 3-11), expert by expert.

    Args:
        folder: to write.
        hidden, experts, topk, width, tokens: sizes.
        seed: of all numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    random = partial(_random, generator)
    w = {"router.weight": random(experts, hidden)}
    w["router.logits_noise.weight"] = random(experts, hidden)
    for e in range(experts):
        w[f"experts.{e}.linear_fc1.weight"] = random(2 * width, hidden)
        w[f"experts.{e}.linear_fc2.weight"] = random(hidden, width)
    gate, noise = w["router.weight"], w["router.logits_noise.weight"]
    rows = 2 * torch.randn(40 * tokens, hidden, generator=generator).double()
    normal = torch.randn(40 * tokens, experts, generator=generator).double()
    with torch.no_grad():
        noisy = rows @ gate.T + normal * F.softplus(rows @ noise.T)
        best = noisy.sort(descending=True).values
        clear = (best[:, :-1] - best[:, 1:]).amin(1) > MARGIN
    x, normal = rows[clear][:tokens].clone().requires_grad_(), normal[clear][:tokens]
    assert len(x) == tokens
    r = random(tokens, hidden).detach()
    mean, deviation = x @ gate.T, F.softplus(x @ noise.T)
    h = mean + normal * deviation
    chosen = torch.zeros_like(h).scatter(1, h.topk(topk).indices, 1.0)
    weights = h.masked_fill(chosen == 0, float("-inf")).softmax(-1)

    def mlp(e: int) -> Tensor:
        up, gated = (x @ w[f"experts.{e}.linear_fc1.weight"].T).chunk(2, dim=-1)
        return (F.silu(up) * gated) @ w[f"experts.{e}.linear_fc2.weight"].T

    y = sum(weights[:, e, None] * mlp(e) for e in range(experts))
    load = []
    for e in range(experts):
        others = torch.cat([h[:, :e], h[:, e + 1 :]], dim=1)
        threshold = others.topk(topk).values[:, -1]
        distance = (mean[:, e] - threshold) / deviation[:, e]
        load.append(torch.distributions.Normal(0.0, 1.0).cdf(distance).sum())
    losses = {"importance": weights.sum(0), "load": torch.stack(load)}
    losses = {name: (s.std(correction=0) / s.mean()) ** 2 for name, s in losses.items()}
    config = {
        "system": "grove_megatron",
        "source": "arXiv 1701.06538, written out in tests/layer_folders.py",
        "hidden_size": hidden,
        "num_tokens": tokens,
        "flags": f"--num-experts {experts} --moe-router-topk {topk} --swiglu "
        f"--moe-ffn-hidden-size {width} --grove-noisy-topk",
        "draws": "normal",
        "weights": {name: list(weight.shape) for name, weight in w.items()},
        "losses": {
            name: {
                "metric": f"{name}_loss",
                "coefficient": 1.0,
                "fields": {f"grove_{name}_loss_coeff": 1.0},
            }
            for name in losses
        },
    }
    others = {"r": r, "y": y, "routing_map": chosen.to(torch.uint8), "normal": normal}
    return _write(folder, config, {"x": x} | _weights(w), others, losses)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers that fp32 has too."""
    values = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
    return values.double().requires_grad_()


def _weights(w: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"w.{name}": weight for name, weight in w.items()}


def _write(
    folder: Path,
    config: dict[str, Any],
    leaves: dict[str, Tensor],
    others: dict[str, Tensor],
    losses: dict[str, Tensor],
) -> Path:
    """With the gradients of sum(y * r), and of every loss alone."""
    tensors = leaves | others | _gradients("grad", (others["y"] * others["r"]).sum(), leaves)
    for name, loss in losses.items():
        tensors |= {f"loss.{name}": loss.reshape(1)} | _gradients(f"grad_{name}", loss, leaves)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "layer.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def _clear_rows(gate: Tensor, tokens: int, topk: int, generator: torch.Generator) -> Tensor:
    """Rows whose last selected expert is ahead of the next by more than rounding."""
    rows = 2 * torch.randn(20 * tokens, gate.shape[1], generator=generator).double()
    best = (rows @ gate.detach().T).softmax(-1).sort(descending=True).values
    clear = rows[best[:, topk - 1] - best[:, topk] > MARGIN] if topk < len(gate) else rows
    assert len(clear) >= tokens
    return clear[:tokens].clone()


def _gradients(kind: str, loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one loss alone; what it does not reach has none."""
    grads = torch.autograd.grad(loss, [*leaves.values()], retain_graph=True, allow_unused=True)
    found = zip(leaves, grads, strict=True)
    return {f"{kind}.{name}": grad for name, grad in found if grad is not None}
