"""Optional packages: found without importing them, and named where a job's flags need them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.training import preflight
from grove_megatron.training.installed import (
    APEX_KERNELS,
    Installed,
    Package,
    look,
    package_problems,
    uses,
)

from ..conftest import in_lines
from .command_lines import parsed

package_problems = in_lines(package_problems)

ENGINE = Package("TransformerEngine", "2.20.2")
APEX = Package("Apex", "0.1")
TRITON = Package("Triton", "3.7.1")
EVERYTHING = Installed(ENGINE, APEX, TRITON)
NOTHING = Installed(Package("TransformerEngine", None), Package("Apex", None), TRITON)
# What the flags of command_lines.py switch off for the CPU.
DEFAULTS = {
    "gradient_accumulation_fusion": True,
    "masked_softmax_fusion": True,
    "apply_rope_fusion": True,
    "no_persist_layer_norm": False,
}
LOCAL = {"transformer_impl": "local", "position_embedding_type": "rope", "bf16": True}
LOCAL |= {"normalization": "RMSNorm", "seq_length": 32, "num_attention_heads": 4}
ENGINES = {"transformer_impl": "transformer_engine", "moe_grouped_gemm": True}
OFF = {name: not value for name, value in DEFAULTS.items()}


def args(**settings: Any) -> Any:
    found = parsed()
    for name, value in settings.items():
        assert hasattr(found, name), name
        setattr(found, name, value)
    return found


def subjects(settings: dict[str, Any], found: Installed) -> list[str]:
    problems = package_problems(args(**settings), found)
    assert all("; " in problem for problem in problems)
    return [problem.split()[0] for problem in problems]


def test_megatrons_defaults_on_a_bare_machine_are_all_named_at_once() -> None:
    assert subjects(LOCAL | DEFAULTS, NOTHING) == [
        "--no-gradient-accumulation-fusion",
        "--no-masked-softmax-fusion",
        "--no-persist-layer-norm",
        "--no-rope-fusion",
    ]


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        (LOCAL | OFF, NOTHING, []),
        (ENGINES | OFF, NOTHING, ["--transformer-impl"]),
        (ENGINES | DEFAULTS, EVERYTHING, []),
        (ENGINES | DEFAULTS, Installed(ENGINE, NOTHING.apex, TRITON), ["--no-gradient-acc"]),
        (LOCAL | DEFAULTS, EVERYTHING, ["--no-persist-layer-norm"]),
        (LOCAL | DEFAULTS | {"normalization": "LayerNorm"}, EVERYTHING, []),
        # Megatron calls the softmax kernel for these shapes and dtypes alone.
        (LOCAL | OFF | {"masked_softmax_fusion": True, "seq_length": 8192}, NOTHING, []),
        (LOCAL | OFF | {"masked_softmax_fusion": True, "num_attention_heads": 2}, NOTHING, []),
        (LOCAL | OFF | {"masked_softmax_fusion": True, "bf16": False}, NOTHING, []),
        # Without rotary embeddings there is nothing to fuse.
        (
            LOCAL | OFF | {"apply_rope_fusion": True, "position_embedding_type": "none"},
            NOTHING,
            [],
        ),
        # Norms of this package stand under sequence parallelism.
        (
            LOCAL
            | OFF
            | {
                "no_persist_layer_norm": False,
                "sequence_parallel": True,
                "tensor_model_parallel_size": 2,
            },
            NOTHING,
            [],
        ),
    ],
)
def test_what_is_named_is_what_would_fail(
    settings: dict[str, Any], found: Installed, expected: list[str]
) -> None:
    seen = subjects(settings, found)
    assert len(seen) == len(expected)
    assert all(flag.startswith(start) for flag, start in zip(seen, expected, strict=True))


def test_a_transformer_engine_without_its_torch_part_is_named() -> None:
    half = Package("TransformerEngine", "2.20.2", ("transformer_engine_torch",))
    (problem,) = package_problems(args(**LOCAL | OFF), Installed(half, NOTHING.apex, TRITON))
    assert problem.startswith("TransformerEngine (2.20.2) is installed without (transformer_engine")


def test_an_apex_without_kernels_is_named_unless_transformer_engine_brings_the_optimizer() -> None:
    bare = Package("Apex", "0.1", tuple(APEX_KERNELS))
    (problem,) = package_problems(
        args(**LOCAL | OFF), Installed(NOTHING.transformer_engine, bare, TRITON)
    )
    assert problem.startswith("Apex (0.1) is installed without (amp_C")
    assert package_problems(args(**LOCAL | OFF), Installed(ENGINE, bare, TRITON)) == []


def test_what_a_run_uses_is_said_part_by_part() -> None:
    assert uses(args(**ENGINES), EVERYTHING, "cuda") == [
        "layers: TransformerEngine (2.20.2)",
        "experts and adjugates: TransformerEngine (2.20.2), grouped",
        "norms: TransformerEngine (2.20.2)",
        "optimizer: TransformerEngine (2.20.2)",
    ]
    only_apex = Installed(NOTHING.transformer_engine, APEX, TRITON)
    assert uses(args(**LOCAL | {"normalization": "LayerNorm"}), only_apex, "cuda") == [
        "layers: Megatron and torch",
        "experts and adjugates: grouped, Triton (3.7.1)",
        "norms: Apex (0.1)",
        "optimizer: Apex (0.1)",
    ]
    assert uses(args(**LOCAL, grove_kernel="megatron"), NOTHING, "cuda") == [
        "layers: Megatron and torch",
        "experts and adjugates: Megatron's, one by one",
        "norms: torch",
        "optimizer: torch",
    ]
    assert len(uses(args(), EVERYTHING, "cpu")) == 1


@pytest.mark.parametrize(("here", "device"), [(True, "cuda"), (False, "cuda"), (True, "cpu")])
def test_a_job_is_refused_for_packages_on_the_machine_it_will_run_on(
    here: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: here)
    monkeypatch.setattr(preflight, "look", lambda: NOTHING)
    problems = in_lines(preflight.preflight)(
        args(**LOCAL | OFF | {"apply_rope_fusion": True}), device
    )
    named = [problem for problem in problems if problem.startswith("--no-rope-fusion")]
    assert bool(named) is (here and device == "cuda")


LOOK = (
    "import json, sys\n"
    "from grove_megatron.training.installed import look\n"
    "found = look()\n"
    "names = ('transformer_engine', 'apex', 'triton', 'torch')\n"
    "assert not set(names) & set(sys.modules)\n"
    "print(json.dumps([str(found.transformer_engine), str(found.apex)]))\n"
)


def looked(folder: Path) -> list[str]:
    """What a fresh interpreter finds that has ``folder`` before everything installed."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[3])])
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def package(folder: Path, name: str, *files: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    for file in files:
        (folder / name / file).parent.mkdir(exist_ok=True)
        (folder / name / file).touch()


def test_packages_are_found_without_importing_them(tmp_path: Path) -> None:
    package(tmp_path, "transformer_engine")
    package(tmp_path, "apex", "multi_tensor_apply/__init__.py")
    (tmp_path / "amp_C.py").touch()
    engine, apex = looked(tmp_path)
    assert engine.endswith("without transformer_engine_torch)")
    assert apex.endswith(
        "without fused_layer_norm_cuda, fused_weight_gradient_mlp_cuda, scaled_masked_softmax_cuda)"
    )


@pytest.mark.parametrize("place", ["", "wheel_lib/", "../"])
def test_the_torch_part_of_transformer_engine_is_found_wherever_it_is_built(
    place: str, tmp_path: Path
) -> None:
    package(tmp_path, "transformer_engine", f"{place}transformer_engine_torch.cpython-312.so")
    engine, _ = looked(tmp_path)
    assert engine.startswith("TransformerEngine (")
    assert "without" not in engine


def test_the_apex_of_pypi_is_no_apex(tmp_path: Path) -> None:
    package(tmp_path, "apex")
    assert looked(tmp_path)[1] == "Apex (not installed)"


def test_what_is_installed_here_is_found() -> None:
    assert look().triton.complete
