"""``torchrun -m grove_megatron.machines <the job>``: is everything there, and fast enough?

The job is ``-m MODULE FLAGS``, ``SCRIPT.py FLAGS``, or the flags of ``grove_megatron.pretrain``.
Started on every rank as the job will be, before it; exits 0, or 2 on every rank with everything
that is wrong.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks.problem import Problem

if TYPE_CHECKING:
    from .job import Job
    from .records import Survey


def main() -> None:
    """Look at the machines with the flags in ``sys.argv``."""
    from ..checks.problem import Refusal
    from ..failure.watch import interruptible, watched
    from ..training.doctor_command import job_command
    from ..training.refuse import refuse
    from ..training.start import alone, quiet, started

    options, words = own_options(sys.argv[1:])
    try:
        command = job_command(words)
    except Refusal as refusal:
        refuse(refusal.problems)
    alone()
    with interruptible(), started(say=False), watched():
        from ..failure.job_store import from_rank_0, to_rank_0
        from ..runtime import cpu_is_active
        from .cards import cards
        from .job import this_job
        from .survey import survey

        if problems := _option_problems(options):
            refuse(problems)
        device = "cpu" if cpu_is_active() else "cuda"
        # Before this rank or another has a context on a GPU: who is there now is somebody else.
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        there = cards() if device == "cuda" and is_first else ()
        with quiet():
            job = this_job(command)
            _set_device(device)
            found = survey(job, device, there, options.seconds, options.bytes)

        def judged() -> list[list[object]]:
            assert found is not None
            problems = _report(job, found, options)
            return [one.packed() for one in problems]

        packed = from_rank_0(judged, job.timeout)
        if packed:
            refuse([Problem.unpacked(one) for one in packed])
        # The store may live in the process of rank 0, which is not to end before all have heard.
        to_rank_0(None, job.timeout)


def own_options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Those of this command, and the job's."""
    parser = argparse.ArgumentParser(
        prog="torchrun -m grove_megatron.machines",
        description="Look at all machines of a job before it starts; other words are the job's.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", help="keep everything that was found in FILE")
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="for all measuring, about; half of it is the longest to wait for a file (default 20)",
    )
    parser.add_argument(
        "--bytes",
        type=int,
        help="of a message between two ranks of a pair (default 4 MiB, 64 MiB between GPUs); the "
        "all-to-all has the job's sizes",
    )
    parser.add_argument("--strict", action="store_true", help="refuse warnings too")
    return parser.parse_known_args(words)


def _option_problems(options: argparse.Namespace) -> list[Problem]:
    from ..training.machine import why_not_writable

    problems = []
    if not 0 < options.seconds < float("inf"):
        fix = "use the seconds that measuring may take"
        problems.append(Problem("--seconds", options.seconds, f"is not above 0; {fix}"))
    if options.bytes is not None and options.bytes < 8:
        problems.append(Problem("--bytes", options.bytes, "is below 8; use a message of bytes"))
    if options.json is not None and os.environ.get("RANK") == "0":
        folder = Path(options.json).absolute().parent
        why = why_not_writable(folder) if folder.is_dir() else "its folder is not there"
        if why:
            text = f"cannot be written: {why}; use another file"
            problems.append(Problem("--json", options.json, text))
    return problems


def _set_device(device: str) -> None:
    """As Megatron gives GPUs to ranks."""
    if device == "cuda":
        import torch

        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _report(job: "Job", found: "Survey", options: argparse.Namespace) -> Sequence[Problem]:
    """Print and keep what was found, on rank 0; what is refused."""
    from .borders import borders, placement_notes, rows_abroad
    from .problems import findings
    from .survey import groups_of_job
    from .table import show

    judged, crossing, rows, notes = findings(found), [], None, [*job.notes]
    notes += judged.notes
    if job.sizes is not None:
        groups = groups_of_job(job)
        node_of = [rank.node for rank in found.ranks]
        crossing = borders(groups, node_of)
        notes += placement_notes(job.sizes.layout, groups, node_of)
        if any(one.kind == "EP" and one.crossing for one in crossing):
            widest = max(groups["EP"], key=lambda ranks: len({node_of[r] for r in ranks}))
            group = [node_of[rank] for rank in widest]
            rows = rows_abroad(job.sizes.model, job.sizes.layout, group)
    problems = [*job.problems, *judged.problems]
    warnings = [] if options.strict else judged.warnings
    problems += judged.warnings if options.strict else []
    said = [*(f"warning: {one}" for one in warnings), *(f"note: {one}" for one in notes)]
    show(found, crossing, rows, said)
    if options.json is not None:
        record = {
            "problems": [*map(str, problems)],
            "warnings": [*map(str, warnings)],
            "notes": notes,
            "borders": [asdict(one) for one in crossing],
            "rows_abroad": rows and asdict(rows),
            **asdict(found),
        }
        _keep(Path(options.json), record)
    if not problems:
        print("grove_megatron: no problem found with the machines", flush=True)
    return problems


def _keep(path: Path, record: dict[str, object]) -> None:
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    whole.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    whole.replace(path)


if __name__ == "__main__":
    main()
