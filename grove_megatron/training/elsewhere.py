"""What Megatron would say of a command line on a machine that has everything it asks for.

Megatron asks for TransformerEngine, other packages and environment variables in the middle of its
checks of flags and ends at the first that is missing. Of a job for another machine that says
nothing, and it hides what is wrong with the flags wherever they run. Here the questions are
answered with yes, so that what is still refused is refused everywhere.
"""

import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from ..runtime.fingerprints import megatron_patch
from ..runtime.registry import PatchSet


def _yes(original: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *_, **__: True


def _nothing(original: Callable[..., None]) -> Callable[..., None]:
    return lambda *_, **__: None


ELSEWHERE = PatchSet(
    "elsewhere",
    "in `grove doctor`, of a job for GPUs that are not here: what is asked for is installed",
    [
        megatron_patch(
            name="engine-for-flags",
            target="megatron.training.arguments:is_te_min_version",
            reason="TransformerEngine may be on the job's machine in any version",
            make=_yes,
        ),
        megatron_patch(
            name="engine-for-configuration",
            target="megatron.core.transformer.transformer_config:is_te_min_version",
            reason="TransformerEngine may be on the job's machine in any version",
            make=_yes,
        ),
        megatron_patch(
            name="flashinfer",
            target="megatron.training.arguments:is_flashinfer_min_version",
            reason="FlashInfer may be on the job's machine",
            make=_yes,
        ),
        megatron_patch(
            name="dsa-kernels",
            target="megatron.core.transformer.transformer_config:"
            "_validate_dsa_kernel_backend_dependencies",
            reason="the kernels of sparse attention may be on the job's machine",
            make=_nothing,
        ),
    ],
)

# Of which Megatron only asks whether TransformerEngine has them.
_OF_THE_ENGINE = ("apply_rope_fusion", "moe_permute_fusion")

# What it wants of the job's environment with some flags, and does not want with others.
_ENVIRONMENT = {
    "NVTE_CPU_OFFLOAD_V1": "1",
    "CUDA_GRAPHS_USE_NODE_PRIORITY": "1",
    "NCCL_GRAPH_REGISTER": "0",
}
_DETERMINISM = ("NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO", "CUBLAS_WORKSPACE_CONFIG")
_UNSET = (*_DETERMINISM, "MAMBA_DETERMINISTIC")


class _Optimizer:
    """Takes what Megatron looks for in the parameters of TransformerEngine's FusedAdam."""

    def __init__(
        self,
        master_weight_dtype: Any = None,
        exp_avg_dtype: Any = None,
        exp_avg_sq_dtype: Any = None,
        use_decoupled_grad: Any = None,
    ) -> None: ...


# What is imported in the checks: module, name, and what stands for it.
_IMPORTED = (
    (
        "nvidia_resiliency_ext.checkpointing.local.ckpt_managers.local_manager",
        "LocalCheckpointManager",
        object,
    ),
    ("transformer_engine.pytorch.optimizers", "FusedAdam", _Optimizer),
)


@contextmanager
def everything_is_there(args: Namespace) -> Iterator[Namespace]:
    """Inside the block Megatron's checks of the namespace they are given hold for any machine.

    Args:
        args: parsed, not yet validated, to be changed.
    """
    for name in _OF_THE_ENGINE:
        setattr(args, name, False)
    fsdp = args.use_megatron_fsdp or args.use_torch_fsdp2
    connections = {} if fsdp else {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    with ExitStack() as stack:
        unset = (*_UNSET, "CUDA_DEVICE_MAX_CONNECTIONS")
        stack.enter_context(_environment(_ENVIRONMENT | connections, unset))
        for module, name, stand_in in _IMPORTED:
            stack.enter_context(_importable(module, name, stand_in))
        stack.enter_context(ELSEWHERE.applied())
        yield args


@contextmanager
def _environment(values: dict[str, str], unset: tuple[str, ...]) -> Iterator[None]:
    before = dict(os.environ)
    for name in unset:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _importable(module: str, name: str, stand_in: Any) -> Iterator[None]:
    """A module that can be imported and has the name, real or not."""
    if _is_installed(module):
        yield
        return
    parts = module.split(".")
    packages = [".".join(parts[: i + 1]) for i in range(len(parts))]
    # None is what the import system takes for a module that cannot be imported.
    before = {package: sys.modules.get(package, _NOT_THERE) for package in packages}
    for package in packages:
        if before[package] in (None, _NOT_THERE):
            sys.modules[package] = ModuleType(package)
    setattr(sys.modules[module], name, stand_in)
    try:
        yield
    finally:
        for package, old in before.items():
            if old is _NOT_THERE:
                del sys.modules[package]
            else:
                sys.modules[package] = old


_NOT_THERE: Any = object()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
