"""On the CPU runtime TransformerEngine and Apex are as if they were not installed."""

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from grove_megatron.runtime.gpu_packages import (
    GPU_PACKAGES,
    hide_gpu_packages,
    without_gpu_packages,
)


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All are there, and in sight; conftest.py hides them from all tests."""
    for name in GPU_PACKAGES:
        (tmp_path / f"{name}.py").touch()
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("visible")
def test_they_cannot_be_imported_inside_and_all_is_as_before_afterwards() -> None:
    before = dict(sys.modules)
    with without_gpu_packages():
        for name in GPU_PACKAGES:
            assert importlib.util.find_spec(name) is None
            with pytest.raises(ImportError):
                importlib.import_module(name)
    assert sys.modules == before
    for name in GPU_PACKAGES:
        assert importlib.util.find_spec(name) is not None


@pytest.mark.usefixtures("visible")
def test_they_can_be_hidden_for_good() -> None:
    assert hide_gpu_packages() == [*GPU_PACKAGES]
    gc.collect()
    assert all(importlib.util.find_spec(name) is None for name in GPU_PACKAGES)
    assert hide_gpu_packages() == []


@pytest.mark.usefixtures("visible")
def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    apex = ModuleType("apex")
    monkeypatch.setitem(sys.modules, "apex", apex)
    with without_gpu_packages():
        assert sys.modules["apex"] is apex
    assert sys.modules["apex"] is apex


def test_a_megatron_that_has_found_transformer_engine_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ModuleType("engine")
    engine.HAVE_TE = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron.core.extensions.transformer_engine", engine)
    message = r"megatron.core \(imported\) has found transformer_engine"
    with pytest.raises(ValueError, match=message), without_gpu_packages():
        pass


FOUND = (
    "from grove_megatron.runtime import cpu\n"
    "with cpu():\n"
    "    from megatron.core.extensions.transformer_engine import HAVE_TE\n"
    "    from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER\n"
    "    from megatron.core.models.gpt.gpt_layer_specs import HAVE_APEX\n"
    "print(HAVE_TE, HAVE_APEX, USING_PYTORCH_OPTIMIZER)\n"
)


@pytest.mark.long
def test_megatron_finds_none_of_them(
    tmp_path: Path, subprocess_environment: dict[str, str]
) -> None:
    for name in ("transformer_engine", "apex"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('{name} needs a GPU')\n")
    path = f"{tmp_path}:{subprocess_environment['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", FOUND],
        env={**subprocess_environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["False False True"], done.stderr[-2000:]
