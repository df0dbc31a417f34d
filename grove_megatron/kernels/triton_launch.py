"""Tile sizes for the products, and which of them a launch uses.

Which is fastest depends on the GPU, the widths and how many rows an expert has. The candidates
that fit are timed once per such case and the times are kept on disk by Triton. Where torch is
asked for determinism nothing is timed: another tile adds up in another order.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from .triton_support import interpreting

Grid = Callable[[dict[str, Any]], tuple[int]]


class Tile(NamedTuple):
    """A program's part of the result, ``rows`` x ``columns``, and how much it sums at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def config(self) -> triton.Config:
        sizes = {
            "BLOCK_ROWS": self.rows,
            "BLOCK_COLUMNS": self.columns,
            "BLOCK_DEPTH": self.depth,
        }
        return triton.Config(sizes, num_warps=self.warps, num_stages=self.stages)


# For tensor cores, the larger first: it reads the least. Stages x (rows + columns) x depth elements
# have to fit into shared memory.
_TILES = (
    Tile(128, 256, 64, 8, 4),
    Tile(128, 256, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 4, 4),
    Tile(64, 256, 64, 4, 3),
    Tile(64, 128, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(32, 128, 64, 4, 4),
    Tile(32, 64, 64, 4, 4),
    Tile(16, 128, 64, 4, 4),
    Tile(16, 64, 64, 4, 4),
    Tile(16, 16, 64, 1, 3),
)
# For exact fp32, which runs on the ordinary cores and keeps its factors in registers.
_EXACT_TILES = (
    Tile(64, 64, 32, 4, 3),
    Tile(64, 64, 16, 4, 3),
    Tile(32, 64, 32, 4, 3),
    Tile(16, 64, 32, 4, 3),
    Tile(16, 16, 32, 1, 3),
)
_MOST_TIMED = 5
_INTERPRETED_TILE = Tile(16, 32, 16, 1, 1)

_BUCKETS = (16, 64, 256, 1024)
"""Rows per expert that are told apart; their limits lie between the powers of two, so that a
usual number of rows is not on one side in one step and on the other in the next."""


def rows_bucket(num_rows: int, num_segments: int) -> int:
    """The average size of a segment, coarsely."""
    average = num_rows / max(num_segments, 1)
    return next((size for size in _BUCKETS if average <= 1.5 * size), 4 * _BUCKETS[-1])


@cache
def fitting(
    rows: int, columns: int, depth: int, *, exact: bool, itemsize: int, shared_memory: int
) -> tuple[Tile, ...]:
    """The candidates that waste little on a product of these sizes, the largest first.

    Args:
        rows, columns, depth: sizes to cover, such as the rows of an average expert.
        exact: fp32 without tensor cores.
        itemsize: bytes of an element.
        shared_memory: bytes that a program may use.
    """
    rows, columns, depth = (max(16, triton.next_power_of_2(n)) for n in (rows, columns, depth))
    depth = min(depth, 128 // itemsize)
    tiles = [t._replace(depth=min(t.depth, depth)) for t in (_EXACT_TILES if exact else _TILES)]
    found = [
        tile
        for tile in tiles
        if tile.rows <= rows
        and tile.columns <= columns
        and tile.stages * (tile.rows + tile.columns) * tile.depth * itemsize <= shared_memory
    ]
    return tuple(dict.fromkeys(found[:_MOST_TIMED]))


def precision(dtype: torch.dtype) -> str:
    """Triton's name for how factors of ``dtype`` are multiplied: as torch is told to."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def launch(
    kernel: Any,
    grid: Grid,
    covers: tuple[int, int, int],
    dtype: torch.dtype,
    **arguments: Any,
) -> None:
    """Run a product's kernel with the best tile.

    Args:
        kernel: takes ``arguments``, PRECISION, WIDEN and the sizes of a tile.
        grid: from the sizes of a tile to the number of programs.
        covers: typical (rows, columns, depth) of the product, see :func:`fitting`.
        dtype: of the factors.
    """
    arguments |= {"PRECISION": precision(dtype), "WIDEN": interpreting()}
    if interpreting():
        tiles: tuple[Tile, ...] = (_INTERPRETED_TILE,)
    else:
        tiles = fitting(
            *covers,
            exact=dtype == torch.float32 and arguments["PRECISION"] == "ieee",
            itemsize=dtype.itemsize,
            shared_memory=_shared_memory(torch.cuda.current_device()),
        )
    if torch.are_deterministic_algorithms_enabled():
        tiles = tiles[:1]
    if len(tiles) == 1:
        kernel[grid](**arguments, **tiles[0].config().all_kwargs())
    else:
        _timed(kernel, tiles)[grid](**arguments)


@cache
def _shared_memory(device: int) -> int:
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


@cache
def _timed(kernel: Any, tiles: tuple[Tile, ...]) -> Any:
    # How many rows an expert has is not in the key: the candidates already depend on it.
    key = [
        name for name in ("K", "P", "Q", "K_CONTIGUOUS", "TRANSPOSED") if name in kernel.arg_names
    ]
    return triton.autotune([t.config() for t in tiles], key, cache_results=True)(kernel)
