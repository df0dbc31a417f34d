"""The processes of a benchmark: start them, set them up, and let them agree on a number."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What torchrun tells a rank, and what must not leak into a job of its own.
_RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


def world_size() -> int | None:
    """Ranks of the job that torchrun made this process part of; None outside of it."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command line that runs ``grove <arguments>`` on ranks of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *(launcher if ranks > 1 else []), "-m", "grove_megatron", *arguments]


def start(
    ranks: int, threads: int, arguments: Sequence[str], *, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``grove <arguments>`` on new ranks and wait for it; ``capture`` keeps its stdout."""
    environment = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.run(
        command(ranks, arguments),
        env=environment,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )


def cuda_is_used() -> bool:
    """Will, or does, this process run on CUDA?"""
    import torch

    from ..runtime import cpu_is_active

    # The CPU runtime has stand-ins that make torch.cuda say yes.
    return (
        os.environ.get("GROVE_RUNTIME") != "cpu"
        and not cpu_is_active()
        and torch.cuda.is_available()
    )


@contextmanager
def process_groups(ranks: int, seed: int) -> Iterator[None]:
    """Megatron's process groups, all ranks expert-parallel, and its seeded random streams."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel

    if cuda_is_used():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda_is_used() else "gloo")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=ranks)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def together() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    if dist.get_world_size() > 1:
        dist.barrier()


def slowest(numbers: list[list[float]]) -> list[list[float]]:
    """Entry by entry, the largest of all ranks; every rank must call with the same sizes."""
    return _reduced(numbers, "MAX").tolist()


def largest(number: float) -> float:
    """The largest number of any rank."""
    return float(_reduced([number], "MAX").item())


def total(numbers: list[float]) -> list[float]:
    """Entry by entry, the sum over all ranks."""
    return _reduced(numbers, "SUM").tolist()


def _reduced(numbers: list[float] | list[list[float]], how: str) -> "torch.Tensor":
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(numbers, dtype=torch.float64, device=torch.cuda.current_device())
    dist.all_reduce(tensor, op=getattr(dist.ReduceOp, how))
    return tensor
