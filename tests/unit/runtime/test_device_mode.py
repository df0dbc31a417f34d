import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from grove_megatron.runtime.device_mode import CudaMeansCpu

CPU = torch.device("cpu")
WAYS_TO_SAY_CUDA = ["cuda", "cuda:0", "cuda:3", torch.device("cuda"), torch.device("cuda", 1), 0, 2]


@pytest.fixture(autouse=True)
def _mode():
    with CudaMeansCpu():
        yield


@pytest.mark.parametrize("device", WAYS_TO_SAY_CUDA, ids=str)
class TestEveryWayToSayCuda:
    def test_factories_make_cpu_tensors(self, device):
        made = [
            torch.zeros(2, device=device),
            torch.empty(2, device=device),
            torch.full((2,), 1.0, device=device),
            torch.arange(2, device=device),
            torch.randn(2, device=device),
            torch.tensor([1.0], device=device),
            torch.as_tensor([1.0], device=device),
            torch.zeros_like(torch.ones(2), device=device),
            torch.ones(2).new_zeros(2, device=device),
        ]
        assert {tensor.device for tensor in made} == {CPU}

    def test_moves_stay_on_the_cpu(self, device):
        x = torch.ones(2)
        assert x.to(device).device == CPU
        assert x.to(device=device).device == CPU
        assert x.cuda(device).device == CPU

    def test_a_move_still_converts(self, device):
        x = torch.ones(2)
        assert x.to(device, torch.float64).dtype == torch.float64
        assert x.to(device, dtype=torch.bfloat16, non_blocking=True).dtype == torch.bfloat16
        copied = x.to(device, copy=True)
        assert copied.data_ptr() != x.data_ptr()

    def test_a_module_moves(self, device):
        module = torch.nn.Linear(2, 2)
        assert module.to(device).weight.device == CPU


def test_moves_that_name_no_device_are_untouched():
    x = torch.ones(2)
    assert x.to(torch.float16).dtype == torch.float16
    assert x.to(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert x.to("cpu") is x
    assert x.to("meta").device.type == "meta"
    assert torch.empty(2, device="meta").device.type == "meta"


def test_modules_move_with_cuda():
    module = torch.nn.Linear(2, 2).cuda()
    assert module.weight.device == CPU
    assert module(torch.ones(1, 2).cuda()).shape == (1, 2)


def test_a_device_context_means_the_cpu_too():
    with torch.device("cuda"):
        assert torch.zeros(2).device == CPU


def test_type_names_are_those_of_cuda_tensors():
    # What Megatron's optimizers compare with.
    assert torch.ones(1).type() == "torch.cuda.FloatTensor"
    assert torch.ones(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.ones(1).type(torch.int64).dtype == torch.int64
    assert torch.ones(1).type(dtype=torch.int64).dtype == torch.int64


def test_the_type_name_of_a_tensor_can_be_given_to_another():
    x, y = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert x.type(y.type()).dtype == torch.float64


def test_pinning_does_nothing():
    x = torch.ones(2)
    assert x.pin_memory() is x
    assert not x.is_pinned()
    assert torch.zeros(2, pin_memory=True).device == CPU


def test_gradients_flow_through_a_move():
    x = torch.ones(2, requires_grad=True)
    (x.cuda().to("cuda") * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_nothing_is_left_after_the_block():
    depth = len(_get_current_function_mode_stack())
    with CudaMeansCpu():
        assert len(_get_current_function_mode_stack()) == depth + 1
    assert len(_get_current_function_mode_stack()) == depth
