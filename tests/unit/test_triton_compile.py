"""The kernels as a GPU gets them: they compile, fit, and move 16 bytes at a time.

The interpreter knows nothing of types, of shared memory or of how a tile is loaded; the compiler
does, and needs no GPU to say. Widths and dtype are those of GroveMoE-33B.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from .triton_cases import Case
from .triton_process import compiled

A100, H100 = 80, 90
SHARED_MEMORY = {A100: 166_912, H100: 232_448}
CASE = Case(experts_per_group=2, pairs=(256,) * 4, owners=(256, 240, 256, 240))


class Driver:
    """Of a GPU that is only compiled for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        # Compiled kernels are kept for each device.
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _compiling_for(capability: int) -> Iterator[list[Any]]:
    """The kernels that are launched inside, compiled but not run."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from grove_megatron.kernels import triton_launch

    run, made = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        (programs,) = grid(kwargs) if callable(grid) else grid
        assert programs > 0
        made.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    limit = SHARED_MEMORY[capability]
    deterministic = torch.are_deterministic_algorithms_enabled
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(driver, "_active", Driver(capability)),
        mock.patch.object(triton_launch, "_shared_memory", return_value=limit),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        # The first candidate, without timing any.
        mock.patch.object(torch, deterministic.__name__, return_value=True),
    ):
        yield made
    for kernel in made:
        assert kernel.metadata.shared <= limit


def _random(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def _up() -> None:
    from grove_megatron.kernels.triton_products import fan_out

    fan_out(_random(1024, 2048), _random(4, 1536, 2048), _random(2, 256, 2048), CASE)


def _up_gradient() -> None:
    from grove_megatron.kernels.triton_products import fan_in

    p, q = _random(1024, 1536), _random(992, 256)
    fan_in(p, q, _random(4, 1536, 2048), _random(2, 256, 2048), CASE)


def _down() -> None:
    from grove_megatron.kernels.triton_products import fan_in

    p, q = _random(1024, 768), _random(992, 128)
    fan_in(p, q, _random(4, 2048, 768).mT, _random(2, 2048, 128).mT, CASE)


def _down_gradient() -> None:
    from grove_megatron.kernels.triton_products import fan_out

    fan_out(_random(1024, 2048), _random(4, 2048, 768).mT, _random(2, 2048, 128).mT, CASE)


def _up_weights() -> None:
    from grove_megatron.kernels.triton_products import fan_weights

    fan_weights(_random(1024, 1536), _random(992, 256), _random(1024, 2048), CASE)


def _down_weights() -> None:
    from grove_megatron.kernels.triton_products import fan_weights

    fan_weights(_random(1024, 768), _random(992, 128), _random(1024, 2048), CASE, transposed=True)


def _experts_alone() -> None:
    from grove_megatron.kernels.triton_products import fan_in, fan_out, fan_weights

    x, p, wide = _random(1024, 2048), _random(1024, 1536), _random(4, 1536, 2048)
    fan_out(x, wide, None, CASE)
    fan_in(p, None, wide, None, CASE)
    fan_weights(p, None, x, CASE)


def _widths_that_fill_no_tile() -> None:
    from grove_megatron.kernels.triton_products import fan_in, fan_out, fan_weights

    x, p, q = _random(1024, 2064), _random(1024, 1552), _random(992, 144)
    wide, narrow = _random(4, 1552, 2064), _random(2, 144, 2064)
    fan_out(x, wide, narrow, CASE)
    fan_in(p, q, wide, narrow, CASE)
    fan_weights(p, q, x, CASE)


PRODUCTS = [
    _up,
    _up_gradient,
    _down,
    _down_gradient,
    _up_weights,
    _down_weights,
    _experts_alone,
    _widths_that_fill_no_tile,
]


@compiled
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("product", PRODUCTS)
def test_products(product: Callable[[], None], capability: int) -> None:
    with _compiling_for(capability) as made:
        product()
    assert made
    for kernel in made:
        code = kernel.asm["ptx"]
        # Both factors of a step are copied to shared memory, in pieces of 16 bytes, while the step
        # before is multiplied, on tensor cores. Only ends of segments come any other way.
        assert "cp.async.cg.shared.global" in code
        assert "cp.async.ca.shared.global" not in code
        assert set(re.findall(r"ld\.global\.\S+", code)) == {"ld.global.b32"}
        assert set(re.findall(r"st\.global\.\S+", code)) == {"st.global.v4.b32"}
        assert ("wgmma.mma_async" if capability == H100 else "mma.sync") in code


def _take_rows() -> None:
    from grove_megatron.kernels.triton_rows import take_rows

    take_rows(_random(128, 2048), torch.zeros(1024, dtype=torch.int64))


def _sum_rows() -> None:
    from grove_megatron.kernels.triton_rows import sum_rows

    start, index = torch.arange(129) * 8, torch.zeros(1024, dtype=torch.int64)
    sum_rows(_random(1024, 2048), start, index)


def _swiglu() -> None:
    from grove_megatron.kernels.triton_swiglu import weighted_swiglu, weighted_swiglu_grad

    for width in (768, 128):
        h, weight = _random(1024, 2 * width), torch.zeros(1024)
        weighted_swiglu(h, weight)
        weighted_swiglu_grad(_random(1024, width), h, weight)


@compiled
@pytest.mark.parametrize("kernel", [_take_rows, _sum_rows, _swiglu])
def test_copies(kernel: Callable[[], None]) -> None:
    with _compiling_for(H100) as made:
        kernel()
    assert made
    for code in (each.asm["ptx"] for each in made):
        # Elements in pieces of 16 bytes; indices are of 64 bit, weights of rows of 32.
        assert "ld.global.v4.b32" in code
        assert "st.global.v4.b32" in code
        assert not re.search(r"(ld|st)\.global\.(v2\.)?b16", code)


@compiled
def test_the_number_of_rows_does_not_compile_anew() -> None:
    """It changes with every batch: neither 1 nor a multiple of 16 may be special."""
    from grove_megatron.kernels.triton_products import fan_in, fan_out, fan_weights
    from grove_megatron.kernels.triton_rows import sum_rows, take_rows
    from grove_megatron.kernels.triton_swiglu import weighted_swiglu, weighted_swiglu_grad

    with _compiling_for(H100) as made:
        for rows in (16, 17, 1, 32):
            case = Case(experts_per_group=1, pairs=(rows, 0), owners=(rows, 0))
            x, p, q = _random(rows, 64), _random(rows, 64), _random(rows, 32)
            wide, narrow, index = _random(2, 64, 64), _random(2, 32, 64), torch.arange(rows)
            fan_out(x, wide, narrow, case)
            fan_in(p, q, wide, narrow, case)
            fan_weights(p, q, x, case)
            take_rows(x, index)
            sum_rows(x, torch.arange(rows + 1), index)
            weighted_swiglu(p, torch.zeros(rows))
            weighted_swiglu_grad(q, p, torch.zeros(rows))
    by_name: dict[str, set[str]] = {}
    for kernel in made:
        by_name.setdefault(kernel.metadata.name, set()).add(kernel.hash)
    assert {name: len(hashes) for name, hashes in by_name.items()} == {
        "_fan_out_kernel": 1,
        "_fan_in_kernel": 1,
        "_fan_weights_kernel": 1,
        "_take_rows_kernel": 1,
        "_sum_rows_kernel": 1,
        "_swiglu_kernel": 1,
        "_swiglu_grad_kernel": 1,
    }
