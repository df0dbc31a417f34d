"""Runs on a rank: what becomes of an expert bias in a model that a flag makes bf16."""

from pathlib import Path
from typing import Any

import torch

from tests.ranks import write_result


def biases(folder: str, hf: str, flags: list[str]) -> None:
    """Loads a model whose biases are all 1/3; the smallest and largest of what it has then."""
    from dataclasses import replace

    from grove_megatron.checkpoint.local_names import local_biases
    from grove_megatron.checkpoint.model_run import ModelRun
    from grove_megatron.checkpoint.source import hf_source
    from grove_megatron.runtime import cpu

    def load(models: list[Any]) -> None:
        for _, bias in local_biases(models):
            bias.fill_(1 / 3)

    with cpu():
        architecture = replace(hf_source(Path(hf)).architecture, expert_bias=True)
        run = ModelRun(architecture, (1, 8), flags, load, gradients=False)
        run.logits()
        found = [bias for _, bias in local_biases(run.models)]
        parameters = {str(p.dtype) for model in run.models for p in model.parameters()}
        write_result(folder, {"biases": torch.cat(found).tolist(), "dtypes": sorted(parameters)})
