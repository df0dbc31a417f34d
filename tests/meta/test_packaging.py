"""setup.py says what the documents say. Read, not run."""

import ast
import platform
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import grove_megatron

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
    assert 'PACKAGE = runpy.run_path(str(HERE / "grove_megatron" / "__init__.py"))' in read(
        "setup.py"
    )
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


def version() -> str:
    """The one place; ``setup.py`` takes it from there."""
    return str(constants("grove_megatron/__init__.py")["__version__"])


def test_the_version_is_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", version())
    assert 'version=PACKAGE["__version__"]' in read("setup.py")
    assert "version" not in metadata(), "no other number"
    assert grove_megatron.__version__ == version()


def test_the_changelog_has_this_version_first() -> None:
    headings = re.findall(r"^## (\S+) \((.+)\)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0][0] == version()
    assert len(headings) == len(re.findall(r"^## ", read("CHANGELOG.md"), re.MULTILINE))
    for _, day in headings[1:]:
        date.fromisoformat(day)
    assert released_on() == headings[0][1]


def released_on() -> str:
    """What CITATION.cff says of the day."""
    found = re.findall(r"^date-released: (\S+)$", read("CITATION.cff"), re.MULTILINE)
    return str(date.fromisoformat(found[0])) if found else "unreleased"


def test_the_changelog_names_the_ranges() -> None:
    newest = read("CHANGELOG.md").split("\n## ")[1]
    assert says(newest, f"megatron-core {bounds(metadata()['install_requires'][0])}")
    assert says(newest, f"Python {metadata()['python_requires']}")


def test_the_citation_is_of_this_version_and_paper() -> None:
    """By the keys that the schema of format 1.2.0 requires, and those it knows."""
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(read("CITATION.cff"))
    assert set(found) >= {"cff-version", "message", "title", "authors"}
    assert set(found) <= {
        *("cff-version", "message", "title", "authors", "type", "abstract", "version", "license"),
        *("keywords", "references", "date-released"),
    }
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    assert found["version"] == version()
    assert found["license"] == metadata()["license_expression"]
    assert found["authors"] == [{"name": metadata()["author"]}]
    (paper,) = found["references"]
    assert set(paper) >= {"type", "title", "authors"}
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])
    assert paper["url"] == "https://arxiv.org/abs/2508.07785"
    assert paper["url"] in read("README.md")
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2508.07785"}]


def test_the_classifiers_are_the_supported_pythons() -> None:
    named = {c.rpartition(" ")[2] for c in metadata()["classifiers"] if "Python :: 3." in c}
    low, high = re.findall(r"3\.(\d+)", metadata()["python_requires"])
    assert named == {f"3.{minor}" for minor in range(int(low), int(high))}
    assert f"(3, {low}) <= sys.version_info < (3, {high})" in read(".ci/install")
    assert f"'{metadata()['python_requires']}'" in read(".ci/install")


# Modules that come with what is required: with torch, megatron-core[training] and transformers.
BROUGHT = {"triton": "torch", "huggingface_hub": "transformers", "tokenizers": "transformers"}
MODULES = {"megatron": "megatron-core", "transformer_engine": "transformer-engine"}
# Of the tests' reference of one part; NVIDIA's, which PyPI does not have.
UNSAID = {"scipy": ("selector/base.py",), "apex": ("moe/norm.py",)}


def test_what_the_package_imports_is_required() -> None:
    """At the top of a module what every installation has; in functions that or an extra's."""
    base = {project(r) for r in metadata()["install_requires"]}
    # megatron-core[training] has it; the extra says which version.
    extras = {project(r) for r in requirements()} | {"transformers"}
    seen = set()
    for path in sorted((ROOT / "grove_megatron").rglob("*.py")):
        for module in imported(path):
            name = project(BROUGHT.get(module, MODULES.get(module, module)))
            seen.add(module)
            if path.as_posix().endswith(UNSAID.get(module, ("\0",))):
                continue
            assert name in base | extras, f"{path} imports {module}, which setup.py does not name"
    assert seen > {"torch", "numpy", "megatron", "matplotlib", "pyarrow", "scipy"}


def imported(path: Path) -> set[str]:
    """Packages of others."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"grove_megatron"}


def test_the_licence_is_apache() -> None:
    assert metadata()["license_expression"] == "Apache-2.0"
    assert metadata()["license_files"] == ["LICENSE"]
    text = " ".join(read("LICENSE").split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    assert text.count("TERMS AND CONDITIONS FOR USE") == 1
    assert all(f" {n}. " in text for n in range(1, 10))
