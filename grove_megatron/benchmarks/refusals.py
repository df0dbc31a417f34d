"""What keeps a benchmark from running, all of it at once."""

import importlib.util
from collections.abc import Iterator

from .records import csv_problems
from .shape import DTYPES, KERNELS, PRESETS, VARIANTS, Settings, dispatch_shape
from .work import BYTES

HEAD = 64
"""Width of an attention head of the model that ``grove bench step`` trains."""


def problems(settings: Settings) -> list[str]:
    """``name (value) relation name (value); fix``, one line each; empty if all is well."""
    checks = (_names, _counts, _divisions, _nodes, _widths)
    found = [line for check in checks for line in check(settings)]
    if settings.csv is not None:
        found += csv_problems(settings.csv)
    return found


def kernel_problems(settings: Settings, on_cuda: bool) -> list[str]:
    """What the machine cannot run of the kernels asked for, one line each."""
    found = []
    for kernel in settings.kernels:
        if kernel in ("triton", "te") and not on_cuda:
            found.append(f"--kernel ({kernel}) needs CUDA devices, found (0); use grouped")
        elif kernel == "te" and importlib.util.find_spec("transformer_engine") is None:
            found.append("--kernel (te) needs transformer_engine (not installed); use grouped")
    return found


def _names(settings: Settings) -> Iterator[str]:
    """Choices from a list."""
    choices = [
        ("preset", (settings.preset,), tuple(PRESETS[settings.benchmark])),
        ("dtype", (settings.shape.dtype,), DTYPES),
        ("kernel", settings.kernels, KERNELS),
        ("variant", settings.variants, VARIANTS),
    ]
    for name, given, known in choices:
        for value in given:
            if value not in known:
                yield f"--{name} ({value}) is not one of ({', '.join(known)}); use one of them"
    if "grove" not in settings.variants:
        shown = ", ".join(settings.variants)
        yield f"--variant ({shown}) leaves out (grove), which is compared with the others; add it"
    if settings.benchmark in ("step", "scaling", "local", "routers") and len(settings.kernels) > 1:
        shown = ", ".join(settings.kernels)
        yield (
            f"--kernel ({shown}) is more than a benchmark of ({settings.benchmark}) takes; choose "
            "one"
        )
    if settings.benchmark == "step" and "te" in settings.kernels:
        yield (
            "--kernel (te) is not one of those of (step); give --transformer-impl "
            "transformer_engine"
        )


def _counts(settings: Settings) -> Iterator[str]:
    shape = settings.shape
    at_least_one = {
        name: getattr(shape, name)
        for name in ("tokens", "hidden", "experts", "groups", "topk", "layers")
    }
    if settings.benchmark != "dispatch":
        at_least_one["expert-width"] = shape.expert_width
        if settings.benchmark not in ("local", "routers"):
            at_least_one["adjugate-width"] = shape.adjugate_width
    at_least_one |= {"ranks": settings.ranks, "threads": settings.threads}
    at_least_one |= {"rounds": settings.rounds}
    for name, value in at_least_one.items():
        if value < 1:
            yield f"--{name} ({value}) is below (1); use 1 or more"
    if settings.warmup < 0:
        yield f"--warmup ({settings.warmup}) is below (0); use 0 or more"


def _divisions(settings: Settings) -> Iterator[str]:
    shape, ranks, size = settings.shape, settings.ranks, settings.group_size
    if size is not None and shape.experts != shape.groups * size:
        yield (
            f"--group-size ({size}) times --groups ({shape.groups}) is not --experts "
            f"({shape.experts}); use a size that divides, and leave --groups out"
        )
    elif shape.groups > 0 and shape.experts % shape.groups:
        yield (
            f"--groups ({shape.groups}) does not divide --experts ({shape.experts}); use a number "
            "that does"
        )
    if ranks > 0 and shape.groups % ranks:
        yield (
            f"--ranks ({ranks}) does not divide --groups ({shape.groups}); a group stays on one "
            "rank, so use a number that does"
        )
    if shape.topk > shape.experts:
        yield f"--topk ({shape.topk}) is above --experts ({shape.experts}); choose fewer"
    if shape.topk == 1 and settings.benchmark not in ("dispatch", "kernels"):
        yield "--topk (1) leaves the router without a gradient, unlike (2); use 2 or more"


def _nodes(settings: Settings) -> Iterator[str]:
    """Two hops need several nodes, with several ranks each."""
    ranks, per_node = settings.ranks, settings.ranks_per_node
    if per_node is None or ranks < 1:
        return
    if per_node < 2:
        yield f"--ranks-per-node ({per_node}) is below (2): a node would have no inside; use 2"
    elif ranks % per_node:
        yield (
            f"--ranks-per-node ({per_node}) does not divide --ranks ({ranks}); use a number that "
            "does"
        )
    elif ranks == per_node:
        yield (
            f"--ranks-per-node ({per_node}) puts all --ranks ({ranks}) on one node; use fewer, or "
            "more ranks"
        )


def _widths(settings: Settings) -> Iterator[str]:
    shape, ranks = settings.shape, settings.ranks
    if settings.benchmark == "step" and shape.hidden % HEAD:
        yield f"--hidden ({shape.hidden}) is not a multiple of the head size ({HEAD}); use one"
    if settings.benchmark == "scaling":
        shape, ranks = dispatch_shape(shape), 2
    elif settings.benchmark != "dispatch" or ranks < 2:
        return
    weights, row = shape.experts // ranks * 4, shape.hidden * BYTES.get(shape.dtype, 4)
    if weights >= row:
        yield (
            f"--hidden ({shape.hidden}) makes rows no wider than the weights of a rank's experts "
            f"({shape.experts // ranks}); they could not be told apart, use a larger one"
        )
