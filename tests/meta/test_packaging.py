"""setup.py says what the documents say. Read, not run: standard library only."""

import ast
import platform
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def metadata() -> dict[str, Any]:
    """The literal arguments of the call of ``setup``; what is computed is left out."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(read("setup.py")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "setup"
    ]
    found = {}
    for keyword in call.keywords:
        try:
            found[keyword.arg or ""] = ast.literal_eval(keyword.value)
        except ValueError:
            continue
    return found


def constants(name: str) -> dict[str, Any]:
    """Module-level names of a file that are bound to literals."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(read(name)).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


def requirements() -> list[str]:
    extras = metadata()["extras_require"].values()
    return [*metadata()["install_requires"], *(r for extra in extras for r in extra)]


def project(requirement: str) -> str:
    (name,) = re.findall(r"^[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds(requirement: str) -> str:
    return re.sub(r"^[A-Za-z0-9._-]+(\[[^]]*\])?", "", requirement)


def says(text: str, phrase: str) -> bool:
    """Is the phrase there, and not as the beginning of a longer version or range?"""
    return re.search(rf"{re.escape(phrase)}(?![\w,]|\.\w)", " ".join(text.split())) is not None


def pinned() -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in read(".ci/constraints.txt").splitlines())
    return {project(line): line.split("==")[1] for line in lines if "==" in line}


def test_name_python_and_command() -> None:
    found = metadata()
    assert found["name"] == "grove-megatron"
    assert says(read("README.md"), f"Python {found['python_requires']}")
    assert found["entry_points"] == {"console_scripts": ["grove=grove_megatron.cli:main"]}
    assert "def main()" in read("grove_megatron/cli.py")


def test_another_python_is_refused_by_pip_and_by_every_import() -> None:
    """Both run the same few lines, which need nothing that is not in Python."""
    source = read("grove_megatron/__init__.py")
    needed = metadata()["python_requires"]
    assert f"({needed})" in source
    assert 'runpy.run_path(str(HERE / "grove_megatron" / "__init__.py"))' in read("setup.py")
    of = {(3, 11, 7): False, (3, 12, 0): True, (3, 13, 9): True, (3, 14, 0): False}
    for version, fits in of.items():
        message = refused(source, version)
        assert (message is None) == fits
        if message is not None:
            assert message.startswith(f"Python ({'.'.join(map(str, version))}) is not in the range")
            assert "megatron-core" in message


def refused(source: str, version: tuple[int, ...]) -> str | None:
    """What the lines say to a Python of this version."""
    real = sys.version_info, platform.python_version
    try:
        sys.version_info, platform.python_version = version, lambda: ".".join(map(str, version))
        exec(source, {})
    except ImportError as error:
        return str(error)
    finally:
        sys.version_info, platform.python_version = real
    return None


def test_extras_are_those_the_documents_name() -> None:
    assert sorted(metadata()["extras_require"]) == [
        *("data", "dev", "docs", "hf", "lm-eval", "report", "te", "tensorboard")
    ]
    assert metadata()["extras_require"]["te"] == ["transformer-engine[pytorch]"]
    named = re.findall(r"'?\.\[(\w+)\]|grove-megatron\[(\w+)\]", read("CONTRIBUTING.md"))
    assert {a or b for a, b in named} <= set(metadata()["extras_require"])
    assert "te" in {a or b for a, b in named}


def test_apex_of_pypi_is_required_nowhere() -> None:
    assert "apex" not in {project(r) for r in requirements()}
    assert "apex" not in pinned()
    install = read(".ci/install") + read("Makefile")
    assert not re.search(r"pip install[^\n]*\bapex\b", install)


def test_versions_are_the_same_in_setup_code_and_readme() -> None:
    needed = {project(r): bounds(r) for r in metadata()["install_requires"]}
    for name, constant in (("megatron-core", "MEGATRON"), ("torch", "TORCH")):
        assert f'{constant}_RANGE = SpecifierSet("{needed[name]}"' in read(
            "grove_megatron/compat.py"
        )
        assert says(read("README.md"), f"{name} {needed[name]}")
        assert says(read("README.md"), f"{name} {pinned()[name]}")


def test_the_changelog_has_this_version_first() -> None:
    headings = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == metadata()["version"]


def test_the_licence_is_apache() -> None:
    assert metadata()["license"] == "Apache-2.0"
    assert metadata()["license_files"] == ["LICENSE"]
    text = " ".join(read("LICENSE").split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    assert text.count("TERMS AND CONDITIONS FOR USE") == 1
    assert all(f" {n}. " in text for n in range(1, 10))


def test_readmes_of_the_package_are_packaged() -> None:
    assert "**/README.md" in metadata()["package_data"]["grove_megatron"]
    for folder in ("moe", "runtime"):
        assert (ROOT / "grove_megatron" / folder / "README.md").is_file()
