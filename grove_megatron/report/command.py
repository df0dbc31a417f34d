"""``grove report``: draw the record of a job."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR [OTHER_RUN_DIR]",
            help="Folder of --save or --grove-metrics-dir, while or after it runs; of two jobs, to "
            "see them side by side.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="By default report.html beside the record; of two jobs comparison.html beside the "
            "first one's.",
        ),
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
    """Draw what the experts of a job do, or of two: one HTML page, and PNGs beside it.

    The page needs nothing else: loss; load of every expert and adjugate
    over time; balance and dead experts; groups per token; ranks; expert
    bias; tokens per second; rows sent and routed pairs, two numbers: a
    token goes to a rank once, however many of its experts are there.
    Exits 2 without a record.
    """
    try:
        files, found = _draw(run_dirs, out, run)
    except (ValueError, OSError) as error:
        typer.echo(f"grove_megatron: 1 problem, nothing was drawn:\n  1. {error}", err=True)
        raise typer.Exit(2) from None
    for line in found:
        typer.echo(f"note: {line}")
    typer.echo(f"{files[0]}: the report; {len(files) - 1} figures beside it as PNG")


def _draw(places: list[Path], out: Path | None, run: str | None) -> tuple[list[Path], list[str]]:
    """The files, and what the records hold beside what was drawn."""
    from .record import find_record
    from .view import View

    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "matplotlib (not installed) draws the report; pip install 'grove-megatron[report]'"
        )
    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out ({out}) does not end in (.html); name the page")
    if len(places) > 2:
        raise ValueError(f"RUN_DIR ({len(places)} of them) is more than 2; name one job, or two")
    if len(places) == 2 and run is not None:
        raise ValueError(f"--run ({run}) is of one record, RUN_DIR are (2); name one job")
    views = [View.of(place, run) for place in places]
    beside = find_record(places[0]).parent
    if len(views) == 2:
        from .compare import write_comparison

        files = write_comparison(views, out or beside / "comparison.html")
    else:
        from .figures import draw_all
        from .page import write_report

        files = write_report(views[0], draw_all(views[0]), out or beside / "report.html")
    return files, [line for view in views for line in view.found]
