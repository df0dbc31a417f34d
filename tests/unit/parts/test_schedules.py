from types import SimpleNamespace

import pytest

from grove_megatron.parts import registry
from grove_megatron.parts.updates.schedules import rate_after


def decayed(rate: float, minimum: float, style: str, iterations: int, done: int) -> float:
    settings = SimpleNamespace(
        moe_router_enable_expert_bias=True,
        moe_router_bias_update_rate=rate,
        grove_bias_rate_min=minimum,
        grove_bias_rate_decay_style=style,
        grove_bias_rate_decay_iters=iterations,
        grove_num_groups=4,
    )
    return rate_after(settings, done)


def megatrons(style: str, rate: float, minimum: float, iterations: int, done: int) -> float:
    """Megatron's learning rate of the iteration after ``done``."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    scheduler = OptimizerParamScheduler(
        optimizer=type("Optimizer", (), {"param_groups": [{}]})(),
        init_lr=0.0,
        max_lr=rate,
        min_lr=minimum,
        lr_warmup_steps=0,
        lr_decay_steps=iterations,
        lr_decay_style=style,
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=1,
        wd_incr_style="constant",
    )
    scheduler.step(done)
    return scheduler.get_lr({})


@pytest.mark.parametrize("style", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("minimum", [0.0, 1e-4])
def test_the_rate_is_megatrons_learning_rate(style, minimum):
    for done in range(14):
        ours = decayed(1e-3, minimum, style, 10, done)
        assert ours == pytest.approx(megatrons(style, 1e-3, minimum, 10, done), rel=1e-12)


@pytest.mark.parametrize("style", registry.choices("schedule")[1:])
def test_a_rate_starts_at_its_start_and_ends_at_its_minimum(style):
    for minimum in (0.0, 3e-4):
        assert decayed(1e-3, minimum, style, 5, 0) == 1e-3
        assert decayed(1e-3, minimum, style, 5, 5) == minimum
        assert decayed(1e-3, minimum, style, 5, 10**9) == minimum
        rates = [decayed(1e-3, minimum, style, 5, done) for done in range(6)]
        assert rates == sorted(rates, reverse=True)


def test_a_step_keeps_the_rate_to_the_last_iteration():
    rates = [decayed(1e-3, 1e-5, "step", 3, done) for done in range(5)]
    assert rates == [1e-3, 1e-3, 1e-3, 1e-5, 1e-5]
