"""Every reason not to use the kernels is named, and there is none without one."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from grove_megatron.kernels import triton_support
from grove_megatron.kernels.triton_support import why_not

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WIDTHS = {"hidden_size": 64, "ffn_hidden_size": 24, "adjugate_ffn_hidden_size": 8}


@pytest.fixture(autouse=True)
def triton_on_a_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_no_reason(dtype: torch.dtype) -> None:
    assert why_not(dtype, CUDA, num_pairs=1, **WIDTHS) is None


def test_the_dtype() -> None:
    assert why_not(torch.float64, CUDA, num_pairs=1, **WIDTHS) == (
        "dtype (float64) is not one of bfloat16, float16, float32"
    )


def test_a_width() -> None:
    widths = {**WIDTHS, "ffn_hidden_size": 12}
    assert why_not(torch.bfloat16, CUDA, num_pairs=1, **widths) == (
        "ffn_hidden_size (12) is not a multiple of 8"
    )


def test_no_pairs() -> None:
    assert why_not(torch.bfloat16, CUDA, num_pairs=0, **WIDTHS) == (
        "num_pairs (0) leaves nothing to compute"
    )


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "_triton_is_installed", lambda: False)
    assert why_not(torch.bfloat16, CUDA, num_pairs=1) == "triton is not installed"


def test_whether_triton_is_installed_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert triton_support._triton_is_installed() == (importlib.util.find_spec("triton") is not None)


def test_tensors_on_the_cpu() -> None:
    assert why_not(torch.bfloat16, CPU, num_pairs=1) == "no CUDA device"


def test_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_not(torch.bfloat16, CUDA, num_pairs=1) == "no CUDA device"


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert why_not(torch.bfloat16, CUDA, num_pairs=1) == (
        "CUDA compute capability (7.5) is below 8.0"
    )


def test_the_interpreter_needs_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_not(torch.float32, CPU, num_pairs=1) is None
    assert why_not(torch.float64, CPU, num_pairs=1) is not None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert why_not(torch.float32, CPU, num_pairs=1) == "no CUDA device"


def test_triton_is_not_imported_to_ask(subprocess_environment: dict[str, str]) -> None:
    """It may be missing, and it decides about the interpreter when it is imported."""
    program = (
        "import sys\n"
        "import grove_megatron.kernels\n"
        "from grove_megatron.kernels import triton_support\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'triton']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=subprocess_environment)
