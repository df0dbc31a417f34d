"""Every layout of a job on a cluster: refused with a reason, too large, or ranked by its speed."""

import re
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ...checks.problem import Problem
from ...model.architecture import Model
from ..inputs import Sizes
from ..memory import Memory, largest, stage_memory
from ..rules.validity import CHUNKS, HIERARCHICAL, MICRO_BATCH, TENSOR
from ..sizes import layout_of, model_of, refuse_unknown, training_of
from ..speed.cluster import Cluster
from ..speed.step import step, tokens_per_second, utilisation
from . import choices
from .choices import Values
from .search import Job, Search, words

# Of more choices of parallel sizes than the first, each is timed in one way, and chunks,
# micro-batches and dispatches are tried for so many of them, the fastest.
_EACH, _BEST = 400, 120
_HOUR, _TRILLION = 3600.0, 1e12


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One layout.

    Attributes:
        flags: what the search chose, as words of a command line.
        sizes: of the job in this layout.
        stage: of the pipeline, whose ranks need most memory.
        memory: of such a rank.
        fits: does it, with the margin?
        step: seconds of a step by part of :data:`..speed.step.PARTS`; empty where it does not fit.
        tokens_per_second: of the whole job.
        mfu: FLOPs of the model over what the GPUs could do at their peak.
        bottleneck: what takes most of a step, in words.
        cost: of a trillion tokens, None without a price.
    """

    flags: tuple[str, ...]
    sizes: Sizes
    stage: int
    memory: Memory
    fits: bool
    step: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float = 0.0
    mfu: float = 0.0
    bottleneck: str = ""
    cost: float | None = None

    @property
    def per_gpu(self) -> float:
        """Tokens a second of one GPU."""
        return self.tokens_per_second / self.sizes.layout.world

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(self.step.values())


@dataclass(kw_only=True)
class Plans:
    """What there is.

    Attributes:
        ranked: layouts that fit, the fastest first.
        too_large: those that do not with any recomputation that is open, the smallest first.
        refused: sizes that Megatron or a Grove layer refuses, as words, and the first reason. What
            nothing could mend any more is not combined with others.
    """

    ranked: list[Planned] = field(default_factory=list)
    too_large: list[Planned] = field(default_factory=list)
    refused: list[tuple[tuple[str, ...], Problem]] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[int, Problem]]:
        """How many are refused for what, and the first of each, the most frequent first."""
        firsts: dict[str, Problem] = {}
        counted: Counter[str] = Counter()
        for _, problem in self.refused:
            # The same but for its numbers.
            kind = re.sub(r"[\d, ]+", "", f"{problem.flag} {problem.text}")
            firsts.setdefault(kind, problem)
            counted[kind] += 1
        return [(count, firsts[kind]) for kind, count in counted.most_common()]


def plan_layouts(job: Job, cluster: Cluster, *, every: bool = False) -> Plans:
    """All layouts of a job that are open.

    Args:
        every: time all of them, however many there are.

    Raises:
        ValueError: a setting that the planner does not know.
    """
    planner = _Planner(job, cluster)
    plans = Plans(refused=planner.search.refused)
    outer = [*planner.search.outer()]
    if not every and len(outer) > _EACH:
        outer = planner.best(outer, _BEST)
    for values in outer:
        for layout in planner.search.inner(values):
            planned = planner.planned(layout)
            if planned is not None:
                (plans.ranked if planned.fits else plans.too_large).append(planned)
    plans.ranked.sort(key=lambda one: -one.tokens_per_second)
    plans.too_large.sort(key=lambda one: one.memory.total)
    return plans


def first_that_fits(job: Job, cluster: Cluster) -> Planned | None:
    """Any layout that does, not timed: with the choices that need least memory, of those open."""
    given, least = set(job.given), dict(vars(job.args))
    if MICRO_BATCH not in given:
        least[MICRO_BATCH] = 1
    recomputed = choices.recomputations(job.args, job.given)[-1]
    least |= recomputed
    given |= {MICRO_BATCH, HIERARCHICAL, *recomputed}
    smallest = replace(job, args=Namespace(**least), given=frozenset(given))
    planner = _Planner(smallest, cluster)
    for values in planner.search.outer():
        for layout in islice(planner.search.inner(values), 1):
            planned = planner.planned(layout, timed=False)
            if planned is not None and planned.fits:
                return replace(planned, flags=planned.flags + words(recomputed))
    return None


def _first_tried(values: Values) -> tuple[Any, ...]:
    chunks = values.get(CHUNKS) or 1
    return values[MICRO_BATCH], bool(values.get(HIERARCHICAL)), -int(str(chunks))


class _Planner:
    """Sizes, memory and seconds of what the search finds."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        refuse_unknown(job.args)
        self.job, self.cluster = job, cluster
        self.search = Search(job, cluster.gpus, cluster.per_node, cluster.domain)
        # By tensor parallelism, which the padding of the vocabulary depends on.
        self._models: dict[int, Model] = {}

    def best(self, outer: list[Values], count: int) -> list[Values]:
        """Those of parallel sizes that are fastest with small micro-batches and many chunks."""
        timed = []
        for values in outer:
            layouts = [*self.search.inner(values)]
            tried = self.planned(min(layouts, key=_first_tried)) if layouts else None
            timed.append((tried.tokens_per_second if tried is not None else 0.0, values))
        timed.sort(key=lambda pair: -pair[0])
        return [values for _, values in timed[:count]]

    def planned(self, layout: Values, *, timed: bool = True) -> Planned | None:
        """With the least recomputation that fits; None where each is refused."""
        found: Planned | None = None
        for values in self.search.recomputed(layout):
            self.search.at(values)
            found = self._measured(values)
            if found.fits:
                return self._timed(found) if timed else found
        return found

    def _measured(self, values: Values) -> Planned:
        args = self.search.args
        layout = layout_of(args, self.cluster.gpus)
        training = replace(training_of(args, layout), imbalance=self.job.imbalance)
        sizes = Sizes(model=self._model(), layout=layout, training=training)
        memories = stage_memory(sizes)
        stage = largest(memories)
        memory = memories[stage]
        fits = memory.with_margin <= self.cluster.memory
        return Planned(flags=words(values), sizes=sizes, stage=stage, memory=memory, fits=fits)

    def _model(self) -> Model:
        args = self.search.args
        tensor = getattr(args, TENSOR)
        if tensor not in self._models:
            self._models[tensor] = model_of(args, self.job.parts, self.job.tokens)
        return self._models[tensor]

    def _timed(self, planned: Planned) -> Planned:
        sizes, cluster = planned.sizes, self.cluster
        taken = step(sizes, cluster)
        rate, price = tokens_per_second(sizes, taken.total), cluster.price
        return replace(
            planned,
            step=taken.parts(),
            tokens_per_second=rate,
            mfu=utilisation(sizes, cluster, taken.total),
            bottleneck=taken.bottleneck,
            cost=None if price is None else cluster.gpus * price / _HOUR * _TRILLION / rate,
        )
