"""Where a number was measured: machine, versions, and the commit of this package."""

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..compat import megatron_version
from .kit import COMMIT

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and the software; ``device`` is cpu or cuda, ``processor`` its name."""

    timestamp: str
    device: str
    processor: str
    cores: int
    torch: str
    megatron_core: str
    python: str
    commit: str


def environment(on_cuda: bool) -> Environment:
    """This process's environment; the timestamp is now, in UTC."""
    return Environment(
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        device="cuda" if on_cuda else "cpu",
        processor=_gpu_name() if on_cuda else cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        torch=importlib.metadata.version("torch"),
        # Megatron appends the commit of whatever checkout the process runs in.
        megatron_core=(megatron_version() or "unknown").split("+")[0],
        python=platform.python_version(),
        commit=commit(PACKAGE),
    )


def commit(package: Path) -> str:
    """The commit a package's folder is checked out at.

    ``+dirty`` is added where code differs from it; documents and results do not count. Where the
    folder does not lie at the top of a git checkout it is what the kit for other machines has
    written down, and ``unknown`` without that.
    """
    top = package.parent
    if _git(top, "rev-parse", "--show-toplevel") != str(top):
        said = top / COMMIT
        return said.read_text(encoding="utf-8").strip() if said.is_file() else "unknown"
    head = _git(top, "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _git(top, "status", "--porcelain", "--", ".", ":!*.md", ":!*.csv")
    return f"{head}+dirty" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, nothing where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    """The model name of the CPU, as far as the machine tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())
