"""Other ways to compute the same products, to be measured against the single launch.

    separate     the experts' product, then a gather of the owner rows and the adjugates' product
    two streams  the same, the adjugates on a second stream beside the experts

Both go through torch's grouped product, which is a library kernel, and pay for it with a copy of
the owner rows, a second launch and, on the way back, a second pass over the owner rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.interface import Kernels, SegmentsLike
from ..kernels.torch_owners import add_to_owners, owners_in, owners_out, owners_weights


def with_two_passes(base: Kernels, *, second_stream: bool) -> Kernels:
    """``base`` with its three products replaced.

    Args:
        second_stream: whether the adjugates get a stream of their own; without effect on a CPU.
    """
    passes = TwoPasses(second_stream=second_stream)
    return replace(
        base,
        name="two_streams" if second_stream else "separate",
        fan_out=passes.fan_out,
        fan_in=passes.fan_in,
        fan_weights=passes.fan_weights,
    )


class TwoPasses:
    """The products of :class:`.interface.Kernels`, experts and adjugates apart."""

    def __init__(self, *, second_stream: bool) -> None:
        self._second_stream = second_stream
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def fan_out(
        self, x: Tensor, wide: Tensor, narrow: Tensor | None, segments: SegmentsLike
    ) -> tuple[Tensor, Tensor | None]:
        q = None
        with self._beside(x.device):
            if narrow is not None:
                q = owners_out(x, narrow, segments)
        p = F.grouped_mm(x, wide.transpose(1, 2), offs=segments.expert_end)
        self._join(x.device)
        return p, q

    def fan_in(
        self,
        p: Tensor,
        q: Tensor | None,
        wide: Tensor,
        narrow: Tensor | None,
        segments: SegmentsLike,
    ) -> Tensor:
        added = None
        with self._beside(p.device):
            if q is not None and narrow is not None:
                added = owners_in(q, narrow, segments)
        x = F.grouped_mm(p, wide, offs=segments.expert_end)
        self._join(p.device)
        if added is not None:
            add_to_owners(x, added, segments)
        return x

    def fan_weights(
        self,
        p: Tensor,
        q: Tensor | None,
        x: Tensor,
        segments: SegmentsLike,
        transposed: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        dnarrow = None
        with self._beside(x.device):
            if q is not None:
                dnarrow = owners_weights(q, x, segments, transposed)
        left, right = (x, p) if transposed else (p, x)
        dwide = F.grouped_mm(left.T, right, offs=segments.expert_end)
        self._join(x.device)
        return dwide, dnarrow

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """Where the adjugates' work is queued.

        The second stream starts after all that the first has been given. That is also what makes
        memory safe: a block freed on either is reused only behind the work that used it.
        """
        if not self._second_stream or device.type != "cuda":
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield

    def _join(self, device: torch.device) -> None:
        if device in self._streams:
            torch.cuda.current_stream(device).wait_stream(self._streams[device])
