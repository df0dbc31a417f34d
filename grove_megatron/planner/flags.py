"""The flags of Megatron and of grove_megatron, parsed where neither can be imported.

From a table that ``python -m grove_megatron.planner --write`` makes of the real parser; a test
compares what both make of command lines.
"""

import ast
import json
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from ..checks.problem import Problem, Refusal
from ..presets.flags import read_presets
from ..unparsed import report_errors

TABLE = Path(__file__).with_name("known_flags.json")


def _pattern(word: str) -> Any:
    """A whole number, or a list of them by ``[1]*3+[0]``, as Megatron reads patterns of layers."""
    return _sum(ast.parse(word, mode="eval").body) if "[" in word else int(word)


def _sum(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        return [_sum(one) for one in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _sum(node.left), _sum(node.right)
        return left + right if isinstance(node.op, ast.Add) else left * right
    raise ValueError("not a pattern")


def _whole_numbers(word: str) -> tuple[int, ...]:
    return tuple(int(one) for one in word.strip("()").split(","))


TYPES: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    # Of an enumeration, which Megatron has as its member.
    "name": str,
    "moe_freq_type": _pattern,
    "la_freq_type": _pattern,
    "no_rope_freq_type": _pattern,
    "tuple_type": _whole_numbers,
    "_parse_cuda_graph_modules_arg": str,
    "comma_separated_list": str,
}
"""By the names of their functions in Megatron's parser."""


@cache
def table() -> dict[str, Any]:
    """What is written of flags, parts and defaults."""
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def torchrun(words: Sequence[str]) -> Namespace:
    """What the launcher makes of its command line.

    Raises:
        Refusal: what it would not take.
    """

    def stop(message: str) -> NoReturn:
        raise Refusal([Problem.of_text(f"torchrun: {message}; see torchrun --help")])

    made = _made("torchrun")
    made.error = stop  # type: ignore[method-assign]
    return made.parse_args([*words])


def parser() -> ArgumentParser:
    """Takes what Megatron's takes, with the Grove flags, and makes the same namespace of it.

    A member of an enumeration is its name.
    """
    made = _made("flags")
    read_presets(made)
    return made


def _made(of: str) -> ArgumentParser:
    # Of the launcher beginnings of names will do.
    made = ArgumentParser(allow_abbrev=of == "torchrun", add_help=False)
    for row in table()[of]:
        given = dict(row)
        flags, kind = given.pop("flags"), given.pop("action")
        given["action"] = BooleanOptionalAction if kind == "optional" else kind
        if "type" in given:
            given["type"] = TYPES[given["type"]]
        if not flags:
            # What has no flag is named by its place.
            flags = [given.pop("dest")]
        made.add_argument(*flags, **given)
    return made


def parse(words: Sequence[str]) -> Namespace:
    """The namespace of a job.

    Raises:
        Refusal: what is no flag, or no value of one, all at once.
    """

    def stop(problems: Sequence[Problem]) -> NoReturn:
        raise Refusal(problems)

    return report_errors(parser(), stop).parse_args([*words])


def given_settings(words: Sequence[str]) -> frozenset[str]:
    """Names of the settings that a command line says, whatever their values."""
    flags = {flag: row["dest"] for row in table()["flags"] for flag in _spelled(row)}
    said = (word.partition("=")[0] for word in words)
    return frozenset(flags[word] for word in said if word in flags)


def _spelled(row: dict[str, Any]) -> list[str]:
    flags: list[str] = row["flags"]
    if row["action"] == "optional":
        return [*flags, *(f"--no-{flag[2:]}" for flag in flags)]
    return flags
