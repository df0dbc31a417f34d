"""Mean losses over our intervals, beside a stand-in for Megatron's sums and their reset."""

from typing import Any

import pytest
import torch

from grove_megatron.training.interval_losses import IntervalLosses


class Megatron:
    """``total_loss_dict`` as training_log keeps it (training.py:2604-2870 @ 0.19)."""

    def __init__(self, log_interval: int) -> None:
        self.log_interval, self.totals = log_interval, {}
        self.totals: dict[str, Any] = {}

    def iterate(self, iteration: int, loss: float, seen: IntervalLosses, skipped: bool) -> None:
        t = self.totals
        t["advanced iterations"] = t.get("advanced iterations", 0) + (not skipped)
        t["skipped iterations"] = t.get("skipped iterations", 0) + skipped
        if not skipped:
            t["lm loss"] = t.get("lm loss", torch.zeros(1)) + torch.tensor([loss])
        t["nan iterations"] = t.get("nan iterations", 0)
        # The tracker adds its own in place.
        if "z_loss" in t:
            t["z_loss"] += torch.tensor(10 * loss)
        else:
            t["z_loss"] = torch.tensor(10 * loss)
        seen.see(t)
        t["mtp_1 loss"] = t.get("mtp_1 loss", torch.zeros(())) + 1
        if iteration % self.log_interval == 0:
            for name in ("lm loss", "z_loss", "mtp_1 loss"):
                t[name] = torch.zeros(1)
            for name in ("advanced iterations", "skipped iterations", "nan iterations"):
                t[name] = 0


@pytest.mark.parametrize("log_interval", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("interval", [1, 2, 3, 4, 7])
def test_means_do_not_depend_on_megatrons_interval(log_interval: int, interval: int) -> None:
    megatron, losses = Megatron(log_interval), IntervalLosses()
    since: list[float] = []
    for iteration in range(1, 25):
        # Eighths, so that every sum is exact.
        since.append(1 + iteration / 8)
        megatron.iterate(iteration, since[-1], losses, skipped=False)
        if iteration % interval == 0 or iteration == 1:
            mean = sum(since) / len(since)
            assert losses.take() == pytest.approx({"lm loss": mean, "z_loss": 10 * mean}, rel=1e-6)
            since.clear()


@pytest.mark.parametrize("log_interval", [1, 2, 100])
def test_skipped_iterations_do_not_count(log_interval: int) -> None:
    megatron, losses = Megatron(log_interval), IntervalLosses()
    for iteration in range(1, 7):
        megatron.iterate(iteration, float(iteration), losses, skipped=iteration % 2 == 0)
    assert losses.take()["lm loss"] == pytest.approx((1 + 3 + 5) / 3)
    megatron.iterate(7, 7.0, losses, skipped=True)
    assert losses.take() == {}
    megatron.iterate(8, 8.0, losses, skipped=False)
    assert losses.take()["lm loss"] == 8


def test_a_pipeline_stage_without_losses_has_none() -> None:
    losses = IntervalLosses()
    losses.see({"advanced iterations": 1, "skipped iterations": 0, "nan iterations": 0})
    assert losses.take() == {}
