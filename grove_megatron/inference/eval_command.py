"""``grove eval``: perplexity of text, and questions with several answers."""

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint.commands import AsJson, HfModel, Load, Step
from .command import TokenizerFolder, model_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..checkpoint.source import Source
    from .questions import Judged
    from .tokens import Tokenizer


def evaluate(
    context: typer.Context,
    hf: HfModel = None,
    load: Load = None,
    ckpt_step: Step = None,
    tokenizer: TokenizerFolder = None,
    data: Annotated[
        Path | None, typer.Option(help="Perplexity of a .bin and .idx: their prefix.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Perplexity of .jsonl, .txt and so on, as grove data reads.")
    ] = None,
    field: Annotated[str, typer.Option(help="Of --text: where a line has its text.")] = "text",
    choices: Annotated[
        Path | None,
        typer.Option(help="Questions, .jsonl of context, choices and answer (from 0)."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="File to make, .jsonl: of every question the log-likelihoods, in nats."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens that a prediction sees at most; by default 1024 or the model's."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time, of a rank.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(help="Of --data or --text: as many of the first as this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model, saved at any layout, at this one.

    Texts are cut into parts of --length that do not see one another; every token but the first of
    a text is predicted once. Of a question the likeliest choice is the model's. Other flags go to
    Megatron: torchrun --nproc-per-node 2 -m grove_megatron eval ... --expert-model-parallel-size 2.
    """
    from ..training.refuse import refuse
    from ..training.start import alone, quiet, started

    alone()
    if problems := _problems(context.params):
        refuse(problems)
    with started(), quiet():
        from ..checkpoint.model_run import ModelRun
        from ..checkpoint.weights import ConversionError
        from .model import source_of, tokenizer_of
        from .scoring import Scorer

        try:
            source, weights = source_of(hf, load, ckpt_step)
            words = tokenizer_of(tokenizer, source, needed=text is not None or choices is not None)
            work = _Work(context.params, source, words)
            run = ModelRun(
                source.architecture,
                (batch_size, work.length),
                context.args,
                weights,
                gradients=False,
            )
        except ConversionError as error:
            refuse(error.problems)
        except ValueError as error:
            refuse(str(error).split("\n"))
        result = work.results(Scorer(run, batch_size, work.length))
    if os.environ["RANK"] != "0":
        return
    if answers is not None:
        _write(answers, work.judged)
    for name, value in result.items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.6g}")
    sys.stdout.flush()
    if as_json:
        print(json.dumps(result), flush=True)


def _problems(p: dict[str, Any]) -> list[str]:
    problems = model_problems(p)
    if p["data"] is None and p["text"] is None and p["choices"] is None:
        problems.append("nothing to evaluate is given; give --data, --text or --choices")
    if p["data"] is not None and p["text"] is not None:
        problems.append(f"--data ({p['data']}), --text ({p['text']}): give one of them")
    for name in ("length", "batch_size", "max_tokens"):
        if p[name] is not None and p[name] < 1:
            problems.append(f"--{name.replace('_', '-')} ({p[name]}) is below 1; use 1 or more")
    if p["answers"] is not None and p["choices"] is None:
        problems.append(f"--answers ({p['answers']}) are of --choices (None); give questions")
    elif p["answers"] is not None and not p["answers"].absolute().parent.is_dir():
        problems.append(f"--answers ({p['answers']}) is in no folder; make it first")
    if p["max_tokens"] is not None and p["data"] is None and p["text"] is None:
        problems.append(
            f"--max-tokens ({p['max_tokens']}) does nothing without --data or --text; remove it"
        )
    return problems


def _write(file: Path, judged: "Sequence[Judged]") -> None:
    """Whole, or not at all."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(asdict(one)) + "\n" for one in judged))
    temporary.replace(file)


class _Work:
    """What is asked for, as rows of token ids.

    Raises:
        ValueError: files that are wrong, or ids that the model does not have.
    """

    def __init__(self, params: dict[str, Any], source: "Source", words: "Tokenizer | None") -> None:
        from .questions import read_questions, rows_of
        from .scoring import windows

        longest = source.architecture.max_position_embeddings
        length = params["length"] or min(1024, longest)
        if length > longest:
            raise ValueError(
                f"--length ({length}) is above max_position_embeddings ({longest}) of the model; "
                "use that or less"
            )
        self.texts: list[Any] = []
        for ids in _token_streams(params, words):
            self.texts += windows(ids, length)
        self.questions = []
        self.judged: list[Judged] = []
        self.answers: list[Any] = []
        if params["choices"] is not None:
            assert words is not None
            self.questions = read_questions(params["choices"])
            for question in self.questions:
                self.answers += rows_of(question, words.encode, length)
        rows = [*self.texts, *self.answers]
        if not rows:
            raise ValueError("there is no token to predict; name files with two or more tokens")
        largest = max(max(row.ids) for row in rows)
        if largest >= source.architecture.vocab_size:
            raise ValueError(
                f"token ({largest}) is not below the model's vocabulary "
                f"({source.architecture.vocab_size}); name the data or tokenizer of this model"
            )
        # Sequence parallelism divides it; nothing sees what is behind a row.
        self.length = math.ceil((max(len(row.ids) for row in rows) - 1) / 16) * 16

    def results(self, scorer: Any) -> dict[str, float | int]:
        """Figures by name."""
        from .questions import judge
        from .scoring import perplexity

        found: dict[str, float | int] = {}
        if self.texts:
            total = sum(scorer.negative_log_likelihoods(self.texts))
            tokens = sum(row.count for row in self.texts)
            found |= {"tokens": tokens, "loss": total / tokens}
            found["perplexity"] = perplexity(total, tokens)
        if self.questions:
            losses = scorer.negative_log_likelihoods(self.answers)
            self.judged = judge(self.questions, losses)
            found |= {
                "questions": len(self.questions),
                "accuracy": fmean(one.chosen == one.answer for one in self.judged),
                "accuracy_by_byte": fmean(one.chosen_by_byte == one.answer for one in self.judged),
            }
        return found


def _token_streams(params: dict[str, Any], words: "Tokenizer | None") -> list[list[int]]:
    """Of --data one, all its documents one behind the other; of --text one a document."""
    most = params["max_tokens"]
    if params["data"] is not None:
        return [_of_data(params["data"], most)]
    if params["text"] is None:
        return []
    from ..data.documents import documents, find_sources

    assert words is not None
    streams, bad, left = [], [], math.inf if most is None else most
    sources = find_sources([params["text"]])
    for one in (one for source in sources for one in documents(source, params["field"])):
        if one.text is None:
            bad.append(f"{one.place} {one.wrong}")
            continue
        ids = words.encode(one.text)
        ids = ids[: int(min(left, len(ids)))]
        streams.append(ids)
        left -= len(ids)
        if left == 0:
            break
    if bad:
        shown = "\n".join(bad[:10])
        raise ValueError(f"--text has places that are no document ({len(bad)}):\n{shown}")
    return streams


def _of_data(prefix: Path, most: int | None) -> list[int]:
    from ..data.check import check

    found, problems = check(prefix)
    if problems:
        raise ValueError("\n".join(problems))
    import numpy as np

    ids = np.fromfile(f"{prefix}.bin", dtype=found.dtype, count=-1 if most is None else most)
    tokens: list[int] = ids.tolist()
    return tokens
