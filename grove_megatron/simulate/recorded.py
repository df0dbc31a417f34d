"""Routings with the expert loads of a record of metrics.

A record has counts and no tokens. Tokens are drawn so that every expert has exactly its recorded
share of them, on average. What a token's experts have to do with one another is in the record only
where it has co-activation counts; then tokens are drawn with those pairs (``pairs.py``), else as
if experts were chosen apart. The rows that the record counted say how far that is from the truth:
:func:`counted_rows`.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..report.arrays import Array
from ..report.record import Interval, Run, find_record, read_record
from ..report.series import of_one_model, summed
from .draw import with_loads
from .pairs import fitted
from .routing import Drawn
from .sizes import Sizes


@dataclass(frozen=True)
class Loads:
    """What a record counted.

    Args:
        whole: its intervals as one.
        together: [L, U, U] tokens that chose of both units (groups, or experts where there are
            none), on the diagonal of the one; None where it was not counted.
    """

    whole: Interval
    together: Array | None = None

    @property
    def run(self) -> Run:
        """What was counted."""
        return self.whole.run

    @property
    def placement(self) -> str | None:
        """The file by which the job placed its groups, so that its rows are not of their order."""
        return _placement(self.run)


class Recorded:
    """The routing of a record; see :class:`.routing.Routing`.

    Args:
        sizes: of the simulation, whose experts, groups and topk are the record's.
        seed: another one has other tokens.
        loads: of the record.
        layers: which of its layers.
    """

    steps = 1

    def __init__(self, sizes: Sizes, seed: int, loads: Loads, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self._drawn = {
            name: _of_layer(sizes, seed, loads, loads.run.layers.index(name)) for name in layers
        }

    def experts(self, layer: str, step: int, rank: int) -> Tensor:
        return self._drawn[layer].experts(layer, step, rank)

    def of_tokens(self, tokens: int) -> "Recorded":
        """The same with other tokens of a rank."""
        other = copy(self)
        other._drawn = {
            name: replace(drawn, sizes=replace(drawn.sizes, tokens=tokens))
            for name, drawn in self._drawn.items()
        }
        return other


def read_loads(place: Path) -> Loads:
    """All intervals of a record that are of the model and the ranks of the last one.

    Args:
        place: a folder of ``--save`` or ``--grove-metrics-dir``, or the record itself.

    Raises:
        ValueError: there is no record, or it cannot be read.
    """
    every = of_one_model(read_record(find_record(place)))
    intervals = [interval for interval in every if _counts_alike(interval, every[-1])]
    whole = summed(intervals)
    return Loads(whole, None if whole.coactivation is None else np.asarray(whole.coactivation))


def counted_rows(loads: Loads, layers: Sequence[str]) -> float:
    """Rows of a token that the job counted, its own rank's included, over layers."""
    at = [loads.run.layers.index(name) for name in layers]
    return float(loads.whole.rows[at].sum() / loads.whole.sent_tokens[at].sum())


def _counts_alike(interval: Interval, last: Interval) -> bool:
    """Are their arrays of one shape, and do their rows mean the same, in one order of groups?"""
    names = ("ranks", "dispatcher", "local")
    same = all(getattr(interval.run, name) == getattr(last.run, name) for name in names)
    same = same and _placement(interval.run) == _placement(last.run)
    return same and (interval.coactivation is None) == (last.coactivation is None)


def _placement(run: Run) -> str | None:
    path = run.settings.get("grove-placement")
    return None if path is None else str(path)


def _of_layer(sizes: Sizes, seed: int, loads: Loads, layer: int) -> Drawn:
    # The counts know which pairs were of local experts.
    sizes = replace(sizes, local_experts=0)
    tokens = _tokens(loads.whole, layer)
    loads_E = torch.from_numpy(loads.whole.experts[layer]).double() / max(tokens, 1)
    topk = max(1, ceil(float(loads_E.sum()) - 1e-9))
    if loads.together is not None:
        together_UU = torch.from_numpy(loads.together[layer]).double() / max(tokens, 1)
        return Drawn(sizes=sizes, seed=seed, draw=fitted(loads_E, together_UU, topk, seed))
    return Drawn(
        sizes=sizes,
        seed=seed,
        draw=lambda step, rank, count, generator: with_loads(loads_E, count, topk, generator),
    )


def _tokens(whole: Interval, layer: int) -> float:
    """Tokens that made the counts of a layer: without padding, where the counts tell."""
    run: Run = whole.run
    any_number = whole.sharing.shape[1] == 1 + run.groups > 1 + min(run.topk, run.groups)
    if run.drops or any_number:
        return float(whole.sent_tokens[layer])
    local = 0 if whole.local is None else whole.local[layer].sum()
    return float(whole.experts[layer].sum() + local) / run.topk
