"""The router: Megatron's TopKRouter as a composition of parts (see parts/part.py)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from ..config import GroveTransformerConfig, has_grove_layers
from ..parts import registry
from ..parts.compose import Steps, best, route, transformed
from ..parts.part import (
    Balance,
    Coefficient,
    Draws,
    Local,
    Logits,
    Loss,
    Part,
    Routed,
    Seen,
    Slot,
)
from ..parts.scoring.softmax import OWN_SELECTION
from .carried import Carried
from .logits_watch import LogitsWatch


def moves_here(config: GroveTransformerConfig) -> bool:
    """Do the expert biases move by a rule of this package? Otherwise Megatron moves them."""
    part = registry.one(config, "update") if has_grove_layers(config) else None
    return part is not None and part.build(config) is not None


def loss_names(config: GroveTransformerConfig) -> list[str]:
    """Auxiliary losses beside Megatron's, as its metrics tracker knows them."""
    if not has_grove_layers(config):
        return []
    return [part.build(config).name for part in registry.active(config, "loss")]


def needs_grove_update(config: GroveTransformerConfig) -> bool:
    """Is Megatron's own update of the expert biases, by sign and at one rate, not what is asked?

    Or does the weight of a balance loss move?
    """
    if has_grove_layers(config) and registry.one(config, "coefficient") is not None:
        return True
    if not (has_grove_layers(config) and config.moe_router_enable_expert_bias):
        return False
    return moves_here(config) or config.grove_bias_rate_decay_style != "constant"


ROUTER_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
"""By --moe-router-dtype."""


class GroveRouter(TopKRouter):
    """TopKRouter whose logits, selection, weights and losses are parts.

    By default those of Grove MoE (arXiv 2508.07785, section 3.3): selection carries the
    load-balancing bias and no gradient; the weights carry the gradient and no bias. Inherited are
    z-loss, Megatron's auxiliary losses, replay and the expert bias. Where Megatron 0.19.2 is wrong
    this is not: jitter ends with training; the z-loss is the mean over all tokens whatever
    padding each rank has; and the tokens per expert, from which the bias is moved, are those that
    go to the expert, before any are dropped, without padding, in training alone, as integers.
    """

    config: GroveTransformerConfig
    topk: int
    local_tokens_per_expert: Tensor

    def __init__(
        self,
        config: GroveTransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        self.given_config = config
        # In a list: as an attribute too, state_dict would have its state twice.
        self._moving: list[Coefficient] = []
        # Megatron asks before its __init__ has ended.
        self.is_frozen = False
        local = registry.local_experts(config)
        self.routed_experts = config.num_moe_experts
        if local:
            # A token selects from all of them, so whatever counts experts here counts all.
            config = copy.copy(config)
            config.num_moe_experts += local
        super().__init__(config, pg_collection, is_mtp_layer)
        self.moves_here = moves_here(config)
        self.counts_are_new = False
        self.logits_watch: LogitsWatch | None = None
        self.draws = Draws()
        if self.enable_expert_bias:
            # Megatron's buffer, under its name: fp32, which is exact below 2^24, and which
            # Float16Module turns into bf16, exact below 2^8.
            self.local_tokens_per_expert = self.local_tokens_per_expert.to(torch.int64)
        # By its name: as an attribute too, state_dict would have its weights twice.
        self.gate: str | None = None
        if gate := registry.one(config, "gate"):
            self._built(gate)
            self.gate = f"{gate.slot}_{gate.name}"
            # Megatron's matrix is not there.
            self.weight = self.bias = None
        # What came beside the tokens of this pass, and what goes on to the next layer.
        self.carried = Carried()
        self.handed = Carried()
        self.needs = registry.needs(config)
        self._tokens: Tensor | None = None
        self.transforms = [self._built(p) for p in registry.active(config, "logits")]
        self.steps = Steps(
            scoring=self._step("scoring"),
            topk=config.moe_router_topk,
            ordered=config.grove_capacity_first_choices,
            selector=self._step("selector"),
            select=self._step("select"),
            weigh=self._step("weigh"),
            keep=self._step("keep"),
            drop=self._step("drop"),
            counts=self._step("counts"),
        )
        selector = self.steps.selector
        self.reads_logits = selector is None or selector.reads_logits
        if not self.reads_logits:
            self.weight = self.bias = None
        self.losses: list[Loss] = [self._built(p) for p in registry.active(config, "loss")]
        self._moving = [self._built(p) for p in registry.active(config, "coefficient")]
        self.local: list[Local] = [self._built(p) for p in registry.active(config, "local")]
        self.is_megatrons = config.moe_router_fusion or self.routing_type in OWN_SELECTION
        self._passing: Logits | None = None

    def divide(
        self, x_TH: Tensor, probs_TE: Tensor, map_TE: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of what a pass routes, the columns of the routed experts, and the local ones' output.

        Args:
            x_TH: [T, H], what experts compute with.
            probs_TE, map_TE: as :meth:`routing` returns them, over all columns.

        Returns:
            The first two without the columns of local experts, and what these add to the layer's
            output, [T, H]; None for nothing.
        """
        if not self.local:
            return probs_TE, map_TE, None
        counts = [one.count for one in self.local]
        routed_TE, *weights = torch.split(probs_TE, [self.routed_experts, *counts], dim=1)
        added = [one(x_TH, own_TC) for one, own_TC in zip(self.local, weights, strict=True)]
        given = [output_TH for output_TH in added if output_TH is not None]
        map_TE = map_TE[:, : self.routed_experts].contiguous()
        return routed_TE.contiguous(), map_TE, sum(given[1:], given[0]) if given else None

    def _step(self, slot: Slot) -> Any:
        part = registry.one(self.config, slot)
        return None if part is None else self._built(part)

    def _built(self, part: Part) -> Any:
        """Its step; weights of it are this router's, treated as its own matrix is."""
        step = part.build(self.config)
        if isinstance(step, torch.nn.Module):
            self.add_module(f"{part.slot}_{part.name}", step)
            for weight in step.parameters():
                weight.sequence_parallel = self.config.sequence_parallel  # type: ignore[attr-defined]
        return step

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
        config = self.given_config
        if self.counts_are_new and needs_grove_update(config):
            raise ValueError(
                f"--grove-bias-update-rule ({config.grove_bias_update_rule}) and "
                f"--grove-bias-rate-decay-style ({config.grove_bias_rate_decay_style}) are not "
                f"applied by finalize_model_grads_func ({config.finalize_model_grads_func}); call "
                "grove_megatron.moe.balance.install with the model's config after that is set, or "
                "use sign and constant"
            )
        return self.moves_here

    @frozen_expert_bias.setter
    def frozen_expert_bias(self, frozen: bool) -> None:
        # Set by TopKRouter.__init__, and by whoever freezes the model.
        self.bias_is_frozen = frozen

    def _check_moved(self) -> None:
        """Is somebody there who moves the weight of the balance loss?"""
        if not getattr(self.given_config, "grove_moves", False):
            raise ValueError(
                f"--grove-adaptive-aux-loss ({self.config.grove_adaptive_aux_loss}) is moved by "
                "nobody; call grove_megatron.moe.balance.install with the model's config"
            )

    def freeze(self) -> None:
        """Keep the bias, and leave out all balance losses, which would move the layers before.

        Of a router whose weights are not trained.
        """
        self.is_frozen = self.frozen_expert_bias = True

    @property
    def coefficient(self) -> Coefficient | None:
        """What moves the weight of the balance loss, if it moves."""
        return self._moving[0] if self._moving else None

    def get_aux_loss_coeff(self, aux_loss_type: str) -> float:
        """As the flags say, or as it has moved since."""
        found = float(super().get_aux_loss_coeff(aux_loss_type))
        return self.coefficient.value if found and self.coefficient is not None else found

    def is_aux_loss_enabled(self) -> bool:
        """Never of a frozen router."""
        return not self.is_frozen and bool(super().is_aux_loss_enabled())

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Of a router that is not frozen."""
        if self.is_frozen:
            return logits
        attached: Tensor = super().apply_z_loss(logits, padding_mask)
        return attached

    def forward(self, input: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`routing`, of tokens [S, B, H]."""
        self._tokens = input
        try:
            routed: tuple[Tensor, Tensor] = super().forward(input, padding_mask)
        finally:
            self._tokens = None
        return routed

    def gating(self, input: Tensor) -> Tensor:
        """The logits [S, B, E] of tokens [S, B, H], transformed."""
        if not self.reads_logits:
            dtype = ROUTER_DTYPES.get(self.config.moe_router_dtype, input.dtype)
            return input.new_zeros((*input.shape[:-1], self.num_experts), dtype=dtype)
        if self.gate is None:
            logits: Tensor = super().gating(input)
        else:
            gate = self.get_submodule(self.gate)
            logits = gate(input, ROUTER_DTYPES.get(self.config.moe_router_dtype, input.dtype))
        if not self.transforms:
            return logits
        previous = self.carried.logits
        seen = replace(
            self._seen(logits, None),
            x_TH=input.reshape(-1, input.shape[-1]),
            previous_TE=None if previous is None else previous.reshape(-1, self.num_experts),
        )
        flat_TE = logits.reshape(-1, self.num_experts)
        # For the losses of this pass; Megatron calls routing next.
        self._passing = transformed(flat_TE, self.transforms, seen)
        return self._passing.z_TE.reshape(logits.shape)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route tokens.

        Args:
            logits: [S, B, E], transformed.
            padding_mask: [S, B] bool, True where padding, or None.

        Returns:
            probs_TE [T, E] (fp32 or wider with grove scoring), 0 where unrouted, and
            routing_map_TE [T, E] bool.
        """
        if self.logits_watch is not None:
            self.logits_watch.see(logits)
        seen = self._seen(logits, padding_mask)
        if "ids" in self.needs:
            seen = replace(seen, ids_T=self.carried.ids_T)
        passed, self._passing = self._passing, None
        z_TE = logits.reshape(-1, self.num_experts)
        # Megatron may have put others in their place, of its --moe-router-force-* flags.
        passed = Logits(z_TE=z_TE) if passed is None else replace(passed, z_TE=z_TE)
        # Not by gating, which Megatron's trace of the routing calls again.
        self.handed = replace(self.carried, logits=passed.before.reshape(logits.shape))
        if self.is_megatrons:
            return self._megatrons_routing(logits, padding_mask, passed, seen)

        passed = self._with_z_loss(passed, seen)
        routed = route(self.steps, passed.z_TE, self.expert_bias, seen, self._topk)
        self._learn(passed.z_TE, routed)
        # Before dropping: past its capacity every expert would seem equally loaded, and with
        # experts padded to capacity all of them always would (and the bias never move).
        self._apply_expert_bias(routed.map_TE, padding_mask=seen.padding_T)
        sent = routed if self.steps.drop is None else self.steps.drop(routed, seen)
        probs_TE = sent.probs_TE
        if seen.learns and self.coefficient is not None:
            self._check_moved()
            self.coefficient.see(routed, sent, seen)
        if seen.learns and (self.losses or self.is_aux_loss_enabled()):
            balance = self._balance(passed, routed, sent, seen)
            probs_TE = self._with_aux_losses(probs_TE, balance, logits.shape[0])
            probs_TE = self._with_losses(probs_TE, balance)
        return probs_TE, sent.map_TE

    def _learn(self, z_TE: Tensor, routed: Routed) -> None:
        """Have the choice of this pass taught by the losses that come back, see policy.py."""
        reward, tokens = self.handed.reward, self._tokens
        if "reward" not in self.needs or self.is_frozen or not self.training:
            return
        if reward is None or tokens is None:
            raise ValueError(
                f"--grove-router-selector ({self.config.grove_router_selector}) got nothing beside "
                "the hidden states that a loss could come back by; build the model with "
                "grove_megatron.pretrain or grove_megatron.run"
            )
        policy: Any = self.steps.selector
        x_TH = tokens.reshape(-1, tokens.shape[-1])
        learned = policy.learn(reward, z_TE, routed.index_TK, x_TH)
        self.handed = replace(self.handed, reward=learned)

    def _megatrons_routing(
        self, logits: Tensor, padding_mask: Tensor | None, passed: Logits, seen: Seen
    ) -> tuple[Tensor, Tensor]:
        """Fused, by Sinkhorn's iteration or by quantiles: Megatron's, and losses of ours."""
        probs_TE, map_TE = super().routing(logits, padding_mask)
        if seen.learns and self.losses:
            routed = Routed(
                index_TK=probs_TE.topk(self.topk, dim=1).indices,
                selected_TE=map_TE,
                probs_TE=probs_TE,
                map_TE=map_TE,
            )
            probs_TE = self._with_losses(probs_TE, self._balance(passed, routed, routed, seen))
        return probs_TE, map_TE

    def _seen(self, logits: Tensor, padding_mask: Tensor | None) -> Seen:
        return Seen(
            padding_T=None if padding_mask is None else padding_mask.reshape(-1),
            batch_size=logits.shape[1],
            # A policy that is not trained has nothing to try.
            training=self.training and not (self.is_frozen and "reward" in self.needs),
            learns=self.training and torch.is_grad_enabled() and not self.is_frozen,
            draws=self.draws,
            everywhere=self._everywhere,
            gather=self._gather,
            ranks=self._sharing.size(),
            rank=self._sharing.rank(),
        )

    def _everywhere(self, tensor: Tensor) -> Tensor:
        # Of a copy: Megatron sums in place.
        summed: Tensor = reduce_from_tensor_model_parallel_region(
            tensor.clone(), group=self.tp_cp_group
        )
        return summed

    @property
    def _sharing(self) -> dist.ProcessGroup:
        """Ranks with other tokens of the same sequences.

        Without sequence parallelism, as in inference, those of tensor parallelism have the same.
        """
        alike = self.tp_group.size() > 1 and not self.given_config.sequence_parallel
        group: dist.ProcessGroup = self.cp_group if alike else self.tp_cp_group
        return group

    def _gather(self, rows: Tensor) -> Tensor:
        group = self._sharing
        if group.size() == 1:
            return rows
        # gloo gathers no bool.
        sent = (rows.to(torch.uint8) if rows.dtype == torch.bool else rows.detach()).contiguous()
        gathered = sent.new_empty((group.size() * len(sent), *sent.shape[1:]))
        dist.all_gather_into_tensor(gathered, sent, group=group)
        return gathered.to(rows.dtype)

    def _topk(self, scores_TE: Tensor, topk: int, in_order: bool) -> Tensor:
        """Indices of the best experts, [T, K], or those that are replayed."""
        if self.router_replay is None:
            return best(scores_TE, topk, in_order)

        def computed(scores_TE: Tensor, topk: int, *_: None, **__: None) -> tuple[Tensor, Tensor]:
            index_TK = best(scores_TE, topk, in_order)
            return scores_TE.gather(1, index_TK), index_TK

        replayed: tuple[Tensor, Tensor] = self.router_replay.get_replay_topk(
            scores_TE, topk, None, None, computed
        )
        return replayed[1]

    def _balance(self, logits: Logits, routed: Routed, sent: Routed, seen: Seen) -> Balance:
        assert self.steps.scoring is not None, "losses are of scores"
        distribution_TE = self.steps.scoring.distribution(logits.z_TE)
        counts = self.steps.counts
        assert counts is not None, "some part of the slot is there"
        counted_TE = counts(distribution_TE.detach(), routed)
        return Balance(
            seen=seen,
            logits=logits,
            routed=routed,
            sent=sent,
            distribution_TE=seen.without_padding(distribution_TE),
            counted_TE=seen.without_padding(counted_TE),
            per_token=counts.per_token,
        )

    def _with_aux_losses(self, probs_TE: Tensor, balance: Balance, sequence: int) -> Tensor:
        """Megatron's three."""
        scores_TE, map_TE = balance.distribution_TE, balance.counted_TE
        if scores_TE.dtype == torch.float64:
            # Megatron divides their sums, and a quotient of integers is fp32.
            map_TE = map_TE.double()
        padded = balance.seen.padding_T is not None
        with self._counted(balance.per_token):
            probs_TE = self._apply_aux_loss(probs_TE, scores_TE, map_TE, with_padding_mask=padded)
            probs_TE = self._apply_seq_aux_loss(
                probs_TE,
                scores_TE,
                map_TE,
                sequence,
                balance.seen.batch_size,
                with_padding_mask=padded,
            )
            probs_TE = self._apply_global_aux_loss(
                probs_TE, scores_TE, map_TE, with_padding_mask=padded
            )
        return probs_TE

    @contextmanager
    def _counted(self, per_token: int) -> Iterator[None]:
        """What Megatron's losses read as the pairs of a token."""
        topk, self.topk = self.topk, per_token
        try:
            yield
        finally:
            self.topk = topk

    def _with_losses(self, probs_TE: Tensor, balance: Balance) -> Tensor:
        if not self.losses:
            return probs_TE
        seen = balance.seen
        tokens = seen.tokens(balance.counted_TE)[0]
        if seen.padding_T is not None:
            # Megatron takes it times the ranks for the tokens of all of them.
            tokens = seen.everywhere(tokens) / seen.ranks
        for loss in self.losses:
            probs_TE = self.attach_and_log_load_balancing_loss(
                probs_TE,
                loss.coefficient,
                loss(balance),
                loss.name,
                self.tp_cp_group,
                valid_token_count=tokens,
            )
        return probs_TE

    def _with_z_loss(self, logits: Logits, seen: Seen) -> Logits:
        """Attach the z-loss (arXiv 2202.08906, Eq. 5), of logits before noise and normalisation.

        Megatron divides by the tokens of each rank; with padding, those of all ranks are meant.
        """
        z_TE, before_TE = logits.z_TE, logits.before
        coefficient = self.config.moe_z_loss_coeff
        if before_TE is z_TE and seen.padding_T is None:
            return replace(logits, z_TE=self.apply_z_loss(z_TE))
        if coefficient is None or not seen.learns:
            return logits
        total = seen.everywhere(seen.tokens(z_TE))[0]
        squares_T1 = seen.without_padding(torch.logsumexp(before_TE, -1, keepdim=True).square())
        loss = coefficient * squares_T1.sum() / total.clamp(min=1)
        attached_TE = self.attach_and_log_load_balancing_loss(
            z_TE,
            coefficient,
            loss,
            "z_loss",
            self.tp_cp_group,
            valid_token_count=total / seen.ranks,
        )
        return replace(logits, z_TE=attached_TE)

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
