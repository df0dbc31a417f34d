"""``grove generate``: text from a model, on whatever it was saved for or at another layout."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint.commands import AsJson, HfModel, Load, Step
from ..printable import printable
from .lines import read_lines

if TYPE_CHECKING:
    from ..checkpoint.source import Source
    from .tokens import Tokenizer

TokenizerFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of a Hugging Face tokenizer; by default the model's own."),
]


def generate(
    context: typer.Context,
    hf: HfModel = None,
    load: Load = None,
    ckpt_step: Step = None,
    tokenizer: TokenizerFolder = None,
    prompt: Annotated[list[str], typer.Option(help="What to continue. Once for each.")] = [],  # noqa: B006
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts: .jsonl with `prompt`, or a text of lines.")
    ] = None,
    prompt_ids: Annotated[
        list[str],
        typer.Option(help="Instead: token ids, as 1,2,3; then no tokenizer is needed."),
    ] = [],  # noqa: B006
    chat: Annotated[
        bool, typer.Option("--chat", help="A prompt is a user's turn, by the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Of each, at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(help="Of the softmax; 0 takes the best token always.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Choose among the best with this probability; 0: among all.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Choose among so many; 0: among all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the choices.")] = 1234,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time, at most.")] = 8,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Go on behind the tokenizer's end of text.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print text as it is made, of one prompt.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts, by Megatron's inference engine and its cache of keys and values.

    Other flags go to Megatron: --bf16, or torchrun --nproc-per-node 2 -m grove_megatron generate
    ... --expert-model-parallel-size 2. Every rank has all prompts; rank 0 prints.
    """
    from ..training.refuse import refuse
    from ..training.start import alone, quiet, started

    alone()
    texts = list(prompt)
    problems = _problems(context, texts)
    if not problems and prompts is not None:
        try:
            texts += read_prompts(prompts)
        except ValueError as error:
            problems.append(str(error))
    if stream and len(texts) + len(prompt_ids) > 1:
        count = len(texts) + len(prompt_ids)
        problems.append(f"--stream (True) is for one prompt, of ({count}); give one, or remove it")
    if problems:
        refuse(problems)
    with started(), quiet():
        from ..checkpoint.weights import ConversionError
        from .generation import Sampling, build
        from .model import source_of, tokenizer_of

        try:
            source, weights = source_of(hf, load, ckpt_step)
            words = tokenizer_of(tokenizer, source, needed=bool(texts) or stream)
            ids = [_ids(text) for text in prompt_ids]
            if texts:
                assert words is not None
                ids = [words.encode_chat(t) if chat else words.encode(t) for t in texts]
            _check_ids(ids, source, words, max_new_tokens, top_k)
            engine = build(
                source.architecture,
                weights,
                context.args,
                vocab_size=source.architecture.vocab_size if words is None else words.size,
                batch_size=min(batch_size, len(ids)),
                length=max(map(len, ids)) + max_new_tokens,
                ends=[] if ignore_end or words is None else words.ends,
            )
        except ConversionError as error:
            refuse(error.problems)
        except ValueError as error:
            refuse([str(error)])
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        began = time.perf_counter()
        heard = _Printer(words) if stream and _is_first() else None
        found = engine.generate(ids, max_new_tokens, sampling, heard)
        seconds = time.perf_counter() - began
        if heard is not None:
            heard.close()
        engine.close()
    if _is_first():
        answers = [None if words is None else words.decode(tokens) for tokens in found]
        _print(texts or prompt_ids, answers, found, seconds, as_json=as_json, streamed=stream)


def _is_first() -> bool:
    return os.environ["RANK"] == "0"


def model_problems(p: dict[str, Any]) -> list[str]:
    """What is wrong with the options that name a model."""
    problems = []
    if (p["hf"] is None) == (p["load"] is None):
        problems.append(f"--hf ({p['hf']}), --load ({p['load']}): give one of them")
    if p["ckpt_step"] is not None and p["load"] is None:
        problems.append(f"--ckpt-step ({p['ckpt_step']}) does nothing without --load; remove it")
    return problems


def _problems(context: typer.Context, texts: list[str]) -> list[str]:
    """Options that do not go together, or are no numbers to generate with."""
    p = context.params
    problems = model_problems(p)
    by_text = bool(texts) or p["prompts"] is not None
    if by_text == bool(p["prompt_ids"]):
        given = "--prompt or --prompts, and --prompt-ids," if by_text else "no prompt"
        problems.append(f"{given} is given; give --prompt, --prompts or --prompt-ids")
    if p["chat"] and p["prompt_ids"]:
        problems.append("--chat (True) is beside --prompt-ids, which are no text; remove one")
    for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("top_k", 0)):
        if p[name] < least:
            flag = f"--{name.replace('_', '-')}"
            problems.append(f"{flag} ({p[name]}) is below {least}; use {least} or more")
    if not 0 <= p["temperature"] < float("inf"):
        problems.append(
            f"--temperature ({p['temperature']}) is not a finite number of 0 or more; use 1"
        )
    elif 0 < p["temperature"] < 1e-3:
        problems.append(
            f"--temperature ({p['temperature']}) is above 0 and below 0.001, where numbers "
            "overflow; use 0 for the best token"
        )
    if not 0 <= p["seed"] < 2**63:
        problems.append(f"--seed ({p['seed']}) is not from 0 to below 2^63; use 1234")
    if not 0 <= p["top_p"] <= 1:
        problems.append(f"--top-p ({p['top_p']}) is not between 0 and 1; use 0.9")
    if p["top_p"] and p["top_k"]:
        problems.append(
            f"--top-p ({p['top_p']}) is beside --top-k ({p['top_k']}), and Megatron's engine takes "
            "one; remove the other"
        )
    if p["temperature"] == 0 and (p["top_p"] or p["top_k"]):
        problems.append(
            "--temperature (0.0) takes the best token, and --top-p or --top-k choose among more; "
            "raise it, or remove them"
        )
    return problems


def read_prompts(file: Path) -> list[str]:
    """Of a file: lines that are not empty, or the ``prompt`` of every JSON line.

    Raises:
        ValueError: it cannot be read, or which lines have no prompt.
    """
    parse = _prompt if file.suffix == ".jsonl" else str
    return read_lines("--prompts", file, parse, what="prompt", wanted="a text named prompt")


def _prompt(line: str) -> str | None:
    try:
        value = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and len(word) < 10 for word in words):
        raise ValueError(f"--prompt-ids ({text}) is not a list of token ids; write 1,2,3")
    return [int(word) for word in words]


def _check_ids(
    ids: list[list[int]],
    source: "Source",
    words: "Tokenizer | None",
    new_tokens: int,
    top_k: int,
) -> None:
    model = source.architecture
    problems = []
    if words is not None and words.size > model.vocab_size:
        problems.append(
            f"--tokenizer has more tokens ({words.size}) than the model's embedding rows "
            f"({model.vocab_size}); name the tokenizer of this model"
        )
    if top_k >= (vocabulary := model.vocab_size if words is None else words.size):
        problems.append(f"--top-k ({top_k}) is not below the vocabulary ({vocabulary}); lower it")
    for number, one in enumerate(ids, 1):
        if not one:
            problems.append(f"prompt {number} has no tokens; write something")
        elif max(one) >= model.vocab_size:
            problems.append(
                f"prompt {number} has token ({max(one)}), which is not below the vocabulary "
                f"({model.vocab_size}); correct it"
            )
        if len(one) + new_tokens > model.max_position_embeddings:
            problems.append(
                f"prompt {number} has tokens ({len(one)}) that with --max-new-tokens "
                f"({new_tokens}) are above max_position_embeddings "
                f"({model.max_position_embeddings}); lower it, or shorten the prompt"
            )
    if problems:
        from ..checkpoint.weights import ConversionError

        raise ConversionError(problems)


class _Printer:
    """Prints a text as it grows."""

    def __init__(self, words: "Tokenizer | None") -> None:
        from .tokens import Stream

        assert words is not None
        self._stream = Stream(words.decode, _write)

    def __call__(self, row: int, token: int) -> None:
        self._stream.add(token)

    def close(self) -> None:
        self._stream.close()
        _write("\n")


def _write(text: str) -> None:
    # Of a model: whatever it makes of a terminal's control characters.
    sys.__stdout__.write(printable(text) if text != "\n" else text)  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _print(
    prompts: list[str],
    answers: list[str | None],
    found: list[list[int]],
    seconds: float,
    *,
    as_json: bool,
    streamed: bool,
) -> None:
    count = sum(map(len, found))
    speed = count / seconds
    print(f"{count} tokens in {seconds:.2f} s: {speed:.1f} tokens/s", file=sys.stderr)
    if as_json:
        result = {
            "prompts": prompts,
            "answers": answers,
            "tokens": found,
            "seconds": seconds,
            "tokens_per_second": speed,
        }
        print(json.dumps(result), flush=True)
        return
    if streamed:
        return
    for prompt, answer, tokens in zip(prompts, answers, found, strict=True):
        shown = ",".join(map(str, tokens)) if answer is None else answer
        print(f"{printable(prompt)}\n-> {printable(shown)}", flush=True)
