"""``grove bench dispatch``: Megatron's all-to-all beside ours, with experts that do nothing.

The same span on all sides: from [T, H], probabilities and routing map to rows sorted by local
expert, and back to [T, H], forward and backward.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import batched, chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import ranks
from .agreement import check_same
from .dispatch_findings import Traffic, findings
from .harness import Subject, cuda_clock, interleave, wall_clock
from .report import Findings
from .routing import uniform_routing
from .shape import Settings, Shape
from .traffic import Collectives
from .variants import DTYPES, hierarchical_layer, layers

# Experts are built and never run.
_TINY = 8


@dataclass(frozen=True)
class Inputs:
    """hidden [T, 1, H] and probs [T, E] fp32 with gradients; map [T, E] bool; grad [T, 1, H]."""

    hidden: Tensor
    probs: Tensor
    routing_map: Tensor
    grad: Tensor


def inputs(shape: Shape, seed: int) -> Inputs:
    """Random tokens with uniformly random experts; take another seed on every rank."""
    generator = torch.Generator().manual_seed(seed)
    device, dtype = torch.cuda.current_device(), DTYPES[shape.dtype]
    hidden, grad = torch.randn(2, shape.tokens, 1, shape.hidden, generator=generator)
    probs, routing_map = uniform_routing(shape.tokens, shape.experts, shape.topk, generator)
    return Inputs(
        hidden.to(device, dtype).requires_grad_(),
        probs.to(device).requires_grad_(),
        routing_map.to(device),
        grad.to(device, dtype),
    )


def there_and_back(dispatcher: Any, given: Inputs) -> dict[str, Tensor]:
    """All six stages around experts that return their rows as they came, and the gradients.

    The weights do not reach the output then, so they get a gradient of their own: the first
    element of their row, which is the same number however a dispatcher orders its rows.
    """
    rows, weights = dispatcher.dispatch_preprocess(given.hidden, given.routing_map, given.probs)
    rows, weights = dispatcher.token_dispatch(rows, weights)
    x_NH, _, probs_N = dispatcher.dispatch_postprocess(rows, weights)
    rows = dispatcher.combine_preprocess(x_NH)
    rows = dispatcher.token_combine(rows)
    y = dispatcher.combine_postprocess(rows)
    leaves = (given.hidden, given.probs)
    weight_grad = x_NH.detach()[:, 0].to(probs_N.dtype)
    hidden_grad, probs_grad = torch.autograd.grad((y, probs_N), leaves, (given.grad, weight_grad))
    return {
        "output": y.detach(),
        "gradient of hidden": hidden_grad,
        "gradient of probs": probs_grad,
    }


def count(dispatcher: Any, given: Inputs, ranks_per_node: int | None) -> Traffic:
    """Count what one pass sends; every rank must call."""
    row_bytes = given.hidden.shape[-1] * given.hidden.element_size()
    with Collectives(row_bytes) as seen:
        there_and_back(dispatcher, given)
    hops = seen.hops
    if dist.get_world_size() > 1:
        assert hops, f"nothing crossed: {seen.sent}"
    assert all(len(hop) == 4 for hop in hops), f"there and back, twice, in every hop: {seen.sent}"
    leaving = seen.leaving(ranks_per_node) / 4 if ranks_per_node else 0.0
    counted = [given.hidden.shape[0], seen.total_bytes, seen.metadata_bytes, leaving]
    tokens, sent, metadata, leaving, *rows = ranks.total([*counted, *chain(*hops)])
    return Traffic(
        hops=tuple(max(hop) / tokens for hop in batched(rows, 4)),
        leaving_rows_per_token=leaving / tokens if ranks_per_node else None,
        sent_bytes=sent,
        metadata_bytes=metadata,
    )


def measure(settings: Settings) -> Findings:
    """Check that all sides agree, count what they send, and time them."""
    with ranks.process_groups(settings.ranks, settings.seed):
        dispatchers = _dispatchers(settings)
        given = inputs(settings.shape, settings.seed + dist.get_rank())
        stock = there_and_back(dispatchers["stock"], given)
        for name, dispatcher in dispatchers.items():
            if name != "stock":
                check_same(f"{name} beside stock", there_and_back(dispatcher, given), stock)
        per_node = settings.ranks_per_node
        traffic = {name: count(d, given, per_node) for name, d in dispatchers.items()}
        subjects = [
            Subject(name=name, run=partial(there_and_back, d, given))
            for name, d in dispatchers.items()
        ]
        samples = interleave(
            subjects,
            rounds=settings.rounds,
            warmup=settings.warmup,
            clock=cuda_clock if ranks.cuda_is_used() else wall_clock,
            together=ranks.together,
            slowest=ranks.slowest,
        )
    return findings(settings, samples, traffic)


def _dispatchers(settings: Settings) -> dict[str, Any]:
    """Of layers as models have them, whose experts are never run."""
    tiny = replace(settings.shape, expert_width=_TINY, adjugate_width=_TINY)
    built = layers(tiny, settings.ranks, "sequential")
    found = {name: built[layer] for name, layer in (("stock", "plain"), ("grove", "grove"))}
    if settings.ranks_per_node:
        found["hierarchical"] = hierarchical_layer(
            tiny, settings.ranks, "sequential", settings.ranks_per_node
        )
    return {name: layer.token_dispatcher for name, layer in found.items()}
