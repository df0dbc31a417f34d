"""A part is one file: with it in the folder, everything that is made from parts knows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRATCH = '''"""A temperature of the logits, for a test."""

from dataclasses import dataclass, replace

from ...checks.rules import Check
from ..part import Part


@dataclass
class Settings:
    """Temperature."""

    grove_logit_temperature: float = 1.0
    """The logits are divided by it."""


class Divided:
    def __init__(self, temperature):
        self.temperature = temperature

    def __call__(self, logits, seen):
        return replace(logits, z_TE=logits.z_TE / self.temperature)


PARTS = (
    Part(
        slot="logits",
        name="temperature",
        help="logits by a temperature",
        source="arXiv 1503.02531, Eq. 1",
        settings=Settings,
        switch="grove_logit_temperature",
        is_on=lambda s: s.grove_logit_temperature != 1,
        build=lambda config: Divided(config.grove_logit_temperature),
        reference=lambda config: Divided(config.grove_logit_temperature),
        rules=lambda s: [*Check(s).finite("grove_logit_temperature", "1 is none", above=True)],
        tried="--grove-logit-temperature 2",
        formula="z_TE -> z_TE / temperature",
        when="For a test.",
    ),
)
'''


def copied(folder: Path, part: str) -> Path:
    """A checkout with one more file."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "grove_megatron", folder / "grove_megatron", ignore=skipped)
    for name in ("tests", "examples", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "grove_megatron/parts/logits/temperature.py").write_text(part)
    subprocess.run(
        [sys.executable, "-m", "grove_megatron.parts", "--write"], cwd=folder, check=True
    )
    return folder


def pytest_in(folder: Path) -> subprocess.CompletedProcess[str]:
    """Every test of parts that is of the new one."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q"]
    chosen = [
        *("tests/unit/parts/test_parts.py", "tests/unit/parts/test_known.py"),
        "tests/unit/cards/test_cards.py",
    ]
    return subprocess.run(
        [*command, *chosen, "-k", "temperature"],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_a_new_file_is_tested_and_known_and_nothing_else_changes(tmp_path: Path) -> None:
    run = pytest_in(copied(tmp_path, SCRATCH))
    assert run.returncode == 0, run.stdout
    # Oracle, evaluation, weights, flags, doctor, page, card.
    assert "17 passed" in run.stdout
    wrong = SCRATCH.replace("logits.z_TE / self", "logits.z_TE * self", 1)
    wrong = wrong.replace(
        "reference=lambda config: Divided(config.grove_logit_temperature)",
        "reference=lambda config: Divided(1 / config.grove_logit_temperature**2)",
    )
    folder = tmp_path / "wrong"
    folder.mkdir()
    run = pytest_in(copied(folder, wrong))
    assert run.returncode == 1
    assert "8 failed" in run.stdout
