"""What argparse says of a command line, all of it at once and without 700 lines of usage.

argparse ends the process at the first flag it does not know or value it cannot take. Here the rest
of the command line is parsed without these, and checked as any other.
"""

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn

from .checks.problem import UNSAID, Problem

Report = Callable[[Sequence[Problem]], NoReturn]
# Two flags of which one letter differs, or a word's end; not two that share a word.
_CLOSE = 0.82
_TYPES = {"int": "a whole number", "float": "a number"}


def report_errors(
    parser: ArgumentParser,
    report: Report,
    others: Callable[[Namespace], Sequence[Problem]] = lambda args: (),
) -> ArgumentParser:
    """Have ``parser`` give its errors to ``report``.

    Args:
        parser: of Megatron, with all flags.
        report: must not return.
        others: what else is wrong, of the flags that could be parsed.
    """

    def error(message: str) -> NoReturn:
        raise _Wrong(message)

    def parse_args(words: Sequence[str] | None = None, namespace: Namespace | None = None):  # type: ignore[no-untyped-def]
        words = sys.argv[1:] if words is None else [*words]
        try:
            args, unknown = parser.parse_known_args(words, namespace)
            if not unknown:
                return args
        except Exception:
            pass  # of which the words are found out one by one
        sound, problems = _sort_out(parser, words)
        try:
            args = parser.parse_known_args(sound, namespace)[0]
        except Exception as error:
            report([*problems, Problem.of_text(f"{error}; see --help")])
        # What a flag lacks, or others lack for it, is no news where it could not be parsed.
        said = {one.flag for one in problems if one.flag}
        rest = (one for one in others(args) if said.isdisjoint((one.flag, *one.about)))
        report([*problems, *rest])

    parser.error = error  # type: ignore[method-assign]
    parser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    return parser


class _Wrong(Exception):
    """What argparse would print."""


def _sort_out(parser: ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """The words that can be parsed, and a problem of each flag that cannot."""
    sound: list[str] = []
    problems: list[Problem] = []
    for given in _by_flag(parser, words):
        try:
            _, unknown = parser.parse_known_args(given)
        except Exception as error:
            problems.append(_not_taken(parser, given, error))
            continue
        if not unknown:
            sound += given
        elif unknown == given and given[0].startswith("-"):
            problems.append(_unknown(given[0].partition("=")[0], parser))
        else:
            taken = given[: -len(unknown)]
            sound += taken
            where = f"after {' '.join(taken)} " if taken else ""
            problems.append(Problem("", unknown, f"{where}is of no flag; remove it"))
    return sound, problems


def _by_flag(parser: ArgumentParser, words: Sequence[str]) -> Iterator[list[str]]:
    """Every flag with its values; what comes before the first by itself."""
    given: list[str] = []
    for word in words:
        if word.startswith("--") or word in parser._option_string_actions:
            if given:
                yield given
            given = []
        given.append(word)
    if given:
        yield given


def _not_taken(parser: ArgumentParser, given: Sequence[str], error: Exception) -> Problem:
    """A flag of which ``parser`` does not take the values."""
    flag, equals, value = given[0].partition("=")
    values = [value] if equals else [*given[1:]]
    action = parser._option_string_actions.get(flag)
    said = re.sub(r"^argument [^:]*: ", "", str(error))
    if said.startswith("expected"):
        return Problem(flag, UNSAID, "needs a value; give it")
    if said.startswith("ignored explicit argument"):
        return Problem(flag, values, "takes no value; remove it")
    if action is not None and said.startswith("invalid choice"):
        choices = ", ".join(map(str, action.choices or ()))
        return Problem(flag, values, f"is not one of {choices}; use one")
    kind = _TYPES.get(getattr(action and action.type, "__name__", ""))
    return Problem(flag, values, f"is not {kind or 'a value of this flag'}; correct it")


def _unknown(flag: str, parser: ArgumentParser) -> Problem:
    """With the nearest flag, unless it would say the opposite."""
    negated = flag.startswith("--no-")
    options = [o for o in parser._option_string_actions if o.startswith("--no-") == negated]
    near = get_close_matches(flag.replace("_", "-"), options, n=1, cutoff=_CLOSE)
    fix = f"did you mean {near[0]}?" if near else "remove it"
    return Problem(flag, UNSAID, f"is no flag of Megatron or grove_megatron; {fix}")
