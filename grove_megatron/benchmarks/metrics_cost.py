"""What it costs to count routing in a training step and to report it, inside its own functions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

from ..moe.counts import LayerCounts
from ..training.metrics import RoutingTracker
from . import ranks
from .harness import Samples
from .records import Value

Clock = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class MetricsCost:
    """Seconds of the slowest rank.

    Attributes:
        counting: of one step, in all layers.
        reporting: of one report, its all-reduce and the record's line included.
        interval: steps from one report to the next.
    """

    counting: Samples
    reporting: Samples
    interval: int

    def share(self, step: Samples) -> float:
        """Of a training step, the report's part of it included."""
        report = self.reporting.median / self.interval
        return (self.counting.median + report) / step.median

    def values(self, step: Samples, kernel: str) -> list[Value]:
        """For the results file."""
        times = {"metrics counting": self.counting, "metrics reporting": self.reporting}
        return [
            *(Value.milliseconds("grove", kernel, s, quantity=name) for name, s in times.items()),
            Value.once("grove", kernel, "metrics_share", "of a step", self.share(step)),
        ]

    def note(self, step: Samples) -> str:
        """For the reader."""
        return (
            f"Counting routing takes {self.counting.median * 1000:.2f} ms a step and a report "
            f"{self.reporting.median * 1000:.2f} ms: at --grove-metrics-interval {self.interval} "
            f"{self.share(step):.2%} of a step of grove."
        )


def measure_metrics(step: Callable[[], object], *, rounds: int, clock: Clock) -> MetricsCost:
    """Run further steps of the model that was built last, and time what its metrics do.

    On CUDA the clock waits for the device before and after every call, so nothing overlaps and
    this is more than it costs.

    Args:
        step: one training step of that model.
        rounds: steps to time.
        clock: seconds of a call.
    """
    tracker = get_moe_metrics_tracker()
    assert isinstance(tracker, RoutingTracker), "metrics are on by default"
    interval = tracker.interval
    counting, reporting = [], []
    for number in range(rounds):
        with timed(LayerCounts, "add", clock) as inside:
            step()
        counting.append(sum(inside))
        ranks.together()
        with timed(tracker, "report_routing", clock) as inside:
            tracker.report(loss_scale=1.0, iteration=(number + 1) * interval, num_layers=1)
        reporting.append(sum(inside))
    seconds = [list(pair) for pair in zip(counting, reporting, strict=True)]
    counted, reported = zip(*ranks.slowest(seconds), strict=True)
    return MetricsCost(Samples(counted), Samples(reported), interval)


@contextmanager
def timed(owner: Any, name: str, clock: Clock) -> Iterator[list[float]]:
    """The seconds of every call of ``owner.name`` inside the block."""
    original = getattr(owner, name)
    seconds: list[float] = []

    def timed(*args: Any, **named: Any) -> Any:
        results: list[Any] = []
        seconds.append(clock(lambda: results.append(original(*args, **named))))
        return results[0]

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, original)
