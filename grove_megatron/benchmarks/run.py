"""One benchmark, from its settings to its results."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import ranks
from .refusals import kernel_problems, problems
from .shape import Settings

if TYPE_CHECKING:
    from .report import Findings


def run(settings: Settings, arguments: Sequence[str]) -> int:
    """Refuse, start ranks, or measure; returns an exit code.

    Args:
        settings: what to run.
        arguments: the command line they came from, for ranks that have to be started.
    """
    from ..training.refuse import refuse
    from ..training.start import alone, quiet, started

    if found := _problems(settings):
        refuse(found)
    if ranks.world_size() is None and settings.ranks > 1:
        return ranks.start(settings.ranks, settings.threads, arguments).returncode
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    alone()
    with started():
        import torch

        from .agreement import DisagreementError

        torch.set_num_threads(settings.threads)
        measure = importlib.import_module(f"{__package__}.{settings.benchmark}").measure
        first = os.environ["RANK"] == "0"
        with quiet():
            try:
                findings = measure(settings)
            except DisagreementError as error:
                # Every rank finds the same.
                if first:
                    print(f"grove_megatron: {error}", file=sys.stderr)
                return 1
        if first:
            _report(settings, findings)
    return 0


def _problems(settings: Settings) -> list[str]:
    found = problems(settings)
    size = ranks.world_size()
    if size is not None and settings.ranks != size:
        found.append(
            f"--ranks ({settings.ranks}) is not the number of ranks that torchrun started "
            f"({size}); leave it out"
        )
    # Only these ask the machine, and asking imports torch.
    if {"triton", "te"} & set(settings.kernels):
        found += kernel_problems(settings, ranks.cuda_is_used())
    return found


def _report(settings: Settings, findings: "Findings") -> None:
    from .environment import environment
    from .records import append_rows, rows_of
    from .report import show

    rows = rows_of(settings, environment(ranks.cuda_is_used()), findings.values)
    if settings.csv is not None:
        append_rows(settings.csv, rows)
    show(findings, rows, settings.as_json)
