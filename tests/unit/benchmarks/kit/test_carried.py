"""What the bundle carries: packages that are needed, and the tests with all they use."""

import re
from pathlib import Path

import pytest

from grove_megatron.benchmarks.kit import THERE, needed
from grove_megatron.benchmarks.kit.build import largest
from grove_megatron.benchmarks.kit.carried_tests import files
from grove_megatron.benchmarks.kit.needed import LEFT_OUT, closure, requirements

ROOT = Path(__file__).parents[4]


def test_what_is_there_is_not_carried_and_what_is_left_out_is_neither() -> None:
    found = {line.split("==")[0] for line in requirements(ROOT / ".ci" / "constraints.txt")}
    assert {"megatron-core", "transformers", "safetensors", "typer", "pytest-timeout"} <= found
    there = closure(THERE)
    assert {"torch", "numpy", "triton", "pytest", "sympy", "jinja2"} <= there
    assert not found & (there | set(LEFT_OUT) | {"grove-megatron"})


def test_what_only_a_package_that_is_left_out_needs_is_left_out_too() -> None:
    whole, without = (
        closure(["megatron-core[training]"]),
        closure(["megatron-core[training]"], ["wandb"]),
    )
    assert "wandb" in whole - without
    assert len(whole - without) > 1


def test_a_package_without_a_pin_is_refused(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    kept = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pins.write_text("\n".join(line for line in kept if not line.startswith("tqdm==")))
    with pytest.raises(ValueError, match=r"packages \(tqdm\) have no version in constraints.txt"):
        requirements(pins)


def test_a_package_that_is_not_here_is_refused() -> None:
    with pytest.raises(ValueError, match=r"packages \(no-such-a, no-such-b\) are not installed"):
        closure(["no-such-b", "no-such-a", "tqdm"])


def test_extras_and_markers_are_followed() -> None:
    assert "accelerate" in closure(["megatron-core[training]"])
    assert "accelerate" not in closure(["megatron-core"])
    assert "colorama" not in closure(needed.CARRIED)


def test_imports_and_names_in_strings_are_followed() -> None:
    carried = files(ROOT)
    assert Path("tests/integration/gradients_job.py") in carried, "named in a string"
    assert Path("tests/zygote.py") in carried, "started as a module"
    assert Path("tests/data/grovemoe-tiny/golden.safetensors") in carried
    assert not [path for path in carried if "unit" in path.parts]
    assert all((ROOT / path).is_file() for path in carried)


def test_whatever_they_say_of_tests_is_carried() -> None:
    """Whole texts, strings and comments too: a module that only a command names is one of these."""
    carried = set(files(ROOT))
    for path in carried:
        if path.suffix != ".py":
            continue
        for name in re.findall(r"\btests\.([a-z_0-9.]+)", (ROOT / path).read_text()):
            module = Path("tests", *name.rstrip(".").split("."))
            places = {p.with_suffix(".py") for p in (module, module.parent)}
            places |= {module / "__init__.py"}
            assert carried & places, f"{path} names tests.{name}"


def test_the_largest_files_are_named(tmp_path: Path) -> None:
    for name, size in (("a", 2_000_000), ("b", 100), ("c", 5_000_000)):
        (tmp_path / name).write_bytes(bytes(size))
    assert [line.split() for line in largest(tmp_path, 2).splitlines()] == [
        ["5.0", "MB", "c"],
        ["2.0", "MB", "a"],
    ]
