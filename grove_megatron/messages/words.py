"""An expression as the texts it may be, with ``…`` for what is known only at run time."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from ..checks.flags import flag_of
from .hole import HOLE
from .reaching import Added, Value, reaching
from .source import Def, Module, Source, bound, called, parameters

_MOST = 24
_DEPTH = 8


@dataclass(frozen=True)
class Place:
    """Where an expression is read.

    Args:
        given: of the function around it: expressions for its parameters, each with its own place.
        rows: what the loops around it have, in one of their rounds.
        depth: calls on the way here.
        origin: file and line of the outermost of those calls.
    """

    module: Module
    given: Mapping[str, tuple[ast.expr, "Place"]] = field(default_factory=dict)
    depth: int = 0
    rows: Mapping[str, tuple[ast.expr, "Place"]] = field(default_factory=dict)
    origin: tuple[str, int] | None = None


@dataclass
class Reader:
    """Reads expressions; keeps which constants it has read, and whether a parameter was asked."""

    source: Source
    read: set[ast.AST] = field(default_factory=set)
    asked: bool = False

    def texts(self, node: Value, place: Place) -> list[str]:
        """Every text the expression may be, at most a few dozen."""
        found = self._texts(node, place)
        texts = [*dict.fromkeys(_joined_holes(text) for text in found)]
        return texts if len(texts) <= _MOST else texts[:_MOST]

    def _texts(self, node: Value, place: Place) -> list[str]:
        if place.depth > _DEPTH or node is None:
            return [HOLE]
        match node:
            case Added(before=before, value=value):
                starts = [text for one in before for text in self.texts(one, place)]
                return self._product([starts, self.texts(value, place)])
            case ast.Constant(value=value):
                self.read.add(node)
                return [value if isinstance(value, str) else str(value)]
            case ast.JoinedStr(values=parts):
                ways = [self.texts(part, place) for part in parts]
                return self._product([_value(ways, number) for number in range(len(ways))])
            case ast.FormattedValue(value=value):
                # Of a value with a format only its place is known.
                return [HOLE] if node.format_spec else _open(self.texts(value, place))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._product([self.texts(left, place), self.texts(right, place)])
            case ast.IfExp(body=body, orelse=orelse):
                return [*self.texts(body, place), *self.texts(orelse, place)]
            case ast.BoolOp(op=operator, values=values):
                ways = [self.texts(value, place) for value in values]
                if isinstance(operator, ast.Or) and HOLE not in "".join(ways[0]):
                    # An empty text gives way to the next.
                    ways = ways[:1] if all(ways[0]) else ways[1:] if not any(ways[0]) else ways
                return [text for way in ways for text in way]
            case ast.Name(id=name):
                return self._name(node, name, place)
            case ast.Call():
                return self._call(node, place)
            case ast.NamedExpr(value=value):
                return self.texts(value, place)
            case ast.Subscript(value=ast.Dict() as table):
                return [t for v in table.values for t in self.texts(v, place)]
            case ast.Subscript(value=ast.Name(id=name)):
                found = self.source.constant(place.module, name)
                if found is not None and isinstance(found[1], ast.Dict):
                    of = Place(found[0], depth=place.depth + 1)
                    return [text for v in found[1].values for text in self.texts(v, of)]
        return [HOLE]

    def _name(self, node: ast.Name, name: str, place: Place) -> list[str]:
        if name in place.rows:
            expression, there = place.rows[name]
            return self.texts(expression, there)
        values = reaching(place.module, node, name)
        if values:
            deeper = replace(place, depth=place.depth + 1)
            return [text for value in values for text in self.texts(value, deeper)]
        function = place.module.function_of(node)
        while function is not None:
            if name in parameters(function):
                self.asked = True
                if name in place.given:
                    expression, there = place.given[name]
                    return self.texts(expression, there)
                return [HOLE]
            function = place.module.function_of(function)
        if (found := self.source.constant(place.module, name)) is not None:
            return self.texts(found[1], Place(found[0], depth=place.depth + 1))
        return [HOLE]

    def _call(self, node: ast.Call, place: Place) -> list[str]:
        name = called(node)
        if name in ("flag_of", "said") and len(node.args) == 1:
            # Of Check.said, with the value.
            end = f" ({HOLE})" if name == "said" else ""
            flags = self.texts(node.args[0], place)
            return [f"{flag_of(text) if text != HOLE else HOLE}{end}" for text in flags]
        if name in ("str", "printable") and len(node.args) == 1:
            return self.texts(node.args[0], place)
        if isinstance(node.func, ast.Attribute) and name in ("lstrip", "strip", "removesuffix"):
            return self.texts(node.func.value, place)
        if isinstance(node.func, ast.Name):
            found = self.source.function(place.module, name)
            if found is not None:
                return self._returned(*found, node, place)
        match node.func:
            case ast.Attribute(value=ast.Name(id="self")):
                for method in place.module.methods.get(name, ()):
                    return self._returned(place.module, method, node, place)
        return [HOLE]

    def _returned(self, module: Module, function: Def, call: ast.Call, place: Place) -> list[str]:
        """What a function of the package returns for what it is given."""
        there = self.entered(module, function, call, place)
        returns = [
            one.value
            for one in ast.walk(function)
            if isinstance(one, ast.Return) and module.function_of(one) is function
        ]
        asked, texts = self.asked, []
        for value in returns:
            texts += self.texts(value, there) if value is not None else []
        # Its parameters are not those of the function that calls it.
        self.asked = asked or (self.asked and bool(place.given))
        return texts or [HOLE]

    def entered(self, module: Module, function: Def, call: ast.Call, place: Place) -> Place:
        """Inside a function that a call is of."""
        at_call = replace(place, depth=place.depth + 1)
        own = Place(module, depth=place.depth + 1)
        spread = ast.Call(call.func, self._spread(call, place), call.keywords)
        given = {
            name: (value, at_call if value in spread.args or _of(call, value) else own)
            for name, value in bound(function, spread).items()
        }
        origin = place.origin or (place.module.name, call.lineno)
        return Place(module, given, place.depth + 1, origin=origin)

    def _spread(self, call: ast.Call, place: Place) -> list[ast.expr]:
        """The arguments by place, ``*names`` as what it is where that is written out."""
        found: list[ast.expr] = []
        for one in call.args:
            value = one.value if isinstance(one, ast.Starred) else None
            if isinstance(value, ast.Name):
                values = reaching(place.module, value, value.id)
                value = values[0] if len(values) == 1 else None  # type: ignore[assignment]
            found += value.elts if isinstance(value, ast.Tuple | ast.List) else [one]
        return found

    @staticmethod
    def _product(parts: list[list[str]]) -> list[str]:
        count = 1
        for one in parts:
            count *= len(one)
        if count > _MOST:
            # Which of many it is, is left open.
            parts = [one if len(one) == 1 else [HOLE] for one in parts]
        return ["".join(chosen) for chosen in product(*parts)]


def _value(ways: list[list[str]], number: int) -> list[str]:
    """One part of a text; a value in brackets that may be several things is left open."""
    before, after = ways[number - 1 : number] if number else [], ways[number + 1 : number + 2]
    in_brackets = before and after and before[0][0].endswith("(") and after[0][0].startswith(")")
    return [HOLE] if in_brackets and len(ways[number]) > 1 else ways[number]


def _open(texts: list[str]) -> list[str]:
    """A value that may be anything is not also written out as one of its words."""
    is_open = HOLE in texts and all(" " not in text for text in texts)
    return [HOLE] if is_open else texts


def _of(call: ast.Call, value: ast.expr) -> bool:
    return any(word.value is value for word in call.keywords)


def _joined_holes(text: str) -> str:
    while HOLE * 2 in text:
        text = text.replace(HOLE * 2, HOLE)
    return text


def rendered(sentence: str, words: Mapping[str, list[str]]) -> list[str]:
    """A sentence of :class:`~grove_megatron.checks.rules.Check`, its names as they are said."""
    pieces: list[list[str]] = []
    for number, piece in enumerate(_split(sentence)):
        if number % 2 == 0:
            pieces.append([piece])
        elif piece in words:
            pieces.append(words[piece])
        else:
            pieces.append([f"{HOLE if HOLE in piece else flag_of(piece)} ({HOLE})"])
    return [_joined_holes(text) for text in Reader._product(pieces)]


def _split(sentence: str) -> Iterable[str]:
    """Text, name, text, name, text."""
    rest = sentence
    while "{" in rest and "}" in rest:
        text, _, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        yield text
        yield name
    yield rest
