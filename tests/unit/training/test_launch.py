"""What comes before Megatron's training loop; the runs themselves are in tests/integration."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import pytest

from grove_megatron.checks.problem import Problem
from grove_megatron.runtime import cpu
from grove_megatron.training import launch

from ..conftest import GROVE, MODEL


@pytest.mark.parametrize("minutes", [0, 10**13])
@pytest.mark.parametrize("flags", [GROVE, ""], ids=["groups", "plain"])
def test_a_timeout_is_refused_before_ranks_wait_by_it(
    minutes: int, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def refuse(problems: Sequence[Problem]) -> NoReturn:
        said.extend(map(str, problems))
        raise SystemExit(2)

    monkeypatch.setattr(launch, "refuse", refuse)
    monkeypatch.setattr(launch, "begin", lambda args: pytest.fail("ranks wait"))
    words = f"{MODEL} {flags} --mock-data --distributed-timeout-minutes {minutes}"
    monkeypatch.setattr(sys, "argv", ["pretrain", *words.split()])
    with cpu(), pytest.raises(SystemExit):
        launch.parse_arguments()
    assert said[0].startswith(f"--distributed-timeout-minutes ({minutes}) is not between 1 and ")
    assert "--lr (None) is needed; give the learning rate" in said
    assert len(said) == len({*said})
