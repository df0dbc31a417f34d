"""``grove import``, ``grove export``: from one format to the other, every tensor accounted for.

What is wrong shows in two places: before anything is written, from the headers; and while tensors
stream into the temporary place. Either way all of it is listed, and nothing gets its name.
"""

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.families import family_of, is_buffer
from ..model.families.olmoe import OLMOE
from ..model.families.qwen2_moe import QWEN2_MOE
from ..model.families.qwen3_moe import QWEN3_MOE
from .checked import CheckedReader, Plan, plan
from .family_rules import has_config
from .hf_config import config_of, ignored_by_release
from .manifest import NAME, Manifest, described
from .megatron_args import megatron_flags
from .modeling import has_code, keys_for_code, write_code
from .side_files import is_carried
from .sinks import GIB, HfSink, MegatronSink, Records, Sink
from .source import HF_FILES, Source
from .staging import Staging, free_destination
from .transforms import Shape
from .units import hf_shapes, units
from .weights import ConversionError, Problem

# The flags of the model, beside its weights.
FLAGS_FILE = "megatron_flags.txt"


@dataclass(frozen=True)
class Options:
    """What both directions take.

    Args:
        dtype: of the tensors to write; None: the source's.
        skip: tensors to do without: needed ones become zeros, others are left out.
    """

    dtype: torch.dtype | None = None
    skip: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return {"dtype": str(self.dtype), "skip": sorted(self.skip)}


def write_megatron(
    source: Source, save: Path, options: Options, made_by: dict[str, Any]
) -> Manifest:
    """Write a checkpoint that Megatron's ``--load`` takes, at any parallel layout.

    Args:
        source: of the weights.
        save: folder to make.
        options: of the conversion.
        made_by: for the manifest.

    Raises:
        ValueError: all problems; nothing is at ``save`` then.
    """
    plans = _plans(source, hf_shapes(source.architecture), options)
    sink = MegatronSink(plans, list(units(source.architecture)))
    _check(source, sink, plans, options, save)
    flags = megatron_flags(source.architecture)
    common = {
        "args": _parsed(flags),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    config = None
    if has_config(source.architecture):
        config = config_of(source.architecture, source.config, _dtype_name(plans))

    def finish(folder: Path, records: Records) -> None:
        sink.finish(folder, records, common)
        _write_others(source.hf_files, config, folder / HF_FILES)
        (folder / FLAGS_FILE).write_text(" ".join(flags) + "\n", encoding="utf-8")

    return _run(source, sink, plans, save, options, made_by, finish)


def write_hf(
    source: Source,
    folder: Path,
    options: Options,
    made_by: dict[str, Any],
    *,
    shard_bytes: int = 5 * GIB,
    fused: bool = False,
    grove_keys: bool = False,
    code: bool = True,
) -> Manifest:
    """Write a Hugging Face model folder.

    Args:
        source: of the weights.
        folder: to make.
        options: of the conversion.
        made_by: for the manifest.
        shard_bytes: the largest shard.
        fused: the experts of a layer as two tensors (transformers 5).
        grove_keys: write Grove settings that the released modelling code ignores.
        code: put code for transformers beside the weights, where there is some, which reads them.

    Raises:
        ValueError: all problems; nothing is at ``folder`` then.
    """
    code = code and has_code(source.architecture)
    ignored = [] if grove_keys or code else ignored_by_release(source.architecture)
    if fused and family_of(source.architecture) not in (QWEN3_MOE, QWEN2_MOE, OLMOE):
        ignored.append(
            "--fused-experts is a layout of Qwen3-MoE, Qwen2-MoE and OLMoE in transformers 5; "
            "remove it"
        )
    plans = _plans(source, hf_shapes(source.architecture), options)
    sink = HfSink(plans, shard_bytes, fused)
    config: dict[str, Any] = {}
    try:
        config = config_of(source.architecture, source.config, _dtype_name(plans))
        config |= keys_for_code(source.architecture) if code else {}
    except ValueError as error:
        # What the source says of its config comes first, and often says the same.
        if not source.problems:
            ignored += str(error).splitlines()
    problems = [*source.problems, *map(Problem, ignored)]
    _check(replace(source, problems=problems), sink, plans, options, folder)

    def finish(content: Path, records: Records) -> None:
        sink.finish(content, records)
        _write_others(source.hf_files, config, content)
        if code:
            write_code(content)

    return _run(source, sink, plans, folder, options, made_by, finish)


def _dtype_name(plans: Mapping[str, Plan]) -> str:
    """As configs spell it; of the first tensor, the embedding."""
    return str(next(iter(plans.values())).dtype).removeprefix("torch.")


def _plans(source: Source, shapes: Mapping[str, Shape], options: Options) -> dict[str, Plan]:
    return plan(
        shapes,
        source.infos(),
        options.dtype,
        frozenset(options.skip),
        # Megatron keeps this buffer in fp32 whatever the model is trained in.
        keep_dtype=is_buffer,
    )


def _check(
    source: Source, sink: Sink, plans: dict[str, Plan], options: Options, destination: Path
) -> None:
    """Refuse what the headers and the destination show, all of it."""
    skip = frozenset(options.skip)
    problems = source.refusals(skip) + sink.problems()
    problems += [
        f"--skip {name} names no tensor of the source or the model"
        for name in sorted(skip - plans.keys() - source.infos().keys())
    ]
    try:
        free_destination(destination)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ConversionError(problems)


def _run(
    source: Source,
    sink: Sink,
    plans: dict[str, Plan],
    destination: Path,
    options: Options,
    made_by: dict[str, Any],
    finish: Callable[[Path, Records], None],
) -> Manifest:
    """Stream what was checked, check it again, and only then give the result its name."""
    job = {
        "made_by": made_by,
        "source": source.weights.identity(),
        # A tensor that is skipped the next time is part of one file.
        "dtype": str(options.dtype),
        # The config, and with it what is written, is none of the source's weight files.
        "architecture": source.architecture.described(),
    }
    staging = Staging(destination, job)
    try:
        total = sum(plan.bytes for plan in plans.values())
        if problems := staging.room(total):
            raise ConversionError(problems)
        checksums = _stream(source, sink, plans, staging, total)
        records = {part.file: staging.done[part.file]["records"] for part in sink.parts}
        finish(staging.folder, records)
        file_of = {name: part.file for part in sink.parts for name in part.names}
        manifest = Manifest(
            made_by=made_by | options.record() | {"source": _published(source.weights.identity())},
            architecture=source.architecture.described(),
            tensors=described(plans, checksums, file_of),
            skipped=sorted(options.skip),
            generated=source.generated,
        )
        manifest.write(staging.folder / sink.manifest_folder)
        staging.publish()
    except OSError as error:
        raise ConversionError(
            [f"{destination} cannot be written: {error}; the same command goes on from here"]
        ) from error
    finally:
        staging.close()
    return manifest


def _stream(
    source: Source, sink: Sink, plans: dict[str, Plan], staging: Staging, total: int
) -> dict[str, str]:
    """Write every file that is not there yet; returns sha256 of all tensors by name."""
    # One thread reads and looks at tensors, one writes; torch's own would spin beside them.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reader = CheckedReader(source.weights, plans, source.checksums)
    progress = tqdm(
        total=total, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, mininterval=1
    )

    def read(name: str) -> Tensor:
        progress.update(plans[name].bytes)
        return reader.read(name)

    try:
        with progress:
            for part in sink.parts:
                zeros = [name for name in part.names if plans[name].skipped]
                if part.file in staging.done and staging.done[part.file]["zeros"] == zeros:
                    progress.update(sum(plans[name].bytes for name in part.names))
                    continue
                staging.forget(part.file)
                reader.expect(part.names)
                if reader.problems:
                    # Nothing will be published: read on to list what else is wrong.
                    for name in part.names:
                        read(name)
                else:
                    records = sink.write(part, staging.temporary(part.file), read)
                    sha256 = reader.take()
                    if not reader.problems:
                        done = {"records": records, "sha256": sha256, "zeros": zeros}
                        staging.finished(part.file, done)
    finally:
        torch.set_num_threads(threads)
        reader.close()
    if reader.problems:
        raise ConversionError(reader.problems)
    return {
        name: digest
        for part in sink.parts
        for name, digest in staging.done[part.file]["sha256"].items()
    }


def _published(identity: dict[str, Any]) -> dict[str, Any]:
    """A source's identity without where and when: manifests leave this machine."""
    shown = dict(identity)
    if "parent" in shown:
        shown["parent"] = _published(shown["parent"])
    if "folder" in shown:
        shown["folder"] = Path(shown["folder"]).name
        shown["files"] = [[name, size] for name, size, _ in shown["files"]]
    return shown


def _write_others(source: Path | None, config: dict[str, Any] | None, folder: Path) -> None:
    """Config, tokenizer, licence, modelling code: all but weights and what describes them.

    Without a config nothing says what the model is but the arguments of the checkpoint.
    """
    folder.mkdir(exist_ok=True)
    for file in [] if source is None else sorted(source.iterdir()):
        if file.is_file() and file.name != NAME and is_carried(file.name):
            shutil.copyfile(file, folder / file.name)
    if config is None:
        (folder / "config.json").unlink(missing_ok=True)
        return
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _parsed(flags: list[str]) -> Namespace:
    """The flags as Megatron's parser understands them, for ``--use-checkpoint-args``."""
    from megatron.training.arguments import parse_args

    from ..arguments import IMPORTED, add_grove_arguments, select_layer

    given, sys.argv = sys.argv, [sys.argv[0], *flags]
    try:
        args: Namespace = parse_args(extra_args_provider=add_grove_arguments)
    finally:
        sys.argv = given
    select_layer(args)
    setattr(args, IMPORTED, True)
    return args
