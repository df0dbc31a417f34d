"""Operations before and after the layers: embedding, multi-token prediction, output.

See :mod:`.steps`.
"""

from collections.abc import Set

from .layer_steps import norm, residual, weight_gradient, wide_norm
from .rank_sizes import RankSizes
from .steps import Step


def embedding(rank: RankSizes) -> list[Step]:
    """Its gradient is a whole matrix, whatever tokens there were."""
    numel = rank.model.vocab_size / rank.layout.tensor * rank.model.hidden_size
    return [Step("other", residual(rank).kept, 2 * rank.hidden + numel * rank.element)]


def mtp_beginning(rank: RankSizes, trained: Set[str]) -> list[Step]:
    """Norms of the hidden states and of the next token's embedding, and their projection."""
    wide = wide_norm(rank, 2 * rank.own_tokens * rank.model.hidden_size)
    projected = 2 * rank.hidden if "eh_proj" in trained else 0.0
    gradient = weight_gradient(rank, 2 * rank.model.hidden_size**2 / rank.layout.tensor)
    kept = 2 * rank.hidden + wide + projected
    return [Step("other", kept, 4 * rank.hidden + gradient)]


def output(rank: RankSizes, trained: bool) -> list[Step]:
    """The last norm, the logits, and the loss, which is made of logits in fp32, in place."""
    rows = rank.model.vocab_size / rank.layout.tensor
    logits, element = rank.tokens * rows, rank.element
    last = norm(rank, next_keeps=trained)._replace(part="output")
    gradient = weight_gradient(rank, rows * rank.model.hidden_size)
    return [
        last,
        Step("output", 0.0, logits * element + rank.wide_hidden + gradient),
        # In 16 bits those in fp32 are a copy.
        Step("output", logits * 4, logits * element if element < 4 else 0.0),
    ]
