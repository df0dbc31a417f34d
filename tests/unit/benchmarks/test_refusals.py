"""What ``grove bench`` refuses: every problem at once, before anything starts."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.benchmarks.commands import settings_of
from grove_megatron.benchmarks.refusals import kernel_problems, problems
from grove_megatron.benchmarks.shape import PRESETS, Settings

OPTIONS: dict[str, Any] = {"preset": "small", "threads": 1, "rounds": 3, "warmup": 1}
FORM = re.compile(r"--[a-z-]+ \(.+\) .+ \(.+\).*; \S.*")


def settings(benchmark: str = "layer", ranks: int = 1, **options: Any) -> Settings:
    return settings_of(benchmark, OPTIONS | options, default_ranks=ranks)


@pytest.mark.parametrize(("benchmark", "preset"), [(b, p) for b in PRESETS for p in PRESETS[b]])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_preset_runs_on_1_2_and_4_ranks(benchmark: str, preset: str, ranks: int) -> None:
    assert problems(settings(benchmark, ranks, preset=preset)) == []


@pytest.mark.parametrize(
    ("benchmark", "options", "says"),
    [
        ("layer", {"preset": "huge"}, "--preset (huge) is not one of (small, 33b)"),
        ("layer", {"dtype": "fp8"}, "--dtype (fp8) is not one of (fp32, bf16)"),
        ("layer", {"kernel": ["fast"]}, "--kernel (fast) is not one of"),
        ("layer", {"variant": ["ours", "grove"]}, "--variant (ours) is not one of"),
        ("layer", {"variant": ["plain"]}, "--variant (plain) leaves out (grove)"),
        ("layer", {"tokens": 0}, "--tokens (0) is below (1)"),
        ("layer", {"expert_width": -8}, "--expert-width (-8) is below (1)"),
        ("layer", {"adjugate_width": 0}, "--adjugate-width (0) is below (1)"),
        ("layer", {"rounds": 0}, "--rounds (0) is below (1)"),
        ("layer", {"warmup": -1}, "--warmup (-1) is below (0)"),
        ("layer", {"threads": 0}, "--threads (0) is below (1)"),
        ("layer", {"groups": 7}, "--groups (7) does not divide --experts (64)"),
        ("layer", {"group_size": 5}, "--group-size (5) times --groups (12) is not --experts (64)"),
        ("layer", {"group_size": 4, "groups": 8}, "--group-size (4) times --groups (8) is not"),
        ("layer", {"ranks": 3}, "--ranks (3) does not divide --groups (32)"),
        ("layer", {"topk": 65}, "--topk (65) is above --experts (64)"),
        ("layer", {"topk": 1}, "--topk (1) leaves the router without a gradient"),
        ("step", {"hidden": 96}, "--hidden (96) is not a multiple of the head size (64)"),
        ("step", {"layers": 0}, "--layers (0) is below (1)"),
        ("step", {"kernel": ["te"]}, "--kernel (te) is not one of those of (step)"),
        ("step", {"kernel": ["grouped", "sequential"]}, "--kernel (grouped, sequential) is more"),
        ("scaling", {"kernel": ["grouped", "sequential"]}, "is more than a benchmark of (scaling)"),
        ("scaling", {"hidden": 32}, "--hidden (32) makes rows no wider"),
        ("kernels", {"topk": 65}, "--topk (65) is above --experts (64)"),
        ("dispatch", {"ranks": 4, "ranks_per_node": 1}, "--ranks-per-node (1) is below (2)"),
        ("dispatch", {"ranks": 4, "ranks_per_node": 3}, "--ranks-per-node (3) does not divide"),
        ("dispatch", {"ranks": 4, "ranks_per_node": 4}, "(4) puts all --ranks (4) on one node"),
        ("dispatch", {"hidden": 32, "ranks": 2}, "--hidden (32) makes rows no wider"),
    ],
)
def test_an_impossible_setting_is_named(benchmark: str, options: dict[str, Any], says: str) -> None:
    (line,) = problems(settings(benchmark, **options))
    assert says in line
    assert FORM.fullmatch(line)


def test_dispatch_may_choose_one_expert_a_token_and_has_no_widths() -> None:
    assert problems(settings("dispatch", topk=1)) == []
    assert settings("dispatch").shape.expert_width == 0


def test_kernels_have_no_router_and_nodes_are_even() -> None:
    assert problems(settings("kernels", topk=1)) == []
    assert problems(settings("dispatch", ranks=4, ranks_per_node=2)) == []
    assert settings("dispatch").ranks_per_node is None


def test_a_group_size_sets_the_groups() -> None:
    assert settings(group_size=8).shape.groups == 8
    assert settings(group_size=8, experts=128).shape.groups == 16
    assert problems(settings(group_size=8, adjugate_width=128)) == []


def test_kernels_that_need_a_gpu_are_refused_without() -> None:
    both = settings(kernel=["triton", "te", "grouped"])
    without = kernel_problems(both, on_cuda=False)
    assert [line.split(" needs ")[0] for line in without] == ["--kernel (triton)", "--kernel (te)"]
    assert all(FORM.fullmatch(line) for line in without)
    assert kernel_problems(replace(both, kernels=("triton",)), on_cuda=True) == []


def test_a_file_of_other_results_is_not_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text("a,b\n1,2\n")
    (line,) = problems(settings(csv=file))
    assert line.startswith(f"--csv ({file}) has columns (a,b) other than (timestamp,")
    (line,) = problems(settings(csv=tmp_path))
    assert "is a folder" in line
    assert problems(settings(csv=tmp_path / "new" / "file.csv")) == []


def test_the_command_lists_every_problem_and_exits_2_before_it_imports_torch(
    subprocess_environment: dict[str, str], tmp_path: Path
) -> None:
    # A torch that cannot be imported.
    (tmp_path / "torch.py").write_text("raise ImportError('too early')")
    path = f"{tmp_path}:{subprocess_environment['PYTHONPATH']}"
    command = "bench layer --groups 7 --tokens 0 --dtype fp8 --ranks 4"
    done = subprocess.run(
        [sys.executable, "-m", "grove_megatron", *command.split()],
        env=subprocess_environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "4 problems, nothing was started" in done.stderr
    for flag in ("--groups (7)", "--tokens (0)", "--dtype (fp8)", "--ranks (4)"):
        assert flag in done.stderr
    assert done.stdout == ""
