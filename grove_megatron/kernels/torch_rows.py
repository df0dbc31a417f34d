"""Copy rows, and sum bags of rows; see :class:`.interface.Kernels`."""

from torch import Tensor
from torch.nn import functional as F


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def sum_rows(y: Tensor, bag_start: Tensor, bag_index: Tensor) -> Tensor:
    # An embedding bag reads every row once and writes every sum once, in a fixed order; an
    # index_add would read and write a sum once per row, and on CUDA in any order.
    return F.embedding_bag(bag_index, y, bag_start, mode="sum", include_last_offset=True)
