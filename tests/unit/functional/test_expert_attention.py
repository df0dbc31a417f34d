"""Attention of experts to each other, beside the authors' code and in bounded memory."""

import pytest
import torch
from torch import Tensor

from grove_megatron.functional import expert_attention as module
from grove_megatron.functional.expert_attention import expert_attention


def authors(mixed: Tensor, experts: int) -> Tensor:
    """The view of Yuan's Megatron (router.py:260-291 @ b403a2b): heads are tokens, of size 1.

    Args:
        mixed: [T, 3 N], queries, keys and values of every token side by side.
    """
    tokens = len(mixed)
    query, key, value = mixed.view(1, tokens, 3 * experts).split(experts, dim=-1)
    # [b, heads, sequence, size]: every token attends over its own experts.
    query, key, value = (part.view(1, tokens, experts, 1) for part in (query, key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) / 1.0**0.5
    return torch.matmul(torch.softmax(scores, dim=-1), value).view(tokens, experts)


def rows(tokens: int, experts: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens + experts)
    parts = torch.randn(3, tokens, experts, dtype=dtype, generator=generator)
    return [part.clone().requires_grad_() for part in 2 * parts]


@pytest.mark.parametrize(("tokens", "experts"), [(1, 1), (7, 8), (39, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_authors(tokens: int, experts: int, dtype: torch.dtype) -> None:
    parts = rows(tokens, experts, dtype)
    expected = authors(torch.cat(parts, dim=1), experts)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert (expert_attention(*parts) - expected).abs().max() < tolerance


def test_its_gradients_are_finite_differences() -> None:
    assert torch.autograd.gradcheck(expert_attention, rows(4, 6))


def test_some_tokens_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, upstream = rows(11, 6), torch.randn(11, 6, dtype=torch.float64)
    whole = expert_attention(*parts)
    grads = torch.autograd.grad((whole * upstream).sum(), parts)
    seen: list[int] = []
    original = module._attend

    def attend(query: Tensor, key: Tensor) -> Tensor:
        seen.append(query.shape[0] * query.shape[1] ** 2)
        return original(query, key)

    monkeypatch.setattr(module, "_attend", attend)
    monkeypatch.setattr(module, "_SCORES", 3 * 36 + 5)
    pieces = expert_attention(*parts)
    again = torch.autograd.grad((pieces * upstream).sum(), parts)
    # 4 pieces of at most 3 tokens, forwards and backwards.
    assert seen == 2 * [108, 108, 108, 72]
    assert torch.equal(pieces, whole)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_scores_of_many_tokens_are_never_all_there() -> None:
    saved: list[int] = []
    parts = [torch.randn(512, 128, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        expert_attention(*parts).sum().backward()
    assert max(saved) == 512 * 128
    assert 10 * module._SCORES < 4096 * 128**2


@pytest.mark.parametrize("blind", [0, 1], ids=["query", "key"])
def test_without_queries_or_keys_it_is_the_mean_of_the_values(blind: int) -> None:
    parts = rows(5, 8)
    parts[blind] = torch.zeros_like(parts[blind])
    mean = parts[2].mean(1, keepdim=True).expand(-1, 8)
    assert torch.allclose(expert_attention(*parts), mean, rtol=1e-14, atol=0)


def test_large_scores_do_not_overflow() -> None:
    parts = [100 * part for part in rows(9, 8, torch.float32)]
    found = expert_attention(*parts)
    assert found.isfinite().all()
    value = parts[2]
    assert (found <= value.amax(1, keepdim=True) + 1e-3).all()
    assert (found >= value.amin(1, keepdim=True) - 1e-3).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), parts))
