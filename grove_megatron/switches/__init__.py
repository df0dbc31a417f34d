"""Every Megatron 0.19 switch beside Grove layers: works, refused, or without effect on them.

The tables here are what the checks at start refuse by, what the tests run, and what the page
``README.md`` is made of (``python -m grove_megatron.switches --write``).
"""

from functools import cache

from ..checks.problem import Problem
from . import (
    balancing,
    checkpointing,
    dispatch,
    inference,
    model,
    optimizer,
    parallelism,
    precision,
    recompute,
    router,
    unread,
)
from .rows import Area, Idle, Ignored, Refused, Shown, Works

AREAS: tuple[Area, ...] = (
    router.AREA,
    balancing.AREA,
    dispatch.AREA,
    model.AREA,
    parallelism.AREA,
    precision.AREA,
    recompute.AREA,
    optimizer.AREA,
    checkpointing.AREA,
    inference.AREA,
    unread.AREA,
)


OTHER_GROUPS: dict[str, str] = {
    "profiling": "what is measured of a run",
    "training": "how many tokens there are, and when a run ends",
    "rl": "of reinforcement learning scripts, which grove_megatron.pretrain is not",
    "RNG and initialization": "streams of random numbers; adjugates draw from the experts'",
    "learning rate and weight decay": "the same for every parameter",
    "validation": "when evaluation runs",
    "data and dataloader": "what the tokens are",
    "tokenizer": "what the tokens are",
    "autoresume": "when a run ends",
    "biencoder": "of other models",
    "vision": "of other models",
    "logging": "what Megatron writes of a run",
    "Logits Distillation": "what happens to logits",
    "straggler": "what is measured of a run",
    "workload inspector": "what is measured of a run",
    "inference": "of Megatron's inference engines, which are not tested with groups",
    "experimental": "how a layer is asked for: --spec is checked, see the top page",
    "one logger": "what Megatron writes of a run",
    "In-process restart": "when a run begins anew",
    "ft_package": "when a run begins anew",
    "rerun engine": "what happens after a suspicious result",
    "msc": "where files are",
    "sft": "what the tokens are",
    "fault injector": "faults on purpose",
}
"""Groups of Megatron's ``--help`` of which no other option meets a Grove layer."""


def works() -> list[Works]:
    """All rows that a test runs."""
    return [row for area in AREAS for row in area.rows if isinstance(row, Works)]


def shown_by() -> list[str]:
    """Every test that a row names, as pytest names it."""
    named = [
        test
        for area in AREAS
        for row in area.rows
        if isinstance(row, Works | Shown)
        for test in row.tests
    ]
    return sorted(set(named))


def refused() -> list[Refused]:
    """All rows that are refused at start."""
    return [row for area in AREAS for row in area.rows if isinstance(row, Refused)]


def idle() -> list[Idle]:
    """All rows of what does nothing."""
    return [row for area in AREAS for row in area.rows if isinstance(row, Idle)]


@cache
def named() -> frozenset[str]:
    """Every switch that a row is about."""
    return frozenset(
        switch
        for area in AREAS
        for row in area.rows
        for switch in ([row.switch] if isinstance(row, Refused) else row.switches)
    )


def refusals(settings: object) -> list[Problem]:
    """What a configuration or a command line asks for that is refused.

    Args:
        settings: a GroveTransformerConfig or Megatron's argument namespace, with Grove layers.
    """
    return [found for row in refused() if (found := row.problem(settings)) is not None]


__all__ = [
    "AREAS",
    "OTHER_GROUPS",
    "Area",
    "Idle",
    "Ignored",
    "Refused",
    "Shown",
    "Works",
    "idle",
    "named",
    "refusals",
    "refused",
    "shown_by",
    "works",
]
