"""Where an expression is read: for every caller of its function, and every round of its loops."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from .hole import HOLE
from .reaching import reaching
from .source import Def, Module, called, paired
from .words import Place, Reader

Row = tuple[ast.expr, Place]
_MOST_ROWS = 200
_MOST_PLACES = 600


def called_places(reader: Reader, module: Module, node: ast.AST, depth: int = 0) -> Iterator[Place]:
    """The same with what callers of the function around it give for its parameters."""
    function = module.function_of(node)
    outer = function and module.function_of(function)
    while outer is not None:
        function, outer = outer, module.function_of(outer)
    if function is None or depth > 3:
        yield from in_loops(reader, Place(module, depth=depth), node)
        return
    found = False
    for where, call in islice(reader.source.callers(module, function), 400):
        for at_call in islice(_reached(reader, where, call, depth + 1), _MOST_PLACES):
            found = True
            inside = reader.entered(module, function, call, at_call)
            yield from in_loops(reader, inside, node)
    if not found:
        yield from in_loops(reader, Place(module, depth=depth), node)


def _reached(reader: Reader, module: Module, call: ast.Call, depth: int) -> Iterator[Place]:
    """A call's own places; of its callers only where its arguments are parameters."""
    probe = Reader(reader.source)
    for value in (*call.args, *(word.value for word in call.keywords)):
        for place in islice(in_loops(probe, Place(module, depth=depth), call), 1):
            probe.texts(value, place)
    if probe.asked:
        yield from called_places(reader, module, call, depth)
    else:
        yield from in_loops(reader, Place(module, depth=depth), call)


def in_loops(reader: Reader, place: Place, node: ast.AST) -> Iterator[Place]:
    """In every round of the loops around it that go over something written out."""
    loops = _loops(place.module, node)
    yield from _rounds(reader, place, loops)


def _rounds(
    reader: Reader, place: Place, loops: list[ast.For | ast.comprehension]
) -> Iterator[Place]:
    if not loops:
        yield place
        return
    first, *rest = loops
    rows = [*islice(_rows(reader, first.iter, place), _MOST_ROWS)]
    bound = [_bound(first.target, row) for row in rows]
    for names in bound or [{}]:
        yield from _rounds(reader, replace(place, rows={**place.rows, **names}), rest)


def _bound(target: ast.expr, row: Row) -> dict[str, Row]:
    value, there = row
    return {name: (one, there) for name, one in paired(target, value) if one is not None}


def _loops(module: Module, node: ast.AST) -> list[ast.For | ast.comprehension]:
    """From the outermost to the innermost."""
    found: list[ast.For | ast.comprehension] = []
    inner = node
    while (outer := module.parents.get(inner)) is not None and not isinstance(outer, Def):
        if isinstance(outer, ast.For) and inner in outer.body:
            found.append(outer)
        generators = getattr(outer, "generators", [])
        if inner not in generators:
            found += reversed(generators)
        elif generators.index(inner):
            found += reversed(generators[: generators.index(inner)])
        inner = outer
    return found[::-1]


def _rows(reader: Reader, table: ast.expr, place: Place) -> Iterator[Row]:
    """The elements of a table, as far as they are written out; nothing of another."""
    if place.depth > 8:
        return
    match table:
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            for one in elements:
                if isinstance(one, ast.Starred):
                    yield from _rows(reader, one.value, place)
                else:
                    yield one, place
        case ast.IfExp(body=body, orelse=orelse):
            yield from _rows(reader, body, place)
            yield from _rows(reader, orelse, place)
        case ast.BinOp(left=left, op=ast.BitOr() | ast.Add(), right=right):
            yield from _rows(reader, left, place)
            yield from _rows(reader, right, place)
        case ast.Dict():
            for key, _, there in entries(reader, table, place):
                yield key, there
        case ast.Call(func=ast.Attribute(value=of, attr="items"), args=[]):
            for key, value, there in entries(reader, of, place):
                yield ast.Tuple([key, value or ast.Constant(HOLE)], ast.Load()), there
        case ast.Call(func=ast.Attribute(value=of, attr="split"), args=[]):
            for text in reader.texts(of, place):
                yield from ((ast.Constant(word), place) for word in text.split() if text != HOLE)
        case ast.Call(func=ast.Attribute(attr="fromkeys"), args=[of, *_]):
            yield from _rows(reader, of, place)
        case (
            ast.GeneratorExp(elt=element, generators=generators)
            | ast.ListComp(elt=element, generators=generators)
        ):
            for there in _rounds(reader, place, [*generators]):
                yield element, there
        case ast.Name(id=name):
            for value, there in _named(reader, table, name, place):
                yield from _rows(reader, value, there)


def _named(reader: Reader, node: ast.Name, name: str, place: Place) -> Iterator[Row]:
    deeper = replace(place, depth=place.depth + 1)
    if name in place.rows:
        yield place.rows[name]
    elif values := reaching(place.module, node, name):
        yield from ((value, deeper) for value in values if isinstance(value, ast.expr))
    elif name in place.given:
        yield place.given[name]
    elif (found := reader.source.constant(place.module, name)) is not None:
        yield found[1], Place(found[0], depth=place.depth + 1)


def entries(
    reader: Reader, table: ast.expr, place: Place
) -> Iterator[tuple[ast.expr, ast.expr | None, Place]]:
    """Keys of a dictionary that is written out, with their values where these are too."""
    match table:
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                if key is None:
                    yield from entries(reader, value, place)
                else:
                    yield key, value, place
        case ast.DictComp(key=key, value=value, generators=generators):
            for there in _rounds(reader, place, [*generators]):
                yield key, value, there
        case ast.IfExp(body=body, orelse=orelse):
            yield from entries(reader, body, place)
            yield from entries(reader, orelse, place)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from entries(reader, left, place)
            yield from entries(reader, right, place)
        case ast.Call() if called(table) == "fromkeys" and table.args:
            value = table.args[1] if len(table.args) > 1 else None
            for key, there in _rows(reader, table.args[0], place):
                yield key, value, there
        case ast.Name(id=name):
            for value, there in _named(reader, table, name, place):
                yield from entries(reader, value, there)
        case ast.Call(func=ast.Name(id=name)):
            found = reader.source.function(place.module, name)
            if found is not None and place.depth < 6:
                module, function = found
                inside = reader.entered(module, function, table, place)
                for one in ast.walk(function):
                    if isinstance(one, ast.Return) and one.value is not None:
                        yield from entries(reader, one.value, inside)
