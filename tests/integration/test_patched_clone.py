"""A patched ``pretrain_gpt.py`` trains like an unpatched one under ``grove_megatron.run``."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from .launching import REPOSITORY, Finished, launch, reported_steps, tiny_model, torchrun

CLONE = Path(os.environ.get("MEGATRON_LM", ""))
APPLY = REPOSITORY / "patches" / "core_v0.19.0" / "apply.py"

pytestmark = pytest.mark.skipif(
    not (CLONE / "pretrain_gpt.py").is_file() or "MEGATRON_LM" not in os.environ,
    reason="MEGATRON_LM names no folder with a pretrain_gpt.py",
)


def _scripts(folder: Path) -> Path:
    """The clone's entry script without the clone's Megatron: the installed one is used."""
    folder.mkdir()
    for name in ("pretrain_gpt.py", "gpt_builders.py", "model_provider.py"):
        shutil.copy(CLONE / name, folder)
    return folder / "pretrain_gpt.py"


def _patched(folder: Path) -> Path:
    clone = folder / "clone"
    (clone / "megatron" / "core").mkdir(parents=True)
    info = Path("megatron", "core", "package_info.py")
    shutil.copy(CLONE / info, clone / info)
    shutil.copy(CLONE / "pretrain_gpt.py", clone)
    done = launch([sys.executable, str(APPLY), "apply", str(clone)], timeout=600)
    assert done.code == 0, done.output
    script = _scripts(folder / "patched")
    shutil.copy(clone / "pretrain_gpt.py", script)
    return script


def _train(*entry: str) -> Finished:
    flags = [*tiny_model(), "--expert-model-parallel-size", "2", "--train-iters", "3"]
    return launch(torchrun(*entry, *flags), GROVE_RUNTIME="cpu")


@pytest.mark.long
def test_losses_are_those_of_the_unpatched_script(tmp_path: Path) -> None:
    patched = _train(str(_patched(tmp_path)))
    assert patched.code == 0, patched.output
    unpatched = _train("-m", "grove_megatron.run", str(_scripts(tmp_path / "unpatched")))
    assert unpatched.code == 0, unpatched.output
    assert sorted(reported_steps(patched.output)) == [1, 2, 3]
    assert reported_steps(patched.output) == reported_steps(unpatched.output)


@pytest.mark.long
def test_patched_script_under_run_enters_the_runtime_once(tmp_path: Path) -> None:
    done = _train("-m", "grove_megatron.run", str(_patched(tmp_path)))
    assert done.code == 0, done.output
    assert sorted(reported_steps(done.output)) == [1, 2, 3]
    assert done.output.count("grove_megatron: runtime CPU") == 1


def test_patched_script_refuses_what_cannot_work(tmp_path: Path) -> None:
    done = launch(
        torchrun(str(_patched(tmp_path)), *tiny_model(), "--grove-num-groups", "3"),
        GROVE_RUNTIME="cpu",
    )
    assert done.code != 0
    assert "--grove-num-groups (3) does not divide --num-experts (8)" in done.output
