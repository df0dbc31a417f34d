import json
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = (
    "import json, sys\n"
    "from grove_megatron.compat import environment_problems\n"
    "problems = environment_problems()\n"
    "print(json.dumps([problems, sorted({'torch', 'megatron.core', 'apex'} & set(sys.modules))]))\n"
)


@pytest.fixture
def problems_with(tmp_path, subprocess_environment):
    """Problems found by a fresh interpreter that has ``tmp_path`` before everything installed."""

    def run() -> list[str]:
        path = f"{tmp_path}:{subprocess_environment['PYTHONPATH']}"
        done = subprocess.run(
            [sys.executable, "-c", REPORT],
            env={**subprocess_environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        problems, imported = json.loads(done.stdout)
        assert imported == []
        return problems

    return run


def write_megatron(folder: Path, version: str) -> None:
    core = folder / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (core / "package_info.py").write_text(f"__version__ = {version!r}\n")


def write_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_what_is_installed_here_has_no_problems_and_nothing_is_imported_to_see_it(problems_with):
    assert problems_with() == []


@pytest.mark.parametrize("version", ["0.18.2", "0.20.0", "0.20.0rc1", "0.19.0rc0", "1.0"])
def test_a_megatron_out_of_range_is_named_with_the_range_and_the_remedy(
    problems_with, tmp_path, version
):
    write_megatron(tmp_path, version)
    (problem,) = problems_with()
    assert problem.startswith(f"megatron-core ({version}) is not in the range (")
    assert "<0.20" in problem
    assert ">=0.19" in problem
    assert "; pip install 'megatron-core[training]" in problem


@pytest.mark.parametrize("version", ["0.19.0", "0.19.99", "0.19.1rc1", "0.19.2+local"])
def test_a_megatron_in_range_is_accepted(problems_with, tmp_path, version):
    write_megatron(tmp_path, version)
    assert problems_with() == []


def test_a_clone_on_the_path_is_asked_and_not_the_installed_wheel(problems_with, tmp_path):
    write_megatron(tmp_path, "0.12.0")
    (problem,) = problems_with()
    assert problem.startswith("megatron-core (0.12.0)")


@pytest.mark.parametrize(
    ("place", "expected"), [("site-packages", "0.19.2"), ("clone", "0.19.2+1a2b3c4")]
)
def test_the_commit_around_an_environment_is_no_part_of_a_wheel_s_version(
    place: str, expected: str, tmp_path, subprocess_environment
):
    write_megatron(tmp_path / place, "0.19.2+1a2b3c4")
    path = f"{tmp_path / place}:{subprocess_environment['PYTHONPATH']}"
    show = "from grove_megatron.compat import megatron_version; print(megatron_version())"
    environment = {**subprocess_environment, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == expected


def test_a_torch_out_of_range_is_named(problems_with, tmp_path):
    write_distribution(tmp_path, "torch", "2.5.1")
    (problem,) = problems_with()
    assert problem == "torch (2.5.1) is not in the range (>=2.11); pip install 'torch>=2.11'"


def test_another_apex_is_named(problems_with, tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (problem,) = problems_with()
    assert problem.startswith("apex (the package of that name on PyPI) is not NVIDIA Apex")
    assert "pip uninstall apex" in problem


def test_an_apex_of_one_file_is_another_apex(problems_with, tmp_path):
    (tmp_path / "apex.py").write_text("")
    assert len(problems_with()) == 1


def test_nvidias_apex_is_accepted(problems_with, tmp_path):
    (tmp_path / "apex" / "multi_tensor_apply").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    assert problems_with() == []


def test_all_problems_are_listed(problems_with, tmp_path):
    write_megatron(tmp_path, "0.12.0")
    write_distribution(tmp_path, "torch", "2.5.1")
    (tmp_path / "apex").mkdir()
    assert [line.split()[0] for line in problems_with()] == ["megatron-core", "torch", "apex"]


def test_a_megatron_that_does_not_say_its_version_counts_as_none(problems_with, tmp_path):
    write_megatron(tmp_path, "0.19.2")
    (tmp_path / "megatron" / "core" / "package_info.py").unlink()
    (problem,) = problems_with()
    assert problem.startswith("megatron-core (not installed) is not in the range")
