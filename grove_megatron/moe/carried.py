"""Router logits on their way from a MoE layer to the next: extra columns of the hidden states.

Whatever hands hidden states on then hands the logits on too, with exact gradients: the next layer
of the block, recomputation of a layer or of its experts, and another pipeline stage. What is
between two layers sees hidden states alone.
"""

from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


def join(hidden: Tensor, carried: Tensor | None) -> Tensor:
    """[S, B, H] and [S, B, E] as one tensor; the former alone where there is nothing to carry."""
    return hidden if carried is None else torch.cat([hidden, carried.to(hidden.dtype)], dim=-1)


def take_apart(joined: Tensor, hidden_size: int) -> tuple[Tensor, Tensor | None]:
    """What :func:`join` has joined."""
    carried = joined.shape[-1] - hidden_size
    if carried == 0:
        return joined, None
    return joined[..., :hidden_size], joined[..., hidden_size:]


class CarryingLayer(TransformerLayer):
    """Megatron's layer, through which the logits of the last MoE layer go on to the next one.

    The last layer of the decoder, and those of MTP, which begin anew, carry nothing further.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """As TransformerLayer; hidden states [S, B, H] or [S, B, H + E]."""
        given = args[0] if args else kwargs.pop("hidden_states")
        hidden, carried = take_apart(given, self.config.hidden_size)
        if self.is_moe_layer:
            self.mlp.previous = carried
        output, context = super().forward(hidden.contiguous(), *args[1:], **kwargs)
        if self.is_moe_layer:
            carried = self.mlp.handed
            self.mlp.previous = self.mlp.handed = None
        ends = self.is_mtp_layer or self.layer_number == self.config.num_layers
        return (output if ends else join(output, carried)), context
