"""The router: Megatron's TopKRouter with the paper's decoupled scoring as an option."""

import torch
from megatron.core.transformer.moe.moe_utils import (
    apply_router_token_dropping,
    compute_routing_scores_for_aux_loss,
    group_limited_topk,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from ..config import GroveTransformerConfig


def select(logits_TE: Tensor, bias_E: Tensor | None) -> Tensor:
    """Scores to select experts by: sigmoid(z) + b (Eq. 9); [T, E] fp64, no gradient.

    In fp64, because the weights do not change when all logits shift, so nothing keeps them near
    0, and a sigmoid in fp32 is full of ties above 14 and constant above 17.
    """
    scores_TE = torch.sigmoid(logits_TE.detach().double())
    return scores_TE if bias_E is None else scores_TE + bias_E.double()


def combine_weights(logits_TE: Tensor, index_TK: Tensor, pre_softmax: bool) -> Tensor:
    """Weights of the selected experts (Eq. 6): [T, K] in fp32, or wider if the logits are.

    The softmax over the selected logits, as in the released model; with ``pre_softmax`` the
    softmax over all logits, not renormalised.
    """
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    if pre_softmax:
        return torch.softmax(logits_TE, dim=-1).gather(1, index_TK)
    return torch.softmax(logits_TE.gather(1, index_TK), dim=-1)


class GroveRouter(TopKRouter):
    """TopKRouter whose selection and weights are decoupled (arXiv 2508.07785, section 3.3).

    Selection carries the load-balancing bias and no gradient; the weights carry the gradient and
    no bias. Everything else is inherited: z-loss, auxiliary losses, token dropping, jitter,
    replay, the expert-bias buffers and their counts.
    """

    config: GroveTransformerConfig

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route tokens.

        Args:
            logits: [S, B, E].
            padding_mask: [S, B] bool, True where padding, or None.

        Returns:
            probs_TE [T, E] (fp32 with grove scoring), 0 where unrouted, and routing_map_TE
            [T, E] bool.
        """
        if self.config.grove_router_scoring != "grove":
            probs_TE, routing_map_TE = super().routing(logits, padding_mask=padding_mask)
            return probs_TE, routing_map_TE
        sequence_length, batch_size = logits.shape[:2]
        logits_TE = logits.reshape(-1, self.num_experts)
        padding_T = None if padding_mask is None else padding_mask.reshape(-1)

        logits_TE = self.apply_z_loss(logits_TE, padding_mask=padding_T)
        scores_TE = select(logits_TE, self.expert_bias)
        index_TK = self._topk(scores_TE)
        weights_TK = combine_weights(logits_TE, index_TK, self.config.moe_router_pre_softmax)
        if self.config.moe_router_topk_scaling_factor:
            weights_TK = weights_TK * self.config.moe_router_topk_scaling_factor
        probs_TE = weights_TK.new_zeros(scores_TE.shape).scatter(1, index_TK, weights_TK)
        routing_map_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(1, index_TK, True)

        if self.config.moe_expert_capacity_factor is not None:
            probs_TE, routing_map_TE = apply_router_token_dropping(
                probs_TE,
                routing_map_TE,
                router_topk=self.topk,
                capacity_factor=self.config.moe_expert_capacity_factor,
                drop_policy=self.config.moe_token_drop_policy,
                pad_to_capacity=False,
            )
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            probs_TE = self._with_aux_losses(
                probs_TE, logits_TE, sequence_length, batch_size, padding_T
            )
        self._apply_expert_bias(routing_map_TE, padding_mask=padding_T)
        return probs_TE, routing_map_TE

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Count tokens per expert; Megatron computes [T, E] & [T], which a column makes right."""
        column = None if padding_mask is None else padding_mask.reshape(-1, 1)
        super()._apply_expert_bias(routing_map, padding_mask=column)

    def _topk(self, scores_TE: Tensor) -> Tensor:
        """Indices of the best experts, [T, K]: group-limited and replayed as the flags say."""

        def compute_topk(
            scores: Tensor, topk: int, num_groups: int | None = None, group_topk: int | None = None
        ) -> tuple[Tensor, Tensor]:
            if not group_topk:
                return torch.topk(scores, k=topk, dim=1, sorted=torch.is_grad_enabled())
            limited: tuple[Tensor, Tensor] = group_limited_topk(
                scores=scores,
                topk=topk,
                num_tokens=scores.shape[0],
                num_experts=scores.shape[1],
                num_groups=num_groups,
                group_topk=group_topk,
            )
            return limited

        limits = (self.config.moe_router_num_groups, self.config.moe_router_group_topk)
        if self.router_replay is None:
            return compute_topk(scores_TE, self.topk, *limits)[1]
        replayed: tuple[Tensor, Tensor] = self.router_replay.get_replay_topk(
            scores_TE, self.topk, *limits, compute_topk
        )
        return replayed[1]

    def _with_aux_losses(
        self,
        probs_TE: Tensor,
        logits_TE: Tensor,
        sequence_length: int,
        batch_size: int,
        padding_T: Tensor | None,
    ) -> Tensor:
        # The losses see the distribution that weighs the experts, not the one that selects them.
        map_TE, scores_TE = compute_routing_scores_for_aux_loss(
            logits_TE, self.topk, "softmax", padding_mask=padding_T
        )
        padded = padding_T is not None
        probs_TE = self._apply_aux_loss(probs_TE, scores_TE, map_TE, with_padding_mask=padded)
        probs_TE = self._apply_seq_aux_loss(
            probs_TE, scores_TE, map_TE, sequence_length, batch_size, with_padding_mask=padded
        )
        probs_TE = self._apply_global_aux_loss(
            probs_TE, scores_TE, map_TE, with_padding_mask=padded
        )
        return probs_TE
