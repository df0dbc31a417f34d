"""What a name may stand for where it is read: the assignments that can have come before."""

import ast
from dataclasses import dataclass

from .source import Def, Module, assigned, paired


@dataclass(frozen=True)
class Added:
    """What ``+=`` makes: either of these, and then that."""

    before: tuple["Value", ...]
    value: ast.expr


Value = ast.expr | Added | None
"""None: something that cannot be told."""
_ENDS = ast.Return | ast.Raise | ast.Continue | ast.Break


def reaching(module: Module, use: ast.AST, name: str) -> list[Value]:
    """Of a local name, [] if nothing in the function sets it.

    Args:
        use: the expression that reads it.
    """
    node = use
    while (parent := module.parents.get(node)) is not None:
        if isinstance(node, ast.stmt):
            for block in _blocks(parent):
                if node in block:
                    found, open_ = _in(block[: block.index(node)], name)
                    if not open_ or isinstance(parent, Def):
                        return found
                    if found:
                        return [*found, *reaching(module, parent, name)]
        if isinstance(parent, Def):
            return []
        loop = parent if isinstance(parent, ast.comprehension | ast.For | ast.AsyncFor) else None
        if loop is not None and (found := _of_loop(loop, name)):
            return found
        for generator in getattr(parent, "generators", ()):
            if generator is not node and (found := _of_loop(generator, name)):
                return found
        if isinstance(node, ast.ExceptHandler) and node.name == name:
            return [None]
        node = parent
    return []


def _blocks(node: ast.AST) -> list[list[ast.stmt]]:
    blocks = [getattr(node, part, None) for part in ("body", "orelse", "finalbody")]
    return [block for block in blocks if isinstance(block, list)]


def _in(block: list[ast.stmt], name: str) -> tuple[list[Value], bool]:
    """What it may be after these statements, and whether it may be what it was before them."""
    for number in range(len(block) - 1, -1, -1):
        one = block[number]
        if isinstance(one, ast.AugAssign) and _is(one.target, name):
            before, open_ = _in(block[:number], name)
            return [Added((*before, *([None] if open_ and not before else [])), one.value)], False
        simple = [value for target, value in assigned(one) if target == name]
        if simple:
            return [simple[-1]], False
        if isinstance(one, Def | ast.ClassDef):
            continue
        found, open_ = _of_compound(one, name)
        if found:
            if not open_:
                return found, False
            more, still = _in(block[:number], name)
            joined = [_after(value, more) for value in found]
            return [*joined, *more], still
    return [], True


def _after(value: Value, before: list[Value]) -> Value:
    """What a branch adds is added to what there was before it."""
    if isinstance(value, Added) and value.before == (None,) and before:
        return Added(tuple(before), value.value)
    return value


def _of_compound(one: ast.stmt, name: str) -> tuple[list[Value], bool]:
    found: list[Value] = []
    open_ = True
    if isinstance(one, ast.If):
        ways = [_branch(one.body, name), _branch(one.orelse, name)]
        found = [value for values, _ in ways for value in values]
        open_ = any(still for _, still in ways)
    elif isinstance(one, ast.With):
        bound = any(
            item.optional_vars is not None and _is(item.optional_vars, name) for item in one.items
        )
        found, open_ = ([None], False) if bound else _in(one.body, name)
    elif isinstance(one, ast.For | ast.While | ast.Try):
        inner = [*_blocks(one), *(h.body for h in getattr(one, "handlers", ()))]
        found = [value for block in inner for value in _in(block, name)[0]]
        if isinstance(one, ast.For):
            found += _of_loop(one, name)
    return found, open_


def _branch(block: list[ast.stmt], name: str) -> tuple[list[Value], bool]:
    if block and isinstance(block[-1], _ENDS):
        return [], False
    return _in(block, name)


def _of_loop(loop: ast.For | ast.AsyncFor | ast.comprehension, name: str) -> list[Value]:
    """What a loop gives cannot be told here; of a table that is written out see rows.py."""
    return [None] if _is(loop.target, name) else []


def _is(target: ast.expr, name: str) -> bool:
    return any(one == name for one, _ in paired(target, None))
