"""Ways to compute experts and adjugates on the same rows: kernels that differ in their products.

    owner_rows     adjugate products straight from and into the owners' rows
    separate       the owner rows copied out, a product of their own, added back
    concatenated   owner rows times [E_i | A_j], the other rows times E_i
    two_streams    separate, on a second CUDA stream
    triton         both widths in one launch

Everything else (copies, sums, SwiGLU) is the same in all of them: Triton's on CUDA where it can
run, torch's otherwise.
"""

from dataclasses import dataclass, replace

import torch

from ..kernels import TORCH, Kernels
from ..kernels.torch_products import grouped_why_not
from ..kernels.triton_support import why_not as triton_why_not
from . import concatenated
from .two_passes import with_two_passes

STRATEGIES = ("owner_rows", "separate", "concatenated", "two_streams", "triton")


@dataclass(frozen=True)
class Choice:
    """What can run here.

    Attributes:
        strategies: by name, ``owner_rows`` first.
        skipped: why the others cannot.
        implementations: of single kernels, by name; the last is the base of the strategies.
    """

    strategies: dict[str, Kernels]
    skipped: dict[str, str]
    implementations: dict[str, Kernels]


def choose(dtype: torch.dtype, device: torch.device, num_pairs: int, **widths: int) -> Choice:
    """Strategies for rows of this kind.

    Args:
        dtype, device: of rows and matrices.
        num_pairs: N.
        widths: of rows and matrices, by their users' names.
    """
    on_cuda = device.type == "cuda"
    no_triton = triton_why_not(dtype, device, num_pairs=num_pairs, **widths)
    no_grouped = grouped_why_not(dtype, *widths.values())
    no_cuda = None if on_cuda else "no CUDA device"
    implementations = {"torch": TORCH}
    if no_triton is None:
        from ..kernels.triton_kernels import TRITON

        implementations["triton"] = TRITON
    base = implementations["triton"] if on_cuda and no_triton is None else TORCH
    reasons = {
        "owner_rows": None,
        "separate": no_grouped,
        "concatenated": no_grouped if on_cuda else None,
        "two_streams": no_cuda or no_grouped,
        "triton": no_triton,
    }
    made = {
        "owner_rows": lambda: _with_products(base, "owner_rows", TORCH),
        "separate": lambda: with_two_passes(base, second_stream=False),
        "concatenated": lambda: _with_products(base, "concatenated", concatenated),
        "two_streams": lambda: with_two_passes(base, second_stream=True),
        "triton": lambda: _with_products(base, "triton", implementations["triton"]),
    }
    return Choice(
        strategies={name: made[name]() for name in STRATEGIES if reasons[name] is None},
        skipped={name: reason for name, reason in reasons.items() if reason is not None},
        implementations=implementations,
    )


def _with_products(base: Kernels, name: str, products: object) -> Kernels:
    fan_out, fan_in, fan_weights = (
        getattr(products, f) for f in ("fan_out", "fan_in", "fan_weights")
    )
    return replace(base, name=name, fan_out=fan_out, fan_in=fan_in, fan_weights=fan_weights)
