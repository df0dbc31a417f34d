"""The model that commands run is the one that was saved."""

from pathlib import Path

import torch

from tests.ranks import Ranks


def test_an_expert_bias_is_not_rounded_in_bf16(
    golden_folder: Path, ranks: Ranks, tmp_path: Path
) -> None:
    """It selects: rounded, experts would be others."""
    target = "tests.integration.bias_job:biases"
    job = ranks.run(1, target, str(tmp_path), str(golden_folder), ["--bf16"], folder=tmp_path)
    (found,) = job.results()
    assert found["dtypes"] == ["torch.bfloat16"]
    assert found["biases"] == [float(torch.tensor(1 / 3))] * len(found["biases"]) != []
