"""MoE++: experts with an FFN, constant, copy and zero experts, and a gating residual; two layers.

SkyworkAI/MoE-plus-plus@7f43967 MoE++/moe_plus_plus_layer.py; arXiv 2410.07348 (variant paper).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...checks.flags import words_of
from ...model.families.moe_plus_plus import LOCAL, settings_of
from ...parts.gate.two_layer import GATE_UNITS
from ...parts.losses.heterogeneous import HeterogeneousLoss
from ...parts.part import Balance
from ..layout import Take
from ..pieces import swiglu_flags
from ..settings import Settings
from ..system import Loss, System

NAMES = ("moepp", "moe++")
# Constants of the authors' module, in the order of the columns, which a folder may say otherwise.
_LOCAL = {name.replace("grove", "num"): count for name, count in LOCAL.items()}
_JOINED = ("x", "r", "y", "grad.x", "grad_lb.x")
_LAYERS = 2


def system(settings: Settings) -> System:
    hidden, width = settings.size("hidden_size"), settings.size("intermediate_size")
    routed, columns = settings.size("num_ffn_experts"), settings.size("num_experts")
    constant, copied, zero = (settings.count(key, default) for key, default in _LOCAL.items())
    local = constant + copied + zero
    if columns != routed + local:
        settings.problems.append(
            f"num_experts ({columns}) of config.json is not num_ffn_experts ({routed}) and {local}"
        )
    settings.choice("num_layers", _LAYERS)
    flags, two_layers = _flags(settings, zero)

    def parameters(take: Take) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for layer in range(_LAYERS):
            ours, theirs = f"layers.{layer}.", f"layers.{layer}.moe."
            gate = f"{ours}router.gate_two_layer."
            if two_layers:
                units = GATE_UNITS * columns
                found[f"{gate}first"] = take(f"{theirs}gate.wg.0.weight", units, hidden)
                found[f"{gate}second"] = take(f"{theirs}gate.wg.2.weight", columns, units)
            else:
                weight = take(f"{theirs}gate.wg.weight", columns, hidden)
                found[f"{ours}router.weight"] = weight
            residual = f"{ours}router.logits_residual.weight"
            found[residual] = take(f"{theirs}gate.gate_map.weight", columns, columns)
            for e in range(routed):
                expert, name = f"{ours}experts.{e}.", f"{theirs}experts.experts.{e}."
                up = take(f"{name}up_proj.weight", 2 * width, hidden)
                found[f"{expert}linear_fc1.weight"] = up
                down = take(f"{name}down_proj.weight", hidden, width)
                found[f"{expert}linear_fc2.weight"] = down
            names = [f"{theirs}experts.experts.{routed + c}." for c in range(constant)]
            if names:
                local_constant = f"{ours}router.local_constant."
                blends = [take(f"{name}wg.weight", 2, hidden) for name in names]
                found[f"{local_constant}weight"] = torch.cat(blends)
                vectors = [take(f"{name}constant", hidden) for name in names]
                found[f"{local_constant}vector"] = torch.stack(vectors)
        return found

    loss = OfRawLogits(local, settings.number("tau_for_paper_lb"), 1.0)
    per_layer = ("logits", "norm_logits", "routing_weights", "topk_idx")
    return System(
        flags=[
            *("--num-experts", str(routed), *swiglu_flags(width), *flags),
            *("--moe-router-topk", str(settings.size("top_k"))),
            *("--grove-constant-experts", str(constant), "--grove-copy-experts", str(copied)),
            *("--grove-zero-experts", str(zero)),
        ],
        parameters=parameters,
        layers=_LAYERS,
        columns=columns,
        prepare=_joined,
        losses={"lb": Loss(loss.name, 1.0, own=loss)},
        extras=frozenset(f"{name}{n}" for name in per_layer for n in (1, 2)),
        needs_extras=frozenset(("routing_weights1", "topk_idx1", "routing_weights2", "topk_idx2")),
        routing=lambda extras: torch.cat([_selected(extras, n, columns) for n in (1, 2)], dim=1),
    )


class OfRawLogits(HeterogeneousLoss):
    """The paper's balance loss, of the logits as they are handed on."""

    def __call__(self, balance: Balance) -> Tensor:
        distribution_TE = torch.softmax(balance.logits.before, dim=-1)
        own = replace(balance, distribution_TE=balance.seen.without_padding(distribution_TE))
        return super().__call__(own)


def _flags(settings: Settings, zero: int) -> tuple[list[str], bool]:
    """Of the variant, and has its gate two layers?"""
    file = "layer.safetensors (=default)"
    if settings.variant != "default":
        file = f"layer.{settings.variant}.safetensors"
    own = settings.inside("variants").inside(file).inside("flags")
    if settings.variant == "paper":
        own.choice("gate", "linear")
        own.choice("input_scale", 1)
        return ["--moe-router-pre-softmax", "--grove-gating-residual"], False
    two_layers = own.choice("moe_2layer_gate", True, False)
    normed = own.choice("moe_use_logits_norm", True, False)
    asked = settings_of(
        mixtral_gating=bool(own.choice("moe_use_mixtral_gating", True, False)),
        two_layer_gate=bool(two_layers),
        norm_std=own.number("moe_gate_norm_std") if normed else None,
        multiplied=not own.choice("moe_feature_no_mul_topk", True, False),
    )
    if not zero:
        # There is nothing to give to the others, and softmax over the selected is it.
        asked.pop("grove_zero_expert_weight", None)
    return words_of(asked), bool(two_layers)


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both layers' rows side by side, and their losses added, of which there is one gradient."""
    tensors = dict(tensors)
    for name in _JOINED:
        both = [tensors.pop(f"{name}{n}") for n in (1, 2) if f"{name}{n}" in tensors]
        if len(both) == _LAYERS and both[0].shape == both[1].shape:
            tensors[name] = torch.cat(both, dim=1)
    losses = [tensors.pop(f"loss.paper_lb{n}") for n in (1, 2) if f"loss.paper_lb{n}" in tensors]
    if len(losses) == _LAYERS:
        tensors["loss.lb"] = sum(losses[1:], losses[0])
    return tensors


def _selected(extras: Mapping[str, Tensor], layer: int, columns: int) -> Tensor:
    index_TK = extras[f"topk_idx{layer}"].long()
    nowhere = torch.zeros(len(index_TK), columns, dtype=torch.bool)
    return nowhere.scatter(1, index_TK, True)
