"""Layers on one GPU, their weights under the same names however they are stored, and an oracle."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.multirank.on_ranks import grove_config

FC = ("linear_fc1", "linear_fc2")
KINDS = ("experts", "adjugate_experts")
SCALE = 0.4
# Small, with more experts than tokens keep busy; every width is one that all kernels take.
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_moe_experts": 16,
    "moe_ffn_hidden_size": 48,
    "moe_router_topk": 3,
    "grove_num_groups": 8,
    "grove_adjugate_ffn_hidden_size": 16,
    "grove_adjugate_scale": SCALE,
}
TOKENS = 37


@contextmanager
def one_rank(store: dist.Store) -> Iterator[None]:
    """Megatron's groups and seeded random streams of a job of one rank."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(7)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def grove_layer_of(dtype: torch.dtype, kernel: str = "auto", **settings: Any) -> torch.nn.Module:
    """A Grove layer on the GPU as a model would have it, with experts of any implementation."""
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec

    from grove_megatron.layer_spec import adapt_spec

    config = grove_config(
        **(SMALL | settings),
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        grove_kernel=kernel,
    )
    engine = config.transformer_impl == "transformer_engine"
    spec: Any = get_moe_module_spec(
        use_te=engine, num_experts=config.num_moe_experts, moe_grouped_gemm=engine
    )
    assert isinstance(spec, partial)
    # Megatron leaves the router's weight on the CPU until it is first used.
    return adapt_spec(spec, config)(config=config).cuda()


def weights(layer: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all weights; those of experts stacked, [experts, out, in]."""
    return {
        name: _stacked([p.detach() for p in parameters]).clone()
        for name, parameters in _parameters(layer).items()
    }


def gradients(layer: torch.nn.Module, *, router: bool = True) -> dict[str, Tensor]:
    """The gradients of all weights; every weight must have one."""
    found = {}
    for name, parameters in _parameters(layer).items():
        if name == "router.weight" and not router:
            continue
        assert all(p.grad is not None for p in parameters), f"{name} has no gradient"
        found[name] = _stacked([p.grad for p in parameters])
    return found


def load(layer: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a layer of any implementation the weights that :func:`weights` has copied."""
    for name, parameters in _parameters(layer).items():
        whole = _stacked([p.detach() for p in parameters])
        assert whole.shape == tensors[name].shape, name
        values = [tensors[name]] if len(parameters) == 1 else list(tensors[name])
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value.reshape(parameter.shape))


def _parameters(layer: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    found = {"router.weight": [layer.router.weight]}
    for kind in KINDS:
        for fc in FC:
            found[f"{kind}.{fc}"] = _of_experts(getattr(layer, kind), fc)
    count = sum(len(parameters) for parameters in found.values())
    assert count == len(list(layer.parameters())), "a parameter is not looked at"
    return found


def _of_experts(experts: torch.nn.Module, fc: str) -> list[torch.nn.Parameter]:
    if hasattr(experts, "local_experts"):  # SequentialMLP
        return [getattr(mlp, fc).weight for mlp in experts.local_experts]
    linear = getattr(experts, fc)
    if hasattr(linear, "weight0"):  # TEGroupedMLP
        return [getattr(linear, f"weight{i}") for i in range(experts.num_local_experts)]
    return [linear.weight]  # GroupedExperts


def _stacked(tensors: list[Tensor]) -> Tensor:
    """One [E, out, in] tensor of one that is that already, or of E; the router's is [E, in]."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def tokens(number: int, hidden: int, dtype: torch.dtype, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs [number, 1, hidden] of a layer, and what comes back to its outputs."""
    generator = torch.Generator().manual_seed(seed)
    shape = (number, 1, hidden)
    x, upstream = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x.cuda(), upstream.cuda()


def run(layer: torch.nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Output, the gradient of the input, and those of all weights."""
    layer.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    y, bias = layer(x)
    assert bias is None
    y.backward(upstream)
    return {"y": y.detach(), "x": x.grad, **gradients(layer)}


def run_routed(
    layer: torch.nn.Module, x: Tensor, upstream: Tensor, probs: Tensor, chosen: Tensor
) -> dict[str, Tensor]:
    """The same by its stages, without the router, whose weights and selection [T, E] are given."""
    layer.zero_grad(set_to_none=True)
    x, probs = x.clone().requires_grad_(), probs.clone().requires_grad_()
    rows, packed = layer.preprocess(x, probs, chosen)
    output, _ = layer.routed_experts_compute(*layer.dispatch(rows, packed))
    y = layer.postprocess(layer.combine(output), None)
    y.backward(upstream)
    grads = gradients(layer, router=False)
    return {"y": y.detach(), "x": x.grad, "probs": probs.grad, **grads}


def by_the_paper(layer: torch.nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """What :func:`run` has to give: the reference of this package on the CPU, in fp64."""
    from grove_megatron.functional.reference import grove_layer, grove_routing, swiglu

    leaves = {n: _exactly(w) for n, w in weights(layer).items()}
    x = _exactly(x)
    rows = x[:, 0]
    logits = rows @ leaves["router.weight"].T
    probs, chosen = grove_routing(logits, layer.config.moe_router_topk)
    of_kind = {
        kind: [
            partial(swiglu, fc1=fc1, fc2=fc2)
            for fc1, fc2 in zip(*(leaves[f"{kind}.{fc}"] for fc in FC), strict=True)
        ]
        for kind in KINDS
    }
    scale = layer.config.grove_adjugate_scale
    y = grove_layer(rows, probs, chosen, of_kind["experts"], of_kind["adjugate_experts"], scale)
    y.backward(upstream[:, 0].cpu().double())
    grads = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in leaves.items()}
    return {"y": y.detach().unsqueeze(1), "x": x.grad, **grads}


def _exactly(tensor: Tensor) -> Tensor:
    """A leaf in fp64 on the CPU, never the tensor itself."""
    return tensor.detach().cpu().double().clone().requires_grad_()


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far every tensor is off, relative to its norm."""
    assert found.keys() == expected.keys()
    off = {}
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].isfinite().all(), name
        exact = tensor.to(found[name].device, torch.float64)
        norm = float(exact.norm())
        assert norm > 0, f"{name} says nothing"
        off[name] = float((found[name].double() - exact).norm()) / norm
    return off


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    off = errors(found, expected)
    assert max(off.values()) <= tolerance, {n: f"{e:.2g}" for n, e in off.items()}
