"""In which layer a NaN began: what this rank's routers remember when a job fails.

Megatron notices a NaN in the loss or in a gradient (``--check-for-nan-in-loss-and-grad``, on by
default), which says nothing of the layer, and with pipeline stages not even of the rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.training import get_args

from ..failure.job_store import world
from ..failure.message import Finding
from ..failure.watch import look_for
from ..moe.logits_watch import LogitsWatch, NotFinite
from ..moe.router import GroveRouter


def watch_logits(models: list[Any]) -> list[Any]:
    """Have the routers remember what was not finite; a ``post_wrap_hooks`` entry of the builder.

    Args:
        models: this rank's model chunks.

    Returns:
        ``models``.
    """
    routers = [m for model in models for m in model.modules() if isinstance(m, GroveRouter)]
    for router in routers:
        router.logits_watch = LogitsWatch(_iteration)
    look_for(lambda: findings(routers))
    return models


def _iteration() -> int:
    """The one that runs, from 1; 0 before training."""
    done = getattr(get_args(), "curr_iteration", None)
    return 0 if done is None else int(done) + 1


def findings(routers: list[GroveRouter]) -> list[Finding]:
    """The routers of this rank whose logits were not finite; waits for the device."""
    with _beside_the_job():
        return list(_findings(routers))


def _findings(routers: list[GroveRouter]) -> Iterator[Finding]:
    for router in routers:
        bad = None if router.logits_watch is None else router.logits_watch.first()
        if bad is not None:
            assert router.layer_number is not None
            yield Finding(
                rank=world()[0],
                iteration=bad.iteration,
                # Layers for multi-token prediction come after the others, with numbers from 1.
                layer=router.layer_number + router.is_mtp_layer * router.config.num_layers,
                text=_text(router, bad),
            )


def _text(router: GroveRouter, bad: NotFinite) -> str:
    layer = f"{'MTP ' if router.is_mtp_layer else ''}layer {router.layer_number}"
    when = f"first at iteration {bad.iteration}" if bad.iteration else "before training"
    # Those of its parts too; a gate of two layers has no matrix under Megatron's name.
    weights = [weight.detach() for weight in router.parameters()]
    broken = sum(int((~torch.isfinite(weight)).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    whose = (
        f"{broken} of the router's {total} weights are not finite: they come from a bad "
        "checkpoint, or from an update with such gradients or too large a --lr"
        if broken
        else "the router's weights are finite, its input was not, or too large: look at the "
        "attention and norms before it, and at --lr, --clip-grad and the data of this iteration"
    )
    return (
        f"{layer}: {bad.values} of the router's {bad.tokens * bad.experts} logits ({bad.tokens} "
        f"tokens x {bad.experts} experts) are nan or infinite, {when}; {whose}"
    )


def _beside_the_job() -> Any:
    """A stream that does not wait for what the job has queued, which may never end."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.stream(torch.cuda.Stream())
    return torch.no_grad()
