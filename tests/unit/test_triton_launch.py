"""Which tile sizes a launch chooses from, and when it may time them."""

import itertools
from typing import Any
from unittest import mock

import pytest
import torch

from .triton_process import compiled, interpreted

A100, H100, SMALLEST = 166_912, 232_448, 101_376


@compiled
@pytest.mark.parametrize("shared_memory", [A100, H100, SMALLEST])
def test_there_is_always_a_tile_and_it_fits(shared_memory: int) -> None:
    from grove_megatron.kernels.triton_launch import fitting

    sizes = (1, 8, 24, 64, 200, 256, 4096)
    for rows, columns, depth in itertools.product(sizes, sizes, sizes):
        for exact, itemsize in ((False, 2), (False, 4), (True, 4)):
            tiles = fitting(
                rows, columns, depth, exact=exact, itemsize=itemsize, shared_memory=shared_memory
            )
            assert 1 <= len(tiles) <= 5
            for t in tiles:
                assert t.rows < 2 * max(rows, 8.5)
                assert t.columns < 2 * max(columns, 8.5)
                assert t.stages * (t.rows + t.columns) * t.depth * itemsize <= shared_memory
                # What tl.dot takes.
                assert min(t[:3]) >= 16


@compiled
def test_large_products_get_large_tiles() -> None:
    from grove_megatron.kernels.triton_launch import fitting

    def largest(rows: int, shared_memory: int) -> tuple[int, ...]:
        tiles = fitting(rows, 1536, 2048, exact=False, itemsize=2, shared_memory=shared_memory)
        return tiles[0]

    assert largest(256, H100) == (128, 256, 64, 8, 4)
    assert largest(256, A100) == (128, 256, 64, 8, 3)
    assert largest(64, H100)[:2] == (64, 256)
    assert largest(16, H100)[:2] == (16, 128)


@compiled
def test_a_usual_number_of_rows_is_not_at_the_limit_of_a_bucket() -> None:
    from grove_megatron.kernels.triton_launch import rows_bucket

    experts = 128
    for power in range(4, 13):
        usual = experts * 2**power
        around = {rows_bucket(round(usual * share), experts) for share in (0.8, 1.0, 1.3)}
        assert len(around) == 1
    assert [rows_bucket(n, 1) for n in (1, 24, 25, 96, 97, 384, 385, 1536, 1537)] == [
        16, 16, 64, 64, 256, 256, 1024, 1024, 4096
    ]  # fmt: skip


@compiled
def test_fp32_is_exact_unless_torch_is_told_otherwise() -> None:
    from grove_megatron.kernels.triton_launch import precision

    assert precision(torch.float32) == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert precision(torch.float32) == "tf32"
        assert precision(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert precision(torch.float32) == "ieee"


class Kernel:
    """Writes down the tile it is launched with."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda **arguments: self.launches.append(arguments)


def _launch(kernel: Kernel) -> None:
    from grove_megatron.kernels.triton_launch import launch

    launch(kernel, lambda tile: (1,), (256, 1536, 2048), torch.bfloat16, K=2048)


@compiled
def test_candidates_are_timed_unless_torch_is_to_be_deterministic() -> None:
    from grove_megatron.kernels import triton_launch

    timed, untimed = Kernel(), Kernel()
    with (
        mock.patch.object(triton_launch, "_timed", return_value=timed) as choose,
        mock.patch.object(triton_launch, "_shared_memory", return_value=H100),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
    ):
        _launch(untimed)
        ((kernel, tiles),) = (call.args for call in choose.call_args_list)
        assert kernel is untimed
        assert len(tiles) == 5
        assert len(timed.launches) == 1
        assert "BLOCK_ROWS" not in timed.launches[0]
        torch.use_deterministic_algorithms(True)
        try:
            _launch(untimed)
        finally:
            torch.use_deterministic_algorithms(False)
        assert choose.call_count == 1
    assert untimed.launches == [
        {
            "K": 2048,
            "PRECISION": "ieee",
            "WIDEN": False,
            "BLOCK_ROWS": 128,
            "BLOCK_COLUMNS": 256,
            "BLOCK_DEPTH": 64,
            "num_warps": 8,
            "num_stages": 4,
            "num_ctas": 1,
        }
    ]


@interpreted
def test_the_interpreter_times_nothing() -> None:
    kernel = Kernel()
    _launch(kernel)
    assert kernel.launches[0]["BLOCK_ROWS"] == 16
    assert kernel.launches[0]["WIDEN"] is True


@compiled
def test_each_set_of_widths_is_timed_once() -> None:
    """For every kernel, the arguments that its speed depends on are those it is timed by."""
    from grove_megatron.kernels import triton_fan_in, triton_fan_out, triton_fan_weights
    from grove_megatron.kernels.triton_launch import Tile, _timed

    tiles = (Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3))
    keys = [
        _timed(kernel, tiles).keys
        for kernel in (
            triton_fan_out._fan_out_kernel,
            triton_fan_in._fan_in_kernel,
            triton_fan_weights._fan_weights_kernel,
        )
    ]
    widths = ["K", "P", "Q"]
    assert keys == [[*widths, "K_CONTIGUOUS"], [*widths, "K_CONTIGUOUS"], [*widths, "TRANSPOSED"]]
