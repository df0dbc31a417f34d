"""All layers of what was asked, or everything that is wrong with it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from ..checks.problem import Problem, Refusal
from ..checks.ranks import divisors
from ..planner.speed.machines import machine
from . import file
from .model import Asked, Source
from .records import of_records
from .solve import Goal, Placed, place
from .traces import of_trace


@dataclass(frozen=True)
class Job:
    """The options of ``grove place``, which says what they are."""

    inputs: tuple[Path, ...]
    ranks: int
    output: Path | None = None
    per_node: int | None = None
    layers: str | None = None
    since: int = 0
    run: str | None = None
    node_cost: float | None = None
    machine: str = "h100"
    current: Path | None = None
    experts: int | None = None
    groups: int | None = None
    over_greedy: float = 1.02
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What was placed.

    Attributes:
        source: what it was made of.
        goal: what was asked.
        layers: by name; None: a layer whose tokens nobody counted.
        assignment: what was written, or would be.
        output: where; None: nowhere.
    """

    source: Source
    goal: Goal
    layers: Mapping[str, Placed | None]
    assignment: file.Assignment
    output: Path | None


def placed(job: Job) -> Found:
    """Read, place every layer, and write the file if one is asked for.

    Raises:
        Refusal: all that is wrong with the options, and with what they name; or the file cannot
            be written, and what was there is as it was.
    """
    problems = [*_of_options(job)]
    cost = 0.0
    try:
        cost = _node_cost(job)
    except Refusal as refused:
        problems += refused.problems
    asked = Asked(
        ranks=job.ranks,
        since=job.since,
        run=job.run,
        experts=job.experts,
        groups=job.groups,
        moved=job.current is not None,
    )
    source = _source(job, asked)
    if isinstance(source, list):
        raise Refusal([*problems, *source])
    problems += [*_of_model(job, source), *_of_output(job, source)]
    current, more = _current(job, source)
    names, unknown = _layers(job.layers, source)
    if problems := [*problems, *more, *unknown]:
        raise Refusal(problems)
    goal = Goal(job.ranks, job.per_node, cost, job.over_greedy, job.seed)
    layers = {n: place(source.evidence(n), goal, np.array(current.order(n))) for n in names}
    moved = {n: one.order for n, one in layers.items() if one is not None and one.order is not None}
    orders = {n: moved.get(n) or current.layers.get(n) for n in source.layers}
    assignment = file.Assignment(
        source.experts,
        source.groups,
        job.ranks,
        {name: order for name, order in orders.items() if order is not None},
    )
    if job.output is not None:
        try:
            file.write(job.output, assignment)
        except OSError as error:
            text = f"cannot be written: {error.strerror}; name another file"
            raise Refusal([Problem("--output", str(job.output), text)]) from None
    return Found(source, goal, layers, assignment, job.output)


def _source(job: Job, asked: Asked) -> Source | list[Problem]:
    traces = [place for place in job.inputs if place.suffix == ".safetensors"]
    if not traces:
        return of_records(job.inputs, asked)
    if len(job.inputs) > 1:
        text = "is not alone; give one trace, or records"
        return [Problem("trace", str(traces[0]), text)]
    return of_trace(traces[0], asked)


def _of_options(job: Job) -> Iterator[Problem]:
    if job.ranks < 1:
        yield Problem("--expert-parallel", job.ranks, "is not 1 or more; give the job's")
    if job.per_node is not None and (job.per_node < 1 or job.ranks % job.per_node):
        text = f"does not divide --expert-parallel ({job.ranks}); give the ranks of a node"
        yield Problem("--gpus-per-node", job.per_node, text)
    if not job.over_greedy >= 1:
        text = "is not 1 or more, which the greedy balancer itself reaches; give 1.02"
        yield Problem("--over-greedy", job.over_greedy, text)
    if job.seed < 0:
        yield Problem("--seed", job.seed, "is negative; give 0 or more")
    for flag, given in (
        ("--since", job.since),
        ("--num-experts", job.experts),
        ("--grove-num-groups", job.groups),
    ):
        if given is not None and given < (flag == "--num-experts"):
            least = int(flag == "--num-experts")
            yield Problem(flag, given, f"is not {least} or more; give another, or leave it out")
    if job.node_cost is not None and not 0 < job.node_cost < inf:
        yield Problem("--node-cost", job.node_cost, "is not above 0; give the rows of a node's one")
    if job.output is not None and not job.output.parent.is_dir():
        yield Problem("--output", str(job.output), "is in no folder that exists; make it")


def _node_cost(job: Job) -> float:
    """What a row between nodes costs in rows inside one, by the rates of a machine's links.

    Raises:
        Refusal: of an unknown machine.
    """
    if job.node_cost is not None:
        return job.node_cost
    of = machine(job.machine)
    return of.near.rate / of.far.rate


def _of_output(job: Job, source: Source) -> Iterator[Problem]:
    """It must not replace what it is made of."""
    if job.output is None:
        return
    for what, path in (
        *(("record" if source.estimated else "trace", one) for one in source.files),
        *([("--current", job.current)] if job.current is not None else []),
    ):
        if job.output.exists() and path.exists() and job.output.samefile(path):
            text = f"is {what} ({path}), which would be replaced; name another file"
            yield Problem("--output", str(job.output), text)


def _of_model(job: Job, source: Source) -> Iterator[Problem]:
    for flag, given, theirs in (
        ("--num-experts", job.experts, source.experts),
        ("--grove-num-groups", job.groups, source.groups),
    ):
        if given is not None and given != theirs:
            text = f"is not what {source.said} is of ({theirs}); give what is of this model"
            yield Problem(flag, given, text)
    if source.groups and source.experts % source.groups:
        if job.groups is None:
            text = f"is no multiple of the groups ({source.groups}) of {source.said}"
            yield Problem("--num-experts", source.experts, f"{text}; give its model's")
        else:
            text = f"does not divide the experts ({source.experts}) of {source.said}"
            yield Problem("--grove-num-groups", source.groups, f"{text}; give its model's")
    elif job.ranks > 0 and source.units % job.ranks:
        unit = "groups" if source.groups else "experts"
        text = f"does not divide the {unit} ({source.units}) of {source.said}; use one of "
        yield Problem("--expert-parallel", job.ranks, text + divisors(source.units))


def _current(job: Job, source: Source) -> tuple[file.Assignment, list[Problem]]:
    """The order that is in use."""
    in_order = file.Assignment(source.experts, source.groups, job.ranks, {})
    if job.current is None:
        return in_order, []
    try:
        found = file.read(job.current)
    except Refusal as refused:
        return in_order, list(refused.problems)
    problems = file.problems(
        found,
        job.current,
        experts=source.experts,
        groups=source.groups,
        ranks=job.ranks,
        layers=source.layers,
    )
    return found, problems


def _layers(asked: str | None, source: Source) -> tuple[tuple[str, ...], list[Problem]]:
    """The layers meant, in the order of the model."""
    if asked is None:
        return source.layers, []
    meant: set[str] = set()
    for part in (part.strip() for part in asked.split(",")):
        span = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})", part)
        first, last = map(int, span.groups()) if span else (0, -1)
        meant |= {str(n) for n in range(first, last + 1)} if span else {part}
    missing = sorted(meant - {*source.layers})
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
        text = f"names layers ({shown}) that {source.said} has not; it has "
        text += ", ".join(source.layers)
        return (), [Problem("--layers", asked, text)]
    return tuple(name for name in source.layers if name in meant), []
