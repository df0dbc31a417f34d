"""Runs on a rank: a recorded run that shows what it has loaded before it goes on from there."""

import json
import os
from pathlib import Path
from typing import Any

from tests.integration.recorded_run import train


def train_and_show_first(folder: str, argv: list[str], again: str) -> None:
    """Recorded training, and before its first step: the state as it was loaded.

    Args:
        folder: for the results, and ``loaded<rank>.json``, the optimizer steps of this rank.
        argv: flags of a run that loads a checkpoint.
        again: gets the state saved again, in this run's layout.
    """
    from megatron.training import training
    from megatron.training.checkpointing import save_checkpoint
    from megatron.training.global_vars import get_args

    original = training.train_step

    def train_step(
        forward_step: Any,
        data: Any,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        *rest: Any,
        **kw: Any,
    ) -> Any:
        if not shown:
            shown.append(True)
            args = get_args()
            args.save, save = again, args.save
            save_checkpoint(args.iteration, model, optimizer, scheduler, 0)
            args.save = save
            path = Path(folder) / f"loaded{os.environ['RANK']}.json"
            path.write_text(json.dumps(_steps(optimizer)))
        return original(forward_step, data, model, optimizer, scheduler, *rest, **kw)

    shown: list[bool] = []
    training.train_step = train_step
    train(folder, argv)


def _steps(optimizer: Any) -> list[list[float]]:
    """Of every optimizer of the chain: the steps that its parameters have taken."""
    return [
        sorted({float(state["step"]) for state in one.optimizer.state.values()})
        for one in optimizer.chained_optimizers
    ]
