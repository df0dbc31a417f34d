"""What routers repeat or attend with, on a GPU beside the CPU."""

import pytest
import torch
from torch import Tensor

from grove_megatron.functional.assignment import balanced_assignment
from grove_megatron.functional.expert_attention import expert_attention
from grove_megatron.functional.places import places
from grove_megatron.functional.sinkhorn import log_sinkhorn

pytestmark = pytest.mark.gpu


def logits(tokens: int, experts: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    z = torch.randn(tokens, experts, generator=generator)
    z[:, 1] += 3
    return z.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "experts"), [(96, 8), (130, 16), (4096, 64)])
def test_an_auction_is_balanced_and_as_good(tokens: int, experts: int, dtype: torch.dtype) -> None:
    z = logits(tokens, experts, dtype)
    here = balanced_assignment(z, 0.02).expert_T
    there = balanced_assignment(z.cuda(), 0.02).expert_T
    counts = torch.bincount(there, minlength=experts)
    assert tokens // experts <= int(counts.min())
    assert int(counts.max()) <= -(-tokens // experts)
    sums = [float(z.float().gather(1, one.cpu().unsqueeze(1)).sum()) for one in (here, there)]
    assert sums[0] == pytest.approx(sums[1], abs=0.02 * float(z.max() - z.min()) * tokens)


def test_sinkhorn_and_places_are_those_of_the_cpu() -> None:
    z = logits(256, 16).double()
    assert torch.allclose(log_sinkhorn(z.cuda(), None, 20).cpu(), log_sinkhorn(z, None, 20))
    assert torch.equal(places(z.cuda()).cpu(), places(z))


def test_attention_of_experts_and_its_gradients_are_those_of_the_cpu() -> None:
    parts = [logits(300, 128 + n)[:, :128].contiguous() for n in range(3)]
    found = []
    for device in ("cpu", "cuda"):
        own = [part.to(device).requires_grad_() for part in parts]
        attended = expert_attention(*own)
        found.append([attended, *torch.autograd.grad(attended.square().sum(), own)])
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here, there.cpu(), rtol=1e-4, atol=1e-4)
