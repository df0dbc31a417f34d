"""Every test in this folder needs CUDA; without it all are skipped."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def cuda() -> None:
    """Session scope, so that it skips before any fixture of a module starts to work."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(scope="session")
def transformer_engine(cuda: None) -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="needs TransformerEngine")
