"""Runs on a rank: recorded training that writes down every gradient of its first and last step."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.integration import recorded_run


def train(folder: str, argv: list[str]) -> None:
    """``recorded_run.train``; gradients by parameter name go to ``folder/gradients<rank>.pt``."""
    from megatron.training import training

    original = training.train_step
    steps: list[dict[str, torch.Tensor]] = []

    def train_step(forward_step: Any, data: Any, model: Any, *rest: Any, **named: Any) -> Any:
        result = original(forward_step, data, model, *rest, **named)
        steps[1:] = [_gradients(model)]
        return result

    training.train_step = train_step
    recorded_run.train(folder, argv)
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(steps, Path(folder) / f"gradients{rank}.pt")


def train_by_the_equation(folder: str, argv: list[str]) -> None:
    """``train`` with experts and adjugates computed as the paper writes them, for every token.

    For one expert-parallel rank and the expert modules of Megatron.
    """
    from grove_megatron.moe.layer import GroveMoELayer

    def routed_experts_compute(
        self: Any, hidden_states: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        weights_TE = probs.masked_fill(probs.isneginf(), 0)  # where not routed
        size = weights_TE.shape[1] // self.config.grove_num_groups
        weights_TG = self.config.grove_adjugate_scale * weights_TE.unflatten(1, (-1, size)).sum(2)
        y_TH = torch.zeros_like(hidden_states)
        for experts, weights in (
            (self.experts, weights_TE),
            (self.adjugate_experts, weights_TG),
        ):
            for expert, weight_T in zip(experts.local_experts, weights.unbind(1), strict=True):
                y_TH = y_TH + weight_T.unsqueeze(1) * expert(hidden_states)[0]
        return y_TH, None

    GroveMoELayer.routed_experts_compute = routed_experts_compute  # type: ignore[method-assign]
    train(folder, argv)


def train_by_the_references(folder: str, argv: list[str]) -> None:
    """``train`` with a router whose parts are their references; on one rank."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from grove_megatron.moe.router import GroveRouter
    from grove_megatron.parts import registry
    from tests.router_oracle import oracle, reference, routed_by_references

    taught = _teach_by_a_surrogate()

    def forward(
        self: Any, input: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        carried = self.carried
        given = (input, padding_mask, None, carried.logits, carried.ids_T)
        state = torch.get_rng_state()
        logits, routed, _, _ = routed_by_references(self, *given)
        # The same draws again.
        torch.set_rng_state(state)
        probs, chosen, loss = oracle(self, *given)
        self.handed = carried
        if "logits" in self.needs:
            self.handed = replace(carried, logits=logits.before.reshape(*input.shape[:2], -1))
        if self.coefficient is not None and self.training:
            # Every microbatch has a capacity that it does not use.
            wanted = routed.map_TE.sum(0).tolist()
            limit = -(-sum(wanted) // len(wanted))
            beyond = sum(max(0, load - limit) for load in wanted)
            self.coefficient.pairs += torch.tensor([beyond, sum(wanted)])
        if carried.reward is not None:
            taught(self, logits.z_TE, routed.choices_TK, input)
        return MoEAuxLossAutoScaler.apply(probs, loss), chosen

    def divide(
        self: Any, x_TH: torch.Tensor, probs_TE: torch.Tensor, map_TE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        begin, added = self.routed_experts, None
        for part in registry.active(self.config, "local"):
            end = begin + part.columns(self.config)
            output = reference(self, part)(x_TH, probs_TE[:, begin:end])
            if output is not None:
                added = output if added is None else added + output
            begin = end
        return probs_TE[:, : self.routed_experts], map_TE[:, : self.routed_experts], added

    GroveRouter.forward = forward  # type: ignore[method-assign]
    GroveRouter.divide = divide  # type: ignore[method-assign]
    train(folder, argv)


def _teach_by_a_surrogate() -> Any:
    """REINFORCE as textbooks write it, on one rank with one sequence a microbatch.

    What is returned is told of every choice; the loss gets (L - B) log pi and the baseline's error.
    """
    from grove_megatron.training import gpt

    told: list[tuple[Any, torch.Tensor, torch.Tensor]] = []

    def taught(router: Any, z_TE: torch.Tensor, index_TK: torch.Tensor, x: torch.Tensor) -> None:
        rows = []
        for z, chosen in zip(z_TE, index_TK.tolist(), strict=True):
            left, log = list(range(len(z))), z.new_zeros(())
            for expert in chosen:
                log = log + z[expert] - torch.logsumexp(z[left], dim=0)
                left.remove(expert)
            rows.append(log)
        policy = router.get_submodule("selector_reinforce")
        baseline = [(policy.weight * t).sum() + policy.bias[0] for t in x.detach().flatten(0, 1)]
        told.append((router.config, torch.stack(rows), torch.stack(baseline)))

    original = gpt.loss

    def loss(loss_mask: torch.Tensor, output: torch.Tensor, model: Any = None) -> Any:
        total, *rest = original(loss_mask, output, model)
        mask, losses = loss_mask.view(-1).float(), output.detach().view(-1).float()
        for config, log_T, baseline_T in told:
            surrogate = mask * (losses - baseline_T.detach()) * log_T
            error = mask * (losses - baseline_T) ** 2
            added = config.grove_reinforce_coeff * surrogate.sum()
            added = added + config.grove_reinforce_baseline_coeff * error.sum()
            total = total + added - added.detach()
        told.clear()
        return total, *rest

    gpt.loss = loss
    return taught


def train_with_known_draws(folder: str, argv: list[str]) -> None:
    """``train`` with draws that every layout makes alike: functions of what they are for."""
    from grove_megatron.parts.part import Draws

    Draws.uniform = lambda self, like: (  # type: ignore[method-assign]
        0.5 + 0.499 * torch.cos(37 * like.detach())
    )
    train(folder, argv)


def train_with_logits_cut_off(folder: str, argv: list[str]) -> None:
    """``train`` in which no gradient goes back with the logits that layers hand on."""
    from grove_megatron.moe import carried

    original = carried.join
    carried.join = lambda hidden, logits: original(  # type: ignore[assignment]
        hidden, None if logits is None else logits.detach()
    )
    train(folder, argv)


def _gradients(chunks: list[Any]) -> dict[str, torch.Tensor]:
    """The reduced gradients of this rank's parameters, experts one by one.

    Under the names that Megatron's local modules have, whatever the implementation is.
    """
    from megatron.core.utils import unwrap_model

    found = {}
    for number, chunk in enumerate(chunks):
        for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]:
            if buffer.ddp_config.use_distributed_optimizer:
                _gather_shards(buffer)
        for name, parameter in unwrap_model(chunk).named_parameters():
            gradient = parameter.main_grad.detach().float().clone()
            found |= {f"{number}.{n}": g for n, g in as_local(name, gradient).items()}
    return found


def as_local(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A parameter, or its gradient, under the names that Megatron's local layers have for it.

    Grouped experts have their matrices stacked, TransformerEngine has them numbered in one module,
    and a norm in the matrix behind it.
    """
    block, _, linear = name.rpartition("experts.linear_fc")
    if linear and tensor.dim() == 3:
        names = [f"{block}experts.local_experts.{i}.linear_fc{linear}" for i in range(len(tensor))]
        return dict(zip(names, tensor, strict=True))
    name = re.sub(
        r"experts\.(linear_fc[12])\.weight(\d+)$", r"experts.local_experts.\2.\1.weight", name
    )
    name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
    return {re.sub(r"mlp\.linear_fc1\.layer_norm_", "pre_mlp_layernorm.", name): tensor}


def _gather_shards(buffer: Any) -> None:
    """Every rank of the distributed optimizer has reduced a part of each bucket: give it to all."""
    group = buffer.data_parallel_group
    for bucket in buffer.buckets:
        shards = bucket.grad_data.chunk(dist.get_world_size(group))
        mine = shards[dist.get_rank(group)].clone()
        dist.all_gather_into_tensor(bucket.grad_data, mine, group=group)
