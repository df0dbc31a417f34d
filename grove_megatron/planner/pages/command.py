"""The ``grove plan`` command."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ...checks.guarded import problems_of
from ...checks.problem import Problem, Refusal
from ...printable import counted, numbered


def plan(
    context: typer.Context,
    machine: Annotated[
        str, typer.Option(help="Kind of GPU and node: h100, h200, b200, gb200, mi300x and others.")
    ] = "",
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A cluster in TOML, in place of --machine."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes; by default those of torchrun or the file, or 1.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of a node; by default the machine's.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="GiB of a GPU; by default the machine's."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(help="Of a GPU and hour, in any currency: says what a trillion tokens cost."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Results of grove bench on this machine, to go by."),
    ] = None,
    measured_step: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="What a step of this command line really takes on these GPUs, to go by.",
        ),
    ] = None,
    imbalance: Annotated[
        float,
        typer.Option(
            help="Pairs of a token and an expert of the rank that gets most, over the mean of all: "
            "rank_pairs_imbalance of grove report."
        ),
    ] = 1.0,
    hf: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A Hugging Face folder or config.json: the model."),
    ] = None,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Search nothing: the command line as it stands.")
    ] = False,
    top: Annotated[int, typer.Option(help="Layouts to list.")] = 10,
    every: Annotated[
        bool,
        typer.Option("--all", help="List every layout, those that are refused with the reason."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures, HTML.")
    ] = None,
) -> None:
    """Compare all layouts of a model on a cluster: memory, speed, cost; needs no torch, no GPU.

    Takes a model (--grove-preset NAME, --hf PATH) or the flags of a job, or all of its command.
    Sizes on the command line stay as they are, those left out are searched: grove plan --machine
    h100 --nodes 16 --grove-preset grovemoe-33b. Exits 0 if a layout fits, 2 if none does.
    """
    from ...report.refused import page_problems
    from ...training.doctor_command import JobCommand, job_command
    from ..choice.layouts import plan_layouts
    from ..choice.remedies import remedies
    from ..flags import torchrun
    from ..sizes import not_planned
    from ..speed.calibrate import calibrated, taken
    from ..speed.calibrate import measured_step as go_by_step
    from .front import asked
    from .shown import as_numbers, show

    problems = [] if page is None else page_problems("--page", page, "the page of a plan")
    if top < 1:
        problems.append(Problem("--top", top, "is below 1; use 1 or more"))
    if not 1 <= imbalance < float("inf"):
        fix = "use 1 for balanced routing"
        problems.append(Problem("--imbalance", f"{imbalance:g}", f"is below 1; {fix}"))
    # All that is wrong is said at once, of options, of the cluster's file and of flags.
    launched = _collected(problems, job_command, context.args, torchrun) or JobCommand([])
    kind = _collected(problems, _cluster, machine, cluster)
    found = _collected(
        problems, _sized, kind or _any(), nodes, gpus_per_node, memory, price, launched
    )
    of_words = _collected(problems, partial(asked, as_given=as_given), launched.flags, hf)
    if problems:
        _refuse(problems, as_json)
    assert found is not None
    assert of_words is not None
    of_words = replace(of_words, job=replace(of_words.job, imbalance=imbalance))
    notes = not_planned(of_words.job.args)
    try:
        _refuse_sizes(of_words.job, found, whole=as_given or measured_step is not None)
        if calibrate is not None:
            before, found = found, calibrated(found, calibrate, _dtype(of_words.job.args))
            notes += taken(before, found)
        if measured_step is not None:
            found = go_by_step(found, of_words.job.sizes(found.gpus), measured_step)
        plans = plan_layouts(of_words.job, found, every=every)
    except ValueError as error:
        _refuse(problems_in(error), as_json)
    changes = []
    if not plans.ranked and plans.too_large:
        changes = remedies(of_words.job, found)
    stream = sys.stderr if as_json else sys.stdout
    if not (as_json and every):
        show(of_words, found, plans, changes, top=None if every else top, stream=stream)
    for note in notes:
        print(f"note: {note}", file=stream)
    if page is not None and (plans.ranked or plans.too_large):
        _write_page(page, of_words, found, plans, as_json)
    if as_json:
        numbers = as_numbers(of_words, found, plans, changes, None if every else top)
        print(json.dumps(numbers | {"notes": notes}))
    raise typer.Exit(0 if plans.ranked else 2)


def problems_in(error: ValueError) -> list[Problem]:
    """What an exception says is wrong."""
    return error.problems if isinstance(error, Refusal) else [Problem.of_text(str(error))]


def _collected[T](problems: list[Problem], make: Callable[..., T], *given: Any) -> T | None:
    """What is made, or None beside more problems."""
    try:
        return make(*given)
    except ValueError as error:
        problems += problems_in(error)
        return None


def _refuse_sizes(job: Any, cluster: Any, *, whole: bool) -> None:
    """Sizes that no search can mend; of a command line as it stands, all rules.

    Raises:
        Refusal: all of them.
    """
    from ..rules.basic_rules import basic_problems
    from ..rules.validity import problems
    from ..sizes import refuse_unknown

    if whole:
        found = problems(job.args, cluster.gpus, cluster.per_node)
    else:
        found = problems_of(basic_problems, job.args)
    _collected(found, refuse_unknown, job.args)
    if found:
        raise Refusal(found)


def _dtype(args: Any) -> str:
    return next((name for name in ("bf16", "fp16") if getattr(args, name)), "fp32")


def _any() -> Any:
    """A cluster to ask the options beside one that is refused."""
    return _cluster("h100", None)


def _cluster(machine: str, path: Path | None) -> Any:
    from ..speed.cluster import Cluster
    from ..speed.machines import machine as named
    from ..speed.machines import read_cluster

    if path is not None and machine:
        text = "and --cluster both say what the GPUs are; give one of them"
        raise Refusal([Problem("--machine", machine, text)])
    if path is not None:
        return read_cluster(path)
    kind = named(machine or "h100")
    return Cluster(machine=kind, nodes=1, per_node=kind.per_node, memory=kind.memory)


def _sized(
    cluster: Any,
    nodes: int | None,
    per_node: int | None,
    memory: float | None,
    price: float | None,
    launched: Any,
) -> Any:
    """With what the options say of it, or what the job's command does."""
    from ..speed.cluster import GIB
    from ..speed.machines import checked

    per_node = launched.per_node if per_node is None else per_node
    if nodes is None and launched.processes and launched.per_node:
        nodes = launched.processes // launched.per_node
    changed = {
        "nodes": nodes,
        "per_node": per_node,
        "memory": None if memory is None else memory * GIB,
        "price": price,
    }
    return checked(replace(cluster, **{k: v for k, v in changed.items() if v is not None}))


def _write_page(path: Path, asked: Any, cluster: Any, plans: Any, as_json: bool) -> None:
    from .shown import comparison

    try:
        from .page import write_page

        write_page(comparison(asked, cluster, plans), path)
    except (OSError, ValueError) as error:
        _refuse([Problem("--page", path, f"cannot be written: {error}; name a file")], as_json)


def _refuse(problems: list[Problem], as_json: bool) -> NoReturn:
    said = f"grove_megatron: {counted(problems)}, nothing was planned:\n{numbered(problems)}"
    print(said, file=sys.stderr)
    if as_json:
        print(json.dumps({"problems": [*map(str, problems)], "layouts": []}))
    raise typer.Exit(2)
