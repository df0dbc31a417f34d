"""Flags and versions that differ between ranks, found before anything depends on them.

A rank with another layout waits in a collective that nobody else calls, one with another top-k
sends rows that nobody expects, and one with another learning rate trains a model of its own.
"""

import itertools
import json
import platform
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from .. import __version__
from ..checks.flags import flag_of
from ..checks.problem import Problem
from ..compat import installed_version, megatron_version
from ..failure.job_store import has_store, job_store, key, world
from ..failure.message import ranks_named
from ..placing.file import read
from .refuse import refuse

OF_THE_RANK = frozenset({"rank", "local_rank"})
"""What is a rank's own by definition."""

_PATHS = frozenset(
    {
        *("load", "save", "pretrained_checkpoint", "tokenizer_model", "tokenizer_metadata"),
        *("data_path", "grove_placement"),
    }
)
_PATH_ENDINGS = ("_path", "_dir", "_file", "_folder")

Described = dict[str, str]


def described(args: Namespace) -> Described:
    """Every flag by its name on the command line, and the versions, as texts that compare."""
    flags = {
        # Objects without a text of their own hold an address.
        flag_of(name): re.sub(r" at 0x[0-9a-f]+", "", str(value))
        for name, value in sorted(vars(args).items())
        if name not in OF_THE_RANK
    }
    return (
        flags
        | _files(args)
        | {
            "version of Python": platform.python_version(),
            "version of torch": str(installed_version("torch")),
            "version of megatron-core": str(megatron_version()),
            "version of grove-megatron": __version__,
        }
    )


def _files(args: Namespace) -> Described:
    """What files say that have to say the same on every node, wherever they are."""
    path = getattr(args, "grove_placement", None)
    if path is None:
        return {}
    try:
        said = str(read(path).digest)
    except ValueError:
        # Said by every rank that cannot read it.
        said = "unreadable"
    return {"contents of --grove-placement": said}


def refuse_differences(args: Namespace) -> None:
    """Refuse to start on all ranks if their flags or versions differ; every rank must call."""
    problems, warnings = compare_ranks(args)
    if warnings and world()[0] == 0:
        print("".join(f"grove_megatron: {line}\n" for line in warnings), end="", file=sys.stderr)
    if problems:
        refuse(problems)


def compare_ranks(args: Namespace) -> tuple[list[Problem], list[str]]:
    """Compare the flags of all ranks; every rank must call with its own.

    Rank 0's travel once, everyone else answers with what it has otherwise.

    Returns:
        Problems, and warnings, one line each, the same on every rank.

    Raises:
        torch.distributed.DistError: a rank did not come within
            ``--distributed-timeout-minutes``.
    """
    if args.fake_process_group or not has_store():
        return [], []
    rank, world_size = world()
    timeout = timedelta(minutes=args.distributed_timeout_minutes)
    store = job_store(timeout)

    number = next(_comparisons)

    def write(name: str, value: object) -> None:
        store.set(key(f"flags/{number}/{name}"), json.dumps(value))

    def read(name: str) -> Any:
        name = key(f"flags/{number}/{name}")
        store.wait([name], timeout)
        return json.loads(store.get(name))

    ours = described(args)
    if rank == 0:
        write("first", ours)
        theirs = {r: read(str(r)) for r in range(1, world_size)}
        problems, warnings = differences(ours, theirs)
        write("compared", ([one.packed() for one in problems], warnings))
        # The store may live in this process; it has to outlive the questions of the others.
        for other in range(1, world_size):
            read(f"{other}/read")
        return problems, warnings
    write(str(rank), otherwise(read("first"), ours))
    packed, warnings = read("compared")
    write(f"{rank}/read", True)
    return [Problem.unpacked(one) for one in packed], warnings


_comparisons = itertools.count()
"""A process may start several jobs one after the other, with the same ranks and the same store."""


def otherwise(first: Described, ours: Described) -> Described:
    """What ``ours`` has otherwise than rank 0, ``absent`` where it has nothing."""
    names = [*first, *(name for name in ours if name not in first)]
    return {n: ours.get(n, "absent") for n in names if ours.get(n) != first.get(n)}


def differences(
    first: Described, others: Mapping[int, Described]
) -> tuple[list[Problem], list[str]]:
    """Problems and warnings for what ranks have otherwise than rank 0.

    Paths may differ, as nodes may mount their file systems in different places; not that one is
    given on some ranks alone.

    Args:
        first: rank 0's.
        others: what every other rank has otherwise, see :func:`otherwise`.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    names = dict.fromkeys(name for other in others.values() for name in other)
    for name in names:
        ranks: dict[str, list[int]] = {first.get(name, "absent"): [0]}
        for rank, other in others.items():
            ranks.setdefault(other.get(name, first.get(name, "absent")), []).append(rank)
        values = "; ".join(f"{value} on {ranks_named(of)}" for value, of in ranks.items())
        if _is_path(name) and not {"None", "absent"} & set(ranks):
            warnings.append(f"{name} ({values}) differs between ranks")
        else:
            fix = "give every node the same flags"
            if name.startswith("version"):
                fix = "install one"
            elif name.startswith("contents"):
                fix = "give every node the same file"
            problems.append(Problem(name, values, f"differs between ranks; {fix}"))
    return problems, warnings


def _is_path(name: str) -> bool:
    name = name.removeprefix("--").replace("-", "_")
    return name in _PATHS or name.endswith(_PATH_ENDINGS)
