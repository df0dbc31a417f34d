"""Where what travels beside the hidden states begins and ends, in a model of Megatron's.

Token ids and rewards begin as columns of the embedding's output. Rewards end before the last norm,
and get their gradient from the losses that the model returns (see moe/carried.py).
"""

from collections.abc import Collection
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer
from torch import Tensor

from ..functional.policy import Reward
from ..moe.carried import REWARD_COLUMNS, digits, join, take_apart
from ..parts import registry


class CarryingMTPLayer(MultiTokenPredictionLayer):
    """Megatron's, which norms and projects what it knows of a token, ids left out."""

    def _concat_embeddings(self, hidden_states: Tensor, decoder_input: Tensor) -> Tensor:
        decoder_input, columns = take_apart(decoder_input, self.config.hidden_size)
        return join(super()._concat_embeddings(hidden_states, decoder_input), columns)


def carry(model: GPTModel) -> GPTModel:
    """Have a model chunk begin and end the columns that its routers need.

    Args:
        model: built, not wrapped.

    Returns:
        ``model``.
    """
    needs = registry.needs(model.config)
    embedding = getattr(model, "embedding", None)
    if embedding is not None and needs & {"ids", "reward"}:
        embedding.register_forward_hook(_Begin(model, needs), with_kwargs=True)
    if model.post_process and "reward" in needs:
        end = _End(model)
        model.decoder.final_layernorm.register_forward_pre_hook(end.take)
        model.register_forward_hook(end.give)
    model.carries = needs
    return model


def _place(rows: int, sequence: int, model: GPTModel) -> slice:
    """Of a sequence, what a rank of sequence parallelism has."""
    first = model.pg_collection.tp.rank() * rows if rows != sequence else 0
    return slice(first, first + rows)


class _Begin:
    """A forward hook of the embedding."""

    def __init__(self, model: GPTModel, needs: Collection[str]) -> None:
        self.model, self.needs = model, needs

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: Any, output: Tensor) -> Tensor:
        """[S, B, H] to [S, B, H + columns]."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        columns = []
        if "ids" in self.needs:
            own = ids.transpose(0, 1)[_place(output.shape[0], ids.shape[1], self.model)]
            columns.append(digits(own, output.dtype))
        if "reward" in self.needs and self.model.training:
            columns.append(output.new_zeros((*output.shape[:2], REWARD_COLUMNS)))
        return join(output, torch.cat(columns, dim=-1)) if columns else output


class _End:
    """Takes rewards off the hidden states, and joins them to the losses of the same pass."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.reward: Tensor | None = None

    def take(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A hook before the last norm."""
        hidden, self.reward = take_apart(args[0], self.model.config.hidden_size)
        return (hidden, *args[1:])

    def give(self, module: Any, args: Any, output: Any) -> Any:
        """A hook after the model."""
        reward, self.reward = self.reward, None
        if reward is None or not (torch.is_grad_enabled() and self.model.training):
            return output
        is_loss = isinstance(output, Tensor) and output.dim() == 2
        if not is_loss:
            raise ValueError(
                "--grove-router-selector (reinforce) learns from losses, and the model was called "
                "in training without labels; give it some"
            )
        place = _place(reward.shape[0], output.shape[1], self.model)
        return Reward.apply(output, reward, place)
