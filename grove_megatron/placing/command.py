"""``grove place``: which groups should live together, from what a job recorded."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..printable import counted, numbered


def place(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORD...",
            help="Folder of --save or --grove-metrics-dir of a job with "
            "--grove-metrics-coactivation, several of one model, or a router trace "
            "(.safetensors).",
        ),
    ],
    expert_parallel: Annotated[
        int, typer.Option(help="Expert-parallel ranks of the job that will use it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="File to write, for --grove-placement; by default none is."),
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            help="Ranks of a node, for --grove-hierarchical-dispatch: units that are met together "
            "go to one node first, then to one rank."
        ),
    ] = None,
    node_cost: Annotated[
        float | None,
        typer.Option(
            help="What a row between nodes costs in rows inside one; by default --machine's."
        ),
    ] = None,
    machine: Annotated[
        str,
        typer.Option(help="Of grove plan, whose links' rates say what a row between nodes costs."),
    ] = "h100",
    layers: Annotated[
        str | None,
        typer.Option(help="As 1-4,7,'mtp 1'; the others keep their order. By default all."),
    ] = None,
    since: Annotated[
        int, typer.Option(help="Leave out intervals that begin before this iteration's end.")
    ] = 0,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Of a record that holds several runs.")
    ] = None,
    current: Annotated[
        Path | None,
        typer.Option(help="The placement that is in use; by default the order of the experts."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option(help="Of the model, where a trace does not say; else checked.")
    ] = None,
    grove_num_groups: Annotated[
        int | None, typer.Option(help="The same; 0: none, so single experts are placed.")
    ] = None,
    over_greedy: Annotated[
        float,
        typer.Option(help="The largest load of a rank, at most so many times a greedy balancer's."),
    ] = 1.02,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Choose which groups (experts, where there are none) live on one rank.

    From recorded co-activation and load: whole groups with their
    adjugates are divided so that a token meets few ranks, and no rank
    has more load than a balancer of load alone would give it. Half of
    the record chooses, the other half judges; a layer without a saving
    beyond noise keeps its order. Nothing else of a model changes.
    Exits 2 without something to go by.
    """
    from ..checks.problem import Refusal
    from .run import Job, placed
    from .table import as_numbers, show

    job = Job(
        inputs=tuple(inputs),
        ranks=expert_parallel,
        output=output,
        per_node=gpus_per_node,
        node_cost=node_cost,
        machine=machine,
        layers=layers,
        since=since,
        run=run,
        current=current,
        experts=num_experts,
        groups=grove_num_groups,
        over_greedy=over_greedy,
        seed=seed,
    )
    try:
        found = placed(job)
    except Refusal as refused:
        problems = refused.problems
        said = f"grove_megatron: {counted(problems)}, nothing was placed:\n{numbered(problems)}"
        typer.echo(said, err=True)
        raise typer.Exit(2) from None
    show(found, to_errors=as_json)
    if as_json:
        numbers: dict[str, Any] = as_numbers(found)
        typer.echo(json.dumps(numbers))
