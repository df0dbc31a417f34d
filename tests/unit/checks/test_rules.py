"""The words of every rule, and where it holds."""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest

from grove_megatron.checks.problem import Problem
from grove_megatron.checks.rules import Check

# A rule, what it is given beside the settings, the settings, and what it says.
BROKEN: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("missing", ("lr", "give it"), {"lr": None}, "--lr (None) is needed; give it"),
    ("needs", ("a", "b", "add it"), {"a": 2, "b": None}, "--a (2) needs --b (None); add it"),
    ("needs", ("a", "b", "add it"), {"a": "", "b": False}, "--a () needs --b (False); add it"),
    ("excludes", ("a", "b", "drop it"), {"a": 0, "b": 1}, "--a (0) excludes --b (1); drop it"),
    ("at_least", ("a", 1), {"a": 0}, "--a (0) is below 1; use 1 or more"),
    ("at_least", ("a", 1, "raise it"), {"a": 0.5}, "--a (0.5) is below 1; raise it"),
    ("at_most", ("a", 1, "lower it"), {"a": 2}, "--a (2) is above 1; lower it"),
    ("at_least", ("a", "b", "raise it"), {"a": 1, "b": 2}, "--a (1) is below --b (2); raise it"),
    ("at_most", ("a", "b", "lower it"), {"a": 2, "b": 1}, "--a (2) is above --b (1); lower it"),
    (
        "multiple",
        ("a", "b", "change it"),
        {"a": 5, "b": 2},
        "--a (5) is not a multiple of --b (2); change it",
    ),
    (
        "divides",
        ("a", "b", "change it"),
        {"a": 3, "b": 8},
        "--a (3) does not divide --b (8); change it",
    ),
    (
        "one_of",
        ("a", ("x", "y"), "use x"),
        {"a": "z"},
        "--a (z) is not one of (x, y); use x",
    ),
    (
        "finite",
        ("a", "use 0"),
        {"a": float("nan")},
        "--a (nan) is not a finite number of 0 or more; use 0",
    ),
    (
        "finite",
        ("a", "use 0"),
        {"a": float("inf")},
        "--a (inf) is not a finite number of 0 or more; use 0",
    ),
]
SOUND: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("missing", ("lr", "give it"), {"lr": 0.0}),
    ("needs", ("a", "b", ""), {"a": 2, "b": 0}),
    *(("needs", ("a", "b", ""), {"a": a, "b": None}) for a in (None, False, 0, [])),
    *(("excludes", ("a", "b", ""), {"a": 1, "b": b}) for b in (None, False)),
    *(("excludes", ("a", "b", ""), {"a": a, "b": 1}) for a in (None, False)),
    *(("at_least", ("a", 1), {"a": a}) for a in (None, 1)),
    *(("at_most", ("a", 1, ""), {"a": a}) for a in (None, 1)),
    *(("at_least", ("a", "b", ""), {"a": a, "b": 2}) for a in (None, 2)),
    ("at_least", ("a", "b", ""), {"a": 1, "b": None}),
    *(("at_most", ("a", "b", ""), {"a": a, "b": 2}) for a in (None, 2)),
    ("at_most", ("a", "b", ""), {"a": 1, "b": None}),
    *(("multiple", ("a", "b", ""), {"a": a, "b": 2}) for a in (None, 0, 4)),
    *(("multiple", ("a", "b", ""), {"a": 3, "b": b}) for b in (None, 0)),
    *(("divides", ("a", "b", ""), {"a": a, "b": 8}) for a in (None, 0, 4)),
    ("divides", ("a", "b", ""), {"a": 3, "b": None}),
    ("one_of", ("a", ("x", "y"), ""), {"a": "y"}),
    *(("finite", ("a", ""), {"a": a}) for a in (0, 2.5)),
]


def found(rule: str, given: tuple[Any, ...], settings: dict[str, Any]) -> list[Problem]:
    problems: Iterator[Problem] = getattr(Check(Namespace(**settings)), rule)(*given)
    return [*problems]


@pytest.mark.parametrize(("rule", "given", "settings", "line"), BROKEN)
def test_what_is_broken_is_said(
    rule: str, given: tuple[Any, ...], settings: dict[str, Any], line: str
) -> None:
    (problem,) = found(rule, given, settings)
    assert str(problem) == line
    name, *others = settings
    assert problem.flag == f"--{name}"
    assert problem.value is settings[name]
    assert problem.about == tuple(f"--{other}" for other in others)


@pytest.mark.parametrize(("rule", "given", "settings"), SOUND)
def test_what_holds_is_not(rule: str, given: tuple[Any, ...], settings: dict[str, Any]) -> None:
    assert found(rule, given, settings) == []


@pytest.mark.parametrize("rule", ["needs", "excludes", "at_most", "at_least", "multiple"])
def test_a_reason_stands_before_the_fix(rule: str) -> None:
    settings = Namespace(a=3, b={"needs": None, "at_least": 5}.get(rule, 2))
    (problem,) = getattr(Check(settings), rule)("a", "b", "mend it", why=", which is why")
    assert problem.text.endswith(f"--b ({settings.b}), which is why; mend it")


def test_a_sentence_is_of_its_first_setting_and_about_the_others() -> None:
    check = Check(Namespace(fp8="e4m3", num_experts=None, lr=1), num_experts=8)
    sentence = "{fp8} is odd beside {num_experts}: {why}; drop {fp8}"
    assert check.problem(sentence, why="it says {x} of {lr}") == Problem(
        "--fp8-format",
        "e4m3",
        "is odd beside --num-experts (8): it says {x} of {lr}; drop --fp8-format (e4m3)",
        about=("--num-experts", "--fp8-format"),
    )


def test_of_several_sentences_those_that_are_so_are_said() -> None:
    rules = {"{a} is odd; change it": True, "{b} is odd; change it": 0, "{b} is even; do": [1]}
    lines = [str(problem) for problem in Check(Namespace(a=1, b=2)).those(rules)]
    assert lines == ["--a (1) is odd; change it", "--b (2) is even; do"]


def test_a_number_may_have_to_be_above_0() -> None:
    (problem,) = Check(Namespace(a=0)).finite("a", "use 1", above=True)
    assert str(problem) == "--a (0) is not a finite number above 0; use 1"
    assert [*Check(Namespace(a=1)).finite("a", "use 1", above=True)] == []
