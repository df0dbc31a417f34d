"""Fixtures that more than one kind of test uses."""

import functools
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import Ranks


def pytest_configure(config: pytest.Config) -> None:
    """Tests of the CPU find no package of GPU kernels; those in tests/gpu are run by themselves."""
    if not any(os.path.basename(arg.rstrip("/")) == "gpu" or "gpu/" in arg for arg in config.args):
        from grove_megatron.runtime.gpu_packages import hide_gpu_packages

        hide_gpu_packages()
    # Every parser of Megatron's reads the sources of its configuration classes for their help.
    inspect.getsource = functools.cache(inspect.getsource)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """A tiny random model of the authors' own code, with its logits and gradients."""
    return Path(__file__).parent / "data" / "grovemoe-tiny"
