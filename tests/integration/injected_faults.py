"""Faults put into a running job: what it says, how soon, and what is lost; a row each.

``python -m tests.integration.injected_faults --write docs/guides/failures.md`` runs them all and
writes the table there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ranks import Job, Ranks

from .checkpoints import differences
from .fault_job import HAPPENED, ITERATION
from .flags import MODEL

JOB = "tests.integration.fault_job:train"
SAVED = ITERATION - 1
"""The iteration after which the job has saved, before the fault."""
TIMEOUT = 300.0
ENDLESS, SHORT = "1000", "5"
SAVES = "--save-interval 2 --grove-metrics-interval 1 --lr-decay-iters 1000".split()
STALL = ["--grove-stall-minutes", "0.03"]
# One checkpoint of the model is 1.6 MB.
DISK_BYTES = 600 * 4096
RAN = (0, 0)


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Args:
        name: for the reader.
        how: the name of what happens, in :mod:`.fault_job`.
        says: a regular expression for the message.
        codes: of both ranks; None: not zero, whichever it is.
        rank: where it happens; -1: on both.
        flags: beside those of every run.
        until: iterations; the job of a fault that does not end it goes on to its end.
        silent: ranks whose own log cannot have it.
        nodes: that the two ranks take themselves to be on: of two, both logs have the message.
        prepare: makes the state that the fault is about, in the folder of the run; gives options.
        lost: what the reader has to know beside the iterations since the last checkpoint.
        starts: False where nothing is started.
        short: tried at every change; the others where everything is.
    """

    name: str
    how: str
    says: str
    codes: tuple[int | None, int | None] = (1, 1)
    rank: int = 1
    flags: tuple[str, ...] = ()
    until: str = ENDLESS
    silent: tuple[int, ...] = ()
    nodes: int = 2
    prepare: Callable[[Path], Any] | None = None
    lost: str = ""
    starts: bool = True
    short: bool = False


@dataclass
class Outcome:
    """What a fault has led to.

    Args:
        seconds: from the fault to the last rank's first message; None: none came.
        checkpoint: the iteration of the last that is complete; None: there is none.
        problems: what is not as it should be.
    """

    fault: Fault
    job: Job
    seconds: float | None
    checkpoint: int | None
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> str:
        if not self.fault.starts:
            return "nothing: not started"
        if self.fault.lost:
            return self.fault.lost
        if self.fault.until == SHORT:
            return "nothing: it goes on to its end"
        return f"what came after iteration {self.checkpoint}, which loads"


@contextmanager
def small_disk(folder: Path) -> Iterator[dict[str, str]]:
    """A file system of its own, in place of the folder for checkpoints."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise CannotBeTried("a file system cannot be mounted here (needs root)")
    try:
        yield {"disk": str(disk)}
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


class CannotBeTried(Exception):
    """This machine does not allow it."""


LOST = r"rank {} \(\S+\) was lost: killed \(SIGKILL, out of memory\), crashed"
WALL = r"rank 1 \(\S+\) failed: RuntimeError: ran into a wall"
STANDS = r"no progress on any rank for \d+ s \(--grove-stall-minutes 0.03\): "
HOLDS_UP = rf"{STANDS}rank 1 \(\S+\) is in .*, and holds up rank 0 in "
REFUSED = (2, 2)


def _data(folder: Path) -> Any:
    import numpy as np

    from tests.unit.training.data import write_tokens

    rng = np.random.default_rng(0)
    prefix = write_tokens(folder / "text", (rng.integers(0, 90, 33) for _ in range(2000)))
    return nullcontext({"data": f"{prefix}.bin"})


_HOLDER = """
import os, sys, time
from pathlib import Path
from grove_megatron.training.folder_lock import FolderLocks
locks = FolderLocks()
assert not locks.take({"--save": Path(sys.argv[1])}, print)
print("holds", flush=True)
if sys.argv[2] == "die": os._exit(9)
time.sleep(600)
"""


@contextmanager
def _held(folder: Path, then: str) -> Iterator[dict[str, str]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder / "save"), then],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        if then == "die":
            holder.wait()
        yield {}
    finally:
        holder.kill()
        holder.wait()


def _two_jobs(folder: Path) -> Any:
    return _held(folder, "live")


def _stale_lock(folder: Path) -> Any:
    return _held(folder, "die")


def _with_checkpoint(spoil: Callable[[Path], None]) -> Callable[[Path], Any]:
    """A copy of what an undisturbed job has saved, spoilt."""

    def prepare(folder: Path) -> Any:
        save = folder / "save"
        shutil.copytree(reference() / "save", save)
        (save / "grove_megatron.lock").unlink(missing_ok=True)
        spoil(save)
        return nullcontext({})

    return prepare


def _damage_tracker(save: Path) -> None:
    (save / TRACKER).write_text("2\0\0")


def _missing_iteration(save: Path) -> None:
    (save / TRACKER).write_text("4")


def _cut_checkpoint(save: Path) -> None:
    file = max((save / "iter_0000002").glob("*.distcp"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


TRACKER = "latest_checkpointed_iteration.txt"
ON_DISK = ("--save", "{folder}/disk/save")
LOADS = ("--load", "{folder}/save")

# Of the 4 that are tried at every change each is of another way out of the job.
FAULTS = [
    Fault("SIGKILL of a rank", "kill", LOST.format(1), (1, -9), silent=(1,), short=True),
    Fault("SIGKILL of rank 0", "kill", LOST.format(0), (-9, 1), rank=0, silent=(0,)),
    Fault(
        "SIGSTOP of a rank, and SIGCONT later",
        "stop",
        rf"{STANDS}rank 1 \(\S+\) is stopped \(SIGSTOP\) \(process \d+\)",
        RAN,
        until=SHORT,
        flags=(*STALL,),
        silent=(1,),
        nodes=1,
        short=True,
    ),
    Fault(
        "SIGSTOP of rank 0, and SIGCONT later",
        "stop",
        r"rank 0 \(\S+\) has asked nobody for progress for \d+ s: it is stopped \(SIGSTOP\)",
        RAN,
        nodes=1,
        rank=0,
        until=SHORT,
        flags=(*STALL,),
        silent=(0,),
    ),
    Fault(
        "SIGTERM of a rank",
        "terminate",
        r"rank 1 \(\S+\) was asked to end \(SIGTERM\); all ranks end; the last complete",
        (1, 143),
    ),
    Fault("exception in the forward pass", "raise", WALL),
    Fault("exception in the backward pass", "raise_backward", WALL),
    Fault("exception in a hook", "hook", WALL),
    Fault("exception in the optimizer", "optimizer", WALL, short=True),
    Fault("exception in a dataset, in the rank", "data", WALL),
    Fault(
        "exception in a dataset, in a worker",
        "data",
        r"rank 1 \(\S+\) failed: RuntimeError: Caught RuntimeError in DataLoader worker process 0",
        flags=("--num-workers", "1"),
    ),
    Fault(
        "NaN in a router's weights",
        "nan_weights",
        r"rank [01] \(.*\) failed: RuntimeError: (.|\n)*\n  rank 1, layer 1: 32 of the router's",
        flags=("--rerun-mode", "disabled"),
    ),
    Fault(
        "NaN in a gradient",
        "nan_gradient",
        # Its all-to-all has taken it to the other by then.
        r"rank [01] \(\S+\) failed: RuntimeError: .*found NaN in local grad norm",
        flags=("--rerun-mode", "disabled"),
    ),
    Fault("out of memory, host", "memory", r"rank 1 \(\S+\) failed: MemoryError"),
    Fault(
        "out of memory, CUDA (its exception, on a CPU)",
        "cuda_memory",
        r"rank 1 \(\S+\) failed: OutOfMemoryError: CUDA out of memory",
    ),
    Fault(
        "a disk full at a save",
        "full_disk",
        r"rank 0 \(\S+\) failed: CheckpointException: .*\n  --save \(\S+\) on \S+ has \d+ of",
        rank=-1,
        flags=ON_DISK,
        prepare=small_disk,
    ),
    Fault(
        "a folder read-only at a save",
        "read_only",
        r"rank [01] \(\S+\) failed: .*Read-only file system",
        flags=(*ON_DISK, "--grove-metrics-dir", "{folder}/metrics"),
        prepare=small_disk,
    ),
    Fault(
        "a disk full for the record of metrics",
        "fill",
        r"the record of metrics in \S+ cannot be written at iteration 4: .*No space left",
        RAN,
        silent=(0,),
        until=SHORT,
        flags=("--grove-metrics-dir", "{folder}/disk/metrics"),
        prepare=small_disk,
        lost="the record from then on",
    ),
    Fault(
        "a disk that takes nothing for 6 s at a save",
        "slow_disk",
        rf"{STANDS}.* (is|are) in save",
        RAN,
        rank=-1,
        until=SHORT,
        flags=(*STALL,),
        silent=(1,),
    ),
    Fault(
        "a connection that is silently dropped",
        "drop_connection",
        r"rank [01] \(\S+\) was lost",
        (None, None),
    ),
    Fault(
        "an endless loop in Python",
        "loop",
        HOLDS_UP,
        RAN,
        until=SHORT,
        flags=(*STALL,),
        silent=(1,),
    ),
    Fault(
        "a collective of another size on a rank",
        "other_size",
        rf"{LOST.format('[01]')}|collective mismatch",
        (None, None),
        rank=-1,
    ),
    Fault(
        "a rank leaves with 0",
        "leave",
        r"rank 1 \(\S+\) left with exit code 0",
        (1, 0),
        silent=(1,),
    ),
    Fault(
        "rank 0 leaves with 0",
        "leave",
        r"rank 0 \(\S+\) left with exit code 0",
        (0, 1),
        rank=0,
        silent=(0,),
    ),
    Fault("a rank is gone with 0", "leave_at_once", LOST.format(1), (1, 0), silent=(1,)),
    Fault(
        "stdout closed",
        "close_stdout",
        r"rank 1 \(\S+\) failed: BrokenPipeError",
    ),
    Fault(
        "data cut short while it is read",
        "cut_data",
        r"Fatal Python error: Bus error\n(.|\n)*_dataset\.py",
        (None, None),
        rank=0,
        flags=("--data-path", "{folder}/text"),
        prepare=_data,
    ),
    Fault(
        "other flags on a rank",
        "flags",
        r"1 problem, nothing was started:\n  1. --lr \(0.01 on rank 0; 0.0001 on rank 1\) differs",
        REFUSED,
        starts=False,
        silent=(1,),
    ),
    Fault(
        "another version on a rank",
        "version",
        r"1 problem, nothing was started:\n  1. version of torch \(.* on rank 0; 2.99.0 on rank 1",
        REFUSED,
        starts=False,
        silent=(1,),
    ),
    Fault("a clock an hour ahead", "clock", "", RAN, rank=0, until=SHORT),
    Fault(
        "two jobs in one folder",
        "before",
        r"--save \(\S+\) is written to by another job",
        REFUSED,
        rank=0,
        prepare=_two_jobs,
        starts=False,
        silent=(1,),
    ),
    Fault(
        "the lock of a job that is gone",
        "before",
        r"grove_megatron.lock is of a job that is gone .* takes it over",
        RAN,
        rank=0,
        until=SHORT,
        prepare=_stale_lock,
        silent=(1,),
    ),
    Fault(
        "a damaged tracker file",
        "before",
        rf"{TRACKER}",
        REFUSED,
        rank=0,
        prepare=_with_checkpoint(_damage_tracker),
        flags=LOADS,
        starts=False,
        silent=(1,),
    ),
    Fault(
        "a tracker file of an iteration that is not there",
        "before",
        r"iter_0000004",
        REFUSED,
        rank=0,
        prepare=_with_checkpoint(_missing_iteration),
        flags=LOADS,
        starts=False,
        silent=(1,),
    ),
    Fault(
        "a checkpoint file cut short",
        "before",
        r"cut short",
        REFUSED,
        rank=0,
        prepare=_with_checkpoint(_cut_checkpoint),
        flags=LOADS,
        short=True,
        starts=False,
        silent=(1,),
    ),
]


_reference: list[Path] = []


def reference() -> Path:
    """What an undisturbed job has left."""
    return _reference[0]


def make_reference(ranks: Ranks, folder: Path) -> None:
    """Run that job, once, and have its checkpoint loaded by another."""
    argv = [*MODEL, *SAVES, "--expert-model-parallel-size", "2", "--save", str(folder / "save")]
    target = (JOB, str(folder))
    stop = ["--train-iters", ENDLESS, "--exit-interval", str(SAVED)]
    ranks.run(2, *target, [*argv, *stop], 0, "clock", {"nodes": "2"}, folder=folder).check()
    _reference[:] = [folder]
    # That it loads; of the others it is asked that theirs is the same, bit for bit.
    again = [*argv[:-2], "--load", str(folder / "save"), "--train-iters", ENDLESS]
    again += ["--exit-interval", str(ITERATION)]
    job = ranks.run(2, *target, again, 0, "clock", {"nodes": "2"}, folder=folder / "again").check()
    assert f"at iteration {SAVED}\n" in job.log()


def run(fault: Fault, ranks: Ranks, folder: Path) -> Outcome:
    """One job with one fault.

    Raises:
        CannotBeTried: not on this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = fault.prepare(folder) if fault.prepare else nullcontext({})
    with made as options:
        flags = [word.format(folder=folder) for word in fault.flags]
        argv = [*MODEL, *SAVES, "--expert-model-parallel-size", "2"]
        if "--data-path" in flags:
            argv.remove("--mock-data")
        argv += ["--save", str(folder / "save"), "--train-iters", fault.until, *flags]
        options = {"samples": "4", "rank": "1", "nodes": str(fault.nodes), **options}
        reader = _Reader(fault, folder)
        reader.start()
        job = ranks.run(
            2,
            JOB,
            str(folder),
            argv,
            fault.rank,
            fault.how,
            options,
            folder=folder,
            timeout=TIMEOUT,
        )
        return _outcome(fault, job, folder, reader.seconds())


def _outcome(fault: Fault, job: Job, folder: Path, seconds: float | None) -> Outcome:
    save = folder / ("disk/save" if "{folder}/disk/save" in fault.flags else "save")
    tracker = save / TRACKER
    checkpoint = None
    if fault.starts:
        checkpoint = int(tracker.read_text()) if tracker.exists() else None
    problems = []
    for rank in range(2):
        if fault.says and rank not in fault.silent and not re.search(fault.says, job.log(rank)):
            problems.append(f"rank {rank} does not say {fault.says!r}")
    for rank, (code, wanted) in enumerate(zip(job.codes, fault.codes, strict=True)):
        if code != wanted if wanted is not None else not code:
            problems.append(f"rank {rank} exits {code}")
    if fault.starts:
        same = save / f"iter_{SAVED:07d}"
        if checkpoint is None:
            problems.append("no checkpoint is complete")
        elif "--data-path" not in fault.flags and (
            differs := differences(same, reference() / "save" / same.name)
        ):
            problems.append(f"the checkpoint is not that of an undisturbed job: {differs[:3]}")
        problems += _record_problems(fault, save, folder)
    return Outcome(fault, job, seconds, checkpoint, problems)


def _record_problems(fault: Fault, save: Path, folder: Path) -> list[str]:
    from grove_megatron.report.view import View

    place = save / "grove_metrics"
    for word, value in zip(fault.flags, fault.flags[1:], strict=False):
        if word == "--grove-metrics-dir":
            place = Path(value.format(folder=folder))
    try:
        view = View.of(place)
    except (ValueError, OSError) as error:
        return [f"the record of metrics is damaged: {error}"]
    found = {interval.iteration for interval in view.intervals}
    if not {1, SAVED} <= found:
        return [f"the record of metrics has iterations {sorted(found)}"]
    return []


class _Reader(threading.Thread):
    """Reads the logs while the job runs: when each has the message."""

    def __init__(self, fault: Fault, folder: Path) -> None:
        super().__init__(daemon=True)
        self._fault, self._folder = fault, folder
        self._logs = {rank: folder / f"rank{rank}.log" for rank in (0, 1)}
        for rank in fault.silent:
            del self._logs[rank]
        self._seen: dict[int, float] = {}
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.01):
            for rank, log in self._logs.items():
                if rank not in self._seen and log.exists() and self._has_it(log):
                    self._seen[rank] = time.monotonic()

    def _has_it(self, log: Path) -> bool:
        said = log.read_text(errors="replace")
        return bool(re.search(self._fault.says, said))

    def seconds(self) -> float | None:
        """From the fault to the last log that has it; None if one never had."""
        self._end.set()
        self.join()
        happened = self._folder / HAPPENED
        if not self._fault.says or {*self._seen} != {*self._logs} or not happened.exists():
            return None
        return max(self._seen.values()) - float(happened.read_text())


# ----------------------------------------------------------------------------------- the table

_BEGIN, _END = "<!-- faults -->", "<!-- end -->"


def _run_all(ranks: Ranks, folder: Path) -> Iterator[tuple[Fault, Outcome | str]]:
    for number, fault in enumerate(FAULTS):
        try:
            yield fault, run(fault, ranks, folder / str(number))
        except CannotBeTried as why:
            yield fault, str(why)


def _lines(outcomes: Iterable[tuple[Fault, Outcome | str]]) -> Iterator[str]:
    yield "| Fault | Exit codes | Seconds | Lost |"
    yield "| --- | --- | --- | --- |"
    for fault, outcome in outcomes:
        if isinstance(outcome, str):
            yield f"| {fault.name} | not tried: {outcome} | | |"
            continue
        if outcome.problems:
            raise SystemExit(f"{fault.name}: {'; '.join(outcome.problems)}")
        codes = ", ".join(map(str, outcome.job.codes))
        seconds = "no message" if outcome.seconds is None else f"{outcome.seconds:.2f}"
        yield f"| {fault.name} | {codes} | {seconds} | {outcome.lost} |"


def _write(file: Path) -> None:
    from grove_megatron.benchmarks.environment import cpu_name

    with tempfile.TemporaryDirectory() as place:
        ranks = Ranks()
        make_reference(ranks, Path(place) / "reference")
        lines = [*_lines(_run_all(ranks, Path(place)))]
        ranks.close()
    day = time.strftime("%Y-%m-%d", time.gmtime())
    lines += ["", f"{cpu_name()}, {os.cpu_count()} cores, {day}."]
    before, _, rest = file.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    beside = file.with_name(f"{file.name}.new")
    beside.write_text("\n".join([before + _BEGIN, *lines, _END + after]))
    beside.replace(file)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--write":
        sys.exit(__doc__)
    _write(Path(sys.argv[2]))
