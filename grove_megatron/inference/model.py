"""The model that a command uses, and its tokenizer."""

from pathlib import Path

from ..checkpoint.megatron_weights import iteration_folder
from ..checkpoint.model_run import Load, load_checkpoint, load_weights
from ..checkpoint.source import Source, hf_source, megatron_source
from ..checkpoint.torch_dist import TorchDistReader
from ..checkpoint.weights import ConversionError
from .tokens import Tokenizer, has_tokenizer


def source_of(hf: Path | None, load: Path | None, step: int | None) -> tuple[Source, Load]:
    """A model and what loads it, from a folder or a checkpoint, as whole as a conversion asks.

    Raises:
        ValueError: all that is wrong with it.
    """
    if hf is not None:
        source = hf_source(hf)
        weights = load_weights(source.weights, source.architecture)
    else:
        assert load is not None
        source = megatron_source(load, step, None)
        folder = iteration_folder(load, step)
        if foreign := TorchDistReader(folder).foreign_objects():
            raise ConversionError(foreign)
        weights = load_checkpoint(folder)
    if problems := source.refusals(can_skip=False):
        raise ConversionError(problems)
    return source, weights


def tokenizer_of(folder: Path | None, source: Source, *, needed: bool) -> Tokenizer | None:
    """The one that is named, the model's own, or that of its training; None where none is needed.

    Raises:
        ValueError: there is none, or it is not loaded.
    """
    own = source.hf_files
    if folder is None and own is not None and has_tokenizer(own):
        folder = own
    trained_with = source.tokenizer
    if folder is None and trained_with is not None and has_tokenizer(trained_with):
        folder = trained_with
    if folder is not None:
        return Tokenizer(folder)
    if needed:
        raise ValueError(
            "--tokenizer (absent) is needed, and the model has none beside it; name a folder of "
            "one, or give --prompt-ids"
        )
    return None
