"""Packages of GPU kernels, out of Megatron's sight while it runs on a CPU.

Megatron takes TransformerEngine and Apex wherever they can be imported, whatever the device is:
their optimizers, norms of gradients and matrix products. All of them need a GPU.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

GPU_PACKAGES = (
    "transformer_engine",
    "transformer_engine_torch",
    "apex",
    "amp_C",
    "fused_layer_norm_cuda",
    "fused_weight_gradient_mlp_cuda",
)
_ENGINE = "megatron.core.extensions.transformer_engine"


def hide_gpu_packages() -> list[str]:
    """From here on to import one of them is an ImportError, as if it were not installed.

    Returns:
        the names of those that were not imported yet.

    Raises:
        ValueError: Megatron was imported before and has found TransformerEngine.
    """
    if getattr(sys.modules.get(_ENGINE), "HAVE_TE", False):
        raise ValueError(
            "megatron.core (imported) has found transformer_engine, which needs a GPU; enter the "
            "CPU runtime before Megatron is imported"
        )
    hidden = [name for name in GPU_PACKAGES if name not in sys.modules]
    # What the import system takes for a module that cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    return hidden


@contextmanager
def without_gpu_packages() -> Iterator[None]:
    """Hide them in the block. Modules that were imported in it keep what they found.

    Raises:
        ValueError: see :func:`hide_gpu_packages`.
    """
    hidden = hide_gpu_packages()
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]
