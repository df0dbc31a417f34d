"""Runs that are seeds of one system, and what the systems are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .html import shown_setting
from .record import Run
from .view import View, described

# What two seeds of a system may have otherwise: nothing of it trains another model.
_OF_A_RUN = {
    *("seed", "wandb-exp-name", "save", "load", "world-size", "data-parallel-size"),
    *("grove-metrics-dir", "grove-metrics-interval", "grove-metrics-coactivation"),
    "grove-print-arguments",
    "grove-failure-watch",
}


@dataclass(frozen=True)
class System:
    """Runs whose settings are equal but for the seed and for what is a run's own.

    Attributes:
        name: that no other system of the comparison has.
        views: of its runs, one at least.
    """

    name: str
    views: Sequence[View]


def systems(views: Sequence[View]) -> list[System]:
    """The runs put together, in the order in which they are given."""
    values = [of for name, of in differing(views).items() if name not in _OF_A_RUN]
    found: dict[tuple[str, ...], list[View]] = {}
    for number, view in enumerate(views):
        found.setdefault(tuple(of[number] for of in values), []).append(view)
    groups = list(found.values())
    return [System(name, group) for name, group in zip(_names(groups), groups, strict=True)]


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run, with the sizes that the record itself is sure of."""
    sizes = {"num-experts": run.experts, "moe-router-topk": run.topk}
    if run.groups:
        sizes["grove-num-groups"] = run.groups
    return described(run) | sizes | {"parameters": sum(run.parameters)}


def differing(views: Sequence[View]) -> dict[str, list[str]]:
    """Settings that not all runs have alike, as they are shown: one value for every run."""
    every = [settings_of(view.last.run) for view in views]
    names = dict.fromkeys(name for one in every for name in one)
    values = {name: [shown_setting(one.get(name)) for one in every] for name in names}
    return {name: of for name, of in values.items() if len(set(of)) > 1}


def run_names(views: Sequence[View]) -> list[str]:
    """Of the jobs; with the names of their runs where several are called the same."""
    names = [view.name for view in views]
    return [
        f"{name} ({view.last.run.id})" if names.count(name) > 1 else name
        for name, view in zip(names, views, strict=True)
    ]


def _names(groups: Sequence[Sequence[View]]) -> list[str]:
    """What the names of the jobs have in common, else the fewest flags that tell them apart.

    And what their routers are.
    """
    stems = [_stem([view.name for view in group]) for group in groups]
    if len(groups) == 1:
        return [stems[0] or "all runs"]
    if all(stems) and len(set(stems)) == len(stems):
        return stems
    flags = differing([group[0] for group in groups])
    kept: list[str] = []
    told = 1
    while told < len(groups):
        rest = [n for n in flags if n not in kept and n not in _OF_A_RUN]
        kept.append(max(rest, key=lambda n: _told_apart(flags, [*kept, n])))
        told = _told_apart(flags, kept)
    # A router is not called by what it has in common with others.
    kept += [n for n in flags if n.startswith("grove-router-") and n not in kept]
    short = {name: re.sub("^(moe|grove)-", "", name) for name in kept}
    return [", ".join(f"{short[n]} {flags[n][i]}" for n in kept) for i in range(len(groups))]


def _told_apart(flags: dict[str, list[str]], names: Sequence[str]) -> int:
    return len(set(zip(*(flags[name] for name in names), strict=True)))


def _stem(names: Sequence[str]) -> str:
    """``router`` of ``router-seed1`` and ``router-seed2``; empty where nothing is common."""
    letters = zip(*names, strict=False)
    differ = (n for n, of in enumerate(letters) if len(set(of)) > 1)
    stem = names[0][: next(differ, min(map(len, names)))]
    if len(set(names)) == 1:
        return stem
    if any(name[len(stem) :][:1].isdigit() for name in names):
        # Cut inside a number: 10 and 11.
        stem = stem.rstrip("0123456789")
    return re.sub(r"(?:[-_. ]+s|[-_. ]*seed)?[-_.= ]*$", "", stem, flags=re.IGNORECASE)
