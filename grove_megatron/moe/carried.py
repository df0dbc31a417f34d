"""What travels beside the hidden states, as extra columns of them, from layer to layer.

Whatever hands hidden states on then hands these on too, with exact gradients: the next layer of the
block, recomputation of a layer or of its experts, and another pipeline stage, microbatch by
microbatch. What is between two layers sees hidden states alone. Of the parts of a router

* ``ids`` are token ids, for a choice by the token itself. They begin at the embedding.
* ``reward`` says nothing on its way forward: its *gradient* brings every layer the losses of its
  tokens. It begins at the embedding and ends at the last norm, see training/carrying.py.
* ``logits`` are those of the router of the MoE layer before.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from ..checks.flags import flag_of
from ..parts import registry

ID_COLUMNS = 3
REWARD_COLUMNS = 4
# Whole numbers up to this are exact in bf16, of which hidden states may be.
_BASE = 256


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Columns of one layer's input or output; None for what there is not.

    Args:
        ids: [S, B, 3], digits.
        reward: [S, B, 4].
        logits: [S, B, E]; None before the first MoE layer.
    """

    ids: Tensor | None = None
    reward: Tensor | None = None
    logits: Tensor | None = None

    @classmethod
    def of(cls, columns: Tensor | None, config: Any, training: bool) -> Self:
        """The parts of what :func:`take_apart` found beside hidden states.

        Args:
            columns: [S, B, any], or None.
            config: says what travels.
            training: rewards travel in training alone.
        """
        if columns is None:
            return cls()
        needed = registry.needs(config)
        ids = ID_COLUMNS if "ids" in needed else 0
        reward = REWARD_COLUMNS if training and "reward" in needed else 0
        sizes = [ids, reward, columns.shape[-1] - ids - reward]
        split = torch.split(columns, sizes, dim=-1)
        parts = [part if part.shape[-1] else None for part in split]
        return cls(ids=parts[0], reward=parts[1], logits=parts[2])

    @property
    def columns(self) -> Tensor | None:
        """All of them side by side, in the dtype of the first; None for none."""
        there = [part for part in (self.ids, self.reward, self.logits) if part is not None]
        if not there:
            return None
        return torch.cat([part.to(there[0].dtype) for part in there], dim=-1)

    @property
    def ids_T(self) -> Tensor | None:
        """Int64 token ids; None without."""
        return None if self.ids is None else of_digits(self.ids).reshape(-1)

    def with_logits(self, logits: Tensor | None) -> Self:
        """With those of another router."""
        return replace(self, logits=logits)


def digits(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Token ids [...] as [..., 3] numbers below 256, which no dtype of hidden states rounds."""
    lower, rest = ids % _BASE, ids // _BASE
    return torch.stack([lower, rest % _BASE, rest // _BASE], dim=-1).to(dtype)


def of_digits(digits: Tensor) -> Tensor:
    """Undo :func:`digits`: [..., 3] to int64 [...]."""
    lower, middle, upper = digits.detach().long().unbind(-1)
    return lower + _BASE * (middle + _BASE * upper)


def join(hidden: Tensor, carried: Tensor | None) -> Tensor:
    """[S, B, H] and [S, B, E] as one tensor; the former alone where there is nothing to carry."""
    return hidden if carried is None else torch.cat([hidden, carried.to(hidden.dtype)], dim=-1)


def take_apart(joined: Tensor, hidden_size: int) -> tuple[Tensor, Tensor | None]:
    """What :func:`join` has joined.

    Copied: a view of wider rows is read as if its own rows were wide by kernels that ask for a
    pointer and a shape (TransformerEngine's products), and what is saved of it for the backward
    pass keeps all of them.
    """
    if joined.shape[-1] == hidden_size:
        return joined, None
    return joined[..., :hidden_size].contiguous(), joined[..., hidden_size:].contiguous()


class CarryingLayer(TransformerLayer):
    """Megatron's layer, past which columns go on to the next one.

    The last layer of the decoder hands nothing on but rewards, and those of MTP nothing.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """As TransformerLayer; hidden states [S, B, H] or [S, B, H + columns]."""
        given = args[0] if args else kwargs.pop("hidden_states")
        stages = self.config.pipeline_model_parallel_size
        if stages > 1 and kwargs.get("inference_context") is not None:
            raise ValueError(no_stages(self.config, stages))
        hidden, columns = take_apart(given, self.config.hidden_size)
        if self.is_moe_layer:
            self.mlp.previous = columns
        output, context = super().forward(hidden, *args[1:], **kwargs)
        if self.is_moe_layer:
            columns = self.mlp.handed
            self.mlp.previous = self.mlp.handed = None
        if self.is_mtp_layer or self.layer_number == self.config.num_layers:
            # Rewards end beside what they are of.
            last = Carried.of(columns, self.config, self.training)
            columns = None if self.is_mtp_layer else last.reward
        return join(output, columns), context


def no_stages(config: Any, stages: int) -> str:
    """Why a model does not generate text over pipeline stages."""
    (asked, *_) = carrying_flags(config)
    return (
        f"{asked} excludes --pipeline-model-parallel-size ({stages}) in inference, whose stages "
        "expect hidden states alone; use 1"
    )


def carrying_flags(config: Any) -> list[str]:
    """Of the parts for which something travels, as ``--flag (value)``."""
    names = dict.fromkeys(registry.setting(p) for p in registry.active(config) if p.needs)
    return [f"{flag_of(name)} ({getattr(config, name)})" for name in names]
