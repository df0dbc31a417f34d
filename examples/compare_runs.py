"""Runs of ``compare.py``: every model with every seed, side by side, each of them once."""

import hashlib
import json
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

from compare_arms import Arm, Comparison
from pretrain_text import KERNELS, MODEL, OPTIMIZER, VOCABULARY, RunLog, running
from tqdm import tqdm

from grove_megatron.report.view import View, validations

# Two-sided 95 % of Student's t, by degrees of freedom.
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


@dataclass
class Job:
    """One model and one seed.

    Attributes:
        folder: of its record, its log and, once it is finished, ``done.json``.
    """

    arm: Arm
    seed: int
    folder: Path
    command: list[str] = field(default_factory=list)

    def view(self) -> View:
        """Its record.

        Raises:
            ValueError: there is none, or it has no validation loss.
        """
        view = View.of(self.folder)
        if not validations(view):
            raise ValueError(f"{self.folder} has a record without a validation loss")
        return view

    @property
    def is_done(self) -> bool:
        """By the same command, on the same text, and its record is there."""
        try:
            told = json.loads((self.folder / "done.json").read_text())
            self.view()
            return bool(told["told"] == self._told())
        except (OSError, ValueError, TypeError, KeyError):
            return False

    @property
    def call(self) -> str:
        """When the command was given that made it; of a finished one."""
        return str(json.loads((self.folder / "done.json").read_text())["call"])

    def finish(self, call: str) -> None:
        """Say so, once its record can be read."""
        self.view()
        told = {"call": call, "told": self._told()}
        write(self.folder / "done.json", json.dumps(told) + "\n")

    def _told(self) -> list[str]:
        """What makes it the run it is, and not the folder it lies in."""
        manifest = (self.folder.parent / "data" / "manifest.json").read_bytes()
        words = [word for word in self.command if str(self.folder.parent) not in word]
        return [*words, version("grove-megatron"), hashlib.sha256(manifest).hexdigest()]


def jobs(of: Comparison, out: Path) -> list[Job]:
    """Seed by seed, so that an early end leaves every model alike."""
    found = []
    for seed in of.seeds:
        for arm in of.arms:
            job = Job(arm, seed, out / f"{arm.folder}-{seed}")
            job.command = _command(job, out / "data", of)
            found.append(job)
    return found


def _command(job: Job, data: Path, of: Comparison) -> list[str]:
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 1"
    shared = """
        --moe-token-dispatcher-type alltoall --moe-router-dtype fp32
        --tokenizer-type NullTokenizer --make-vocab-size-divisible-by 1
        --full-validation --multiple-validation-sets
        --num-workers 1 --log-interval 5
    """
    # Above the iterations it is never reached.
    interval = of.iterations // of.evaluations if of.evaluations else of.iterations + 1
    run = f"""
        --micro-batch-size {of.batch} --global-batch-size {of.batch} --train-iters {of.iterations}
        --vocab-size {VOCABULARY} --eval-interval {max(1, interval)}
    """
    flags = " ".join([MODEL, OPTIMIZER, KERNELS, shared, run]).split()
    paths = ["--train-data-path", str(data / "text"), "--valid-data-path", str(data / "valid")]
    paths += ["--grove-metrics-dir", str(job.folder)]
    # Of two values the last counts.
    words = [*torchrun.split(), "-m", "grove_megatron.pretrain", *flags, *job.arm.words(data)]
    return [sys.executable, *words, "--seed", str(job.seed), *paths]


class Runs:
    """Jobs that run side by side, with one line of progress, and end together.

    Args:
        todo: what to run.
        iterations: of each.
        call: when they were asked for.
    """

    def __init__(self, todo: Sequence[Job], iterations: int, call: str) -> None:
        self._todo, self._total = todo, len(todo) * iterations
        self._call = call
        self._live: set[subprocess.Popen[str]] = set()
        self._stop = Event()

    def run(self, at_a_time: int) -> Job | None:
        """The job that failed, or None."""
        bar = tqdm(
            total=self._total,
            desc=f"{len(self._todo)} runs, {at_a_time} at a time",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed} gone, {remaining} left",
        )
        with bar, ThreadPoolExecutor(at_a_time) as pool:
            jobs_of = {pool.submit(self._run, job, bar): job for job in self._todo}
            try:
                finished, _ = wait(jobs_of, return_when=FIRST_EXCEPTION)
            finally:
                # After a Ctrl-C too, of which one is enough.
                before = signal.signal(signal.SIGINT, signal.SIG_IGN)
                self._stop.set()
                for process in [*self._live]:
                    process.terminate()
                pool.shutdown(wait=True, cancel_futures=True)
                signal.signal(signal.SIGINT, before)
        return next((jobs_of[one] for one in finished if one.exception()), None)

    def _run(self, job: Job, bar: Any) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        # Of a run that was stopped: its weights are gone.
        (job.folder / "routing.jsonl").unlink(missing_ok=True)
        seen, log = 0, RunLog()
        with (job.folder / "log.txt").open("w") as raw, running(job.command) as process:
            self._live.add(process)
            # Begun while the others were told to end.
            if self._stop.is_set():
                return
            for line in process.stdout or ():
                raw.write(line)
                for step in log.read(line):
                    bar.update(step.number - seen)
                    seen = step.number
            status = process.wait()
            self._live.discard(process)
        if status and not self._stop.is_set():
            raise RuntimeError(f"exit status {status}")
        if not status:
            job.finish(self._call)


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of their mean; infinite for one value."""
    if len(values) < 2:
        return math.inf
    deviation = statistics.stdev(values)
    return T_95[len(values) - 1] * deviation / math.sqrt(len(values))


def write(file: Path, text: str) -> None:
    """All of it, or what was there before."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)
