"""``grove doctor`` answers whatever the flags are: no value of any ends in a traceback."""

import contextlib
import copy
import io
import os
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.arguments import add_grove_arguments
from grove_megatron.checks.guarded import FAILED, lines_of, problems_of
from grove_megatron.checks.problem import Problem
from grove_megatron.runtime import cpu
from grove_megatron.training.checks import as_launched
from grove_megatron.training.cpu_arguments import set_cpu_defaults
from grove_megatron.training.doctor import diagnose, examine

from .test_rules import SOUND

ODD = {
    int: ("0", "-1", "7", str(10**9), str(2**63)),
    float: ("nan", "inf", "-1", "0", "1e308"),
}
ODD_TEXTS = ("", "x", "\0", "nan", "1,2", "[", "0", "é" * 300, "/proc/x/y")


@cache
def parser() -> ArgumentParser:
    """As for a job on the CPU."""
    from megatron.training.arguments import add_megatron_arguments

    megatrons = add_megatron_arguments(ArgumentParser(allow_abbrev=False))
    return set_cpu_defaults(add_grove_arguments(megatrons))


@cache
def options() -> tuple[Action, ...]:
    """All flags but those that end the parser, or replace the command line."""
    named = {"--help", "--yaml-cfg"}
    return tuple(a for a in parser()._actions if named.isdisjoint(a.option_strings))


def odd_values(action: Action) -> Iterator[tuple[str, ...]]:
    if action.nargs == 0:
        yield ()
        return
    values = tuple(map(str, action.choices or ODD.get(action.type, ODD_TEXTS)))
    for value in values:
        yield (value,) * (action.nargs if isinstance(action.nargs, int) else 1)
    if action.nargs in ("*", "+"):
        yield values[:3]


def with_odd_values(*flags: tuple[Action, tuple[str, ...]]) -> Namespace | None:
    """A sound command line with these flags; None where argparse refuses them (test_unparsed)."""
    words = [word for action, values in flags for word in (action.option_strings[0], *values)]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            args = copy.deepcopy(parser().parse_args([*SOUND.split(), *words]))
    except (SystemExit, KeyError, SyntaxError):
        return None
    as_launched(args)
    return args


def is_answered(args: Namespace | None) -> list[str]:
    """The problems."""
    if args is None:
        return []
    with contextlib.redirect_stdout(io.StringIO()):
        found = examine(args, None, "cpu")
    said = [*map(str, found.problems), *found.notices, *found.plan]
    # A check that fails is caught, and is still one that has to be mended.
    assert said
    assert [line for line in said if FAILED in line] == []
    return found.problems


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """On the CPU runtime; what Megatron's validation of --deterministic-mode sets is undone."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("odd"))
    try:
        with cpu():
            # Or nothing would get as far as Megatron's checks and the plan, or no further on.
            assert is_answered(with_odd_values()) == []
            yield
            assert is_answered(with_odd_values()) == []
    finally:
        os.chdir(before)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("part", range(8))
def test_one_odd_value_of_every_flag(part: int) -> None:
    for number, action in enumerate(options()[part::8]):
        values = [*odd_values(action)]
        is_answered(with_odd_values((action, values[number % len(values)])))


@pytest.mark.long
@pytest.mark.parametrize("part", range(8))
def test_every_odd_value_of_every_flag(part: int) -> None:
    for action in options()[part::8]:
        for values in odd_values(action):
            is_answered(with_odd_values((action, values)))


def pairs() -> st.SearchStrategy[list[tuple[Action, tuple[str, ...]]]]:
    flag = st.deferred(lambda: st.sampled_from(options()))
    value = flag.flatmap(lambda a: st.tuples(st.just(a), st.sampled_from([*odd_values(a)])))
    return st.lists(value, min_size=2, max_size=4)


@settings(max_examples=200, derandomize=True)
@given(flags=pairs())
def test_odd_values_together(flags: list[tuple[Action, tuple[str, ...]]]) -> None:
    is_answered(with_odd_values(*flags))


@pytest.mark.long
@settings(max_examples=1000)
@given(flags=pairs())
def test_many_odd_values_together(flags: list[tuple[Action, tuple[str, ...]]]) -> None:
    is_answered(with_odd_values(*flags))


@pytest.mark.parametrize(
    "flags",
    [
        "--yaml-cfg",
        "--yaml-cfg missing.yaml",
        "--enable-msc",
        "--attention-backend fast",
        "--moe-layer-freq [1",
        "--num-layers",
        "--",
        "",
        "-",
        "words alone",
    ],
)
def test_what_does_not_get_as_far_is_answered_too(flags: str) -> None:
    words = [*SOUND.split(), *flags.split()] if flags else []
    found = diagnose(words, None, "cpu")
    assert found.problems


def test_a_check_that_fails_is_a_line() -> None:
    def check(args: Namespace) -> Iterator[Any]:
        yield said
        raise KeyError("odd")

    said: object = Problem("--a", 1, "is odd")
    first, line = problems_of(check, Namespace())
    assert first is said
    assert str(line).startswith(f"{FAILED}: KeyError: 'odd' (unit/training/test_odd_values.py:")
    said = "a notice"
    assert lines_of(check, Namespace()) == ["a notice", str(line)]
    assert lines_of(lambda args: ["said"], Namespace()) == ["said"]
