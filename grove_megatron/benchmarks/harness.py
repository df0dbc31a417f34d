"""Time several subjects side by side: interleaved rounds in one process, ratios of medians.

What a machine does besides (clock, caches, neighbours) then happens to all of them alike, and no
subject is always first.
"""

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

UNTIL = "GROVE_BENCH_UNTIL"
"""A variable: the time, as of ``time.time()``, after which no further round begins. Of one rank:
several would not end with the same round."""


def nothing() -> None:
    """What a subject needs before a run, if it needs nothing."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something to time: ``prepare`` is called before every ``run`` and is not timed."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], None] = nothing


@dataclass(frozen=True)
class Samples:
    """Measurements of one subject, in the order in which they were made."""

    values: tuple[float, ...]

    def at(self, percent: float) -> float:
        """A percentile, interpolated between the two nearest measurements."""
        ordered = sorted(self.values)
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    @property
    def median(self) -> float:
        return self.at(50)


def ratio(numerator: Samples, denominator: Samples) -> float:
    """Ratio of medians."""
    return numerator.median / denominator.median


def turn(count: int, number: int) -> list[int]:
    """The order of ``count`` subjects in a round: rotated, and every other cycle backwards.

    So every subject is as often first as last, and follows each of its neighbours equally often.
    """
    start = number % count
    order = [(start + i) % count for i in range(count)]
    return order if (number // count) % 2 == 0 else order[::-1]


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds that ``run`` takes on this process's CPU."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_clock(run: Callable[[], object], sleep_cycles: int = 0) -> float:
    """Seconds between two events around ``run`` on the current CUDA stream.

    ``sleep_cycles`` keep the stream busy before the first of them.
    """
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    if sleep_cycles:
        torch.cuda._sleep(sleep_cycles)  # type: ignore[no-untyped-call]
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000


def queued_cuda_clock(run: Callable[[], object]) -> float:
    """The same for what is over sooner than the host can launch it: queued behind 5 ms of sleep."""
    return cuda_clock(run, sleep_cycles=10_000_000)


def interleave(
    subjects: Sequence[Subject],
    *,
    rounds: int,
    warmup: int,
    clock: Callable[[Callable[[], object]], float] = wall_clock,
    together: Callable[[], None] = nothing,
    slowest: Callable[[list[list[float]]], list[list[float]]] = lambda seconds: seconds,
) -> dict[str, Samples]:
    """Time all subjects, one run of each per round.

    Args:
        subjects: with different names.
        rounds, warmup: measured rounds, and rounds before them that are forgotten; of the measured
            ones fewer, but one, if the time of :data:`UNTIL` comes before.
        clock: seconds of one run.
        together: called before every run; ranks wait for each other here.
        slowest: replaces the seconds [rounds, subjects] of this rank by those of the slowest one.
    """
    seconds: list[list[float]] = []
    # A collection in the middle of one subject would be charged to it.
    gc.disable()
    try:
        for number in range(-warmup, rounds):
            gc.collect()
            taken = [0.0] * len(subjects)
            for index in turn(len(subjects), number):
                subjects[index].prepare()
                together()
                taken[index] = clock(subjects[index].run)
            if number >= 0:
                seconds.append(taken)
                if time.time() > float(os.environ.get(UNTIL, "inf")):
                    break
    finally:
        gc.enable()
    columns = zip(*slowest(seconds), strict=True)
    return {s.name: Samples(tuple(c)) for s, c in zip(subjects, columns, strict=True)}
