from pathlib import Path

import pytest
from megatron.core.transformer.enums import AttnBackend

from grove_megatron.checks.problem import UNSAID, Problem, Refusal, of_other_flags


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (Problem("--lr", None, "is needed; give it"), "--lr (None) is needed; give it"),
        (Problem("--fp16", True, "excludes"), "--fp16 (True) excludes"),
        (Problem("--spec", ["a", "b"], "names nothing"), "--spec (a b) names nothing"),
        (Problem("--save", Path("/a"), ": it is a file"), "--save (/a): it is a file"),
        (Problem("--a", 1, ", by default (2), is"), "--a (1), by default (2), is"),
        (Problem("--x", AttnBackend.flash, "needs a GPU"), "--x (flash) needs a GPU"),
        (Problem("--zzz", UNSAID, "is no flag"), "--zzz is no flag"),
        (Problem("", ["a", "b"], "is of no flag"), "(a b) is of no flag"),
        (Problem.of_text("it fails"), "it fails"),
        (Problem("--lr", 1, "is odd", where="rank 3"), "rank 3: --lr (1) is odd"),
    ],
    ids=str,
)
def test_it_is_shown_and_comes_to_another_rank(problem: Problem, line: str) -> None:
    assert str(problem) == line
    there = Problem.unpacked(problem.packed())
    assert str(there) == line
    assert (there.flag, there.about, there.where) == (problem.flag, problem.about, problem.where)
    assert there.packed() == problem.packed()


def test_an_exception_says_all_of_them_and_keeps_them() -> None:
    problems = [Problem("--a", 1, "is odd"), Problem("--b", 2, "is even", about=("--a",))]
    refusal = Refusal(iter(problems))
    assert str(refusal) == "--a (1) is odd; --b (2) is even"
    assert refusal.problems == problems


def test_a_flag_is_said_once_and_what_has_none_always() -> None:
    said = [Problem("--a", 1, "is odd"), Problem.of_text("it fails")]
    more = [Problem("--a", 1, "is below 2"), Problem("--b", 1, "is odd"), Problem.of_text("too")]
    assert of_other_flags(more, said) == more[1:]
