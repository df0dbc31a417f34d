"""What --reset-position-ids and --reset-attention-mask do where they are not refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import Job, Ranks

from .flags import MODEL

EOD, LENGTH = 95, 16
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer".split()
RESET = "--reset-position-ids --reset-attention-mask".split()
# One batch of eight samples, and an evaluation whose microbatches are smaller.
ONE = (
    "--train-iters 1 --micro-batch-size 8 --global-batch-size 8 --eval-micro-batch-size 4 "
    "--eval-global-batch-size 4 --eval-iters 1 --eval-interval 1 --seq-length 32 "
    "--position-embedding-type learned_absolute --split 1,1,0 "
    f"--null-tokenizer-eod-id {EOD}"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples of two documents each: one that all have, first or last, and another."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = str(tmp_path_factory.mktemp("data") / "documents")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    random = np.random.default_rng(0)
    document = [*range(1, LENGTH), EOD]
    for sample in range(40):
        other = [*random.integers(20, EOD, LENGTH - 1).tolist(), EOD]
        both = document + other if sample % 2 else other + document
        builder.add_document(torch.tensor(both), [2 * LENGTH])
    builder.finalize(f"{prefix}.idx")
    return prefix


def losses_of_the_document(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 15] losses of the training batch where all samples have the same, and [B] its place."""
    batch: dict[str, Any] = job.results()[0][0]
    tokens, losses = torch.tensor(batch["tokens"]), torch.tensor(batch["losses"])
    first = tokens[:, 0] == 1
    halves = torch.where(first[:, None], losses[:, :LENGTH], losses[:, LENGTH:])
    return halves[:, :-1], first


def test_documents_do_not_see_each_other(data: str, ranks: Ranks, tmp_path: Path) -> None:
    model = [word for word in MODEL if word != "--no-create-attention-mask-in-dataloader"]
    model.remove("--mock-data")
    flags = [*model, *ONE, "--data-path", data]
    found = {}
    for name, processes, more in (("apart", 2, [*TP2, *RESET]), ("together", 1, [])):
        folder = tmp_path / name
        folder.mkdir()
        target = "tests.integration.documents_job:train"
        job = ranks.run(processes, target, str(folder), [*flags, *more], folder=folder).check()
        found[name], first = losses_of_the_document(job)
        assert 0 < first.sum() < len(first)
    spread = {name: float((losses - losses[0]).abs().max()) for name, losses in found.items()}
    assert spread["apart"] < 1e-4 < 1e-2 < spread["together"], spread
