"""The options of ``grove bench``. Nothing heavy is imported before a benchmark starts."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from .shape import Settings, Shape, shape_of

app = typer.Typer(help="Measure the layer beside Megatron's own.", no_args_is_help=True)

Size = int | None
Preset = Annotated[str, typer.Option(help="Where sizes come from that are not given.")]
Tokens = Annotated[Size, typer.Option(help="Tokens on every rank.")]
Hidden = Annotated[Size, typer.Option(help="Width of a token.")]
Experts = Annotated[Size, typer.Option(help="Routed experts.")]
Groups = Annotated[Size, typer.Option(help="Groups, with an adjugate each.")]
GroupSize = Annotated[Size, typer.Option(help="Experts in a group, in place of --groups.")]
TopK = Annotated[Size, typer.Option(help="Experts per token.")]
ExpertWidth = Annotated[Size, typer.Option(help="FFN width of an expert.")]
AdjugateWidth = Annotated[Size, typer.Option(help="FFN width of an adjugate.")]
Layers = Annotated[Size, typer.Option(help="Layers of the model.")]
Dtype = Annotated[str | None, typer.Option(help="fp32 or bf16.")]
Ranks = Annotated[
    Size,
    typer.Option(help="Expert-parallel ranks; started here, unless torchrun has started them."),
]
RanksPerNode = Annotated[
    Size,
    typer.Option(help="Also time hierarchical dispatch, as if every so many ranks were a node."),
]
Threads = Annotated[int, typer.Option(help="CPU threads of every rank.")]
Rounds = Annotated[int, typer.Option(help="Measured repetitions of every variant.")]
Warmup = Annotated[int, typer.Option(help="Repetitions before them.")]
Seed = Annotated[int, typer.Option(help="Of weights, tokens and routing.")]
Kernel = Annotated[
    list[str] | None,
    typer.Option(
        help="Implementation of the experts: sequential, grouped, triton, te; repeatable."
    ),
]
Variant = Annotated[
    list[str] | None, typer.Option(help="plain, naive, grove-dispatch, grove; repeatable.")
]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="Also time grove with torch's deterministic algorithms."),
]
Csv = Annotated[Path | None, typer.Option(help="Append results to this file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")]


@app.command()
def dispatch(
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    experts: Experts = None,
    groups: Groups = None,
    group_size: GroupSize = None,
    topk: TopK = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    ranks_per_node: RanksPerNode = None,
    threads: Threads = 1,
    rounds: Rounds = 20,
    warmup: Warmup = 3,
    seed: Seed = 0,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Dispatch and combine beside Megatron's all-to-all: time, rows, bytes. 2 ranks by default."""
    _run("dispatch", locals(), default_ranks=2)


@app.command()
def layer(
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    experts: Experts = None,
    groups: Groups = None,
    group_size: GroupSize = None,
    topk: TopK = None,
    expert_width: ExpertWidth = None,
    adjugate_width: AdjugateWidth = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    threads: Threads = 1,
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    seed: Seed = 0,
    kernel: Kernel = None,
    variant: Variant = None,
    deterministic: Deterministic = False,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """A whole MoE layer beside plain and naive: time, memory, operators. 1 rank by default."""
    _run("layer", locals(), default_ranks=1)


@app.command()
def kernels(
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    experts: Experts = None,
    groups: Groups = None,
    group_size: GroupSize = None,
    topk: TopK = None,
    expert_width: ExpertWidth = None,
    adjugate_width: AdjugateWidth = None,
    dtype: Dtype = None,
    threads: Threads = 1,
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    seed: Seed = 0,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Ways to compute experts and adjugates on the same rows, and each kernel alone."""
    _run("kernels", locals(), default_ranks=1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def step(
    context: typer.Context,
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    experts: Experts = None,
    groups: Groups = None,
    group_size: GroupSize = None,
    topk: TopK = None,
    expert_width: ExpertWidth = None,
    adjugate_width: AdjugateWidth = None,
    layers: Layers = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    threads: Threads = 1,
    rounds: Rounds = 12,
    warmup: Warmup = 2,
    seed: Seed = 0,
    kernel: Kernel = None,
    variant: Variant = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """A training step of a model beside plain and naive. 4 ranks by default.

    Other flags go to Megatron.
    """
    _run("step", locals() | {"megatron_flags": tuple(context.args)}, default_ranks=4)


@app.command()
def scaling(
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    experts: Experts = None,
    groups: Groups = None,
    group_size: GroupSize = None,
    topk: TopK = None,
    expert_width: ExpertWidth = None,
    adjugate_width: AdjugateWidth = None,
    dtype: Dtype = None,
    threads: Threads = 1,
    rounds: Rounds = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    kernel: Kernel = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """How time grows with tokens, experts and ranks; the sizes given are the smallest."""
    _run("scaling", locals(), default_ranks=1)


@app.command()
def local(
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    expert_width: ExpertWidth = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    threads: Threads = 1,
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    seed: Seed = 0,
    kernel: Kernel = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Experts without an FFN (MoE++) beside the same layer without them. 1 rank by default."""
    _run("local", locals(), default_ranks=1)


@app.command()
def routers(
    preset: Preset = "small",
    tokens: Tokens = None,
    hidden: Hidden = None,
    expert_width: ExpertWidth = None,
    experts: Experts = None,
    topk: TopK = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    threads: Threads = 1,
    rounds: Rounds = 10,
    warmup: Warmup = 2,
    seed: Seed = 0,
    kernel: Kernel = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """A layer with every router beside plain top-k. 1 rank by default."""
    # No layer here has groups, so none of them is too few for the ranks.
    _run("routers", locals() | {"groups": experts}, default_ranks=1)


@app.command()
def convert(
    preset: Preset = "33b",
    hidden: Hidden = None,
    experts: Experts = None,
    groups: Groups = None,
    group_size: GroupSize = None,
    expert_width: ExpertWidth = None,
    adjugate_width: AdjugateWidth = None,
    layers: Layers = None,
    dtype: Dtype = None,
    threads: Threads = 2,
    rounds: Rounds = 3,
    seed: Seed = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put four times the size of the weights.")
    ] = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Import and export of weights beside a copy of the same bytes: time and peak memory."""
    _run("convert", locals() | {"warmup": 0}, default_ranks=1)


@app.command()
def data(
    megatron_lm: Annotated[Path, typer.Option(help="A clone of Megatron-LM.")],
    megabytes: Annotated[int, typer.Option(min=1, help="Of text.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Processes of each.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each runs.")] = 3,
    as_json: Json = False,
) -> None:
    """grove data beside Megatron-LM's preprocess_data.py: the same files, and how fast."""
    import json

    from .data import measure

    try:
        found = measure(megatron_lm, megabytes, workers, rounds)
    except ValueError as error:
        print(f"grove_megatron: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    if as_json:
        print(json.dumps(found))


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="What run.sh of the kit has written.")],
    into: Annotated[
        Path | None, typer.Option(help="The folder of results, that of this package by default.")
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Rows of a CPU too, where the kit runs tiny shapes.")
    ] = False,
) -> None:
    """Results of another machine, measured by the kit, into the files of results."""
    from .kit.import_rows import RESULTS, import_rows

    try:
        done = import_rows(folder, into or RESULTS, cpu=cpu)
    except ValueError as error:
        print(f"grove_megatron: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    print("\n".join(done))


def settings_of(benchmark: str, options: Mapping[str, Any], default_ranks: int) -> Settings:
    """Options as typer gives them, None where they were left out."""
    from .ranks import world_size

    given = dict(options)
    sizes = {f.name for f in fields(Shape)} | {"group_size"}
    shape = shape_of(benchmark, given["preset"], {n: given.get(n) for n in sizes})
    ranks = given.pop("ranks", None)
    default_kernels = ("sequential", "grouped") if benchmark == "layer" else ("grouped",)
    lists: dict[str, Any] = {"kernels": tuple(given.pop("kernel", None) or default_kernels)}
    if variants := given.pop("variant", None):
        lists["variants"] = tuple(variants)
    names = {f.name for f in fields(Settings)} - {"shape", *lists}
    return Settings(
        benchmark=benchmark,
        shape=shape,
        ranks=(world_size() or default_ranks) if ranks is None else ranks,
        **{name: value for name, value in given.items() if name in names},
        **lists,
    )


def _run(benchmark: str, options: Mapping[str, Any], default_ranks: int) -> None:
    from .run import run

    code = run(settings_of(benchmark, options, default_ranks), sys.argv[1:])
    raise typer.Exit(code)
