"""What would make a job fit that no layout makes fit: changes, each planned before it is said."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...checks.flags import flag_of, words_of
from ...model.settings import has_adjugates, has_grove_layers
from ..rules.validity import CHUNKS, CONTEXT, EXPERT, EXPERT_TENSOR, MICRO_BATCH, PIPELINE, TENSOR
from ..speed.cluster import Cluster
from .choices import RECOMPUTE
from .layouts import Planned, first_that_fits
from .search import Job

_MOST = 3
# Doubled so often, no more GPUs help.
_DOUBLINGS = 7
_LEAST_LENGTH = 256
_PARALLEL = (TENSOR, PIPELINE, CONTEXT, EXPERT, EXPERT_TENSOR, CHUNKS)


@dataclass(frozen=True)
class Remedy:
    """One change.

    Attributes:
        change: in words.
        planned: a layout that fits with it.
    """

    change: str
    planned: Planned


def remedies(job: Job, cluster: Cluster) -> list[Remedy]:
    """The nearest changes that would do, three at most: what costs least first."""
    found: list[Remedy] = []
    for change, planned in _changes(job, cluster):
        flags = {one.planned.flags for one in found if one.change.startswith("leave out")}
        if planned is not None and not (change.startswith("leave out") and planned.flags in flags):
            found.append(Remedy(change, planned))
        if len(found) == _MOST:
            break
    return found


def _changes(job: Job, cluster: Cluster) -> Iterator[tuple[str, Planned | None]]:
    """Each with a layout that fits, if there is one."""
    args, given = job.args, job.given

    def fits(text: str, changed: Job) -> tuple[str, Planned | None]:
        return text, first_that_fits(changed, cluster)

    if not args.use_distributed_optimizer:
        divided = {"use_distributed_optimizer": True}
        yield fits(f"{_said(divided)}: optimizer state over all ranks", _with(job, divided))
    fixed = [name for name in RECOMPUTE if name in given]
    if fixed:
        text = f"leave out {_flags(fixed)}: more is computed again"
        yield fits(text, _without(job, fixed))
    if args.micro_batch_size > 1 and "micro_batch_size" in given:
        smaller = {"micro_batch_size": 1}
        yield fits(f"{_said(smaller)}: fewer samples of a forward pass", _with(job, smaller))
    fixed = [name for name in _PARALLEL if name in given]
    if fixed:
        yield fits(f"leave out {_flags(fixed)}: other parallel sizes", _without(job, fixed))
    if fixed := _fixed(job):
        text = f"leave out {_flags(fixed)}: everything about the layout is open"
        yield fits(text, _without(job, fixed))
    if not (args.bf16 or args.fp16):
        yield fits("--bf16: weights and activations in 16 bits", _with(job, {"bf16": True}))
    yield from _more(job, cluster)
    yield from _shorter(job, cluster)
    if has_adjugates(args) and not args.grove_train_only:
        alone: dict[str, Any] = {"grove_train_only": ["adjugates"]}
        text = "--grove-train-only adjugates: no gradients and optimizer state of the rest"
        yield fits(text, _with(job, alone))
    if has_grove_layers(args) and not args.grove_train_only:
        router: dict[str, Any] = {"grove_train_only": ["router"]}
        yield fits("--grove-train-only router: the router alone is trained", _with(job, router))


def _more(job: Job, cluster: Cluster) -> Iterator[tuple[str, Planned]]:
    """The fewest of twice as many nodes, four times, and so on."""
    fixed = _fixed(job)
    for asked in (job, _without(job, fixed)) if fixed else (job,):
        for doubled in range(1, _DOUBLINGS + 1):
            nodes = cluster.nodes * 2**doubled
            larger = replace(cluster, nodes=nodes)
            planned = first_that_fits(asked, larger)
            if planned is not None:
                also = "" if asked is job else f", and leave out {_flags(fixed)}"
                yield f"{larger.gpus:,} GPUs ({nodes:,} nodes){also}", planned
                return


def _shorter(job: Job, cluster: Cluster) -> Iterator[tuple[str, Planned]]:
    length = job.args.seq_length // 2
    while length >= _LEAST_LENGTH:
        planned = first_that_fits(_with(job, {"seq_length": length}), cluster)
        if planned is not None:
            yield f"--seq-length {length}: shorter sequences", planned
            return
        length //= 2


def _fixed(job: Job) -> list[str]:
    """What of a layout the command line says."""
    return [name for name in (*_PARALLEL, *RECOMPUTE, MICRO_BATCH) if name in job.given]


def _with(job: Job, settings: dict[str, Any]) -> Job:
    return replace(job, args=_changed(job, settings), given=job.given | settings.keys())


def _without(job: Job, names: list[str]) -> Job:
    # What the search sets it asks for anew; what it does not, goes back to what it is without.
    unsaid: dict[str, Any] = {TENSOR: 1, PIPELINE: 1, CONTEXT: 1, EXPERT: 1, MICRO_BATCH: 1}
    unsaid |= {"recompute_activations": False, "moe_layer_recompute": False}
    settings = {name: unsaid.get(name) for name in names}
    return replace(job, args=_changed(job, settings), given=job.given - set(names))


def _changed(job: Job, settings: dict[str, Any]) -> Namespace:
    return Namespace(**vars(job.args) | settings)


def _said(settings: dict[str, Any]) -> str:
    return " ".join(words_of(settings))


def _flags(names: list[str]) -> str:
    return ", ".join(flag_of(name) for name in names)
