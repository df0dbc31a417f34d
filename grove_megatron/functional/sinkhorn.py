"""Sinkhorn's iteration on logarithms: a soft assignment in which all experts weigh the same.

pi = diag(r) exp(z) diag(c) whose rows sum to 1 and whose columns sum to T / E (arXiv 2202.01169,
section 3.1). Of logarithms nothing overflows: Megatron's own takes exp(z), which does above 88.
"""

import torch
from torch import Tensor


def log_sinkhorn(z_TE: Tensor, counted_T: Tensor | None, iterations: int) -> Tensor:
    """log pi [T, E], after so many iterations; nothing waits for the device.

    Args:
        z_TE: logits, fp32 or wider; -inf where an expert may not be selected.
        counted_T: bool, the tokens that columns sum over; None for all. The rows of others are
            scaled by the same columns.
        iterations: 1 or more.
    """
    columns_E = z_TE.new_zeros(z_TE.shape[1])
    counted_TE = z_TE
    if counted_T is not None:
        counted_TE = z_TE.masked_fill(~counted_T.unsqueeze(1), float("-inf"))
    for _ in range(iterations):
        rows_T1 = -torch.logsumexp(z_TE + columns_E, dim=1, keepdim=True)
        sums_E = torch.logsumexp(counted_TE + rows_T1, dim=0)
        # All alike: of what size rows decide, which sum to 1. Without any token a column is as it
        # was.
        columns_E = torch.where(sums_E.isfinite(), -sums_E, columns_E)
    rows_T1 = -torch.logsumexp(z_TE + columns_E, dim=1, keepdim=True)
    return z_TE + rows_T1 + columns_E
