"""``grove verify --layer``: run it, say how it went, exit."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from .golden import Golden
    from .report import Report


def run(folder: Path, variant: str, dtype: str, extra_flags: list[str], as_json: bool) -> None:
    """Exits 0 if the layer computes what the folder says, 1 if not, 2 if it cannot compare."""
    from ..training.refuse import refuse
    from ..training.start import quiet, started

    with started(), quiet():
        from ..checkpoint.weights import ConversionError
        from .golden import Golden
        from .one_layer import DTYPES
        from .report import verify_layer

        if dtype not in DTYPES:
            refuse([f"--dtype ({dtype}) is not one of ({', '.join(DTYPES)})"])
        try:
            golden = Golden.read(folder, variant)
            report = verify_layer(golden, dtype, extra_flags)
        except ConversionError as error:
            refuse(error.problems)
        except ValueError as error:
            refuse([str(error)])
    if os.environ["RANK"] == "0":
        print_report(golden, report, as_json)
    raise typer.Exit(0 if report.passed else 1)


def result_of(report: "Report") -> dict[str, Any]:
    """What ``--json`` prints: without a loss no error of one, and JSON has no infinity."""
    found = {key: value for key, value in asdict(report).items() if value is not None}
    return {
        key: min(value, sys.float_info.max) if isinstance(value, float) else value
        for key, value in found.items()
    }


def print_report(golden: "Golden", report: "Report", as_json: bool) -> None:
    """A table, what was not compared, and the verdict; beside JSON on stderr."""
    from rich.console import Console
    from rich.table import Table

    from .report import LOSS_TOLERANCE, TOLERANCES

    tolerance = f"{TOLERANCES[report.dtype]:.0e}"
    table = Table("compared", "worst error", "tolerance")
    table.add_row("output (of largest entry)", f"{report.max_output_error:.2e}", tolerance)
    grads = f"{report.grads_compared} of {report.grads_in_file} gradients (of largest entry)"
    table.add_row(grads, f"{report.max_grad_error:.2e}", tolerance)
    if report.max_loss_error is not None:
        losses = f"losses {', '.join(sorted(golden.losses.keys() & golden.system.losses.keys()))}"
        error = f"{report.max_loss_error:.2e}"
        table.add_row(f"{losses} (relative)", error, f"{LOSS_TOLERANCE:.0e}")
    table.add_row("experts of every token", "none" if report.routing_equal else "differ", "none")
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 88)
    console.print(table)
    for name in report.grads_missed:
        console.print(f"{name}: the layer has no such gradient", markup=False)
    console.print("passed" if report.passed else "FAILED")
    if as_json:
        print(json.dumps(result_of(report)), flush=True)
