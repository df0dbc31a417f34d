"""Do the variants compute the same? No number is reported where they do not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from . import ranks

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Of the largest entry. bf16 is summed in another order, and stock sums slots in bf16."""


class DisagreementError(RuntimeError):
    """Two variants that must compute the same do not."""


def check_same(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Compare tensors by name, on all ranks; every rank must call.

    Returns:
        the worst difference, relative to the largest entry of each tensor.

    Raises:
        DisagreementError: it is past tolerance, or not a number.
    """
    worst, tolerance = 0.0, 0.0
    for name, expected in theirs.items():
        difference = (ours[name].float() - expected.float()).abs().max()
        size = expected.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        error = float(difference / size)
        # NaN compares false; make it the worst.
        worst = max(worst, error if error == error else float("inf"))
        tolerance = max(tolerance, TOLERANCE[expected.dtype])
    worst = ranks.largest(worst)
    if worst > tolerance:
        raise DisagreementError(
            f"{what}: worst difference ({worst:.1e}) is above tolerance ({tolerance:.0e}); "
            "nothing is reported"
        )
    return worst


def forward_backward(layer: MoELayer, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output, and the gradients of the input and of every parameter, by name."""
    x = x.detach().requires_grad_()
    layer.zero_grad(set_to_none=True)
    y, _ = layer(x)
    y.backward(grad)
    found = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad(set_to_none=True)
    return {"output": y.detach(), "gradient of the input": x.grad, **found}


def check_layers(layers: Mapping[str, MoELayer], x: Tensor, grad: Tensor) -> None:
    """naive must equal grove with every gradient; so must plain where adjugates give nothing."""
    grove = layers["grove"]
    if "naive" in layers:
        naive = forward_backward(layers["naive"], x, grad)
        check_same("grove beside naive", forward_backward(grove, x, grad), naive)
    if "plain" in layers:
        plain = forward_backward(layers["plain"], x, grad)
        with _zeroed({n: p for n, p in grove.named_parameters() if "adjugate" in n}):
            without = forward_backward(grove, x, grad)
        check_same("grove without adjugates beside plain", without, plain)
        if (ours := layers.get("grove-dispatch")) is not None:
            check_same("grove-dispatch beside plain", forward_backward(ours, x, grad), plain)


def check_repeats(what: str, layer: MoELayer, x: Tensor, grad: Tensor) -> None:
    """Two passes of one layer must give the same bits; every rank must call."""
    first, again = (forward_backward(layer, x, grad) for _ in range(2))
    different = [name for name in first if not same_bits(first[name], again[name])]
    if ranks.largest(len(different)):
        raise DisagreementError(
            f"{what}: two passes differ in ({', '.join(different) or 'another rank'}); "
            "nothing is reported"
        )


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Unlike ``==``, tells -0 from 0, and a NaN is equal to itself."""
    bits = (t.contiguous().view(-1).view(torch.uint8) for t in (x, y))
    return torch.equal(*bits)


@contextmanager
def _zeroed(parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """An adjugate of zeros has no output and passes no gradient on."""
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    yield
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
