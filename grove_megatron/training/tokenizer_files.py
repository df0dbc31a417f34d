"""Is the tokenizer there that the flags name? Megatron asks the Hub for what is not."""

import importlib.util
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..checks.problem import Problem
from ..checks.rules import Check

# Megatron's own, and what each takes from the Hub, whatever files it is given.
_MEGATRONS = {
    "GPT2BPETokenizer": "gpt2",
    "BertWordPieceLowerCase": "bert-large-uncased",
    "BertWordPieceCase": "bert-large-cased",
}
_SENTENCE_PIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
_OF_HUGGING_FACE = ("HuggingFaceTokenizer", "SFTTokenizer", "MultimodalTokenizer")
_PACKAGES = {
    **dict.fromkeys((*_OF_HUGGING_FACE, *_MEGATRONS), "transformers"),
    **dict.fromkeys(_SENTENCE_PIECE, "sentencepiece"),
    "TikTokenizer": "tiktoken",
}
# One of them makes a folder a tokenizer.
_HUGGING_FACE_FILES = ("tokenizer*", "vocab*", "*.model", "config.json", "merges.txt")
# Answers of the Hub that the job will get too, by the names of their classes, which are of another
# library in every version. Too many questions, or a server in trouble, may be over by then.
_FOR_GOOD = {"RepositoryNotFoundError", "HFValidationError", "ConnectError", "ConnectionError"}


def tokenizer_file_problems(args: Namespace) -> Iterator[Problem]:
    """Files and packages of the tokenizer that are not on this machine.

    Args:
        args: Megatron's namespace, parsed.
    """
    kind, check = args.tokenizer_type or "GPT2BPETokenizer", Check(args)
    package = _PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        text = f"needs {package} (not installed); pip install {package}"
        yield Problem("--tokenizer-type", kind, text)
    files = ["vocab_file", "merge_file", "metadata_path"]
    if kind in (*_SENTENCE_PIECE, "TikTokenizer"):
        yield from check.needs("tokenizer_type", "tokenizer_model", "give its file")
        files.append("tokenizer_model")
    for name in files:
        path = getattr(args, name)
        if path is not None and not os.path.isfile(path):
            yield check.problem(f"{{{name}}} is not a file; correct the path")
    if kind in _OF_HUGGING_FACE and args.tokenizer_model is not None:
        yield from _hugging_face_problems(args)
    elif kind in _MEGATRONS:
        yield from _problems_of_megatrons(args, kind)


def _problems_of_megatrons(args: Namespace, kind: str) -> Iterator[Problem]:
    default = "" if args.tokenizer_type else ", the default"
    check = Check(args, tokenizer_type=f"{kind}{default}")
    if why := _why_not_from_the_hub(_MEGATRONS[kind]):
        yield check.problem(
            f"{{tokenizer_type}} needs {_MEGATRONS[kind]} of the Hugging Face Hub, which cannot be "
            "had: {why}; use HuggingFaceTokenizer with --tokenizer-model, or download it first",
            why=why,
        )
    if (files := _fetched(args, kind)) and importlib.util.find_spec("wget") is None:
        yield check.problem(
            f"{{tokenizer_type}} without {' and '.join(files)} needs wget (not installed), with "
            "which Megatron fetches their files; give them, or pip install wget"
        )


def tokenizer_notice(args: Namespace) -> str | None:
    """That the Hub could not be asked for the tokenizer, and the job will ask again, or None."""
    kind, model = args.tokenizer_type or "GPT2BPETokenizer", args.tokenizer_model
    if kind in _MEGATRONS:
        model = _MEGATRONS[kind]
    elif kind not in _OF_HUGGING_FACE or model is None:
        return None
    if os.path.exists(model) or _is_a_path(model) or _is_kept(model) or _is_offline():
        return None
    error = _error_of_the_hub(model)
    if error is None or _is_for_good(error):
        return None
    return (
        f"the Hugging Face Hub does not say whether it has {model} ({_first_line(error)}); the job "
        "asks it again"
    )


def _fetched(args: Namespace, kind: str) -> list[str]:
    """Settings whose files Megatron's own tokenizers fetch, unless torch's cache has them."""
    from torch.hub import _get_torch_home

    cache = os.path.join(_get_torch_home(), "megatron")  # type: ignore[no-untyped-call]
    files = {"vocab": args.vocab_file, "merges": args.merge_file}
    if kind != "GPT2BPETokenizer":
        del files["merges"]
    settings = {"vocab": "{vocab_file}", "merges": "{merge_file}"}
    return [
        settings[name]
        for name, given in files.items()
        if not given and not os.path.exists(os.path.join(cache, f"{kind}_{name}"))
    ]


def _hugging_face_problems(args: Namespace) -> Iterator[Problem]:
    """A folder here, a file of one, or a name of the Hub."""
    check = Check(args)
    model = args.tokenizer_model
    path = Path(model)
    if os.path.isdir(path):
        if not any(any(path.glob(name)) for name in _HUGGING_FACE_FILES):
            yield check.problem("{tokenizer_model} has no files of a tokenizer; correct the path")
        return
    if os.path.isfile(path):
        return
    if _is_a_path(model):
        yield check.problem("{tokenizer_model} is not a folder; correct the path")
    elif why := _why_not_from_the_hub(model):
        yield check.problem(
            "{tokenizer_model} is no folder here and cannot be had from the Hugging Face Hub: "
            "{why}; correct the path, or download it first",
            why=why,
        )


def _is_a_path(model: str) -> bool:
    """Can this be no name of the Hub: ``name`` or ``organization/name``?"""
    return not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", model, re.ASCII)


def _why_not_from_the_hub(model: str) -> str | None:
    if _is_kept(model):
        return None
    if _is_offline():
        return "not in its cache, and HF_HUB_OFFLINE is set"
    # It answers so many questions; the ranks of a job are one.
    error = _error_of_the_hub(model) if os.environ.get("RANK", "0") == "0" else None
    return _first_line(error) if error is not None and _is_for_good(error) else None


def _is_kept(model: str) -> bool:
    """Is it in the Hub's cache on this machine?"""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return True  # transformers is missing, and refused already
    names = ("tokenizer_config.json", "tokenizer.json", "config.json")
    try:
        return any(isinstance(try_to_load_from_cache(model, name), str) for name in names)
    except (OSError, ValueError):
        return False  # no name of the Hub, which says so


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@lru_cache(maxsize=8)
def _error_of_the_hub(model: str) -> Exception | None:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model, timeout=10)
    except Exception as error:
        return error
    return None


def _is_for_good(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint(_FOR_GOOD) and not any("Timeout" in name for name in names)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
