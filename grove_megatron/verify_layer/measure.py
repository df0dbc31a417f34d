"""One pass of the layer, forward and backward, over the tokens of all ranks."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import GroveTransformerConfig
from ..parts.part import Draws
from .golden import INPUT, Golden
from .local_parts import local_parts
from .one_layer import Layers, as_dtype, build_layers
from .spread import Spread
from .system import Loss


@dataclass(frozen=True)
class Measured:
    """What a pass gave, the same on every rank, in fp64.

    Attributes:
        y: output [T, H].
        routing_map: [T, E] bool.
        grads: by name, those of the folder's weights and "x"; without what no parameter has.
        loss: the loss that was asked for, None without one.
    """

    y: Tensor
    routing_map: Tensor
    grads: dict[str, Tensor]
    loss: float | None


def measure(
    golden: Golden, config: GroveTransformerConfig, dtype: str, loss: Loss | None = None
) -> Measured:
    """Run the layer; every rank of the job calls this.

    Args:
        golden: inputs and weights.
        config: of the layer, without losses.
        dtype: of weights and tokens.
        loss: backward of this loss alone, and not of sum(y * r).
    """
    from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    spread = Spread(
        golden.settings.batch, golden.settings.sequence, dist.get_rank(), dist.get_world_size()
    )
    layers = build_layers(golden, config if loss is None else replace(config, **loss.fields))
    if loss is not None and loss.own is not None:
        for layer in layers:
            layer.router.losses.append(loss.own)
    routing_map = _keep_routing(layers)
    if golden.system.draws is not None:
        numbers = golden.extras[golden.system.draws].reshape(len(golden.x), -1)
        layers[0].router.draws = _Given(as_dtype(spread.local(numbers), dtype))
    destroy_moe_metrics_tracker()
    # As Megatron's schedule sets it for a loss that is not scaled.
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1, device=torch.cuda.current_device()))
    x = as_dtype(spread.local(golden.x), dtype).requires_grad_()
    padding = spread.padding
    ids = None
    if golden.system.ids is not None:
        numbers = golden.extras[golden.system.ids].unsqueeze(1)
        ids = spread.local(numbers).squeeze(-1).to(x.device)
    y = layers(x, None if padding is None else padding.to(x.device), ids)
    r = spread.local(golden.r) if loss is None else torch.zeros(y.shape)
    y.backward(as_dtype(r, dtype))
    assert x.grad is not None
    routed = spread.whole(routing_map().reshape(spread.length, spread.batch, -1))
    return Measured(
        y=spread.whole(y).cpu(),
        routing_map=routed.cpu().bool(),
        grads=_gradients(golden, layers) | {INPUT: spread.whole(x.grad).cpu()},
        loss=None if loss is None else _value(loss),
    )


class _Given(Draws):
    """The folder's numbers in place of random ones."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def uniform(self, like: Tensor) -> Tensor:
        """[T, 1]: of the second expert of every token."""
        return self.numbers.reshape(like.shape).to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """[T, E]"""
        return self.numbers.reshape(like.shape).to(like.dtype)


def _keep_routing(layers: Layers) -> Callable[[], Tensor]:
    """[T, E] of every layer, side by side."""
    kept: list[Tensor] = []
    for layer in layers:
        layer.router.register_forward_hook(lambda _, __, routed: kept.append(routed[1]))
    return lambda: torch.cat(kept, dim=1)


def _gradients(golden: Golden, layers: Layers) -> dict[str, Tensor]:
    """Of the folder's weights: summed over ranks, each of which has those of its tokens.

    An expert's are on the ranks that hold it, and zero elsewhere.
    """
    device = torch.cuda.current_device()
    # The gradients, and how many ranks had any.
    flat = torch.zeros(2, golden.layout.size, dtype=torch.float64, device=device)
    for part in local_parts(layers):
        if part.grad is not None:
            places = golden.layout.entries[part.name].to(device)
            flat[0, places] = part.grad.double()
            flat[1, places] = 1
    dist.all_reduce(flat)
    grads, ranks = (golden.layout.named(of_all) for of_all in flat.cpu())
    return {name: grad for name, grad in grads.items() if bool((ranks[name] > 0).all())}


def _value(loss: Loss) -> float:
    """As Megatron logs it, with the coefficient."""
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    entry = get_moe_metrics_tracker().metrics[loss.metric]
    value = entry.values.double()
    if entry.reduce_group is not None:
        dist.all_reduce(value, group=entry.reduce_group)
    if entry.avg_group is not None:
        dist.all_reduce(value, group=entry.avg_group)
        value /= entry.avg_group.size()
    return float(value.sum()) * loss.coefficient
