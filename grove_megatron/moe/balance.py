"""What routers learn without a gradient, once per global batch: expert biases, weights of losses.

Megatron moves the biases by sign at the end of its ``finalize_model_grads``, a function that a
config may replace (``finalize_model_grads_func``; training.py:3549 @ 0.19.2). :func:`install` puts
one around it: that keeps the counts, calls what was there with the rate of this iteration, and
moves the biases of :class:`GroveRouter` by the rule of the flags.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads as megatrons_finalize
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config
from torch import Tensor

from ..config import GroveTransformerConfig
from ..parts import registry
from ..parts.updates.schedules import rate_after
from .router import GroveRouter, needs_grove_update

Finalize = Callable[..., None]


def install(
    config: GroveTransformerConfig, iterations_done: Callable[[], int] | None = None
) -> None:
    """Have ``config`` update the expert biases as its Grove settings say.

    A ``finalize_model_grads_func`` that the config has already is kept, and called; where
    Megatron's own rule and rate are asked for, nothing is changed. Again: only ``iterations_done``
    is replaced.

    Args:
        config: that of the model; Megatron's schedules call its function.
        iterations_done: how many iterations came before this one; needed by a rate that decays.

    Raises:
        ValueError: the rate decays and nothing says over what.
    """
    if not needs_grove_update(config):
        return
    style = config.grove_bias_rate_decay_style
    if style != "constant" and iterations_done is None:
        raise ValueError(
            f"--grove-bias-rate-decay-style ({style}) needs iterations_done (None); pass a "
            "function that returns the iterations before this one, or use constant"
        )
    if style == "constant":
        iterations_done = None
    # A plain attribute: what was asked for is in the fields.
    config.grove_moves = True
    present = config.finalize_model_grads_func
    if isinstance(present, partial) and present.func is finalize_model_grads:
        present = present.keywords["then"]
    config.finalize_model_grads_func = partial(
        finalize_model_grads, then=present or megatrons_finalize, iterations_done=iterations_done
    )


def finalize_model_grads(
    model: list[torch.nn.Module],
    num_tokens: Tensor | None = None,
    pg_collection: ProcessGroupCollection | None = None,
    force_all_reduce: bool | None = False,
    *,
    then: Finalize,
    iterations_done: Callable[[], int] | None,
) -> None:
    """Megatron's function of this name, and an update of the biases; arguments as there.

    Args:
        then: the function that does everything else, Megatron's own.
        iterations_done: see :func:`install`.
    """
    config = get_model_config(model[0])
    rate = rate_after(config, iterations_done() if iterations_done else 0)
    routers = [m for chunk in model for m in chunk.modules() if isinstance(m, GroveRouter)]
    moved = [r for r in routers if r.moves_here and r.training and not r.bias_is_frozen]
    # A copy, as Megatron sets them to 0.
    counts_LE = torch.stack([r.local_tokens_per_expert for r in moved]) if moved else None
    for router in routers:
        router.counts_are_new = False
    with _update_rate(config, rate):
        then(model, num_tokens, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
    move_coefficients(routers, pg_collection)
    if counts_LE is not None:
        # After the gradients, which may still have been on their way before.
        move_biases(moved, counts_LE, rate, _same_routers(pg_collection))


@torch.no_grad()
def move_biases(
    routers: list[GroveRouter], counts_LE: Tensor, rate: float, group: dist.ProcessGroup
) -> None:
    """Move the biases of all routers of a rank by the rule of the flags, with one collective.

    Counts are summed as integers, so every layout of the same tokens makes the same biases.

    Args:
        routers: L of them, the same on all ranks of ``group``.
        counts_LE: [L, E] int64, this rank's tokens per expert in the global batch; becomes the sum
            over ``group``.
        rate: of that rule.
        group: ranks with other tokens and the same routers.
    """
    dist.all_reduce(counts_LE, group=group)
    part = registry.one(routers[0].config, "update")
    assert part is not None, "routers whose biases are moved here"
    update = part.build(routers[0].config)
    for router, step_E in zip(routers, update(counts_LE, rate), strict=True):
        # Rounded to fp32 once.
        router.expert_bias.copy_(router.expert_bias.double() + step_E)


def move_coefficients(
    routers: list[GroveRouter], pg_collection: ProcessGroupCollection | None
) -> None:
    """Move the weights of balance losses, all of a rank with one collective.

    Args:
        routers: the same on all ranks with other tokens.
        pg_collection: of the model, or None for Megatron's own groups.
    """
    moved = [r.coefficient for r in routers if r.coefficient is not None and r.training]
    if not moved:
        return
    pairs_L2 = torch.stack([one.pairs for one in moved])
    dist.all_reduce(pairs_L2, group=_same_routers(pg_collection))
    for one, pairs in zip(moved, pairs_L2, strict=True):
        one.step(pairs)


def _same_routers(pg_collection: ProcessGroupCollection | None) -> dist.ProcessGroup:
    """Tensor, data and context parallel ranks, as finalize_model_grads.py:666 @ 0.19.2."""
    if pg_collection is None:
        group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    else:
        group = pg_collection.tp_dp_cp
    found: dist.ProcessGroup = group
    return found


@contextmanager
def _update_rate(config: GroveTransformerConfig, rate: float) -> Iterator[None]:
    """What Megatron's own update by sign reads as its rate."""
    given = config.moe_router_bias_update_rate
    config.moe_router_bias_update_rate = rate
    try:
        yield
    finally:
        config.moe_router_bias_update_rate = given
