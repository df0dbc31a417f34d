"""The router as the references of its parts compute it: token by token, expert by expert."""

from typing import Any

import torch
from torch import Tensor

from grove_megatron.parts import registry
from grove_megatron.parts.compose import Steps, best, route, transformed
from grove_megatron.parts.part import Balance, Draws, Seen


def oracle(
    router: Any, x: Tensor, padding: Tensor | None, draws: Draws | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a GroveRouter of one rank should give.

    Args:
        router: its configuration and weights; its code is not used.
        x: [S, B, H].
        padding: bool [S, B], or None.
        draws: random numbers; by default those of the generator, as the router draws them.

    Returns:
        probs_TE, map_TE, and the sum of all auxiliary losses, coefficients included, 0 in
        evaluation; of Megatron's own, aux_loss and the z-loss.
    """
    config, training = router.config, router.training

    def slow(slot: Any) -> Any:
        part = registry.one(config, slot)
        return None if part is None else part.reference(config)

    x_TH = x.reshape(-1, x.shape[-1])
    seen = Seen(
        x_TH=x_TH,
        padding_T=None if padding is None else padding.reshape(-1),
        batch_size=x.shape[1],
        training=training,
        learns=training,
        draws=draws or Draws(),
    )
    weight = router.weight.to(x.dtype)
    z_TE = torch.stack([torch.stack([w @ token for w in weight]) for token in x_TH])
    transforms = []
    for part in registry.active(config, "logits"):
        module = getattr(router, f"{part.slot}_{part.name}", None)
        weights = {name: getattr(module, name) for name in part.weights}
        transforms.append(part.reference(config, **weights))
    logits = transformed(z_TE, transforms, seen)
    steps = Steps(
        scoring=slow("scoring"),
        topk=config.moe_router_topk,
        select=slow("select"),
        keep=slow("keep"),
    )
    routed = route(steps, logits.z_TE, router.expert_bias, seen, best)
    drop = slow("drop")
    sent = routed if drop is None else drop(routed, seen)
    loss = _losses(router, logits, routed, seen) if training else x.new_zeros(())
    return sent.probs_TE, sent.map_TE, loss


def _losses(router: Any, logits: Any, routed: Any, seen: Seen) -> Tensor:
    config = router.config
    counts = registry.one(config, "counts").reference(config)
    distribution_TE = registry.one(config, "scoring").reference(config).distribution(logits.z_TE)
    counted_TE = seen.without_padding(counts(distribution_TE, routed))
    distribution_TE = seen.without_padding(distribution_TE)
    balance = Balance(
        seen=seen,
        logits=logits,
        routed=routed,
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
    if coefficient := config.moe_z_loss_coeff:
        squares = torch.stack([z.exp().sum().log() ** 2 for z in logits.before]).unsqueeze(1)
        loss = loss + coefficient * seen.without_padding(squares).sum() / tokens
    return loss
