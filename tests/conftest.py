"""Fixtures that more than one kind of test uses."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import Ranks
from tests.sources import read_sources_once


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tests of the CPU find no package of GPU kernels; those in tests/gpu are run by themselves."""
    if not any(os.path.basename(arg.rstrip("/")) == "gpu" or "gpu/" in arg for arg in config.args):
        from grove_megatron.runtime.gpu_packages import hide_gpu_packages

        hide_gpu_packages()
    # The workers of pytest-xdist have none.
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(Failures(terminal))


def pytest_collection_finish() -> None:
    read_sources_once()
    # What was imported stays: a collection of garbage need not visit it.
    gc.collect()
    gc.freeze()


class Failures:
    """Say at once what failed: a run that is cut off has no summary."""

    def __init__(self, terminal: pytest.TerminalReporter):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            last = report.longreprtext.strip().splitlines()[-12:]
            self.terminal.write_line("\n".join(["", f"FAILED {report.nodeid}", *last]))


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """A tiny random model of the authors' own code, with its logits and gradients."""
    return Path(__file__).parent / "data" / "grovemoe-tiny"


@pytest.fixture(scope="session")
def moepp_folder() -> Path:
    """The same of MoE++, with the logits of its routers."""
    return Path(__file__).parent / "data" / "moepp-tiny"
