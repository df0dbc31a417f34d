"""The router: Megatron's TopKRouter with the paper's decoupled scoring as an option."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import (
    apply_router_token_dropping,
    compute_routing_scores_for_aux_loss,
    group_limited_topk,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from ..config import GroveTransformerConfig, has_adjugates, has_grove_layers
from ..functional.balance import group_balancing_loss
from ..functional.groups import group_map
from .logits_watch import LogitsWatch

GROUP_LOSS = "group_load_balancing_loss"
"""Name of the loss over groups in Megatron's metrics tracker."""


def follows_rms(config: GroveTransformerConfig) -> bool:
    """Do the expert biases move by the paper's rule? With softmax scoring Megatron's is kept."""
    return (
        has_adjugates(config)
        and config.moe_router_enable_expert_bias
        and config.grove_router_scoring == "grove"
        and config.grove_bias_update_rule == "rms"
    )


def needs_grove_update(config: GroveTransformerConfig) -> bool:
    """Is Megatron's own update of the expert biases, by sign and at one rate, not what is asked?"""
    if not (has_grove_layers(config) and config.moe_router_enable_expert_bias):
        return False
    return follows_rms(config) or config.grove_bias_rate_decay_style != "constant"


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
    no bias. Everything else is inherited: z-loss, auxiliary losses, token dropping, replay, the
    expert bias. Where Megatron 0.19.2 is wrong this is not: jitter ends with training, and the
    tokens per expert, from which the bias is moved, are those that selected the expert, before any
    are dropped, without padding, in training alone, as integers.
    """

    config: GroveTransformerConfig

    def __init__(
        self,
        config: GroveTransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)
        self.follows_rms = follows_rms(config)
        self.counts_are_new = False
        self.logits_watch: LogitsWatch | None = None
        if self.enable_expert_bias:
            # Megatron's buffer, under its name: fp32, which is exact below 2^24, and which
            # Float16Module turns into bf16, exact below 2^8.
            self.local_tokens_per_expert = self.local_tokens_per_expert.to(torch.int64)

    @property
    def frozen_expert_bias(self) -> bool:
        """Whether Megatron's update by sign must leave the bias alone.

        Megatron asks every router once per global batch (finalize_model_grads.py:354 @ 0.19.2), so
        this is also where a training loop is found out that updates by sign although another rule
        or rate is configured.

        Raises:
            ValueError: it does.
        """
        if self.bias_is_frozen:
            return True
        config = self.config
        if self.counts_are_new and needs_grove_update(config):
            raise ValueError(
                f"--grove-bias-update-rule ({config.grove_bias_update_rule}) and "
                f"--grove-bias-rate-decay-style ({config.grove_bias_rate_decay_style}) are not "
                f"applied by finalize_model_grads_func ({config.finalize_model_grads_func}); call "
                "grove_megatron.moe.balance.install with the model's config after that is set, or "
                "use sign and constant"
            )
        return self.follows_rms

    @frozen_expert_bias.setter
    def frozen_expert_bias(self, frozen: bool) -> None:
        # Set by TopKRouter.__init__, and by whoever freezes the model.
        self.bias_is_frozen = frozen

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route tokens.

        Args:
            logits: [S, B, E].
            padding_mask: [S, B] bool, True where padding, or None.

        Returns:
            probs_TE [T, E] (fp32 with grove scoring), 0 where unrouted, and routing_map_TE
            [T, E] bool.
        """
        if self.logits_watch is not None:
            self.logits_watch.see(logits)
        # A plain MoE keeps Megatron's scoring.
        decoupled = has_adjugates(self.config) and self.config.grove_router_scoring == "grove"
        route = self._decoupled_routing if decoupled else super().routing
        probs_TE, routing_map_TE = route(logits, padding_mask)
        if self.config.grove_group_aux_loss_coeff and self.training and torch.is_grad_enabled():
            probs_TE = self._with_group_loss(probs_TE, logits, padding_mask)
        return probs_TE, routing_map_TE

    def _decoupled_routing(
        self, logits: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
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

        # Before dropping: past its capacity every expert would seem equally loaded, and with
        # experts padded to capacity all of them always would (and the bias never move).
        self._apply_expert_bias(routing_map_TE, padding_mask=padding_T)
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
        return probs_TE, routing_map_TE

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Count tokens per expert: [T, E] bool, and [T] bool or None; in training alone.

        Megatron computes [T, E] & [T], which a column makes right.
        """
        if not (self.enable_expert_bias and self.training and torch.is_grad_enabled()):
            return
        self.counts_are_new = True
        column = None if padding_mask is None else padding_mask.reshape(-1, 1)
        super()._apply_expert_bias(routing_map, padding_mask=column)

    def apply_input_jitter(self, input: Tensor) -> Tensor:
        """Multiply by noise in training; Megatron's does it in evaluation too."""
        if not self.training:
            return input
        jittered: Tensor = super().apply_input_jitter(input)
        return jittered

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

    def _with_group_loss(
        self, probs_TE: Tensor, logits: Tensor, padding_mask: Tensor | None
    ) -> Tensor:
        """Attach the balancing loss over groups, from the choice Megatron's own losses see.

        That is the top-k of the scores without bias, limits, or dropping.
        """
        config = self.config
        assert config.grove_num_groups, "a Grove router"
        logits_TE = logits.reshape(-1, self.num_experts)
        padding_T = None if padding_mask is None else padding_mask.reshape(-1)
        score_function = (
            "softmax" if config.grove_router_scoring == "grove" else self.score_function
        )
        map_TE, scores_TE = compute_routing_scores_for_aux_loss(
            logits_TE, self.topk, score_function, padding_mask=padding_T
        )
        touched_G = group_map(map_TE, config.grove_num_groups).sum(0)
        tokens_1 = touched_G.new_full((1,), logits_TE.shape[0])
        if padding_T is not None:
            tokens_1 -= padding_T.sum()
        # Both in one collective.
        everywhere = reduce_from_tensor_model_parallel_region(
            torch.cat([touched_G, tokens_1]), self.tp_cp_group
        )
        loss = group_balancing_loss(
            scores_TE, everywhere[:-1], everywhere[-1], config.grove_group_aux_loss_coeff
        )
        attached: Tensor = self.attach_and_log_load_balancing_loss(
            probs_TE,
            config.grove_group_aux_loss_coeff,
            loss,
            GROUP_LOSS,
            self.tp_cp_group,
            valid_token_count=tokens_1[0],
        )
        return attached
