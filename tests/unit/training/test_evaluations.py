"""What an evaluation of Megatron's found goes to the tracker, and nothing else changes."""

from argparse import Namespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_logging import (
    MoEMetricsTracker,
    get_moe_metrics_tracker,
    set_moe_metrics_tracker,
)
from megatron.training import training

from grove_megatron.report.record import Evaluation, read_record
from grove_megatron.training import evaluations
from grove_megatron.training.metrics import RoutingTracker
from tests.unit.report.intervals import RUN, interval

from .test_metrics import tracker

PATCHES = {patch.name: patch for patch in evaluations.PATCHES}


@pytest.fixture(autouse=True)
def others_tracker() -> Any:
    before = get_moe_metrics_tracker()
    yield
    set_moe_metrics_tracker(before)


def evaluated(
    monkeypatch: pytest.MonkeyPatch, prefix: str, found: list[Any], **settings: Any
) -> Any:
    """Megatron's function, as far as it matters here, with both patches."""
    args = Namespace(**{"multiple_validation_sets": False, "validation_set_names": None} | settings)
    monkeypatch.setattr("megatron.training.get_args", lambda: args)
    answers = iter(found)
    evaluate = PATCHES["evaluation-losses"].make(lambda *given, **named: next(answers))

    def evaluate_and_print(*given: Any, **named: Any) -> str:
        assert given[:1] == (prefix,)
        return " ".join(str(evaluate()) for _ in found)

    patched = PATCHES["evaluation-set"].make(evaluate_and_print)
    return patched(prefix, "step", "data", "model", 20, "process", verbose=True)


def test_losses_are_recorded_with_their_set(tmp_path: Any, monkeypatch: Any) -> None:
    made = tracker(tmp_path)
    made._run = RUN
    made._record(interval(iteration=20))
    set_moe_metrics_tracker(made)
    loss = ({"lm loss": torch.tensor(2.5)}, None, False)
    assert evaluated(monkeypatch, "iteration 20", [loss]) == str(loss)
    evaluated(monkeypatch, "iteration 20 on validation set", [loss])
    evaluated(monkeypatch, "iteration 20 on test set", [loss])
    many = {"multiple_validation_sets": True}
    evaluated(monkeypatch, "iteration 20", [loss, loss], **many)
    evaluated(monkeypatch, "iteration 20", [loss], **many, validation_set_names=["code"])
    found = read_record(tmp_path / "routing.jsonl").evaluations
    assert [e.of for e in found] == [
        *("validation", "validation", "test"),
        *("validation-0", "validation-1", "validation-code"),
    ]
    assert {(e.iteration, e.losses["lm loss"]) for e in found} == {(20, 2.5)}
    assert all(isinstance(e, Evaluation) and e.seconds >= 0 for e in found)


@pytest.mark.parametrize("found", [(None, None, True), ({}, None, False)])
def test_what_has_no_loss_is_not_recorded(found: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Where a time limit ended it, and on a pipeline stage without the loss."""
    made = tracker(tmp_path)
    made._run = RUN
    set_moe_metrics_tracker(made)
    evaluated(monkeypatch, "iteration 20", [found])
    assert not list(tmp_path.iterdir())


def test_without_grove_layers_or_training_nothing_is_recorded(
    tmp_path: Any, monkeypatch: Any
) -> None:
    loss = ({"lm loss": torch.tensor(2.5)}, None, False)
    set_moe_metrics_tracker(MoEMetricsTracker())
    assert evaluated(monkeypatch, "iteration 20", [loss]) == str(loss)
    made = tracker(tmp_path)
    made._run = None
    set_moe_metrics_tracker(made)
    evaluated(monkeypatch, "iteration 20", [loss])
    assert not list(tmp_path.iterdir())
    assert isinstance(get_moe_metrics_tracker(), RoutingTracker)


def test_the_patched_functions_call_each_other_by_the_patched_names() -> None:
    called = training.evaluate_and_print_results.__code__.co_names
    assert "evaluate" in called
