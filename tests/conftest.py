"""Fixtures that more than one kind of test uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """A tiny random model of the authors' own code, with its logits and gradients."""
    return Path(__file__).parent / "data" / "grovemoe-tiny"
