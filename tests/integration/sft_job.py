"""Runs on a rank: supervised fine-tuning, with the loss of every token of every batch."""

import sys
from typing import Any

from tests.ranks import write_result


def train(folder: str, argv: list[str], alone: bool) -> None:
    """``grove_megatron.pretrain``; results: of each batch tokens, masks and losses.

    And the sum of every parameter's changes.

    Args:
        alone: a sequence for every conversation.
    """
    from grove_megatron import pretrain
    from grove_megatron.sft import dataset
    from grove_megatron.training import gpt, launch

    if alone:
        dataset.packs = lambda lengths, capacity: [[i] for i in range(len(lengths))]
    batches: list[dict[str, Any]] = []
    read, loss, step, summary = gpt._batch, gpt.loss, gpt.forward_step, launch.print_summary
    before: dict[str, Any] = {}
    changes: dict[str, Any] = {}

    def state_of(model: Any) -> Any:
        """By the numbers of the whole model, so that two chunks have no name alike."""
        from megatron.core.utils import unwrap_model

        from grove_megatron.checkpoint.local_names import global_name

        own = unwrap_model(model)
        biases = [(n, b) for n, b in own.named_buffers() if n.endswith("expert_bias")]
        return [(global_name(own, n), t) for n, t in [*own.named_parameters(), *biases]]

    def recorded_step(data: Any, model: Any, **named: Any) -> Any:
        for name, tensor in state_of(model):
            before.setdefault(name, tensor.detach().clone())
        return step(data, model, **named)

    def recorded_batch(*args: Any) -> Any:
        batch, borders = read(*args)
        batches.append(
            {
                name: batch[name].tolist()
                for name in ("tokens", "labels", "loss_mask")
                if batch[name] is not None
            }
        )
        return batch, borders

    def recorded_loss(mask: Any, output: Any, **named: Any) -> Any:
        batches[-1]["losses"] = output.tolist()
        return loss(mask, output, **named)

    def recorded_summary(models: Any, *args: Any) -> None:
        for model in models:
            for name, parameter in state_of(model):
                changes[name] = (parameter - before[name]).double().flatten().tolist()
        summary(models, *args)

    gpt.forward_step = recorded_step
    gpt._batch, gpt.loss, launch.print_summary = recorded_batch, recorded_loss, recorded_summary
    sys.argv = ["pretrain", *argv]
    pretrain.main()
    write_result(folder, {"batches": batches, "changes": changes})
