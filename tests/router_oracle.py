"""The router as the references of its parts compute it: token by token, expert by expert."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grove_megatron.parts import registry
from grove_megatron.parts.compose import Steps, best, route, transformed
from grove_megatron.parts.part import Balance, Draws, Logits, Part, Routed, Seen


def oracle(
    router: Any,
    x: Tensor,
    padding: Tensor | None,
    draws: Draws | None = None,
    previous: Tensor | None = None,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a GroveRouter of one rank should give.

    Args:
        router: its configuration and weights; its code is not used.
        x: [S, B, H].
        padding: bool [S, B], or None.
        previous: logits of the MoE layer before, [S, B, E], or None.
        ids: token ids [S, B], or None.
        draws: random numbers; by default those of the generator, as the router draws them.

    Returns:
        probs_TE, map_TE, and the sum of all auxiliary losses, coefficients included, 0 in
        evaluation; of Megatron's own, aux_loss and the z-loss.
    """
    logits, routed, sent, seen = routed_by_references(router, x, padding, draws, previous, ids)
    loss = x.new_zeros(())
    if router.training:
        loss = loss + _z_loss(router, logits, seen)
        if registry.one(router.config, "scoring") is not None:
            loss = loss + _losses(router, logits, routed, sent, seen)
    return sent.probs_TE, sent.map_TE, loss


def routed_by_references(
    router: Any,
    x: Tensor,
    padding: Tensor | None,
    draws: Draws | None,
    previous: Tensor | None,
    ids: Tensor | None,
) -> tuple[Logits, Routed, Routed, Seen]:
    """Logits, what is routed, what is left after drops, and what was seen; as :func:`oracle`."""
    config, training = router.config, router.training

    def slow(slot: Any) -> Any:
        part = registry.one(config, slot)
        return None if part is None else reference(router, part)

    seen = Seen(
        padding_T=None if padding is None else padding.reshape(-1),
        ids_T=None if ids is None else ids.reshape(-1),
        batch_size=x.shape[1],
        training=training,
        learns=training,
        draws=draws or Draws(),
    )
    if selects_by_itself(router):
        logits = Logits(z_TE=x.new_zeros(x.shape[0] * x.shape[1], router.num_experts))
    else:
        logits = logits_of(router, x, seen, previous)
    steps = Steps(
        scoring=slow("scoring"),
        topk=config.moe_router_topk,
        selector=slow("selector"),
        select=slow("select"),
        weigh=slow("weigh"),
        keep=slow("keep"),
    )
    routed = route(steps, logits.z_TE, router.expert_bias, seen, best)
    drop = slow("drop")
    return logits, routed, routed if drop is None else drop(routed, seen), seen


def selects_by_itself(router: Any) -> bool:
    """By token ids, without logits."""
    return any(p.needs == {"ids"} for p in registry.active(router.config))


def logits_of(router: Any, x: Tensor, seen: Seen, previous: Tensor | None) -> Logits:
    """The logits of tokens [S, B, H], by references."""
    config, x_TH = router.config, x.reshape(-1, x.shape[-1])
    seen = replace(
        seen, x_TH=x_TH, previous_TE=None if previous is None else previous.flatten(0, 1)
    )
    if gate := registry.one(config, "gate"):
        z_TE = reference(router, gate)(x_TH, x.dtype)
    else:
        weight = router.weight.to(x.dtype)
        z_TE = torch.stack([torch.stack([w @ token for w in weight]) for token in x_TH])
    transforms = [reference(router, part) for part in registry.active(config, "logits")]
    return transformed(z_TE, transforms, seen)


def reference(router: Any, part: Part) -> Any:
    """Of a part of the router, with the weights of it that the router has."""
    module = getattr(router, f"{part.slot}_{part.name}", None)
    weights = {name: getattr(module, name) for name in (*part.weights, *part.buffers)}
    return part.reference(router.config, **weights)


def _losses(router: Any, logits: Any, routed: Any, sent: Any, seen: Seen) -> Tensor:
    config = router.config
    counts = registry.one(config, "counts").reference(config)
    distribution_TE = registry.one(config, "scoring").reference(config).distribution(logits.z_TE)
    counted_TE = seen.without_padding(counts(distribution_TE, routed))
    distribution_TE = seen.without_padding(distribution_TE)
    balance = Balance(
        seen=seen,
        logits=logits,
        routed=routed,
        sent=sent,
        distribution_TE=distribution_TE,
        counted_TE=counted_TE,
        per_token=counts.per_token,
    )
    loss = distribution_TE.new_zeros(())
    for part in registry.active(config, "loss"):
        loss = loss + part.reference(config)(balance)
    tokens, experts = int(seen.tokens(distribution_TE)), distribution_TE.shape[1]
    if coefficient := router.get_aux_loss_coeff("aux_loss"):
        for i in range(experts):
            f = experts * int(counted_TE[:, i].sum()) / (counts.per_token * tokens)
            loss = loss + coefficient * f * distribution_TE[:, i].sum() / tokens
    return loss


def _z_loss(router: Any, logits: Logits, seen: Seen) -> Tensor:
    coefficient = router.config.moe_z_loss_coeff or 0.0
    squares = torch.stack([z.exp().sum().log() ** 2 for z in logits.before]).unsqueeze(1)
    return coefficient * seen.without_padding(squares).sum() / int(seen.tokens(squares))
