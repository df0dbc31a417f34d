"""What keeps the conversations of a sequence apart, in each implementation of attention."""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import (
    flatten_batch_for_packed_sequences,
)
from megatron.training.training import update_seqlen_stats_from_cu_seqlens
from torch import Tensor

Batch = dict[str, Tensor | None]


def mask_of(begins: Tensor) -> Tensor:
    """For Megatron's local attention, which takes a mask and no borders.

    Args:
        begins: [B, N] int32, ascending from 0: where conversations begin, filled up with S.

    Returns:
        [B, 1, S, S] bool: True where a query (rows) does not see a key.
    """
    size = int(begins[0, -1])
    place_S = torch.arange(size, dtype=begins.dtype, device=begins.device)
    number_BS = torch.searchsorted(begins.contiguous(), place_S.repeat(len(begins), 1), right=True)
    apart_BSS = number_BS[:, :, None] != number_BS[:, None, :]
    later_SS = place_S[:, None] < place_S[None, :]
    return (apart_BSS | later_SS)[:, None]


def apart(
    batch: Batch, tokens_per_sample: int, *, is_local: bool
) -> tuple[Batch, PackedSeqParams | None]:
    """A batch whose conversations attention keeps apart.

    Args:
        batch: of B samples: ``cu_seqlens`` [B, S + 1], ``max_seqlen`` [B], others [B, S].
        tokens_per_sample: S.
        is_local: is attention Megatron's own, which takes a mask and no borders?

    Returns:
        For local attention the batch with its mask, and None. For TransformerEngine's all samples
        as one row, [1, B * S], and what the model takes as ``packed_seq_params``.
    """
    begins = batch["cu_seqlens"]
    assert begins is not None
    # Of the true lengths Megatron tells the operations it did.
    for row in begins:
        update_seqlen_stats_from_cu_seqlens(row)
    if is_local:
        return batch | {"attention_mask": mask_of(begins)}, None
    flat: Batch = flatten_batch_for_packed_sequences(batch)
    begins, longest = flat["cu_seqlens"], flat["max_seqlen"]
    assert begins is not None
    assert longest is not None
    return flat, PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=begins[0],
        cu_seqlens_kv=begins[0],
        max_seqlen_q=int(longest),
        max_seqlen_kv=int(longest),
        tokens_per_sample=tokens_per_sample,
    )
