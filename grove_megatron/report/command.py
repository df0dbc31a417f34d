"""``grove report``: draw the record of a job."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR",
            help="Folder of --save or --grove-metrics-dir, while or after it runs.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="By default report.html beside the record."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Draw this run and what it went on from; by default the one that began last. "
            "The names of runs that are not drawn are printed.",
        ),
    ] = None,
) -> None:
    """Draw what the experts of a job do: one HTML page, and PNGs beside it.

    The page needs nothing else: loss; load of every expert and adjugate
    over time; balance and dead experts; groups per token; ranks; expert
    bias; rows sent and routed pairs, two numbers: a token goes to a rank
    once, however many of its experts are there. Exits 2 without a record.
    """
    try:
        files, found = _draw(run_dir, out, run)
    except (ValueError, OSError) as error:
        typer.echo(f"grove_megatron: 1 problem, nothing was drawn:\n  1. {error}", err=True)
        raise typer.Exit(2) from None
    for line in found:
        typer.echo(f"note: {line}")
    typer.echo(f"{files[0]}: the report; {len(files) - 1} figures beside it as PNG")


def _draw(run_dir: Path, out: Path | None, run: str | None) -> tuple[list[Path], list[str]]:
    """The files, and what the record holds beside what was drawn."""
    from .record import find_record, read_record

    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "matplotlib (not installed) draws the report; pip install 'grove-megatron[report]'"
        )
    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out ({out}) does not end in (.html); name the page")
    file = find_record(run_dir)
    record = read_record(file, run)
    from .figures import draw_all
    from .page import write_report
    from .series import of_one_model

    intervals = of_one_model(record)
    found = list(record.found)
    if other := len(record.intervals) - len(intervals):
        found.append(f"{other} intervals of a model of other sizes are left out")
    out = out or file.with_name("report.html")
    return write_report(intervals, draw_all(intervals), out, found), found
