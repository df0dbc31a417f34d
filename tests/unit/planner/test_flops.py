from dataclasses import replace

import pytest
from hypothesis import given

from grove_megatron.planner.flops import adjugate_flops, flops_per_token
from grove_megatron.planner.traffic import groups_per_token

from .models import GROVE_33B, QWEN3_30B, jobs


def test_the_released_model():
    # 3 x 2 a weight of matrices that a token meets; core attention; the embedding only looks up.
    attention = 2048 * 128 * (2 * 32 + 2 * 4)
    experts = 8 * 3 * 2048 * 768
    core = 8192 * 128 * 32
    per_layer, logits = attention + experts + core, 2048 * 151936
    assert flops_per_token(QWEN3_30B, 8192) == 6 * (48 * per_layer + logits)
    groups = groups_per_token(GROVE_33B)
    adjugates = 6 * 48 * 3 * 2048 * 128 * groups
    assert flops_per_token(GROVE_33B, 8192) - flops_per_token(QWEN3_30B, 8192) == pytest.approx(
        adjugates, rel=1e-12
    )


@pytest.mark.parametrize("groups", [4, 7.5, 8])
def test_measured_groups_count_as_many(groups):
    added = flops_per_token(GROVE_33B, 64, groups) - flops_per_token(GROVE_33B, 64, 0.0)
    assert added == 6 * 48 * 3 * 2048 * 128 * groups


def test_two_matrices_without_a_gate():
    three = adjugate_flops(10, 4, 6, gated=True, groups=1.5, layers=2)
    assert three == 3 * 2 * 10 * 4 * 6 * 3 * 1.5 * 2
    assert adjugate_flops(10, 4, 6, gated=False, groups=1.5, layers=2) == three * 2 / 3


@given(sizes=jobs())
def test_without_groups_nothing_is_added(sizes):
    plain = replace(sizes.model, num_groups=0, adjugate_ffn_hidden_size=0)
    assert flops_per_token(plain, 64) == flops_per_token(sizes.model, 64, groups=0.0)
    layers = sizes.model.count_moe_layers(mtp=sizes.model.mtp_depths)
    assert (flops_per_token(sizes.model, 64) > flops_per_token(plain, 64)) == (layers > 0)
