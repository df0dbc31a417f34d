"""A plugin of pytest: what every test did goes to the journal as soon as it is over."""

import time
from pathlib import Path
from typing import Any

from .journal import note

_LONGEST = 2000


class Stream:
    """Notes the tests of one item.

    Args:
        folder: of the results.
        item: the name of the item.
    """

    def __init__(self, folder: Path, item: str) -> None:
        self._folder, self._item = folder, item
        self._began = 0.0

    def pytest_collection_finish(self, session: Any) -> None:
        """How many there are, so that those are known that never ran."""
        note(self._folder, "collected", item=self._item, count=len(session.items))

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot even be imported."""
        if report.failed:
            self._write(report, "error", report.longreprtext)

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        """The clock of a test, its fixtures included."""
        self._began = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One line a test: of the call, or of whatever kept it from being called."""
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome if report.when == "call" or report.skipped else "error"
            text = "" if report.passed else _reason(report)
            self._write(report, outcome, text)

    def _write(self, report: Any, outcome: str, text: str) -> None:
        note(
            self._folder,
            "test",
            item=self._item,
            test=report.nodeid.rpartition("/")[2],
            outcome=outcome,
            seconds=round(time.monotonic() - self._began, 3) if self._began else 0.0,
            text=text[-_LONGEST:],
        )


def _reason(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longreprtext)
