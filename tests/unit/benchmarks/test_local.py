"""The routing that ``grove bench local`` gives its layers, and what it says of them."""

from dataclasses import replace

import pytest
import torch

from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.local import Case, cases, findings, routing
from grove_megatron.benchmarks.shape import PRESETS

from .test_records import SETTINGS

SHAPE = PRESETS["local"]["small"]
# arXiv 2410.07348, of 0.6B/(8+4): times as fast as without, if FFNs were all there is.
THEORY = {0.1: 6.0, 0.25: 3.0, 0.5: 2.0, 0.75: 1.667, 1.0: 1.5}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_tokens_have_as_many_experts_with_an_ffn_as_tau_says(case: Case) -> None:
    shape = replace(SHAPE, experts=case.experts)
    probs, chosen = routing(shape, case, 3)
    assert chosen.shape == (2048, case.experts + (0 if case.tau is None else case.local))
    assert (chosen.sum(1) == 2).all()
    assert torch.equal(probs, chosen / 2)
    per_token = chosen[:, : case.experts].sum(1).double()
    assert per_token.mean() == pytest.approx(2 / case.theory, abs=2 / 2048)
    # No expert is left out, and none is preferred.
    load = chosen.double().sum(0)
    for of_kind in (load[: case.experts], load[case.experts :]):
        if len(of_kind):
            assert of_kind.min() > 0.6 * of_kind.mean()
    if case.tau is not None:
        assert {0.0, 1.0, 2.0} == {*per_token.tolist()}


def test_the_theory_is_the_papers() -> None:
    found = {case.tau: case.theory for case in cases() if case.experts == 8 and case.tau}
    assert found == pytest.approx(THEORY, abs=1e-3)


def test_a_speed_up_is_of_the_same_layer_without() -> None:
    times = {case: Samples((2.0 * case.experts,) * 3) for case in cases() if case.tau is None}
    times |= {case: Samples((1.6 * case.experts,) * 3) for case in cases() if case.tau == 0.75}
    settings = replace(SETTINGS, benchmark="local", shape=SHAPE, kernels=("grouped",))
    made = findings(settings, times, dict.fromkeys(times, 1.0))
    assert made.summary == pytest.approx(
        {f"speed_up {name}, tau 0.75": 1.25 for name in ("8+4", "16+4", "32+8")}
    )
