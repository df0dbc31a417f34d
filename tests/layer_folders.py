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


def write_moepp(
    folder: Path,
    *,
    hidden: int = 7,
    experts: int = 8,
    topk: int = 2,
    width: int = 5,
    tokens: int = 11,
    tau: float = 0.6,
    scaled: bool = True,
    constant: int = 2,
    copy: int = 1,
    zero: int = 1,
    seed: int = 1,
) -> Path:
    """A folder of MoE++'s form (two layers, linear gates), token by token and expert by expert.

    Args:
        folder: to write.
        hidden, topk, width, tokens: sizes.
        experts: with an FFN.
        constant, copy, zero: those behind them, in this order.
        tau: of the balance loss.
        scaled: experts see their input times ``topk``.
        seed: of all numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    random, columns = partial(_random, generator), experts + constant + copy + zero
    w: dict[str, Tensor] = {}
    for layer in ("layers.0.moe.", "layers.1.moe."):
        w[f"{layer}gate.wg.weight"] = random(columns, hidden)
        w[f"{layer}gate.gate_map.weight"] = random(columns, columns)
        for e in range(experts):
            w[f"{layer}experts.experts.{e}.up_proj.weight"] = random(2 * width, hidden)
            w[f"{layer}experts.experts.{e}.down_proj.weight"] = random(hidden, width)
        for e in range(experts, experts + constant):
            w[f"{layer}experts.experts.{e}.wg.weight"] = random(2, hidden)
            w[f"{layer}experts.experts.{e}.constant"] = random(hidden)

    def logits(rows: Tensor, layer: int, before: Tensor | None) -> Tensor:
        gate = f"layers.{layer}.moe.gate."
        own = rows @ w[f"{gate}wg.weight"].T
        return own if before is None else own + before @ w[f"{gate}gate_map.weight"].T

    rows = 2 * torch.randn(2, 60 * tokens, hidden, generator=generator).double()
    with torch.no_grad():
        first = logits(rows[0], 0, None)
        both = torch.stack([first, logits(rows[1], 1, first)]).softmax(-1)
        best = both.sort(descending=True).values
        clear = (best[..., :-1] - best[..., 1:])[..., :topk].amin(-1).amin(0) > MARGIN
    x1, x2 = (x[clear][:tokens].clone().requires_grad_() for x in rows)
    assert len(x1) == tokens

    def expert(layer: int, e: int, x: Tensor) -> Tensor:
        name = f"layers.{layer}.moe.experts.experts.{e}."
        if e < experts:
            up, gated = (w[f"{name}up_proj.weight"] @ x).chunk(2)
            return w[f"{name}down_proj.weight"] @ (F.silu(up) * gated)
        if e < experts + constant:
            one, two = (w[f"{name}wg.weight"] @ x).softmax(-1)
            return one * x + two * w[f"{name}constant"]
        return x if e < columns - zero else 0 * x

    tensors: dict[str, Tensor] = {}
    total, balance, before = torch.zeros(()).double(), torch.zeros(()).double(), None
    for layer, x in enumerate((x1, x2)):
        n, before = layer + 1, logits(x, layer, before)
        p = before.softmax(-1)
        chosen = p.topk(topk).indices
        y, tokens_of = [], torch.zeros(columns).double()
        for t, picked in enumerate(chosen.tolist()):
            kept = [e for e in picked if e < columns - zero]
            share = sum(p[t, e] for e in kept)
            own = x[t] * (topk if scaled else 1)
            y.append(sum((p[t, e] / share * expert(layer, e, own) for e in kept), 0 * own))
            tokens_of[picked] += 1
        r = random(tokens, hidden).detach()
        tensors |= {f"r{n}": r, f"y{n}": torch.stack(y), f"topk_idx{n}": chosen.double()}
        tensors |= {f"routing_weights{n}": p.detach()}
        eta = torch.ones(columns).double()
        eta[experts:] = tau
        tensors[f"loss.paper_lb{n}"] = (eta * tokens_of / tokens * p.mean(0)).sum().reshape(1)
        total = total + (tensors[f"y{n}"] * r).sum()
        balance = balance + tensors[f"loss.paper_lb{n}"].sum()
    leaves = {"x1": x1, "x2": x2} | _weights(w)
    tensors |= leaves | _gradients("grad", total, leaves) | _gradients("grad_lb", balance, leaves)
    flags = {
        "moe_use_mixtral_gating": False,
        "moe_2layer_gate": False,
        "moe_use_logits_norm": False,
        "moe_feature_no_mul_topk": not scaled,
    }
    config = {
        "system": "moepp",
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_tokens": tokens,
        "num_experts": columns,
        "num_ffn_experts": experts,
        "num_constant_experts": constant,
        "num_copy_experts": copy,
        "num_zero_experts": zero,
        "top_k": topk,
        "num_layers": 2,
        "tau_for_paper_lb": tau,
        "variants": {"layer.safetensors (=default)": {"flags": flags}},
    }
    return _store(folder, config, tensors)


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
    return _store(folder, config, tensors)


def _store(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
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
