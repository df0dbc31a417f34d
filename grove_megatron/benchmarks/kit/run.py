"""Runs the items in order of value within a number of seconds, and writes down what they do.

Every item is a process of its own, forked from this one, which has imported Megatron and never
touches the GPU: an import costs ten seconds and more, a fork nothing. Where importing has touched
it, items are fresh processes.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ...runtime.gpu_packages import GPU_PACKAGES, hide_gpu_packages
from ..harness import UNTIL
from .child import Ended, run_child
from .items import ITEMS, Item
from .journal import note
from .perform import HIDDEN, ROWS, card, of_triton, perform, versions
from .plan import END, is_begun, seconds_of
from .summary import SUMMARY, write_summary

LOG = "log.txt"
_OVER = 3
"""A benchmark that is killed leaves no rows: while there is time, it gets so many times its limit.
It begins no further round of measurements after its limit."""


class StoppedError(BaseException):
    """SIGTERM or SIGINT came."""


def run(results: Path, seconds: float, began: float, items: Sequence[Item] = ITEMS) -> None:
    """Write journal, log, rows and summary into ``results``.

    Args:
        results: an existing folder.
        seconds: in all, from ``began`` on.
        began: of ``time.time()``, before anything was unpacked.
        items: what to run.
    """

    def left() -> float:
        return seconds - (time.time() - began)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    triton = of_triton()
    print(f"grove_megatron: {triton}", file=sys.stderr, flush=True)
    note(
        results,
        "start",
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        seconds=seconds,
        card=card(),
        versions=versions(),
        triton=triton,
        items=[item.name for item in items],
    )
    write_summary(results)
    try:
        start, on_cuda = _imported(results)
        for item in items:
            ended = _one(item, results, left, start, on_cuda)
            if item.kind == "environment" and ended and ended.code and on_cuda:
                # Whatever this process has done to CUDA, a fresh one has not.
                note(
                    results, "changed", to="fresh processes", why="the card failed in a forked one"
                )
                start = _afresh
                _one(item, results, left, start, on_cuda)
            write_summary(results)
        note(results, "end", why="all items were looked at", left=round(left(), 1))
    except StoppedError as signalled:
        note(results, "end", why=f"stopped by {signalled}", left=round(left(), 1))
    write_summary(results)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)


Start = Callable[[Item, Path, Path, bool], int]


def _imported(results: Path) -> tuple[Start, bool]:
    """Import what all items need; returns how to run one, and whether CUDA is there."""
    began = time.monotonic()
    # By default torch asks CUDA itself whether it is there, and no fork could use it then.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    on_cuda = torch.cuda.is_available() and os.environ.get("GROVE_RUNTIME") != "cpu"
    if not on_cuda:
        os.environ["GROVE_RUNTIME"] = "cpu"
        hide_gpu_packages()
    failed = _import()
    if failed and on_cuda:
        without = "without TransformerEngine and Apex"
        note(results, "changed", to=without, why=f"Megatron did not import with them ({failed})")
        os.environ[HIDDEN] = "1"
        hide_gpu_packages()
        failed = _import()
    forks = not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    seconds = round(time.monotonic() - began, 1)
    note(results, "imported", seconds=seconds, cuda=on_cuda, forks=forks, failed=failed)
    return (perform if forks else _afresh), on_cuda


def _import() -> str:
    """Why it failed, or "". What was imported until then is taken back."""
    before = set(sys.modules)
    try:
        import megatron.training  # noqa: F401

        import grove_megatron.training.launch  # noqa: F401
    except Exception as error:
        # The items say it too, each for itself; those that can do without it still run.
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("megatron", "grove_megatron", *GPU_PACKAGES):
                del sys.modules[name]
        return f"{type(error).__name__}: {error}"
    return ""


def _afresh(item: Item, results: Path, scratch: Path, on_cuda: bool) -> int:
    module = f"{__package__}.perform"
    command = [sys.executable, "-m", module, item.name, str(results), str(scratch)]
    return subprocess.run(command, check=False).returncode


def _one(
    item: Item, results: Path, left: Callable[[], float], start: Start, on_cuda: bool
) -> Ended | None:
    """Run an item and note how it ended; None if it is left out."""
    why = is_begun(item, left())
    if item.needs and not _is_there(item.needs):
        why = f"needs {item.needs} (not installed, or it does not load)"
    if why:
        note(results, "left out", item=item.name, why=why)
        return None
    log = results / LOG
    note(results, "begun", item=item.name, small=not on_cuda and bool(item.small))
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n===== {item.name}\n")
    with tempfile.TemporaryDirectory(prefix="grove-kit-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        most = left() - END
        limit = min(item.limit * (_OVER if item.kind == "bench" else 1), most)
        os.environ[UNTIL] = str(time.time() + min(item.limit, limit * 2 / 3))
        ended = run_child(lambda: start(item, results, scratch, on_cuda), log, limit)
        rows = _keep_rows(scratch / ROWS, results / ROWS) if ended.code == 0 or ended.cut_off else 0
    _note_end(item, results, ended, limit, rows)
    return ended


def _note_end(item: Item, results: Path, ended: Ended, limit: float, rows: int) -> None:
    note(
        results,
        "ended",
        item=item.name,
        code=ended.code,
        seconds=round(ended.seconds, 1),
        cut_off=round(limit, 1) if ended.cut_off else None,
        rows=rows,
        last=_last_lines(results / LOG) if ended.code else "",
    )


def _keep_rows(made: Path, kept: Path) -> int:
    """Add an item's rows to those of the others, at once or not at all; whole ones alone."""
    if not made.is_file():
        return 0
    lines = made.read_text(encoding="utf-8").splitlines(keepends=True)
    header, *rows = [line.rstrip("\n") for line in lines if line.endswith("\n")] or [""]
    if not rows:
        return 0
    before = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else [header]
    beside = kept.with_suffix(".new")
    beside.write_text("\n".join([*before, *rows, ""]), encoding="utf-8")
    beside.replace(kept)
    return len(rows)


def _last_lines(log: Path, count: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _is_there(module: str) -> bool:
    if module in GPU_PACKAGES:
        # Megatron has imported it if it loads.
        return sys.modules.get(module) is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def main(arguments: Sequence[str]) -> int:
    """SECONDS RESULTS BEGAN, as :mod:`.install` gives them."""
    seconds, folder, began = arguments
    results = Path(folder).resolve()
    results.mkdir(parents=True, exist_ok=True)
    run(results, seconds_of(seconds), float(began))
    print((results / SUMMARY).read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
