"""``docs/guides``: the commands run on the clone of ``MEGATRON_LM``, and print what they show."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.fences import fences_in

from .launching import REPOSITORY, launch

GUIDE = REPOSITORY / "docs" / "guides" / "from_a_script.md"
CLONE = Path(os.environ.get("MEGATRON_LM", ""))
# What the scripts and the patches are of.
OF_THE_CLONE = ("pretrain_gpt.py", "megatron/core/package_info.py", "examples")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (CLONE / "pretrain_gpt.py").is_file() or "MEGATRON_LM" not in os.environ,
        reason="MEGATRON_LM names no folder with a pretrain_gpt.py",
    ),
]


def files_of(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_published_script_becomes_a_job_that_doctor_passes(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in OF_THE_CLONE:
        source, target = CLONE / name, clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    before = files_of(clone)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("python", ""), ("grove", "-m grove_megatron")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / name).chmod(0o755)
    blocks = fences_in(GUIDE.read_text(), GUIDE.name)
    shown = [block.text for block in blocks if block.mark == "output of"]
    script = "\n".join(block.text for block in blocks if block.language == "sh")
    done = launch(
        ["bash", "-c", f"cd {REPOSITORY} && {script}"],
        MEGATRON_LM=str(clone),
        PATH=f"{commands}:{os.environ['PATH']}",
    )
    output = done.output.replace(f"{clone}/", "")
    # Warnings of Megatron and of the scripts stand between.
    printed = iter(output.splitlines())
    missing = [line for text in shown for line in text.splitlines() if line not in printed]
    assert missing == [], output
    assert len(shown) == 5
    assert output.count("no problem found, 32 processes on cuda") == 2
    assert files_of(clone) == before
