"""What an unpacked Megatron still has of the patch targets, read and not imported."""

import hashlib
import shutil
from pathlib import Path

import megatron.core
import pytest

from grove_megatron.runtime.__main__ import main, patch_sets
from grove_megatron.runtime.registry import Patch
from grove_megatron.runtime.unpacked import fingerprint_in, trouble

INSTALLED = Path(megatron.core.__file__).parents[2]
OURS = [p for s in patch_sets() for p in s.patches if p.target.startswith("megatron.")]

FUNCTION = "@decorated\ndef area(width):\n    return width\n    # of a square\n"
SOURCE = f"""
from megatron.core.shapes import Circle as Round
from ..there import helper

{FUNCTION}
LIMIT = "low"
opened = Opener()

try:
    from .shapes import Square
except ImportError:
    Square = None

class Shape:
    kind: ClassVar[str] = "flat"

    def corners(self):
        return 4
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    core = tmp_path / "megatron" / "core"
    (core / "deep").mkdir(parents=True)
    (tmp_path / "megatron" / "there.py").write_text("def helper():\n    pass\n")
    (core / "__init__.py").write_text("from .deep import low\n")
    (core / "deep" / "__init__.py").write_text("low = 'down'\n")
    (core / "plain.py").write_text(SOURCE)
    (core / "shapes.py").write_text("class Circle: pass\nclass Square: pass\n")
    return tmp_path


def source(text: str) -> str:
    return "source:" + hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("patch", OURS, ids=lambda patch: patch.name)
def test_every_target_fits_the_megatron_that_is_installed(patch: Patch) -> None:
    assert trouble(patch, INSTALLED) is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("plain:area", source(FUNCTION)),
        ("plain:Shape.corners", source("    def corners(self):\n        return 4\n")),
        ("plain:Shape", "class:megatron.core.plain.Shape"),
        ("plain:Shape.kind", "str:flat"),
        ("plain:LIMIT", "str:low"),
        ("plain:opened", "value:Opener"),
        ("plain:Round", "class:megatron.core.shapes.Circle"),
        ("plain:Square", "class:megatron.core.shapes.Square"),
        ("plain:helper", source("def helper():\n    pass\n")),
        ("plain:area.inner", None),
        ("plain:Shape.sides", None),
        ("plain:nothing", None),
        ("nowhere:area", None),
    ],
)
def test_a_fingerprint_is_that_of_the_source(tree: Path, target: str, expected: str | None) -> None:
    module, _, path = target.partition(":")
    assert fingerprint_in(tree, f"megatron.core.{module}", path.split(".")) == expected


def test_a_package_is_looked_into(tree: Path) -> None:
    assert fingerprint_in(tree, "megatron.core", ["low"]) == "str:down"


def test_it_says_what_has_changed_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in {p.target.partition(":")[0].replace(".", "/") for p in OURS}:
        file = f"{name}.py" if (INSTALLED / f"{name}.py").is_file() else f"{name}/__init__.py"
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(INSTALLED / file, tmp_path / file)
    changed = tmp_path / "megatron/core/datasets/utils.py"
    changed.write_text(
        changed.read_text().replace("def compile_helpers():", "def compile_helpers(x):")
    )
    (tmp_path / "megatron/training/training.py").unlink()
    assert main(["--tree", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "megatron.core.datasets.utils:compile_helpers has changed: source:" in out
    assert "megatron.training.training:num_floating_point_operations is missing" in out
    assert f"of {len(OURS)} patch targets in {tmp_path} fit" in out
    assert main(["--tree", str(INSTALLED)]) == 0
