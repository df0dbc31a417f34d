"""Balanced assignments: always balanced, and nearly or exactly the best there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grove_megatron.functional.assignment import balanced_assignment
from grove_megatron.parts.selector.base import Reference

EXACT = 1e-6


def best_sum(scores: Tensor) -> float:
    """Of scipy's exact assignment, which is the reference of the selector."""
    expert_T = Reference(EXACT).assigned(scores.double())
    return float(scores.double().gather(1, expert_T.unsqueeze(1)).sum())


def scores_of(kind: str, tokens: int, experts: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, experts, generator=generator)
    if kind == "one":
        scores[:, -1] += 50
    if kind == "bf16":
        scores = scores.bfloat16()
    if kind == "ties":
        scores = scores.round()
    if kind == "same":
        scores = torch.zeros(tokens, experts)
    if kind == "rows":
        scores = scores[:1].expand(tokens, -1).clone()
    return scores


def assert_balanced(scores: Tensor, expert_T: Tensor) -> None:
    tokens, experts = scores.shape
    counts = torch.bincount(expert_T, minlength=experts)
    assert expert_T.shape == (tokens,)
    assert int(counts.sum()) == tokens
    assert tokens // experts <= int(counts.min())
    assert int(counts.max()) <= -(-tokens // experts)


KINDS = ("random", "one", "bf16", "ties", "same", "rows")
SIZES = [(48, 6), (42, 6), (7, 4), (3, 8), (1, 4), (5, 1), (64, 64), (130, 16)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "experts"), SIZES)
def test_every_expert_gets_as_many_tokens(kind: str, tokens: int, experts: int) -> None:
    scores = scores_of(kind, tokens, experts)
    found = balanced_assignment(scores, 0.01)
    assert_balanced(scores, found.expert_T)
    assert found.rounds <= 2000


@pytest.mark.parametrize("kind", ["random", "one"])
@pytest.mark.parametrize(("tokens", "experts"), SIZES)
def test_a_fine_auction_is_exact(kind: str, tokens: int, experts: int) -> None:
    scores = scores_of(kind, tokens, experts, seed=3)
    found = balanced_assignment(scores.double(), EXACT)
    assert_balanced(scores, found.expert_T)
    assert found.rounds < 2000
    own = float(scores.double().gather(1, found.expert_T.unsqueeze(1)).sum())
    assert own == pytest.approx(best_sum(scores), rel=1e-6)


def test_what_an_expert_is_worth_to_all_is_no_reason_to_bid() -> None:
    """Where all have as many places it changes nothing, and must not make the steps large."""
    scores = 0.01 * scores_of("random", 96, 8) + 10 * torch.randn(8)
    found = balanced_assignment(scores, 0.02)
    own = float(scores.gather(1, found.expert_T.unsqueeze(1)).sum())
    assert best_sum(scores) - own < 0.02 * 0.1 * 96
    assert found.rounds < 300


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 10**6), st.sampled_from([0.1, 0.01]))
def test_the_gap_is_what_the_precision_says(
    tokens: int, experts: int, seed: int, precision: float
) -> None:
    scores = scores_of("random", tokens, experts, seed).double()
    found = balanced_assignment(scores, precision)
    assert_balanced(scores, found.expert_T)
    gap = best_sum(scores) - float(scores.gather(1, found.expert_T.unsqueeze(1)).sum())
    # Who fills the places that are too many counts as a token too.
    places = -(-tokens // experts) * experts
    span = float(scores.max() - scores.min())
    assert -1e-9 <= gap <= precision * span * places + 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
@pytest.mark.parametrize(("tokens", "experts"), SIZES)
def test_too_few_rounds_leave_experts_balanced(
    kind: str, rounds: int, tokens: int, experts: int
) -> None:
    scores = scores_of(kind, tokens, experts)
    found = balanced_assignment(scores, 0.01, max_rounds=rounds)
    assert found.rounds <= rounds
    assert_balanced(scores, found.expert_T)


def test_what_is_not_finite_is_the_least() -> None:
    scores = scores_of("random", 12, 4)
    scores[0, 2], scores[5], scores[7, 1] = float("nan"), float("-inf"), float("-inf")
    found = balanced_assignment(scores, EXACT)
    assert_balanced(scores, found.expert_T)
    assert found.expert_T[0] != 2
    assert found.expert_T[7] != 1
    nothing = torch.full((9, 3), torch.nan)
    assert_balanced(nothing, balanced_assignment(nothing, 0.01).expert_T)


def test_no_token_is_no_error() -> None:
    assert balanced_assignment(torch.zeros(0, 4), 0.01).expert_T.shape == (0,)
