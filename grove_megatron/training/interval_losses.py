"""Mean losses over an interval of our own, from the sums that Megatron keeps for its log line."""

from collections.abc import Mapping
from typing import Any

import torch

# What Megatron counts in the same dictionary.
_ADVANCED, _SKIPPED, _NAN = "advanced iterations", "skipped iterations", "nan iterations"
# Sums that Megatron adds to only after it has asked for the report of MoE metrics, and may begin
# again before it asks once more: the last ones are never seen, so these losses are left out.
_LATE = ("mtp_", "indexer ")


class IntervalLosses:
    """Follows ``total_loss_dict``, whose sums begin again after every log line of Megatron.

    :meth:`see` is called after every iteration and does nothing on the device; the two intervals
    may be of any lengths.
    """

    def __init__(self) -> None:
        # Of Megatron's intervals that ended inside ours.
        self._sums: dict[str, torch.Tensor] = {}
        self._advanced = 0
        # Of Megatron's present interval: where ours began in it, and where it stands.
        self._base: dict[str, torch.Tensor] = {}
        self._base_advanced = 0
        self._now: dict[str, torch.Tensor] = {}
        self._now_advanced = 0
        self._now_iterations = 0

    def see(self, totals: Mapping[str, Any]) -> None:
        """Take in the dictionary after an iteration, with its losses added."""
        iterations = totals.get(_ADVANCED, 0) + totals.get(_SKIPPED, 0)
        if iterations != self._now_iterations + 1:
            # Megatron has begun again; what was there last is all of its interval.
            self._sums = self._summed()
            self._advanced += self._now_advanced - self._base_advanced
            self._base, self._base_advanced = {}, 0
        # Megatron puts new tensors in place, or adds to these: either way they stay current.
        self._now = {
            name: value
            for name, value in totals.items()
            if name not in (_ADVANCED, _SKIPPED, _NAN) and not name.startswith(_LATE)
        }
        self._now_advanced, self._now_iterations = totals.get(_ADVANCED, 0), iterations

    def take(self) -> dict[str, float]:
        """Means over the iterations since the last call that advanced; waits for the device."""
        advanced = self._advanced + self._now_advanced - self._base_advanced
        sums = self._summed()
        means = {name: float(value.sum()) / max(1, advanced) for name, value in sums.items()}
        self._sums, self._advanced = {}, 0
        self._base = {name: value.clone() for name, value in self._now.items()}
        self._base_advanced = self._now_advanced
        return means if advanced else {}

    def _summed(self) -> dict[str, torch.Tensor]:
        here = {
            name: value - self._base[name] if name in self._base else value
            for name, value in self._now.items()
        }
        return {
            name: self._sums[name] + value if name in self._sums else value
            for name, value in here.items()
        } | {name: value for name, value in self._sums.items() if name not in here}
