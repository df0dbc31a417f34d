"""Runs on a rank: training, with the loss of every token of every batch written down."""

import sys
from typing import Any

from tests.ranks import write_result


def train(folder: str, argv: list[str]) -> None:
    """``grove_megatron.pretrain``; results: for each batch B rows of S losses, and the tokens."""
    from grove_megatron import pretrain
    from grove_megatron.training import gpt

    batches: list[dict[str, Any]] = []
    read, loss = gpt._batch, gpt.loss

    def recorded_batch(*args: Any) -> Any:
        batch, borders = read(*args)
        batches.append({"tokens": batch["tokens"].tolist()})
        return batch, borders

    def recorded_loss(mask: Any, output: Any, **named: Any) -> Any:
        batches[-1]["losses"] = output.tolist()
        return loss(mask, output, **named)

    gpt._batch, gpt.loss = recorded_batch, recorded_loss
    sys.argv = ["pretrain", *argv]
    pretrain.main()
    write_result(folder, batches)
