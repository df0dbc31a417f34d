"""One RMSNorm over all heads of the queries, and one of the keys, as OLMoE has them.

Megatron normalises every head by itself (attention.py:1722 @ 0.19.2) and builds both norms from
its spec. These take their place: transformers, models/olmoe/modeling_olmoe.py:346-366 @ 4.46.3.
"""

import torch
import torch.distributed.nn.functional as collectives
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class WholeNorm(torch.nn.Module):
    """RMSNorm of what all heads of all tensor-parallel ranks have, together.

    The weight is whole on every rank, as Megatron's own is, and so are its gradients: Megatron sums
    those of ``q_layernorm`` and ``k_layernorm`` over tensor-parallel ranks, of which each has the
    gradient of its own heads (finalize_model_grads.py:453 @ 0.19.2).

    Args:
        config: of the model.
        hidden_size: D, width of a head.
        eps: of the norm.
        heads: N, of all ranks.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, *, heads: int
    ) -> None:
        super().__init__()
        self.group = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp"]).tp
        self.width, self.eps = heads * hidden_size, eps
        self.weight = torch.nn.Parameter(torch.ones(self.width, dtype=config.params_dtype))

    def forward(self, x_SBND: Tensor) -> Tensor:
        """Of this rank's heads [S, B, N / ranks, D]; the statistics are in fp32 or wider."""
        wide = torch.promote_types(x_SBND.dtype, torch.float32)
        # No copy in fp32 is kept for the backward pass.
        lengths_SB11 = torch.linalg.vector_norm(x_SBND, dim=(-2, -1), keepdim=True, dtype=wide)
        squares_SB11 = lengths_SB11.square()
        ranks = self.group.size()
        if ranks > 1:
            # Of which every rank uses its own part: the gradient is a sum too.
            squares_SB11 = collectives.all_reduce(  # type: ignore[no-untyped-call]
                squares_SB11, group=self.group
            )
        normed = (x_SBND * torch.rsqrt(squares_SB11 / self.width + self.eps)).to(x_SBND.dtype)
        own = self.weight.chunk(ranks)[self.group.rank()] if ranks > 1 else self.weight
        return normed * own.view(x_SBND.shape[-2:])


def query_norm(config: TransformerConfig, hidden_size: int, eps: float) -> WholeNorm:
    """Of all query heads."""
    return WholeNorm(config, hidden_size, eps, heads=config.num_attention_heads)


def key_norm(config: TransformerConfig, hidden_size: int, eps: float) -> WholeNorm:
    """Of all key heads."""
    return WholeNorm(config, hidden_size, eps, heads=config.num_query_groups)
