"""``grove`` commands on ranks, and what they leave behind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import Ranks

ONE: tuple[int, list[str]] = (1, [])


@dataclass(frozen=True)
class Finished:
    """What one ``grove`` command left behind, rank 0 first."""

    codes: list[int]
    outputs: list[str]
    logs: list[str]

    def check(self, code: int = 0) -> "Finished":
        assert self.codes == [code] * len(self.codes), self.logs[0][-6000:]
        return self

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.outputs[0].splitlines()[-1])
        return report


class Grove:
    """Runs ``grove`` commands."""

    def __init__(self, ranks: Ranks, factory: pytest.TempPathFactory):
        self.ranks, self._factory = ranks, factory

    def __call__(self, *argv: str, layout: tuple[int, list[str]] = ONE) -> Finished:
        return self.job("verify_job:grove", [*argv, *layout[1]], world_size=layout[0])

    def job(self, target: str, *args: Any, world_size: int = 1) -> Finished:
        folder = self._factory.mktemp("job")
        module = f"tests.integration.{target}"
        job = self.ranks.run(world_size, module, str(folder), *args, folder=folder)
        written = [folder / f"rank{rank}.stdout" for rank in range(world_size)]
        outputs = [file.read_text() if file.exists() else "" for file in written]
        return Finished(job.codes, outputs, [job.log(rank) for rank in range(world_size)])

    def results(self, target: str, *args: Any, world_size: int = 1) -> list[Any]:
        folder = self._factory.mktemp("results")
        module = f"tests.integration.{target}"
        job = self.ranks.run(world_size, module, str(folder), *args, folder=folder)
        return job.check().results()


def flags_of(checkpoint: Path) -> list[str]:
    return (checkpoint / "megatron_flags.txt").read_text().split()
