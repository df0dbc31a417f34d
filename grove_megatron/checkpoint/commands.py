"""The ``grove`` commands of weights: import, export, upcycle, verify."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks.flags import flag_of
from ..printable import counted, numbered, printable

if TYPE_CHECKING:
    from .convert import Options
    from .manifest import Manifest
    from .source import Source
    from .verify import Report

Dtype = Annotated[
    str, typer.Option("--dtype", help="fp32, bf16 or fp16; by default that of the source.")
]
Skip = Annotated[
    list[str],
    typer.Option(help="A tensor to do without: zeros where it is needed. Once for each."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")]
HfConfig = Annotated[
    Path | None,
    typer.Option(help="Folder with config.json and tokenizer, where --load has none beside it."),
]
GroveKeys = Annotated[
    bool,
    typer.Option(
        "--write-grove-keys", help="Export Grove settings that the released modelling code ignores."
    ),
]
NoModeling = Annotated[
    bool,
    typer.Option(
        "--no-modeling",
        help="Leave out the code by which transformers 5 loads a Grove MoE; what the released "
        "code ignores is then refused.",
    ),
]
FAMILIES = "Hugging Face folder: GroveMoE, Qwen3-MoE, Qwen3, Qwen2-MoE, Mixtral, OLMoE, MoE++."
HfModel = Annotated[Path | None, typer.Option(help=FAMILIES)]
Load = Annotated[Path | None, typer.Option(help="Instead: a Megatron checkpoint (torch_dist).")]
Step = Annotated[int | None, typer.Option(help="Iteration of --load; by default the latest.")]


def import_(
    hf: Annotated[Path, typer.Option(help=FAMILIES)],
    save: Annotated[Path, typer.Option(help="Folder to make; Megatron's --load takes it.")],
    dtype: Dtype = "",
    skip: Skip = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Make a Megatron checkpoint of a Hugging Face model, on any machine, for any layout.

    Every tensor is accounted for: missing, unexpected, wrong and non-finite ones are listed, and
    nothing is made. Begun work goes on where it was stopped when the command is repeated.
    """
    with _refusals():
        from .convert import write_megatron
        from .source import hf_source

        options = _options(dtype, skip)
        made_by = {"command": "grove import", "hf": hf.resolve().name}
        source = hf_source(hf)
        _notices(source)
        manifest = write_megatron(source, save, options, made_by)
    _report(manifest, save, as_json)


def export(
    load: Annotated[
        Path, typer.Option(help="Megatron checkpoint (torch_dist): a folder that a job saved in.")
    ],
    hf: Annotated[Path, typer.Option(help="Hugging Face folder to make.")],
    hf_config: HfConfig = None,
    ckpt_step: Step = None,
    dtype: Dtype = "",
    skip: Skip = [],  # noqa: B006
    max_shard_size: Annotated[float, typer.Option(help="GiB of the largest file.")] = 5.0,
    fused_experts: Annotated[
        bool,
        typer.Option("--fused-experts", help="Two tensors for a layer's experts (transformers 5)."),
    ] = False,
    write_grove_keys: GroveKeys = False,
    no_modeling: NoModeling = False,
    as_json: AsJson = False,
) -> None:
    """Make a Hugging Face folder of a Megatron checkpoint, saved at any layout."""
    with _refusals():
        from .convert import write_hf
        from .source import megatron_source

        if not 0 < max_shard_size < float("inf"):
            raise ValueError(f"--max-shard-size ({max_shard_size}) is not a number above 0")
        shard_bytes = int(max_shard_size * 2**30)
        source = megatron_source(load, ckpt_step, hf_config)
        _notices(source)
        if source.hf_files is None:
            _say(
                f"no --hf-config, and no hf/ in {load}: config.json is made of the checkpoint's "
                f"arguments, with a vocabulary of {source.architecture.vocab_size}, padding "
                "included; there will be no tokenizer",
                to_stderr=True,
            )
        _notice_of_code(source, no_modeling)
        made_by = {
            "command": "grove export",
            "load": load.resolve().name,
            "shard_bytes": shard_bytes,
            "fused_experts": fused_experts,
            **({"train_only": [*source.train_only]} if source.train_only else {}),
        }
        manifest = write_hf(
            source,
            hf,
            _options(dtype, skip),
            made_by,
            shard_bytes=shard_bytes,
            fused=fused_experts,
            grove_keys=write_grove_keys,
            code=not no_modeling,
        )
    _report(manifest, hf, as_json)


def upcycle(
    context: typer.Context,
    hf: Annotated[Path | None, typer.Option(help="Parent: a Hugging Face folder.")] = None,
    load: Annotated[Path | None, typer.Option(help="Parent: a Megatron checkpoint.")] = None,
    save: Annotated[Path | None, typer.Option(help="Megatron checkpoint to make.")] = None,
    save_hf: Annotated[Path | None, typer.Option(help="Hugging Face folder to make.")] = None,
    group_size: Annotated[
        int, typer.Option(help="Experts in a group; 0 leaves a dense parent's child without.")
    ] = 2,
    grove_num_groups: Annotated[
        int | None, typer.Option(help="Groups, in place of --group-size.")
    ] = None,
    adjugate_ffn_hidden_size: Annotated[
        int,
        typer.Option(
            "--adjugate-ffn-hidden-size",
            "--grove-adjugate-ffn-hidden-size",
            help="FFN width of an adjugate.",
        ),
    ] = 128,
    adjugate_scale: Annotated[
        float,
        typer.Option(
            "--adjugate-scale", "--grove-adjugate-scale", help="Weight of the adjugates' sum."
        ),
    ] = 0.05,
    grouping: Annotated[
        Path | None,
        typer.Option(help="JSON with the groups, [[0, 5], [1, 7], ...]; by default neighbours."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option(help="Dense parents: copies of every MLP.")
    ] = None,
    topk: Annotated[
        int, typer.Option(help="Dense parents: copies a token selects, with all their slices.")
    ] = 2,
    granularity: Annotated[
        int, typer.Option(help="Dense parents: slices of a copy, each an expert.")
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Of everything that is not copied, and of --check's tokens.")
    ] = 1234,
    check: Annotated[
        bool, typer.Option("--check", help="Compare logits of child and parent, in fp32.")
    ] = False,
    hf_config: HfConfig = None,
    ckpt_step: Step = None,
    dtype: Dtype = "",
    skip: Skip = [],  # noqa: B006
    write_grove_keys: GroveKeys = False,
    no_modeling: NoModeling = False,
    as_json: AsJson = False,
) -> None:
    """Make a Grove MoE of a trained MoE (or Qwen3) that computes the same before it is trained.

    Adjugates' down projections and expert biases are zero, gate and up projections N(0, 0.006^2),
    all else is copied bit for bit. A parent whose router is another (Qwen2-MoE, OLMoE, MoE++) keeps
    it, without the biases. --check runs both models; under torchrun, without --save and with
    Megatron flags such as --expert-model-parallel-size 2, for models that need several ranks.
    """
    with _refusals():
        from ..model.parameters import total_parameters
        from .convert import write_hf, write_megatron
        from .source import hf_source, megatron_source
        from .staging import free_destination
        from .upcycle import grove_child, moe_child

        _check_upcycle(context)
        if load is not None:
            parent = megatron_source(load, ckpt_step, hf_config)
        else:
            assert hf is not None
            parent = hf_source(hf)
        _notices(parent)
        child = parent
        if num_experts is not None:
            child = moe_child(child, num_experts, topk, granularity, seed)
        if grove_num_groups is not None:
            group_size = _group_size(child.architecture.num_experts, grove_num_groups)
        if group_size or num_experts is None:
            child = grove_child(
                child, group_size, adjugate_ffn_hidden_size, adjugate_scale, grouping, seed
            )
        for destination in filter(None, (save_hf, save)):
            free_destination(destination)
        made_by = {"command": "grove upcycle"}
        options = _options(dtype, skip)
        # This one can refuse what the other can express, so it comes first.
        if save_hf is not None:
            _notice_of_code(child, no_modeling)
            manifest = write_hf(
                child,
                save_hf,
                options,
                made_by,
                grove_keys=write_grove_keys,
                code=not no_modeling,
            )
            _report(manifest, save_hf)
        if save is not None:
            _report(write_megatron(child, save, options, made_by), save)
    result: dict[str, Any] = {
        "parameters_before": total_parameters(parent.architecture).total,
        "parameters_after": total_parameters(child.architecture).total,
    }
    _say(
        f"parameters: {result['parameters_before']:,} -> {result['parameters_after']:,}",
        to_stderr=as_json,
    )
    if check:
        result |= _run_check(parent, child, context.args, seed, as_json)
    if as_json and os.environ.get("RANK", "0") == "0":
        print(json.dumps(result), flush=True)
    raise typer.Exit(0 if result.get("passed", True) else 1)


def _notices(source: "Source") -> None:
    for line in source.notices:
        _say(f"grove_megatron: {line}", to_stderr=True)


def _notice_of_code(source: "Source", no_modeling: bool) -> None:
    from .modeling import has_code, replaced

    if no_modeling or not has_code(source.architecture):
        return
    for file in replaced(source.hf_files):
        _say(
            f"grove_megatron: {file} of {source.hf_files} gives way to one for transformers 5; "
            "--no-modeling keeps it",
            to_stderr=True,
        )


def _group_size(num_experts: int, num_groups: int) -> int:
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(
            f"--grove-num-groups ({num_groups}) does not divide the experts ({num_experts}); use a "
            "number that does"
        )
    return num_experts // num_groups


def _check_upcycle(context: typer.Context) -> None:
    """Options that do not go together, or would do nothing."""
    from .weights import ConversionError

    given = _given(context)
    problems = []
    if ("hf" in given) == ("load" in given):
        shown = f"--hf ({given.get('hf')}) and --load ({given.get('load')})"
        problems.append(f"{shown}: the parent is one of them")
    if not given.keys() & {"save", "save_hf", "check"}:
        problems.append("nothing to make: give --save, --save-hf or --check")
    if context.args and "check" not in given:
        shown = " ".join(context.args)
        problems.append(f"{shown}: no such option of grove upcycle without --check")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and given.keys() & {"save", "save_hf"}:
        problems.append("torchrun is for --check alone; make the child in one process first")
    if "check" in given and given.get("skip"):
        problems.append("--skip has no place in --check, which runs whole models; leave one out")
    if {"group_size", "grove_num_groups"} <= given.keys():
        problems.append("--group-size and --grove-num-groups say the same; give one of them")
    without_groups = "num_experts" in given and context.params["group_size"] == 0
    needs = {
        "a dense parent's --num-experts": ("num_experts" in given, ("topk", "granularity")),
        "--load": ("load" in given, ("hf_config", "ckpt_step")),
        "--save or --save-hf": (bool(given.keys() & {"save", "save_hf"}), ("dtype",)),
        "--save-hf": ("save_hf" in given, ("write_grove_keys", "no_modeling")),
        "a --group-size above 0": (
            not without_groups,
            ("grouping", "adjugate_ffn_hidden_size", "adjugate_scale"),
        ),
    }
    problems += _idle(given, needs)
    if problems:
        raise ConversionError(problems)


def _given(context: typer.Context) -> dict[str, Any]:
    """The options of the command line, by name."""
    return {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


def _idle(given: dict[str, Any], needs: dict[str, tuple[bool, tuple[str, ...]]]) -> list[str]:
    """Of the options that nothing reads without another."""
    return [
        f"{flag_of(name)} ({given[name]}) does nothing without {what}; remove it"
        for what, (is_there, names) in needs.items()
        for name in names
        if name in given and not is_there
    ]


def _run_check(
    parent: "Source", child: "Source", extra: list[str], seed: int, as_json: bool
) -> dict[str, Any]:
    from ..training.start import alone, quiet, started

    alone()
    with started(), quiet(), _refusals():
        from .upcycle_check import TOLERANCE, compare

        found = compare(parent, child, extra, seed)
    if found.same_layer is not None:
        _say(
            f"largest difference of logits: {found.same_layer:.2e} (asked 0) from the same layers "
            "without their adjugates",
            to_stderr=as_json,
        )
    _say(
        f"largest difference of logits: {found.megatron_layer:.2e} (asked {TOLERANCE:.0e}) from "
        "the parent in Megatron's own layers",
        to_stderr=as_json,
    )
    _say("passed" if found.passed else "FAILED", to_stderr=as_json)
    differences = {k: v for k, v in asdict(found).items() if v is None or isfinite(v)}
    return differences | {"passed": found.passed}


def verify(
    context: typer.Context,
    hf: HfModel = None,
    load: Load = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="safetensors: input_ids, labels, logits, loss, grad.*; without it, transformers "
            "computes them for a folder of a model that it knows."
        ),
    ] = None,
    ckpt_step: Step = None,
    layer: Annotated[
        Path | None,
        typer.Option(help="Instead: a folder with one MoE layer of a system, and its results."),
    ] = None,
    variant: Annotated[
        str, typer.Option(help="Of --layer: reads layer.VARIANT.safetensors.")
    ] = "default",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of --layer: fp32 or fp64, to compute in.")
    ] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Compare logits, loss and gradients with those of the authors' or transformers' model.

    Or output, routing, losses and gradients of one layer, of the systems that --layer lists. Other
    flags go to Megatron: torchrun --nproc-per-node 2 -m grove_megatron verify ...
    --expert-model-parallel-size 2. Exits 1 past tolerance, 2 if it cannot compare.
    """
    from ..training.refuse import refuse
    from ..training.start import alone, quiet, started

    alone()
    if problems := _verify_problems(context):
        refuse(problems)
    if layer is not None:
        from ..verify_layer.command import run

        run(layer, variant, dtype, context.args, as_json)
    with started(), quiet():
        from .verify import verify_hf, verify_megatron
        from .weights import ConversionError

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


def _verify_problems(context: typer.Context) -> list[str]:
    """Options of ``verify`` that do not go together, or would do nothing."""
    given = _given(context)
    sources = [name for name in ("hf", "load", "layer") if name in given]
    shown = ", ".join(f"--{name} ({context.params[name]})" for name in ("hf", "load", "layer"))
    problems = [] if len(sources) == 1 else [f"{shown}: give one of them"]
    if "load" in given and "golden" not in given:
        problems.append(f"--load ({given['load']}) needs --golden (None); name the reference")
    needs = {
        "--hf or --load": (bool(given.keys() & {"hf", "load"}), ("golden",)),
        "--load": ("load" in given, ("ckpt_step",)),
        "--layer": ("layer" in given, ("variant", "dtype")),
    }
    return problems + _idle(given, needs)


def _print_report(report: "Report", as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from . import verify as v

    table = Table("compared", "worst error", "tolerance")
    table.add_row("logits (absolute)", f"{report.max_logit_error:.2e}", f"{v.LOGIT_TOLERANCE:.0e}")
    table.add_row("loss (relative)", f"{report.loss_error:.2e}", f"{v.LOSS_TOLERANCE:.0e}")
    grads = f"{report.grads_compared} of {report.grads_in_file} gradients (of largest entry)"
    table.add_row(grads, f"{report.max_grad_error:.2e}", f"{v.GRAD_TOLERANCE:.0e}")
    if report.routers_in_file:
        routers = f"{report.routers_compared} of {report.routers_in_file} routers' logits"
        table.add_row(routers, f"{report.max_router_error:.2e}", f"{v.LOGIT_TOLERANCE:.0e}")
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 88)
    console.print(table)
    console.print("passed" if report.passed else "FAILED")
    if as_json:
        print(json.dumps(report.as_json()), flush=True)


def _say(text: str, *, to_stderr: bool) -> None:
    """On rank 0; beside JSON, stdout is for that."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(text), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def _options(dtype: str, skip: list[str]) -> "Options":
    import torch

    from .convert import Options

    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype and dtype not in known:
        raise ValueError(f"--dtype ({dtype}) is not one of {', '.join(known)}")
    return Options(known.get(dtype), tuple(skip))


@contextmanager
def _refusals() -> Iterator[None]:
    from .weights import ConversionError

    # Megatron says at import that it goes without TransformerEngine and Apex; so does this.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(megatron|torch)\.")
    try:
        yield
    except ValueError as error:
        problems = error.problems if isinstance(error, ConversionError) else [str(error)]
        said = f"grove_megatron: {counted(problems)}, nothing was made:\n{numbered(problems)}"
        _say(said, to_stderr=True)
        raise typer.Exit(2) from None


def _report(manifest: "Manifest", destination: Path, as_json: bool | None = None) -> None:
    counts: dict[str, Any] = manifest.counts
    _say(
        f"{destination}: {counts['tensors']:,} tensors, {counts['parameters']:,} parameters, "
        f"{counts['bytes'] / 2**30:.2f} GiB, every one accounted for",
        to_stderr=as_json,
    )
    if as_json:
        print(json.dumps(counts), flush=True)
