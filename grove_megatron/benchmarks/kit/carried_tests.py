"""The gpu tests with what they use: modules of ``tests`` they import or name, and their data."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = "tests/gpu"
DATA = ("tests/data/grovemoe-tiny",)
"""Folders that fixtures of these tests give."""
CONFIGURATION = "pyproject.toml"
_NAMED = re.compile(r"^(tests(?:\.[a-z_0-9]+)+)(?::|$)")


def files(repository: Path) -> list[Path]:
    """All of them, relative to the repository."""
    todo = sorted((repository / FOLDER).glob("*.py"))
    todo += [repository / "tests" / "conftest.py"]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        for module in _modules(path.read_text(encoding="utf-8"), path, repository):
            todo += _files_of(repository, module)
    for folder in DATA:
        found |= {path for path in (repository / folder).rglob("*") if path.is_file()}
    return sorted(p.relative_to(repository) for p in found | {repository / CONFIGURATION})


def _modules(source: str, path: Path, repository: Path) -> Iterator[str]:
    """Modules of ``tests`` in imports, relative ones too, and in strings that name one."""
    package = ".".join(path.relative_to(repository).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and (match := _NAMED.match(str(node.value))):
            yield match[1]


def _files_of(repository: Path, module: str) -> list[Path]:
    if module.split(".")[0] != "tests":
        return []
    place = repository.joinpath(*module.split("."))
    own = [place.with_suffix(".py"), place / "__init__.py"]
    above = [parent / "__init__.py" for parent in place.parents if parent != repository]
    inside = [path for path in above if path.is_relative_to(repository / "tests")]
    return [path for path in [*own, *inside] if path.is_file()]
