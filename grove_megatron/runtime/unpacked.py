"""Which patch targets an unpacked Megatron still has: a clone, another release, a branch.

Reads its files; nothing of it is imported, and it need not be installed.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from .registry import Patch, source_fingerprint

# Bound by a definition, or by an import of what another module defines.
_Binding = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.ImportFrom


def trouble(patch: Patch, tree: Path) -> str | None:
    """Why ``patch`` would not fit ``tree``, or None.

    Args:
        patch: of a target in Megatron.
        tree: a folder with ``megatron/core``.
    """
    module, _, path = patch.target.partition(":")
    found = fingerprint_in(tree, module, path.split("."))
    if found is None:
        return f"{patch.target} is missing"
    if patch.fingerprint is not None and found != patch.fingerprint:
        return f"{patch.target} has changed: {found} instead of {patch.fingerprint}"
    return None


def fingerprint_in(tree: Path, module: str, names: list[str]) -> str | None:
    """What :func:`.registry.fingerprint` would give for ``module:names``; None: it is not there."""
    file = _file(tree, module)
    if file is None:
        return None
    source = file.read_text(encoding="utf-8")
    body = ast.parse(source).body
    for depth, name in enumerate(names, 1):
        found = next((node for node in _bindings(body) if name in _bound(node)), None)
        if isinstance(found, ast.ImportFrom):
            original = next(a.name for a in found.names if (a.asname or a.name) == name)
            return fingerprint_in(tree, _source_of(found, module, file), [original, *names[depth:]])
        if found is None or depth == len(names):
            break
        body = found.body if isinstance(found, ast.ClassDef) else []
    match found:
        case ast.FunctionDef():
            first = min([found.lineno, *(d.lineno for d in found.decorator_list)])
            lines = source.splitlines(keepends=True)[first - 1 :]
            return source_fingerprint("".join(inspect.getblock(lines)))
        case ast.ClassDef():
            return f"class:{module}.{'.'.join(names)}"
        case ast.Assign(value=ast.Constant(value=str(text))):
            return f"str:{text}"
        case ast.AnnAssign(value=ast.Constant(value=str(text))):
            return f"str:{text}"
        case ast.Assign(value=ast.Call(func=ast.Name(id=kind))):
            return f"value:{kind}"
    return None if found is None else "value"


def _file(tree: Path, module: str) -> Path | None:
    place = tree.joinpath(*module.split("."))
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)


def _bindings(body: list[ast.stmt]) -> Iterator[_Binding]:
    """Statements that bind a name, also within ``if`` and ``try``."""
    for node in body:
        if isinstance(node, _Binding):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _bindings([*node.body, *node.orelse])


def _bound(node: _Binding) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _source_of(node: ast.ImportFrom, module: str, file: Path) -> str:
    """The module that ``from ... import`` names, seen from ``module``."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])
