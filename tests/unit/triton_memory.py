"""Interpreted kernels that touch memory they were not given are found out.

On a GPU an address a little past a tensor is often still readable, and what is read there may
never show in a result: a test of results alone does not see it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch


@contextmanager
def memory_checked() -> Iterator[None]:
    """Every address that a kernel reads or writes inside lies in one of its tensors."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    given: list[torch.UntypedStorage] = []
    launch = GridExecutor.__call__
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        given[:] = [tensor.untyped_storage() for tensor in tensors]
        launch(self, *args, **kwargs)

    def check(pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        touched = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        inside = np.zeros(touched.shape, bool)
        for storage in given:
            first, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
            inside |= (touched >= first) & (touched + np.uint64(size) <= end)
        assert inside.all(), f"{np.count_nonzero(~inside)} elements outside the tensors"

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(GridExecutor, "__call__", remember),
        mock.patch.object(InterpreterBuilder, "create_masked_load", checked_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", checked_store),
    ):
        yield
