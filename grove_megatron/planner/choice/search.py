"""Walks through the layouts that are open, and leaves out what Megatron or a Grove layer refuses.

Sizes are chosen one after the other, and a rule is asked as soon as all that it reads is chosen:
what nothing could mend any more is not combined with others.
"""

import copy
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...checks.flags import flag_of
from ...checks.guarded import problems_of
from ...checks.problem import Problem
from ..inputs import Sizes
from ..rules import validity
from ..rules.basic_rules import basic_problems
from ..rules.validity import EXPERT, EXPERT_TENSOR, HIERARCHICAL, MICRO_BATCH, Rule
from ..sizes import RouterParts, sizes_of
from . import choices
from .choices import Values


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command line asks to be planned.

    Attributes:
        args: its namespace, in which what is left open has Megatron's defaults.
        given: names of the settings that it says, which stay as they are.
        parts: of its router.
        tokens: of its vocabulary, None where they are not known.
        imbalance: pairs of the rank that gets most over the mean, see :class:`..inputs.Training`.
    """

    args: Namespace
    given: frozenset[str]
    parts: RouterParts
    tokens: int | None
    imbalance: float = 1.0

    def sizes(self, world: int) -> Sizes:
        """Of the command line as it stands.

        Raises:
            ValueError: a setting that the planner does not know, or sizes that do not fit.
        """
        sizes = sizes_of(self.args, self.parts, world, self.tokens)
        return replace(sizes, training=replace(sizes.training, imbalance=self.imbalance))


class Search:
    """Of one job, on so many ranks.

    Attributes:
        args: of the layout that was looked at last.
        refused: sizes that are refused, as words of a command line, and the first reason.
    """

    def __init__(self, job: Job, world: int, per_node: int, domain: int) -> None:
        self.args = copy.copy(job.args)
        self.refused: list[tuple[tuple[str, ...], Problem]] = []
        self._said: set[tuple[str, ...]] = set()
        self._job, self._world, self._per_node, self._domain = job, world, per_node, domain
        self._verdicts: dict[tuple[Any, ...], Problem | None] = {}
        self._before: Values = {}
        nodes = partial(validity.over_nodes, per_node=per_node)
        self._of_nodes = (Rule(nodes, (EXPERT, EXPERT_TENSOR, HIERARCHICAL)),)

    def outer(self) -> Iterator[Values]:
        """Tensor, context, pipeline and expert parallelism."""
        args, given, world = self.args, self._job.given, self._world
        basic = problems_of(basic_problems, args)
        self.refused += [((), problem) for problem in basic]
        if basic or self.refuses({}, validity.OF_MODEL):
            return
        # The least that every choice of experts asks of the rest.
        least: Values = {EXPERT_TENSOR: args.expert_tensor_parallel_size or 1}
        for dense in [*choices.dense(args, given, world, self._domain)]:
            if self.refuses(dense | least, validity.OF_RANKS, shown=dense):
                continue
            self.at(dense)
            for experts in [*choices.experts(args, given, world)]:
                both = dense | experts
                rules = (*validity.OF_RANKS, *validity.OF_EXPERTS)
                if not self.refuses(both, (*rules, *validity.OF_COPIES, *validity.OF_LAYERS)):
                    yield both

    def inner(self, outer: Values) -> Iterator[Values]:
        """Chunks, micro-batches and dispatches of one of them."""
        args, given = self.args, self._job.given
        self.at(outer)
        for chunks in [*choices.chunks(args, given)]:
            so_far = outer | chunks
            if self.refuses(so_far, validity.OF_STAGES):
                continue
            for size in choices.micro_batches(args, given):
                with_size: Values = so_far | {MICRO_BATCH: size}
                if self.refuses(with_size, validity.OF_BATCH):
                    continue
                for dispatch in choices.dispatches(args, given, self._per_node):
                    found = with_size | dispatch
                    if not self.refuses(found, self._of_nodes):
                        yield found

    def recomputed(self, values: Values) -> Iterator[Values]:
        """The same layout with more and more recomputation."""
        for more in choices.recomputations(self.args, self._job.given):
            found = values | more
            if not self.refuses(found, (*validity.OF_RECOMPUTE, *validity.OF_LAYERS)):
                yield found

    def at(self, values: Values) -> None:
        """Look at a layout: nothing of the one before stays."""
        settings = vars(self.args)
        given = vars(self._job.args)
        settings.update({name: given[name] for name in self._before if name in given})
        settings.update(values)
        self._before = values

    def refuses(
        self, values: Values, rules: Sequence[Rule], *, shown: Values | None = None
    ) -> bool:
        """Is there a rule against them? Each is asked once for what it reads.

        Args:
            shown: what of them is said to be refused.
        """
        self.at(values)
        for rule in rules:
            key = (rule.check, *(_hashable(getattr(self.args, name, None)) for name in rule.reads))
            if key not in self._verdicts:
                found = problems_of(rule.check, self.args, self._world)
                self._verdicts[key] = next(iter(found), None)
            if (problem := self._verdicts[key]) is not None:
                said = words(values if shown is None else shown)
                # What is best of many is looked for first, and then walked through again.
                if said not in self._said:
                    self._said.add(said)
                    self.refused.append((said, problem))
                return True
        return False


def words(values: Values) -> tuple[str, ...]:
    """Of a command line; what is None or off is left out."""
    found: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        listed = value if isinstance(value, list) else [value]
        found += [flag_of(name), *([] if value is True else map(str, listed))]
    return tuple(found)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
