"""The package's source as syntax trees, with what encloses what."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import IOBase
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
BESIDE = ("examples/cluster/launch", "patches/apply")
"""Programs of the checkout that use nothing of the package."""
Def = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(eq=False)
class Module:
    """One file.

    Args:
        name: its path in the package without ``.py``: ``training/rules``.
        constants: what names at its top are, a name that is set twice left out.
        imported: by the name here: the module of the package and the name there.
    """

    name: str
    tree: ast.Module
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    functions: dict[str, Def] = field(default_factory=dict)
    methods: dict[str, list[Def]] = field(default_factory=lambda: defaultdict(list))
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)

    def function_of(self, node: ast.AST) -> Def | None:
        """The innermost one around a node."""
        while (node := self.parents.get(node)) is not None:  # type: ignore[assignment]
            if isinstance(node, Def):
                return node
        return None

    def class_of(self, function: Def) -> str | None:
        """The class a method is of."""
        parent = self.parents.get(function)
        return parent.name if isinstance(parent, ast.ClassDef) else None


class Source:
    """All modules, and the calls in them by the name of what is called.

    Args:
        package: its folder.
        beside: programs beside the package, without ``.py``.
    """

    def __init__(self, package: Path = PACKAGE, beside: Sequence[str] = ()) -> None:
        files = {
            path.relative_to(package).with_suffix("").as_posix(): path
            for path in sorted(package.rglob("*.py"))
        }
        files |= {name: package.parent / f"{name}.py" for name in beside}
        self.modules = {
            name: _module(name, path.read_text(encoding="utf-8")) for name, path in files.items()
        }
        self.methods = Counter(
            name
            for module in self.modules.values()
            for name, of in module.methods.items()
            for _ in of
        )
        self.calls: dict[str, list[tuple[Module, ast.Call]]] = defaultdict(list)
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call) and (name := called(node)):
                    self.calls[name].append((module, node))

    def constant(self, module: Module, name: str) -> tuple[Module, ast.expr] | None:
        """What a name at the top of a module is, wherever it is imported from."""
        if name in module.constants:
            return module, module.constants[name]
        if (found := self._imported(module, name)) is not None:
            return self.constant(*found)
        return None

    def function(self, module: Module, name: str) -> tuple[Module, Def] | None:
        """The function of the package that a name at the top of a module is."""
        if name in module.functions:
            return module, module.functions[name]
        if (found := self._imported(module, name)) is not None:
            return self.function(*found)
        return None

    def _imported(self, module: Module, name: str) -> tuple[Module, str] | None:
        where, there = module.imported.get(name, ("", ""))
        found = self.modules.get(where) or self.modules.get(f"{where}/__init__".lstrip("/"))
        return None if found is None or found is module else (found, there)

    def _is_of(self, module: Module, method: Def, where: Module, call: ast.Call) -> bool:
        """May a call be of a method? By what it is called on, or a name nothing else has."""
        if not isinstance(call.func, ast.Attribute) or not fits(method, call):
            return False
        match call.func.value:
            case ast.Name(id="self" | "cls"):
                return where is module
            case ast.Name(id=name) if name == module.class_of(method):
                return True
        return self.methods[method.name] == 1 and not any(
            hasattr(kind, method.name) for kind in (str, dict, list, set, Path, IOBase)
        )

    def callers(self, module: Module, function: Def) -> Iterator[tuple[Module, ast.Call]]:
        """The calls that may be of a function: by name, and for a method by what it takes."""
        method = module.class_of(function) is not None
        for where, call in self.calls.get(function.name, ()):
            if where.function_of(call) is function:
                continue
            if method:
                if self._is_of(module, function, where, call):
                    yield where, call
            elif isinstance(call.func, ast.Name) and self.function(where, function.name) == (
                module,
                function,
            ):
                yield where, call


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def parameters(function: Def) -> list[str]:
    """Names, without ``self`` of a method."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def defaults(function: Def) -> dict[str, ast.expr]:
    """Of the parameters that have one."""
    arguments = function.args
    placed = [*arguments.posonlyargs, *arguments.args]
    pairs = dict(zip([a.arg for a in placed][::-1], arguments.defaults[::-1], strict=False))
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return pairs | {a.arg: value for a, value in named if value is not None}


def fits(function: Def, call: ast.Call) -> bool:
    """Can the function take what the call gives?"""
    names = parameters(function)
    given = {word.arg for word in call.keywords if word.arg}
    if function.args.kwarg is None and not given <= set(names):
        return False
    starred = any(isinstance(one, ast.Starred) for one in call.args)
    limit = len(names) - len(function.args.kwonlyargs)
    optional = defaults(function)
    needed = [n for n in names[:limit] if n not in optional and n not in given]
    return starred or len(needed) <= len(call.args) <= limit


def bound(function: Def, call: ast.Call) -> dict[str, ast.expr]:
    """What a call gives for the parameters; what cannot be told is left out."""
    names, found = parameters(function), dict(defaults(function))
    for name, value in zip(names, call.args, strict=False):
        if isinstance(value, ast.Starred):
            rest = names[names.index(name) :]
            return {n: v for n, v in found.items() if n not in rest}
        found[name] = value
    return found | {word.arg: word.value for word in call.keywords if word.arg in names}


def _module(name: str, text: str) -> Module:
    module = Module(name, ast.parse(text))
    for node in ast.walk(module.tree):
        for child in ast.iter_child_nodes(node):
            module.parents[child] = node
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = name.split("/")[: -node.level] if node.level <= name.count("/") + 1 else []
            base = "/".join([*folder, *(node.module or "").split(".")]).rstrip("/")
            for alias in node.names:
                module.imported[alias.asname or alias.name] = (base, alias.name)
        if isinstance(node, Def) and isinstance(module.parents.get(node), ast.ClassDef):
            module.methods[node.name].append(node)
    seen: set[str] = set()
    for node in module.tree.body:
        if isinstance(node, Def):
            module.functions[node.name] = node
        for target, value in assigned(node):
            if target in seen:
                module.constants.pop(target, None)
            elif value is not None:
                module.constants[target] = value
            seen.add(target)
    return module


def assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """Names that a statement sets, and to what, if that can be told."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, node.value
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from paired(target, node.value)


def paired(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    """The names of a target, each with its part of the value."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple):
        parts: list[ast.expr | None] = [None] * len(target.elts)
        if isinstance(value, ast.Tuple) and len(value.elts) == len(parts):
            parts = [*value.elts]
        for one, part in zip(target.elts, parts, strict=True):
            yield from paired(one, part)


@cache
def source() -> Source:
    """Of this package and of what is beside it, read once."""
    return Source(beside=BESIDE)
