"""Runs on a rank: real training whose routing and gradient norms are written down."""

import json
import os
from pathlib import Path
from typing import Any

from tests.integration import metrics_job


def train(folder: str, argv: list[str]) -> None:
    """As ``metrics_job.train_and_keep_routing``, on the data of a recorded run.

    Leaves ``norms<rank>.json`` too, the gradient norm of every step.
    """
    from megatron.core.datasets.gpt_dataset import MockGPTLowLevelDataset
    from megatron.training import training

    # As in recorded_run, or a run that goes on from this one would see other tokens.
    MockGPTLowLevelDataset.size = 1000
    norms: list[float] = []
    original = training.train_step

    def train_step(*args: Any, **named: Any) -> Any:
        result = original(*args, **named)
        norms.append(float(result[5]))
        return result

    training.train_step = train_step
    metrics_job.train_and_keep_routing(folder, argv)
    (Path(folder) / f"norms{os.environ['RANK']}.json").write_text(json.dumps(norms))
