"""Is the tokenizer there that the flags name? Megatron asks the Hub for what is not."""

import importlib.util
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

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
}
# One of them makes a folder a tokenizer.
_HUGGING_FACE_FILES = ("tokenizer*", "vocab*", "*.model", "config.json", "merges.txt")


def tokenizer_file_problems(args: Namespace) -> Iterator[str]:
    """Files and packages of the tokenizer that are not on this machine, one line each.

    Args:
        args: Megatron's namespace, parsed.
    """
    kind, model = args.tokenizer_type or "GPT2BPETokenizer", args.tokenizer_model
    package = _PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        yield f"--tokenizer-type ({kind}) needs {package} (not installed); pip install {package}"
    for flag, path in (
        ("--vocab-file", args.vocab_file),
        ("--merge-file", args.merge_file),
        ("--tokenizer-metadata", args.metadata_path),
    ):
        if path is not None and not os.path.isfile(path):
            yield f"{flag} ({path}) is not a file; correct the path"
    if kind in (*_SENTENCE_PIECE, "TikTokenizer"):
        if model is None:
            yield f"--tokenizer-type ({kind}) needs --tokenizer-model (None); give its file"
        elif not os.path.isfile(model):
            yield f"--tokenizer-model ({model}) is not a file; correct the path"
    elif kind in _OF_HUGGING_FACE and model is not None:
        yield from _hugging_face_problems(model)
    elif kind in _MEGATRONS and (why := _why_not_from_the_hub(_MEGATRONS[kind])):
        yield (
            f"--tokenizer-type ({kind}{'' if args.tokenizer_type else ', the default'}) needs "
            f"{_MEGATRONS[kind]} of the Hugging Face Hub, which cannot be had: {why}; use "
            "HuggingFaceTokenizer with --tokenizer-model, or download it first"
        )


def _hugging_face_problems(model: str) -> Iterator[str]:
    """A folder here, a file of one, or a name of the Hub."""
    path = Path(model)
    if os.path.isdir(path):
        if not any(any(path.glob(name)) for name in _HUGGING_FACE_FILES):
            yield f"--tokenizer-model ({model}) has no files of a tokenizer; correct the path"
        return
    if os.path.isfile(path):
        return
    if _is_a_path(model):
        yield f"--tokenizer-model ({model}) is not a folder; correct the path"
    elif why := _why_not_from_the_hub(model):
        yield (
            f"--tokenizer-model ({model}) is no folder here and cannot be had from the Hugging "
            f"Face Hub: {why}; correct the path, or download it first"
        )


def _is_a_path(model: str) -> bool:
    """Can this be no name of the Hub: ``name`` or ``organization/name``?"""
    return not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", model, re.ASCII)


def _why_not_from_the_hub(model: str) -> str | None:
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ImportError:
        return None  # transformers is missing, and refused already

    names = ("tokenizer_config.json", "tokenizer.json", "config.json")
    if any(isinstance(try_to_load_from_cache(model, name), str) for name in names):
        return None
    if HF_HUB_OFFLINE:
        return "not in its cache, and HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(model, timeout=10)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None
