"""The arithmetic of the layer, without gradients: one interface, several implementations.

``functional`` wraps these in autograd functions; ``moe`` chooses which implementation a layer uses.
"""

from .interface import Kernels, SegmentsLike
from .torch_kernels import TORCH

__all__ = ["TORCH", "Kernels", "SegmentsLike"]
