"""What cannot work is refused before anything starts: once, on rank 0, and every rank exits 2."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from grove_megatron.training.folder_lock import FolderLocks
from grove_megatron.training.lock_beat import LOCK
from tests.ranks import Job, Ranks

from .flags import MODEL
from .launching import REPOSITORY, Finished, launch, processes_that_name, torchrun

SCRIPT = str(Path(__file__).with_name("stock_entry_script.py"))
RUN = "tests.integration.recorded_run"
EP2 = ["--expert-model-parallel-size", "2"]
SPEC = "grove_megatron.layer_spec grove_layer_spec"


@dataclass(frozen=True)
class Refused:
    """Flags that win over :data:`MODEL`'s, and the lines rank 0 has to print for them."""

    flags: list[str]
    lines: list[str]


def case(flags: str, *lines: str) -> Refused:
    return Refused(flags.split(), list(lines))


# One for every place that checks; all others are in tests/unit.
REFUSED: dict[str, Refused] = {
    "grove": case(
        "--grove-num-groups 3 --grove-adjugate-scale 0.05",
        "--grove-num-groups (3) does not divide --num-experts (8); use one of 1, 2, 4, 8",
    ),
    "spec": case(
        "--spec grove_megatron.layer_spce grove_layer_spec",
        "--spec (grove_megatron.layer_spce grove_layer_spec) names a module that does not import "
        f"(No module named 'grove_megatron.layer_spce'); use --spec {SPEC}",
    ),
    "cpu": case(
        "--context-parallel-size 2",
        "--context-parallel-size (2) on the CPU runtime needs TransformerEngine attention; use 1",
    ),
}


def assert_refused(job: Job, lines: list[str]) -> None:
    """Every rank exits 2; rank 0 prints the numbered ``lines`` and nothing after them."""
    assert job.codes == [2, 2], job.log(0)[-6000:] + job.log(1)[-6000:]
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    expected = [f"grove_megatron: {count}, nothing was started:"]
    expected += [f"  {number}. {line}" for number, line in enumerate(lines, 1)]
    assert job.log(0).splitlines()[-len(expected) :] == expected
    assert not any(line in job.log(1) for line in lines)
    assert "nothing was started" not in job.log(1)


@pytest.mark.parametrize("name", REFUSED)
def test_pretrain_refuses(name: str, ranks: Ranks, tmp_path: Path) -> None:
    argv = [*MODEL, *REFUSED[name].flags]
    job = ranks.run(2, f"{RUN}:train", str(tmp_path), argv, folder=tmp_path)
    assert_refused(job, REFUSED[name].lines)


@pytest.mark.parametrize("name", ["grove"])
def test_an_unmodified_script_is_refused_the_same(name: str, ranks: Ranks, tmp_path: Path) -> None:
    argv = [SCRIPT, *MODEL, *REFUSED[name].flags]
    job = ranks.run(2, f"{RUN}:run_script", str(tmp_path), argv, folder=tmp_path)
    assert_refused(job, REFUSED[name].lines)


def test_a_scale_above_the_bound_trains_where_it_is_allowed(ranks: Ranks, tmp_path: Path) -> None:
    allowed = "--grove-adjugate-scale 0.6 --grove-allow-scale-above-bound --train-iters 1"
    argv = [*MODEL, *EP2, *allowed.split()]
    job = ranks.run(2, f"{RUN}:train", str(tmp_path), argv, folder=tmp_path).check()
    assert all(len(result["losses"]) == 1 for result in job.results())


# ------------------------------------------------------------------------------- under torchrun

MANY = {
    "--grove-num-groups 3": "--grove-num-groups (3) does not divide --num-experts (8)",
    "--expert-model-parallel-size 2": "--expert-model-parallel-size (2) does not divide",
    "--grove-adjugate-ffn-hidden-size 0": "--grove-adjugate-ffn-hidden-size (0) is not positive",
    "--grove-adjugate-scale 0.6": "--grove-adjugate-scale (0.6) is above groups / experts",
    "--moe-router-topk 1": "--moe-router-topk (1) with --grove-router-scoring (grove)",
    "--moe-token-dispatcher-type flex": "--moe-token-dispatcher-type (flex) is not supported",
    "--spec grove_megatron.layer_spce grove_layer_spec": "--spec (grove_megatron.layer_spce ",
    "--context-parallel-size 2": "--context-parallel-size (2) on the CPU runtime",
    "--transformer-impl transformer_engine": "--transformer-impl (transformer_engine) on the CPU",
    "--async-save": "--async-save (True) on the CPU runtime",
}


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "grove_megatron.pretrain"],
        pytest.param(["-m", "grove_megatron.run", SCRIPT], marks=pytest.mark.long),
        # The launcher ends all ranks when one exits; that must not be before rank 0 has spoken.
        pytest.param(["-m", "tests.integration.late_rank"], marks=pytest.mark.long),
    ],
    ids=["pretrain", "run", "rank-0-is-late"],
)
def test_all_problems_are_listed_once_and_last(program: list[str], tmp_path: Path) -> None:
    save = tmp_path / "save"
    flags = [word for flag in MANY for word in flag.split()]
    done = launch(
        torchrun(*program, *MODEL, *flags, "--save", str(save), "--save-interval", "1"),
        timeout=600,
        GROVE_RUNTIME="cpu",
    )
    assert done.code == 1, done.output  # torchrun's own; the ranks' codes are in its summary
    assert done.output.count("exitcode  : 2 ") == 2, done.output

    assert done.output.count("nothing was started") == 1, done.output
    _, listing = done.output.split(f"grove_megatron: {len(MANY)} problems, nothing was started:\n")
    lines = listing.splitlines()
    for number, line in enumerate(lines[: len(MANY)], 1):
        assert line.startswith(f"  {number}. --")
    for expected in MANY.values():
        assert sum(expected in line for line in lines[: len(MANY)]) == 1, done.output
        assert done.output.count(expected) == 1
    # After the list only torchrun speaks.
    assert all("torch" in line and "elastic" in line for line in lines[len(MANY) :][:1]), lines
    assert not save.exists()


def test_a_second_job_in_one_folder_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    """The process that runs the tests, as the first; a problem of rank 0 that all ranks hear."""
    save = tmp_path / "save"
    first = FolderLocks()
    assert first.take({"--save": save}, print) == []
    argv = [*MODEL, *EP2, "--save", str(save), "--load", str(save), "--save-interval", "1"]
    job = ranks.run(2, f"{RUN}:train", str(tmp_path), argv, folder=tmp_path)
    assert job.codes == [2, 2], job.log()
    problem = f"  1. --save ({save}) is written to by another job (process {os.getpid()} on "
    assert f"grove_megatron: 1 problem, nothing was started:\n{problem}" in job.log(0)
    assert os.listdir(save) == [LOCK]
    first.release()


def test_a_rank_that_fails_ends_the_job(tmp_path: Path) -> None:
    marker = tmp_path / "failed_at"
    argv = [*MODEL, *EP2, "--train-iters", "100000", "--data-cache-path", str(tmp_path)]
    done = launch(
        torchrun("-m", "tests.integration.failing_rank", str(marker), *argv),
        timeout=600,
        GROVE_RUNTIME="cpu",
    )
    ended = time.time()
    assert done.code != 0
    assert " iteration        1/" in done.output
    assert " iteration        2/" not in done.output
    assert "RuntimeError: rank 1 fails at iteration 2" in done.output
    assert ended - float(marker.read_text()) < 120
    assert not processes_that_name(str(marker))


# ------------------------------------------------------------------------------ the installation

PROGRAMS = {
    "pretrain": ["grove_megatron.pretrain", *MODEL],
    "run": ["grove_megatron.run", SCRIPT, *MODEL],
    "verify": ["grove_megatron", "verify", "--hf", ".", "--golden", "golden.safetensors"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_megatron_out_of_range_is_refused_with_both_versions(
    program: str, tmp_path: Path
) -> None:
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise SystemExit('a Megatron out of range was imported')\n")
    (core / "package_info.py").write_text("__version__ = '0.20.0'\n")
    done = _start(program, tmp_path)
    assert done.code == 2, done.output
    problem = done.output.splitlines()[-1]
    assert problem.startswith("  1. megatron-core (0.20.0) is not in the range (")
    assert ">=0.19" in problem
    assert "<0.20" in problem
    assert "pip install 'megatron-core" in problem


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_foreign_apex_is_refused_by_name(program: str, tmp_path: Path) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise SystemExit('apex was imported')\n")
    done = _start(program, tmp_path)
    assert done.code == 2, done.output
    problem = done.output.splitlines()[-1]
    assert problem.startswith("  1. apex (the package of that name on PyPI) is not NVIDIA Apex")
    assert "pip uninstall apex" in problem


def _start(program: str, first_on_path: Path) -> Finished:
    path = os.pathsep.join([str(first_on_path), str(REPOSITORY)])
    return launch([sys.executable, "-m", *PROGRAMS[program]], timeout=600, PYTHONPATH=path)
