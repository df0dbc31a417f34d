"""What it costs in a training step to look for logits that are not finite, while all of them are.

Of the failure watch this is the part that computes; the rest is a connection on which nothing is
sent (:mod:`grove_megatron.failure.watch`).
"""

from collections.abc import Callable

from ..moe.logits_watch import LogitsWatch
from . import ranks
from .harness import Samples
from .metrics_cost import Clock, timed


def measure_watch(step: Callable[[], object], *, rounds: int, clock: Clock) -> Samples | None:
    """Seconds of the slowest rank in all layers of a step; None where no router looks.

    On CUDA the clock waits for the device, so this is more than it costs.

    Args:
        step: one training step.
        rounds: steps to time.
        clock: seconds of a call.
    """
    seconds = []
    for _ in range(rounds):
        with timed(LogitsWatch, "see", clock) as inside:
            step()
        if not inside:
            return None
        seconds.append([sum(inside)])
    return Samples(tuple(row[0] for row in ranks.slowest(seconds)))
