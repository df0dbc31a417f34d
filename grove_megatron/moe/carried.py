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
    """What :func:`join` has joined.

    Copied: a view of wider rows is read as if its own rows were wide by kernels that ask for a
    pointer and a shape (TransformerEngine's products), and what is saved of it for the backward
    pass keeps all of them.
    """
    if joined.shape[-1] == hidden_size:
        return joined, None
    return joined[..., :hidden_size].contiguous(), joined[..., hidden_size:].contiguous()


class CarryingLayer(TransformerLayer):
    """Megatron's layer, through which the logits of the last MoE layer go on to the next one.

    The last layer of the decoder, and those of MTP, which begin anew, carry nothing further.
    """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """As TransformerLayer; hidden states [S, B, H] or [S, B, H + E]."""
        given = args[0] if args else kwargs.pop("hidden_states")
        stages = self.config.pipeline_model_parallel_size
        if stages > 1 and kwargs.get("inference_context") is not None:
            raise ValueError(
                f"--grove-gating-residual (True) excludes --pipeline-model-parallel-size "
                f"({stages}) in inference, whose stages expect hidden states alone; use 1"
            )
        hidden, carried = take_apart(given, self.config.hidden_size)
        if self.is_moe_layer:
            self.mlp.previous = carried
        output, context = super().forward(hidden, *args[1:], **kwargs)
        if self.is_moe_layer:
            carried = self.mlp.handed
            self.mlp.previous = self.mlp.handed = None
        ends = self.is_mtp_layer or self.layer_number == self.config.num_layers
        return (output if ends else join(output, carried)), context
