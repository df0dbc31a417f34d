"""Run a function on several ranks, in fresh processes that have Megatron imported already."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass
class Job:
    """What the ranks of one job left behind."""

    folder: Path
    codes: list[int]

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"rank{rank}.log").read_text(errors="replace")

    def results(self) -> list[Any]:
        """What every rank wrote with :func:`write_result`."""
        return [
            json.loads((self.folder / f"rank{r}.json").read_text()) for r in range(len(self.codes))
        ]

    def check(self) -> "Job":
        """Fail with the end of the log of the first rank that did not exit 0."""
        for rank, code in enumerate(self.codes):
            assert code == 0, f"rank {rank} exited {code}:\n{self.log(rank)[-6000:]}"
        return self


def write_result(folder: str, result: Any) -> None:
    """Called on a rank: leave ``result`` (JSON) for :meth:`Job.results`."""
    path = Path(folder) / f"rank{os.environ['RANK']}.json"
    path.write_text(json.dumps(result))


class Ranks:
    """Starts jobs; one zygote process serves a whole test session.

    Args:
        runtime: ``cpu``, or ``cuda`` for ranks with a GPU each.
    """

    def __init__(self, runtime: str = "cpu") -> None:
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "GROVE_RUNTIME": runtime,
            # By default torch asks CUDA whether it is there, which a forked process cannot do after
            # its parent.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def run(
        self,
        ranks: int,
        target: str,
        *args: Any,
        folder: Path,
        env: dict[str, str] | None = None,
        timeout: float = 900,
    ) -> Job:
        """Call ``module:function`` with ``args`` on every rank; does not check exit codes."""
        folder.mkdir(parents=True, exist_ok=True)
        job = {
            "ranks": ranks,
            "target": target,
            "args": args,
            "folder": str(folder),
            "env": env or {},
            "timeout": timeout,
        }
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(json.dumps(job) + "\n")
        self._zygote.stdin.flush()
        return Job(folder, json.loads(self._read()))

    def _read(self) -> str:
        assert self._zygote.stdout is not None
        line = self._zygote.stdout.readline()
        assert line, "the zygote ended"
        return line.strip()

    def close(self) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(timeout=120)
