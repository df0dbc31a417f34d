"""On the ranks: a Grove layer whose experts are Megatron's TEGroupedMLP, beside one of our own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.multirank.grouped_linear import grouped_mlp
from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

HIDDEN, TOKENS = 16, 12
EP2 = {"expert_model_parallel_size": 2}
SIZE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 12,
    "grove_num_groups": 4,
    "grove_adjugate_ffn_hidden_size": 8,
    "grove_adjugate_scale": 0.3,
    "moe_shared_expert_intermediate_size": 4,
    "normalization": "RMSNorm",
    **EP2,
}


def _engine_layer(config: Any) -> torch.nn.Module:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec

    from grove_megatron.layer_spec import adapt_spec

    spec: Any = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts)
    spec = adapt_spec(spec, config)
    spec.keywords["submodules"].experts = grouped_mlp()
    layer: torch.nn.Module = spec(config=config)
    return layer


def _stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of GroupedExperts what TEGroupedMLP has numbered."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        head, _, index = name.rpartition("weight")
        if index.isdecimal():
            found.setdefault(f"{head}weight", []).append(tensor)
        else:
            found[name] = tensor
    return {n: torch.stack(t) if isinstance(t, list) else t for n, t in found.items()}


def _give(layer: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            head, _, index = name.rpartition("weight")
            value = weights[f"{head}weight"][int(index)] if index.isdecimal() else weights[name]
            parameter.copy_(value)


def _run(layer: Any, norm: Any, x: Tensor, through: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Two microbatches, so that delayed gradients can be mixed up."""
    layer.zero_grad(set_to_none=True)
    norm.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    found = {}
    for number, part in enumerate(x.split(TOKENS // 2)):
        y = through(layer, norm, part)
        found[f"y{number}"] = y.detach()
        y.square().sum().backward()
    # No layer may leave a weight without a gradient: DDP would wait for it.
    assert all(p.grad is not None for p in layer.parameters())
    grads = _stacked({n: p.grad for n, p in layer.named_parameters()})
    return {**found, "x": x.grad, "norm": norm.weight.grad, **grads}


def _plain(layer: Any, norm: Any, x: Tensor) -> Tensor:
    y: Tensor = layer(norm(x))[0]
    return y


def _recomputed_norm(layer: Any, norm: Any, x: Tensor) -> Tensor:
    """As TransformerLayer does with ``--recompute-modules layernorm`` (transformer_layer.py)."""
    from megatron.core.tensor_parallel import CheckpointWithoutOutput

    checkpoint = CheckpointWithoutOutput(fp8=None)
    h = checkpoint.checkpoint(norm, x)
    y: Tensor = layer(h)[0]
    checkpoint.discard_output_and_register_recompute(y)
    assert h.untyped_storage().size() == 0, "nothing was saved"
    return y


MOE_ACT = {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]}


def _with_a_word_on_fp8() -> None:
    """Megatron asks TransformerEngine whether FP8 is on before it recomputes an activation."""
    from contextlib import nullcontext

    from megatron.core.tensor_parallel import random

    class Off:
        @staticmethod
        def is_fp8_enabled() -> bool:
            return False

    if not random.HAVE_TE:
        random.FP8GlobalStateManager = Off
        random.activation_recompute_forward = random.fp8_autocast = lambda **_: nullcontext()


SWITCHES: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "plain": ({}, _plain),
    "moe_act": (MOE_ACT, _plain),
    "layernorm": ({}, _recomputed_norm),
    "delayed": ({"overlap_dispatch_backward_with_experts_wgrad": True}, _plain),
}


def computes(folder: str, switch: str, empty: bool) -> None:
    """Job: one layer with grouped experts of ours, one with TEGroupedMLP and the switch."""
    settings, through = SWITCHES[switch]
    with megatron(**EP2):
        _with_a_word_on_fp8()
        ours = moe_layer(grove_config(**SIZE))
        config = grove_config(**SIZE)
        for name, value in settings.items():
            # Megatron asks for TransformerEngine's version when it checks them.
            setattr(config, name, value)
        engine = _engine_layer(config)
        _give(engine, dict(ours.named_parameters()))
        norm = torch.nn.RMSNorm(HIDDEN)
        x = torch.randn(TOKENS, 1, HIDDEN, generator=torch.Generator().manual_seed(dist.get_rank()))
        if empty:
            # All tokens to the experts of the first group: the second rank gets none.
            for layer in (ours, engine):
                with torch.no_grad():
                    layer.router.weight.zero_()
                    layer.router.weight[:2] = torch.linspace(1, 2, 2).unsqueeze(1)
            x = x.abs() + 0.1
        expected = _run(ours, norm, x, _plain)
        found = _run(engine, norm, x, through)
        assert found.keys() == expected.keys()
        worst = {
            n: float((found[n] - t).abs().max() / t.abs().max().clamp_min(1e-12))
            for n, t in expected.items()
        }
        seen = {
            "worst": worst,
            "kinds": [type(e).__name__ for e in (engine.experts, engine.adjugate_experts)],
        }
        seen["rows"] = engine.token_dispatcher.work.segments.num_pairs
        write_result(folder, seen)


def order(folder: str) -> None:
    """Job: whose weight gradients ``backward_dw`` computes, in order."""
    with megatron(**EP2):
        layer: Any = moe_layer(grove_config(**SIZE))
        calls: list[str] = []
        for name in ("experts", "adjugate_experts", "shared_experts"):
            getattr(layer, name).backward_dw = lambda name=name: calls.append(name)
        layer.backward_dw()
        layer.backward_dw(routed_experts=False, shared_experts=True)
        layer.backward_dw(routed_experts=True, shared_experts=True)
        write_result(folder, calls)
