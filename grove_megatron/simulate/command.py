"""The ``grove simulate`` command."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..checks.problem import Refusal
from ..printable import counted, numbered

Size = int | None


def simulate(
    routing: Annotated[
        list[str],
        typer.Option(
            help="uniform, zipf:EXPONENT, correlated:SHARE[:GROUPS], planted:SHARE[:GROUPS], "
            "limited:GROUPS:TOPK, w0 to w7, workloads (all of them), record:DIR, trace:FILE; "
            "repeatable."
        ),
    ] = ["uniform"],  # noqa: B006
    experts: Annotated[Size, typer.Option(help="Routed experts of a layer.")] = None,
    topk: Annotated[Size, typer.Option(help="Experts per token.")] = None,
    groups: Annotated[Size, typer.Option(help="Groups, with an adjugate each; 0: none.")] = None,
    hidden_size: Annotated[Size, typer.Option(help="Values of a row.")] = None,
    dtype: Annotated[str, typer.Option(help="Of a row: bf16 or fp32.")] = "bf16",
    grove_preset: Annotated[
        str | None, typer.Option(help="A released model, for sizes that are not given.")
    ] = None,
    ranks: Annotated[
        Size, typer.Option(help="Expert-parallel ranks; by default a record's own, or 8.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="Of those ranks on a node.")] = 8,
    tokens: Annotated[
        Size, typer.Option(help="Of a rank in a micro batch; by default a trace's own, or 4096.")
    ] = None,
    placement: Annotated[
        Path | None,
        typer.Option(help="A file of grove place: also count with its groups where it says."),
    ] = None,
    layers: Annotated[
        list[str],
        typer.Option(help="Of a record, trace or placement; repeatable; by default all."),
    ] = [],  # noqa: B006
    steps: Annotated[
        Size,
        typer.Option(help="Micro batches of a layer; by default 1, or as many as w6 and w7 take."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Count what a routing sends at any size: rows, bytes, and who gets most.

    The dispatcher's own plans, made in this process for every rank of an
    expert-parallel group, up to thousands: a row to every rank, two hops
    over nodes, and Megatron's all-to-all and all-gather beside them.
    Exits 2 if sizes or routing are none.
    """
    # Torch takes seconds.
    from .inputs import Options, prepare
    from .run import simulate as count
    from .table import show

    options = Options(
        routing=routing,
        experts=experts,
        topk=topk,
        groups=groups,
        hidden_size=hidden_size,
        dtype=dtype,
        grove_preset=grove_preset,
        ranks=ranks,
        gpus_per_node=gpus_per_node,
        tokens=tokens,
        placement=placement,
        layers=layers,
        steps=steps,
        seed=seed,
    )
    try:
        asked, assignment = prepare(options)
    except Refusal as refusal:
        problems = refusal.problems
        said = f"grove_megatron: {counted(problems)}, nothing was simulated:\n{numbered(problems)}"
        print(said, file=sys.stderr)
        raise typer.Exit(2) from None
    before = [count(one) for one in asked]
    after = [] if assignment is None else [count(one, assignment) for one in asked]
    if not as_json:
        show(before, after)
        return
    found = [
        {"routing": one.asked.text, "sizes": asdict(one.asked.sizes), "steps": one.asked.steps}
        | one.as_json()
        for one in before
    ]
    for one, placed in zip(found, after, strict=False):
        one["placed"] = placed.as_json()
    print(json.dumps({"seed": seed, "routings": found}))
