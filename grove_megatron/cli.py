"""The ``grove`` command. Each subcommand is a few lines here and a module of its own."""

from typing import Annotated

import typer

from . import __version__
from .benchmarks.commands import app as bench
from .checkpoint import commands as weights
from .compat import installed_version, megatron_version
from .data.command import data
from .inference.command import generate
from .inference.eval_command import evaluate
from .messages.command import explain
from .placing.command import place
from .planner.pages.command import plan
from .report.command import report
from .simulate.command import simulate
from .training.doctor_command import doctor

app = typer.Typer(
    help="Grove MoE for Megatron.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(bench, name="bench")
app.command("import")(weights.import_)
app.command("export")(weights.export)
# A message begins with a flag.
app.command("explain", context_settings={"ignore_unknown_options": True})(explain)
# What is not theirs goes to Megatron.
_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("upcycle", context_settings=_OPEN)(weights.upcycle)
app.command("verify", context_settings=_OPEN)(weights.verify)
app.command("generate", context_settings=_OPEN)(generate)
app.command("eval", context_settings=_OPEN)(evaluate)
app.command("data")(data)
app.command("doctor", context_settings=_OPEN)(doctor)
app.command("plan", context_settings=_OPEN)(plan)
app.command("place")(place)
app.command("report")(report)
app.command("simulate")(simulate)


def _print_versions(asked: bool) -> None:
    if not asked:
        return
    versions = {
        "grove-megatron": __version__,
        # A clone on PYTHONPATH goes before the wheel.
        "megatron-core": megatron_version(),
        "torch": installed_version("torch"),
    }
    print("\n".join(f"{name} {version or 'not installed'}" for name, version in versions.items()))
    raise typer.Exit


@app.callback()
def _grove(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of this package, Megatron and torch.",
        ),
    ] = False,
) -> None:
    """Grove MoE for Megatron."""


def main() -> None:
    """Entry point of the console script."""
    app()
