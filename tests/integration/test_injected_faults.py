"""A fault in a running job is named in every log that is left, and loses what it has to."""

from pathlib import Path

import pytest

from tests.ranks import Ranks

from . import injected_faults
from .injected_faults import FAULTS, CannotBeTried, Fault

# The messages come in seconds where a machine has nothing else to do.
SECONDS = 120


@pytest.fixture(scope="module", autouse=True)
def _reference(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> None:
    injected_faults.make_reference(ranks, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=() if fault.short else pytest.mark.long)
        for fault in FAULTS
    ],
)
def test_a_fault(fault: Fault, ranks: Ranks, tmp_path: Path) -> None:
    try:
        outcome = injected_faults.run(fault, ranks, tmp_path)
    except CannotBeTried as why:
        pytest.skip(str(why))
    assert outcome.problems == [], "\n".join(outcome.job.log(rank)[-3000:] for rank in (0, 1))
    if fault.says:
        assert outcome.seconds is not None
        assert outcome.seconds < SECONDS
