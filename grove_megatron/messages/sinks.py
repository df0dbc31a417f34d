"""Where messages are made: the calls and statements whose text a user gets to read."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from ..checks.flags import flag_of
from . import areas
from .hole import HOLE
from .rows import called_places, entries, in_loops
from .source import Module, Source, called
from .words import Place, Reader, rendered

_MOST = 3000
# Of one sentence; above, what it is of is left open.
_TABLE = 16


@dataclass(frozen=True)
class Made:
    """A message, as one would see it with ``…`` for what is known at run time alone.

    Args:
        text: of it.
        module: that makes it.
        line: in the file.
    """

    text: str
    module: str
    line: int


Texts = Callable[[Reader, Place], Iterator[str]]


def made(source: Source) -> Iterator[Made]:
    """Every message of the package; the same text may be made in several places."""
    reader = Reader(source)
    shown = [module for module in source.modules.values() if not areas.is_left_out(module.name)]
    for module in shown:
        for node in ast.walk(module.tree):
            for texts in _sink(node):
                yield from _at(reader, module, node, texts)
    # What these have not read is prose that is said as it stands.
    for module in shown:
        for node in _prose(module, reader) if areas.says_prose(module.name) else ():
            yield from _at(reader, module, node, lambda r, p, node=node: _said(r, p, node))


def _at(reader: Reader, module: Module, node: ast.AST, texts: Texts) -> Iterator[Made]:
    line = getattr(node, "lineno", 0)
    # First as it stands there; by its callers where parameters are part of it.
    probe = Reader(reader.source, reader.read)
    general = [*texts(probe, Place(module))]
    places = [*islice(in_loops(probe, Place(module), node), _MOST)]
    found = [(text, place) for place in places for text in texts(probe, place)]
    if probe.asked:
        called_ = islice(called_places(reader, module, node), _MOST)
        found = [(text, place) for place in called_ for text in texts(reader, place)] or found
    shared = areas.is_shared(module.name)
    if not shared and len({text for text, _ in found}) > _TABLE:
        # One sentence of the entries of a table.
        found = [(text, Place(module)) for text in general]
    for text, place in found:
        shown = " ".join(text.split())
        if _says_something(shown, module.name):
            where = place.origin if shared and place.origin else (module.name, line)
            yield Made(shown, *where)


def _says_something(text: str, module: str) -> bool:
    """Words beside holes, and not flags alone."""
    words = [word for word in text.replace(HOLE, " ").split() if any(c.isalpha() for c in word)]
    plain = [word for word in words if not word.startswith("--")]
    fewest = areas.fewest_words(module)
    return len(words) >= fewest and len(plain) >= fewest - 1


def _sink(node: ast.AST) -> Iterator[Texts]:
    match node:
        case ast.Call(func=ast.Name(id="Problem")):
            yield lambda reader, place: _problem(reader, place, node)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="Problem" | "cls"), attr="of_text")):
            yield lambda reader, place: iter(reader.texts(node.args[0], place))
        case ast.Call(func=ast.Attribute(attr="problem"), args=[sentence]):
            yield lambda reader, place: _sentence(reader, place, sentence, node)
        case ast.Call(func=ast.Attribute(attr="those"), args=[table]):
            yield lambda reader, place: _those(reader, place, table)
        case ast.Call(func=ast.Name(id="Refused")):
            yield lambda reader, place: _refused(reader, place, node)
        case ast.Call(func=ast.Name(id="Idle" | "idle_without" as kind)):
            yield lambda reader, place: _idle(reader, place, node, kind)
        case ast.Raise(exc=ast.Call() as error) if error.args:
            if called(error) not in areas.NOT_FOR_USERS:
                yield lambda reader, place: _raised(reader, place, error)


def _said(reader: Reader, place: Place, node: ast.expr) -> Iterator[str]:
    """As it stands, or a sentence of a rule, which begins with a setting."""
    for text in reader.texts(node, place):
        yield from rendered(text, {}) if re.match(r"\{[a-z_]+\}", text) else [text]


def _argument(call: ast.Call, number: int, name: str) -> ast.expr | None:
    for word in call.keywords:
        if word.arg == name:
            return word.value
    return call.args[number] if len(call.args) > number else None


def _problem(reader: Reader, place: Place, call: ast.Call) -> Iterator[str]:
    flag, value = _argument(call, 0, "flag"), _argument(call, 1, "value")
    unsaid = isinstance(value, ast.Name) and value.id == "UNSAID"
    for name in reader.texts(flag, place):
        named = " ".join(part for part in (name, "" if unsaid else f"({HOLE})") if part)
        for text in reader.texts(_argument(call, 2, "text"), place):
            yield f"{named} {text}" if named and text[:1] not in ",:" else named + text


def _sentence(
    reader: Reader, place: Place, sentence: ast.expr, call: ast.Call | None
) -> Iterator[str]:
    given = {w.arg: reader.texts(w.value, place) for w in (call.keywords if call else ()) if w.arg}
    for text in reader.texts(sentence, place):
        yield from rendered(text, given)


def _those(reader: Reader, place: Place, table: ast.expr) -> Iterator[str]:
    for key, _, there in entries(reader, table, place):
        yield from _sentence(reader, there, key, None)


def _refused(reader: Reader, place: Place, call: ast.Call) -> Iterator[str]:
    for setting in reader.texts(_argument(call, 0, "setting"), place):
        flag = HOLE if HOLE in setting else flag_of(setting)
        for reason in reader.texts(_argument(call, 2, "reason"), place):
            yield f"{flag} ({HOLE}) {reason}"


def _idle(reader: Reader, place: Place, call: ast.Call, kind: str) -> Iterator[str]:
    first, second = _argument(call, 0, "names"), _argument(call, 1, "reason")
    if kind == "idle_without":
        settings, names = reader.texts(call.args[0], place), call.args[1]
        reasons = [f" without {flag_of(setting)}" for setting in settings]
    else:
        names, reasons = first, reader.texts(second, place)
    for text in reader.texts(names, place):
        for name in text.split() or [HOLE]:
            yield from (f"{name} ({HOLE}) does nothing{reason}" for reason in reasons)


def _raised(reader: Reader, place: Place, error: ast.Call) -> Iterator[str]:
    for one in error.args:
        values = one.elts if isinstance(one, ast.List | ast.Tuple) else [one]
        for value in values:
            yield from reader.texts(value, place)


def _prose(module: Module, reader: Reader) -> Iterator[ast.expr]:
    """The widest expressions of text that read as sentences, and that nothing has read yet.

    What is kept under a name comes last: mostly it is part of what is said.
    """
    found: dict[ast.expr, int] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            widest: ast.expr = node
            while isinstance(outer := module.parents[widest], _PARTS):
                widest = outer
            found[widest] = found.get(widest, 0) + len(node.value.split())
    yield from _handed_on(module, reader)
    for kept in (False, True):
        for widest, words in found.items():
            constants = [one for one in ast.walk(widest) if isinstance(one, ast.Constant)]
            is_read = not reader.read.isdisjoint(constants)
            if is_read or words < areas.fewest_words(module.name, alone=True):
                continue
            if isinstance(module.parents[widest], _KEPT) is not kept:
                continue
            if not areas.is_no_message(module, widest):
                yield widest


def _handed_on(module: Module, reader: Reader) -> Iterator[ast.expr]:
    """Names that a function gives away and whose text is made in several steps."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Return | ast.Yield) or not isinstance(node.value, ast.Name):
            continue
        probe = Reader(reader.source)
        words = " ".join(probe.texts(node.value, Place(module))).replace(HOLE, " ").split()
        enough = len(words) >= areas.fewest_words(module.name, alone=True)
        if enough and reader.read.isdisjoint(probe.read):
            yield node.value


_PARTS = (ast.JoinedStr, ast.BinOp, ast.IfExp, ast.FormattedValue)
_KEPT = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Dict, ast.Tuple)
