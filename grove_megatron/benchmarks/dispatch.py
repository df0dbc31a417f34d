"""``grove bench dispatch``: Megatron's all-to-all beside ours, with experts that do nothing.

The same span on both sides: from [T, H], probabilities and routing map to rows sorted by local
expert, and back to [T, H], forward and backward.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import ranks
from .agreement import check_same
from .harness import Samples, Subject, cuda_clock, interleave, ratio, wall_clock
from .records import Value
from .report import Findings, spread
from .shape import Settings, Shape
from .traffic import Collectives
from .variants import DTYPES, layers

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
    scores = torch.rand(shape.tokens, shape.experts, generator=generator)
    chosen = scores.topk(shape.topk, dim=1)
    probs = torch.zeros_like(scores).scatter(1, chosen.indices, chosen.values.softmax(1))
    routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen.indices, True)
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


@dataclass(frozen=True)
class Traffic:
    """Of all ranks together, in one forward and backward pass.

    Attributes:
        rows_per_token: sent in each of the four crossings, rows to the own rank included; 0 where
            one rank keeps everything.
        sent_bytes, metadata_bytes: everything sent, and what of it is no hidden state.
    """

    rows_per_token: float
    sent_bytes: float
    metadata_bytes: float


def count(dispatcher: Any, given: Inputs) -> Traffic:
    """Count what one pass sends; every rank must call."""
    row_bytes = given.hidden.shape[-1] * given.hidden.element_size()
    with Collectives(row_bytes) as seen:
        there_and_back(dispatcher, given)
    tokens, sent, metadata, *crossings = ranks.total(
        [given.hidden.shape[0], seen.total_bytes, seen.metadata_bytes, *seen.crossings]
    )
    if dist.get_world_size() > 1:
        assert len(crossings) == 4, f"there and back, twice; not {seen.sent}"
    return Traffic(max(crossings, default=0.0) / tokens, sent, metadata)


def measure(settings: Settings) -> Findings:
    """Check that both sides agree, count what they send, and time them."""
    shape = settings.shape
    with ranks.process_groups(settings.ranks, settings.seed):
        tiny = replace(shape, expert_width=_TINY, adjugate_width=_TINY)
        built = layers(tiny, settings.ranks, "sequential")
        dispatchers = {
            "stock": built["plain"].token_dispatcher,
            "grove": built["grove"].token_dispatcher,
        }
        given = inputs(shape, settings.seed + dist.get_rank())
        stock, grove = (there_and_back(d, given) for d in dispatchers.values())
        check_same("grove beside stock", grove, stock)
        traffic = {name: count(d, given) for name, d in dispatchers.items()}
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
    return _findings(settings, samples, traffic)


def _findings(
    settings: Settings, samples: dict[str, Samples], traffic: dict[str, Traffic]
) -> Findings:
    stock, ours = traffic["stock"], traffic["grove"]
    values, lines = [], []
    for name, sent in traffic.items():
        time = Value.milliseconds(name, "", samples[name])
        share = sent.metadata_bytes / sent.sent_bytes if sent.sent_bytes else 0.0
        a_rank = sent.sent_bytes / settings.ranks
        once = partial(Value.once, name, "")
        values += [
            time,
            once("rows_per_token", "rows", sent.rows_per_token),
            once("sent_bytes", "bytes a rank", a_rank),
            once("metadata_share", "of bytes", share),
        ]
        rows, megabytes = f"{sent.rows_per_token:.2f}", f"{a_rank / 1e6:.1f}"
        relative = f"{ratio(samples[name], samples['stock']):.3f}"
        lines.append((name, spread(time), relative, rows, megabytes, f"{share:.2%}"))
    sends = stock.sent_bytes > 0
    return Findings(
        values=values,
        summary={
            "ratio_vs_plain": ratio(samples["grove"], samples["stock"]),
            "rows_per_token": ours.rows_per_token,
            "stock_rows_per_token": stock.rows_per_token,
            "rows_ratio": ours.rows_per_token / stock.rows_per_token if sends else None,
            "bytes_ratio": ours.sent_bytes / stock.sent_bytes if sends else None,
            "metadata_share": ours.metadata_bytes / ours.sent_bytes if sends else None,
        },
        title=f"Dispatch and combine, forward and backward: {_words(settings)}",
        header=("", "ms p50 (p20-p80)", "of stock", "rows a token", "MB a rank", "metadata"),
        lines=lines,
        notes=["Rows to the own rank are counted; MB is everything sent in the four crossings."],
    )


def _words(settings: Settings) -> str:
    s = settings.shape
    return (
        f"{settings.ranks} ranks, {s.tokens} tokens a rank, hidden {s.hidden} {s.dtype}, "
        f"{s.experts} experts in {s.groups} groups, top-{s.topk}"
    )
