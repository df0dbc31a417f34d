"""One item, in the process that :mod:`.run` gives it: this environment, a test file, a benchmark.

``python -m grove_megatron.benchmarks.kit.perform NAME RESULTS SCRATCH`` does it in a fresh process.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from .items import ITEMS, Item
from .journal import note

ROWS = "rows.csv"
HIDDEN = "GROVE_KIT_HIDES_GPU_PACKAGES"
"""A variable: Megatron imports without them alone."""
_ASKED = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,"
    "temperature.gpu"
)
_VERSIONS = (
    *("torch", "triton", "numpy", "pytest", "megatron-core", "grove-megatron"),
    *("transformer-engine", "transformer-engine-torch", "apex", "megatron-bridge"),
)


def perform(item: Item, results: Path, scratch: Path, on_cuda: bool) -> int:
    """Run it here; returns an exit code.

    Args:
        results: where the journal is.
        scratch: an empty folder; a benchmark leaves ``rows.csv`` there.
        on_cuda: False: the item's ``small`` words.
    """
    words = item.words if on_cuda or not item.small else item.small
    if item.kind == "environment":
        return _environment(results, on_cuda)
    if item.kind == "tests":
        return _tests(item, words, results, scratch)
    return _bench(words, scratch / ROWS)


def card() -> str:
    """What nvidia-smi says of the cards: a line of names and one for each; empty without one."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def of_triton() -> str:
    """What Triton builds its launchers with, and whether it is there."""
    # As Triton looks for them.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    lost = [] if compiler else ["no C compiler (set CC, or install gcc)"]
    lost += [] if header.is_file() else [f"no {header} (install Python's development files)"]
    if lost:
        return f"Triton's kernels cannot be built: {', '.join(lost)}"
    return f"for Triton there are a C compiler ({compiler}) and Python.h"


def versions() -> dict[str, str]:
    """Of the packages that matter, those that are installed."""
    found = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
    return {name: found[name] for name in _VERSIONS if name in found}


def _environment(results: Path, on_cuda: bool) -> int:
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "built for CUDA": torch.version.cuda}
    if on_cuda:
        properties = torch.cuda.get_device_properties(0)
        # Clocks of a card that is at work.
        x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        for _ in range(50):
            x @ x
        torch.cuda.synchronize()
        found |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "multiprocessors": properties.multi_processor_count,
            "NCCL": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
            "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "nvidia-smi, at work": card(),
        }
    else:
        from ..environment import cpu_name

        found["card"] = f"none; CPU {cpu_name()}"
    found |= {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    note(results, "environment", **found)
    return 0


def _tests(item: Item, words: Sequence[str], results: Path, scratch: Path) -> int:
    import pytest

    from .stream import Stream

    given = ["-q", "-p", "no:cacheprovider", "--basetemp", str(scratch / "tests"), *words]
    return int(pytest.main(given, plugins=[Stream(results, item.name)]))


def _bench(words: Sequence[str], rows: Path) -> int:
    from ...cli import app

    # The ranks of a benchmark are started with these words, and Megatron reads its flags here.
    sys.argv = ["grove", "bench", *words, "--csv", str(rows)]
    app(prog_name="grove")  # ends this process, with the code of the command
    return 0


def main(arguments: Sequence[str]) -> int:
    """NAME RESULTS SCRATCH."""
    name, results, scratch = arguments
    (item,) = (one for one in ITEMS if one.name == name)
    on_cuda = os.environ.get("GROVE_RUNTIME") != "cpu"
    if os.environ.get(HIDDEN):
        from ...runtime.gpu_packages import hide_gpu_packages

        hide_gpu_packages()
    return perform(item, Path(results), Path(scratch), on_cuda)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
