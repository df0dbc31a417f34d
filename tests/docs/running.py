"""Run what a document shows: commands as its reader would, in processes that have Megatron already.

``grove`` and ``torchrun -m grove_megatron`` are forked from the zygote of the tests, which spares
each the import of Megatron; everything else is started.
"""

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from tests.integration.launching import launch
from tests.ranks import Ranks

from .fences import ROOT
from .prepared import prepare

_TORCHRUN = re.compile(r"torchrun (?:--standalone )?--nproc-per-node (\d) -m grove_megatron (.*)")


class Runner:
    """Runs commands in a folder of its own, where what they name is prepared."""

    def __init__(self, ranks: Ranks, folder: Path):
        self._ranks, self.folder = ranks, folder

    def printed(self, command: str) -> str:
        """What a command line prints, on both streams, of rank 0; its exit code is not asked."""
        return self.done(command)[1]

    def done(self, command: str) -> tuple[int, str]:
        """Exit code of a command line, and what it prints."""
        prepare(command, self.folder, self._run)
        if command.startswith("grove "):
            return self._forked("grove", shlex.split(command)[1:], self.folder)
        if match := _TORCHRUN.fullmatch(command):
            return self._forked("grove", shlex.split(match[2]), self.folder, int(match[1]))
        return self._started(command)

    def program(self, text: str) -> tuple[int, str]:
        """Exit code and output of a Python program."""
        prepare(text, self.folder, self._run)
        return self._forked("program", text, self.folder)

    def _run(self, words: list[str], folder: Path) -> str:
        kind, given = ("program", words[1]) if words[0] == "python" else ("grove", words[1:])
        return self._forked(kind, given, folder)[1]

    def _forked(
        self, kind: str, given: list[str] | str, folder: Path, ranks: int = 1
    ) -> tuple[int, str]:
        logs = Path(tempfile.mkdtemp(dir=self.folder))
        job = self._ranks.run(
            ranks, f"tests.docs.on_a_rank:{kind}", str(folder), given, folder=logs
        )
        return job.codes[0], job.log()

    def _started(self, command: str) -> tuple[int, str]:
        """By a shell, from the checkout, with the Python of the tests; RUN_DIR is made anew."""
        named = re.match(r"RUN_DIR=(\S+) ", command)
        made = tempfile.mkdtemp(dir=self.folder)
        environment = {"RUN_DIR": made, "COLUMNS": "100"}
        line = command[named.end() :] if named else command
        line = re.sub(r"^make (\w+)$", lambda match: _recipe(match[1]), line)
        words = shlex.split(line)
        program = [str(ROOT / words[0])] if words[0].startswith("examples/") else words[:1]
        job = launch([*program, *words[1:]], timeout=1800, **environment)
        return job.code, job.output.replace(made, named[1] if named else made)


def _recipe(target: str) -> str:
    """What ``make`` would run for a target, with this Python."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}: .*\n\t(.*)$", text, re.MULTILINE)
    assert found is not None, f"make {target} has no recipe"
    python = found[1].replace("$(PY)", sys.executable)
    return python.replace(" examples/", f" {ROOT}{os.sep}examples/")
