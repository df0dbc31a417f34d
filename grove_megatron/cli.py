"""The ``grove`` command. Each subcommand is a few lines here and a module of its own."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .benchmarks.commands import app as bench
from .checkpoint import commands as weights

app = typer.Typer(
    help="Grove MoE for Megatron.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(bench, name="bench")
app.command("import")(weights.import_)
app.command("export")(weights.export)
app.command("upcycle", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    weights.upcycle
)


@app.callback()
def _grove() -> None:
    """Grove MoE for Megatron."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def verify(
    context: typer.Context,
    hf: Annotated[
        Path | None, typer.Option(help="Hugging Face folder: GroveMoE, Qwen3-MoE or Qwen3.")
    ] = None,
    load: Annotated[
        Path | None, typer.Option(help="Instead: a Megatron checkpoint (torch_dist).")
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="safetensors: input_ids, labels, logits, loss, grad.*; without it, transformers "
            "computes them for a Qwen3-MoE or Qwen3 folder."
        ),
    ] = None,
    ckpt_step: Annotated[
        int | None, typer.Option(help="Iteration of --load; by default the latest.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Compare logits, loss and gradients with those of the authors' model.

    Other flags go to Megatron: torchrun --nproc-per-node 2 -m grove_megatron verify ...
    --expert-model-parallel-size 2. Exits 1 past tolerance, 2 if it cannot compare.
    """
    from .training.refuse import refuse
    from .training.start import alone, quiet, started

    alone()
    if (hf is None) == (load is None):
        refuse([f"--hf ({hf}) and --load ({load}): give one of them"])
    if load is not None and golden is None:
        refuse([f"--load ({load}) needs --golden (None); name the reference"])
    with started(), quiet():
        from .checkpoint.verify import verify_hf, verify_megatron
        from .checkpoint.weights import ConversionError

        try:
            if hf is not None:
                report = verify_hf(hf, golden, context.args)
            else:
                assert load is not None
                assert golden is not None
                report = verify_megatron(load, ckpt_step, golden, context.args)
        except ConversionError as error:
            refuse(error.problems)
        except ValueError as error:
            refuse([str(error)])
    if os.environ["RANK"] == "0":
        _print_report(report, as_json)
    raise typer.Exit(0 if report.passed else 1)


def _print_report(report: "Report", as_json: bool) -> None:  # noqa: F821
    from rich.console import Console
    from rich.table import Table

    from .checkpoint import verify as v

    table = Table("compared", "worst error", "tolerance")
    table.add_row("logits (absolute)", f"{report.max_logit_error:.2e}", f"{v.LOGIT_TOLERANCE:.0e}")
    table.add_row("loss (relative)", f"{report.loss_error:.2e}", f"{v.LOSS_TOLERANCE:.0e}")
    grads = f"{report.grads_compared} of {report.grads_in_file} gradients (of largest entry)"
    table.add_row(grads, f"{report.max_grad_error:.2e}", f"{v.GRAD_TOLERANCE:.0e}")
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 88)
    console.print(table)
    console.print("passed" if report.passed else "FAILED")
    if as_json:
        # JSON has no infinity.
        finite = {k: min(v, sys.float_info.max) for k, v in asdict(report).items()}
        print(json.dumps(finite), flush=True)


def main() -> None:
    """Entry point of the console script."""
    app()
