"""Every test in this folder needs CUDA; without it all are skipped."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.ranks import Ranks


@pytest.fixture(scope="session", autouse=True)
def cuda() -> None:
    """Session scope, so that it skips before any fixture of a module starts to work."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(scope="session")
def transformer_engine(cuda: None) -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="needs TransformerEngine")


@pytest.fixture(scope="session")
def gpu_ranks(cuda: None) -> Iterator[Ranks]:
    """Ranks with a GPU each; never more than there are."""
    started = Ranks("cuda")
    yield started
    started.close()


@pytest.fixture(scope="session")
def triton(cuda: None) -> None:
    """Skips with the reason why Triton's kernels cannot run on this GPU, if there is one."""
    from grove_megatron.kernels.triton_support import why_not

    reason = why_not(torch.float32, torch.device("cuda", 0), num_pairs=1)
    if reason is not None:
        pytest.skip(f"Triton's kernels cannot run here: {reason}")


@pytest.fixture
def exact_fp32(cuda: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of fp32 in fp32, whatever the environment says of TF32."""
    from megatron.core.transformer.moe import moe_utils

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    # Megatron's router uses TransformerEngine where it is installed, and that always TF32.
    monkeypatch.setattr(moe_utils, "te_general_gemm", None)
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture(scope="module")
def one_gpu(cuda: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Megatron's process groups for a job of one rank, on NCCL."""
    from tests.gpu.layers import one_rank

    store = dist.FileStore(os.fspath(tmp_path_factory.mktemp("store") / "file"), 1)
    with one_rank(store):
        yield
