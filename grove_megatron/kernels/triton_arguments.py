"""What the kernels are told about the matrices and the segments.

L experts, G groups; wide [L, P, K] and narrow [G, Q, K] are the matrices of both.
"""

from typing import Any

from torch import Tensor

from .interface import SegmentsLike
from .triton_tiles import expert_lanes


def product_arguments(
    wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
) -> dict[str, Any]:
    """Arguments that the kernels of both products share.

    Without ``narrow`` its width is 0 and its pointer is never followed.
    """
    k_contiguous = wide.stride(2) == 1 or wide.stride(1) != 1
    wide = _with_unit_stride(wide, k_contiguous)
    narrow = wide[:, :0] if narrow is None else _with_unit_stride(narrow, k_contiguous)
    num_experts, width, k = wide.shape
    across = 1 if k_contiguous else 2
    return {
        "wide_ptr": wide,
        "narrow_ptr": narrow,
        "wide_step": wide.stride(0),
        "wide_pitch": wide.stride(across),
        "narrow_step": narrow.stride(0),
        "narrow_pitch": narrow.stride(across),
        "expert_end_ptr": segments.expert_end,
        "owner_end_ptr": segments.owner_end,
        "K": k,
        "P": width,
        "Q": narrow.shape[1],
        "NUM_EXPERTS": num_experts,
        "EXPERT_LANES": expert_lanes(num_experts),
        "EXPERTS_PER_GROUP": segments.experts_per_group,
        "K_CONTIGUOUS": k_contiguous,
    }


def _with_unit_stride(matrices: Tensor, k_contiguous: bool) -> Tensor:
    """[., ., K] with elements next to each other along K or along the dimension before.

    Both matrices must have the same one, which the kernels are compiled for; parameters and their
    transposes always do. Others are copied.
    """
    if matrices.stride(2 if k_contiguous else 1) == 1:
        return matrices
    if k_contiguous:
        return matrices.contiguous()
    return matrices.transpose(1, 2).contiguous().transpose(1, 2)
