"""``grove data``: text into the files that ``--data-path`` names, or a look at such files."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..printable import counted, numbered, printable


def data(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Files, or folders of them: .jsonl, .jsonl.gz, .jsonl.zst, .txt (one document), "
            ".parquet; or a folder that datasets saved.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Prefix of the files to make; --data-path of a training takes it."),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Folder of a Hugging Face tokenizer, file of SentencePiece (.model) or tiktoken, "
            "or bytes: ids 0 to 255, and 256 for the end."
        ),
    ] = "",
    field: Annotated[str, typer.Option(help="Of a line or row: its text.")] = "text",
    append_eod: Annotated[
        bool, typer.Option(help="The tokenizer's end of text behind every document.")
    ] = True,
    valid: Annotated[
        float, typer.Option(help="Share of documents, by their content, for PREFIX_valid.")
    ] = 0.0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that tokenize; by default one a core.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without what is no document.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option(help="Instead: read the files of this prefix, and say what is.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Of --check: ids must be below it.")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of --check: write how often every token id is there, for --grove-hash-counts.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line.")
    ] = False,
) -> None:
    """Make Megatron's .bin and .idx of text, as Megatron-LM's preprocess_data.py would.

    Beside them comes a manifest, by which a training refuses another tokenizer. A command that was
    stopped goes on where it was when it is repeated. Exits 2 if it cannot, 1 if --check finds
    something wrong.
    """
    if problems := _problems(inputs, output, tokenizer, valid, workers, check, vocab_size, counts):
        _refuse(problems)
    try:
        if check is not None:
            _check(check, vocab_size, counts, as_json)
        from .build import Options, build

        assert inputs
        assert output is not None
        options = Options(
            prefix=output,
            tokenizer=tokenizer,
            field=field,
            append_end=append_eod,
            valid=valid,
            skip_bad=skip_bad,
            workers=workers or len(os.sched_getaffinity(0)),
        )
        made_of = build(inputs, options)
    except ValueError as error:
        _refuse(str(error).split("\n"))
    made = ", ".join(str(prefix) for prefix in options.splits.values())
    skipped = f", {made_of.bad:,} places skipped" if made_of.bad else ""
    _say(f"{made}: {made_of.documents:,} documents, {made_of.tokens:,} tokens{skipped}")
    if as_json:
        print(json.dumps(asdict(made_of)), flush=True)


def _check(prefix: Path, vocab_size: int | None, counts: Path | None, as_json: bool) -> None:
    from .check import check, count_tokens

    found, problems = check(prefix, vocab_size)
    if counts is not None and not problems:
        counted = count_tokens(prefix, vocab_size)
        new = counts.with_name(f"{counts.name}.new")
        try:
            new.write_text(json.dumps(counted) + "\n", encoding="utf-8")
            new.replace(counts)
        except OSError as error:
            raise ValueError(f"--counts ({counts}) cannot be written: {error}") from error
    _say(
        f"{prefix}: {found.documents:,} documents, {found.empty:,} of them empty, "
        f"{found.tokens:,} tokens of {found.dtype}, the largest {found.largest}"
    )
    for line in problems:
        _say(f"  {line}")
    if as_json:
        print(json.dumps(asdict(found) | {"problems": problems}), flush=True)
    raise typer.Exit(1 if problems else 0)


def _problems(
    inputs: list[Path] | None,
    output: Path | None,
    tokenizer: str,
    valid: float,
    workers: int | None,
    check: Path | None,
    vocab_size: int | None,
    counts: Path | None,
) -> list[str]:
    problems = []
    if counts is not None and check is None:
        problems.append(f"--counts ({counts}) does nothing without --check; add it")
    if check is not None:
        if inputs or output is not None or tokenizer:
            problems.append(f"--check ({check}) is beside what makes files; give one of both")
        if vocab_size is not None and vocab_size < 1:
            problems.append(f"--vocab-size ({vocab_size}) is below 1; correct it")
        return problems
    if vocab_size is not None:
        problems.append(f"--vocab-size ({vocab_size}) does nothing without --check; remove it")
    missing = {"INPUT": not inputs, "--output": output is None, "--tokenizer": not tokenizer}
    problems += [f"{name} (absent) is needed; give it" for name, is_so in missing.items() if is_so]
    if not 0 <= valid < 1:
        problems.append(f"--valid ({valid}) is not from 0 to below 1; use 0.01")
    if workers is not None and workers < 1:
        problems.append(f"--workers ({workers}) is below 1; use 1 or more")
    return problems


def _refuse(problems: list[str]) -> None:
    _say(f"grove_megatron: {counted(problems)}, nothing was made:\n{numbered(problems)}")
    raise typer.Exit(2)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
