"""Multi-latent attention of ``--transformer-impl local``, which Megatron 0.19.2 cannot build.

Its MLASelfAttention gives the core attention widths that only TransformerEngine's takes
(multi_latent_attention.py:207, dot_product_attention.py:42). With tensor parallelism its local
layers would besides lose gradients of the keys' positions: every rank has those of its own heads,
and keeps of them what belongs to its rows (``gather_from_tensor_model_parallel_region``).
"""

from typing import Any, override

from megatron.core.tensor_parallel.mappings import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import divide
from torch import Tensor


class LatentCoreAttention(DotProductAttention):
    """Megatron's, with values that may be narrower than queries and keys.

    Args:
        config: of the model.
        v_channels: width of a value; None for the one that Megatron's Attention builds before and
            MLASelfAttention replaces (attention.py:382 @ 0.19.2).
        k_channels: width of a query and a key, from which ``softmax_scale`` is.
        others: as DotProductAttention has them.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        k_channels: int | None = None,
        v_channels: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(config, **others)
        if v_channels is not None:
            # Of the heads' output, all that the forward pass asks for.
            width = v_channels * config.num_attention_heads
            self.hidden_size_per_partition = divide(width, self.tp_group.size())


class LatentSelfAttention(MLASelfAttention):
    """Megatron's, with the tensor-parallel ranks' gradients of the keys' positions added up."""

    @override
    def _qkv_down_projection(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed queries [S, B, rank], or the hidden states; keys, values and positions.

        The second, [S / ranks, B, rank + positions], is what a projection that is whole on every
        rank gives: the positions are then gathered by a collective whose gradient is a sum.
        """
        compressed_q, compressed_kv = super()._qkv_down_projection(hidden_states)
        if self.config.sequence_parallel and self.tp_group.size() > 1:
            whole_kv = gather_from_tensor_model_parallel_region(compressed_kv, self.tp_group)
            compressed_kv = scatter_to_sequence_parallel_region(whole_kv, self.tp_group)
        return compressed_q, compressed_kv
