"""``grove report``: draw the record of a job, or of several beside one another."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..printable import counted, numbered


def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            help="Folder of --save or --grove-metrics-dir, while or after it runs; of several "
            "jobs, to compare them.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="By default report.html beside the record; of several jobs comparison.html beside "
            "the first one's.",
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
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object as the last line: all figures of every run."),
    ] = False,
) -> None:
    """Draw what the experts of jobs do: one HTML page, and PNGs beside it.

    The page needs nothing else: loss; load of every expert and adjugate
    over time; balance and dead experts; groups per token; ranks; expert
    bias; tokens per second; rows sent and routed pairs, two numbers: a
    token goes to a rank once, however many of its experts are there.
    Of several jobs: a table, also as Markdown beside the page, lines and
    the settings that differ; jobs that differ in the seed are one row.
    Exits 2 without a record.
    """
    try:
        files, found, figures = _draw(run_dirs, out, run)
    except _Refused as refused:
        raise _exit(refused.problems) from None
    except (ValueError, OSError) as error:
        raise _exit([str(error)]) from None
    for line in found:
        typer.echo(f"note: {line}", err=as_json)
    of = f"a comparison of {len(run_dirs)} runs" if len(run_dirs) > 1 else "the report"
    pngs = [file for file in files if file.suffix == ".png"]
    beside = "figure beside it as PNG" if len(pngs) == 1 else "figures beside it as PNG"
    typer.echo(f"{files[0]}: {of}; {len(pngs)} {beside}", err=as_json)
    for file in files:
        if file.suffix == ".md":
            typer.echo(f"{file}: its table", err=as_json)
    if as_json:
        typer.echo(json.dumps(figures | {"files": [str(file) for file in files]}))


def _exit(problems: list[str]) -> typer.Exit:
    """Say all of them."""
    said = f"grove_megatron: {counted(problems)}, nothing was drawn:\n{numbered(problems)}"
    typer.echo(said, err=True)
    return typer.Exit(2)


class _Refused(Exception):
    """Problems, one line each; nothing was written."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


def _draw(
    places: list[Path], out: Path | None, run: str | None
) -> tuple[list[Path], list[str], dict[str, Any]]:
    """The files, what the records hold beside what was drawn, and all figures."""
    from .reading import read_all
    from .refused import page_problems

    problems = [*map(str, page_problems("--out", out, "the report"))]
    views, more = read_all(places, run)
    if problems + more:
        raise _Refused(problems + more)
    from .compare import write_comparison
    from .compared import compared
    from .compared_json import as_json
    from .figures import draw_all
    from .page import write_report
    from .record import find_record

    of = compared(views)
    beside = find_record(places[0]).parent
    if len(views) == 1:
        files = write_report(views[0], draw_all(views[0]), out or beside / "report.html")
        return files, list(views[0].found), as_json(of)
    files = write_comparison(of, out or beside / "comparison.html")
    return files, [f"{view.name}: {line}" for view in views for line in view.found], as_json(of)
