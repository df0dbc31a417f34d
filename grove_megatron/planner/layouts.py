"""Every layout of a model on a cluster: refused with its reason, too large, or ranked by speed."""

import copy
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..checks.flags import flag_of
from ..checks.guarded import problems_of
from ..checks.problem import Problem
from ..model.architecture import Model
from . import choices
from .cluster import Cluster
from .flops import flops_per_token
from .inputs import Sizes
from .memory import Memory, largest, stage_memory
from .sizes import RouterParts, layout_of, model_of, refuse_unknown, training_of
from .step import step
from .validity import HIERARCHICAL, MICRO_BATCH, OF_LAYERS, OVER_NODES, RULES, Rule, basic_problems

# Above so many layouts, chunks, micro-batches and dispatches are tried for the best of the others
# alone.
_EACH = 3000
_BEST = 250
_HOUR, _TRILLION = 3600.0, 1e12


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command line asks to be planned.

    Attributes:
        args: its namespace, in which what is left open has Megatron's defaults.
        given: names of the settings that it says, which stay as they are.
        parts: of its router.
        tokens: of its vocabulary, None where they are not known.
    """

    args: Namespace
    given: frozenset[str]
    parts: RouterParts
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One layout.

    Attributes:
        flags: what the search chose, as words of a command line.
        sizes: of the job in this layout.
        stage: of the pipeline, whose ranks need most memory.
        memory: of such a rank.
        fits: does it, with the margin?
        step: seconds of a step by part.
        tokens_per_second: of the whole job.
        mfu: FLOPs of the model over the peak of the GPUs.
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
        """Tokens a second."""
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
        too_large: those that do not, the smallest first.
        refused: sizes that Megatron or a Grove layer refuses, as words, and the first reason. Sizes
            that nothing could mend are not combined with others.
    """

    ranked: list[Planned] = field(default_factory=list)
    too_large: list[Planned] = field(default_factory=list)
    refused: list[tuple[tuple[str, ...], Problem]] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[int, Problem]]:
        """How many were refused for what, and the first of each."""
        firsts: dict[str, Problem] = {}
        counted: Counter[str] = Counter()
        for _, problem in self.refused:
            # Of the same kind but for the numbers.
            kind = re.sub(r"\d+", "", f"{problem.flag} {problem.text}")
            firsts.setdefault(kind, problem)
            counted[kind] += 1
        return [(count, firsts[kind]) for kind, count in counted.most_common()]


def plan_layouts(job: Job, cluster: Cluster, *, every: bool = False) -> Plans:
    """All layouts of a job.

    Args:
        every: time all of them, however many there are.

    Raises:
        ValueError: a setting that the planner does not know.
    """
    return _Search(job, cluster).plans(every)


def fits_somehow(job: Job, cluster: Cluster) -> Planned | None:
    """The first layout that fits, not timed."""
    search = _Search(job, cluster)
    found = (search.least(values) for values in search.valid(choices_of_all=False))
    return next((one for one in found if one.fits), None)


class _Search:
    """Walks through the choices on one namespace, and remembers what does not change."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        refuse_unknown(job.args)
        self.job, self.cluster = job, cluster
        self.args = copy.copy(job.args)
        self.refused: list[tuple[tuple[str, ...], Problem]] = []
        self._verdicts: dict[tuple[Any, ...], Problem | None] = {}
        self._models: dict[int, Model] = {}

    # ------------------------------------------------------------------------------------ choices

    def valid(self, *, choices_of_all: bool = True) -> Iterator[choices.Values]:
        """Layouts without a problem, recomputation not among them.

        Args:
            choices_of_all: of chunks, micro-batches and dispatches try all; or the first that is
                valid.
        """
        args, given = self.args, self.job.given
        world, per_node = self.cluster.gpus, self.cluster.per_node
        if basic := problems_of(basic_problems, args):
            self.refused += [((), problem) for problem in basic]
            return
        for dense in choices.dense(args, given, world, self.cluster.domain):
            if self._refuses(dense, *_DENSE):
                continue
            for experts in choices.experts(args, given, world):
                if self._refuses(experts, *_EXPERTS, so_far=dense):
                    continue
                both = dense | experts
                found = self._rest(both)
                yield from found if choices_of_all else _first(found)

    def _rest(self, so_far: choices.Values) -> Iterator[choices.Values]:
        args, given = self.args, self.job.given
        for chunks in choices.chunks(args, given):
            if self._refuses(chunks, *_CHUNKS, so_far=so_far):
                continue
            for size in choices.micro_batches(args, given):
                micro: choices.Values = {MICRO_BATCH: size}
                if self._refuses(micro, *_BATCH, so_far=so_far | chunks):
                    continue
                for is_so in choices.dispatches(args, given, self.cluster.per_node):
                    hierarchical: choices.Values = {HIERARCHICAL: is_so}
                    values = so_far | chunks | micro
                    if not self._refuses(hierarchical, OVER_NODES, so_far=values):
                        yield values | hierarchical
                    self._set(values | chunks)
            self._set(so_far)

    def _set(self, values: choices.Values) -> None:
        vars(self.args).update(values)

    def _refuses(
        self, values: choices.Values, *rules: Rule, so_far: choices.Values | None = None
    ) -> bool:
        """Set these; is there a rule against them? Each is asked once for what it reads."""
        self._set(values)
        for rule in rules:
            key = (rule.check, *(str(getattr(self.args, name)) for name in rule.reads))
            if key not in self._verdicts:
                found = problems_of(rule.check, self.args, self.cluster.gpus, self.cluster.per_node)
                self._verdicts[key] = next(iter(found), None)
            if problem := self._verdicts[key]:
                self.refused.append((words((so_far or {}) | values), problem))
                return True
        return False
