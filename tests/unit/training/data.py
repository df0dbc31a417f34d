"""Files of tokens as Megatron's own tool makes them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder


def write_tokens(
    prefix: Path, documents: Iterable[Sequence[int]] = ([1, 2, 3],), dtype: type = numpy.int32
) -> Path:
    """One sequence a document; returns ``prefix``."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix
