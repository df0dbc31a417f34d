"""What the documents show of an output is what its command prints."""

import re

import pytest

from tests.ranks import Ranks

from .fences import ROOT, Fence, fences, fences_in
from .outputs import MARKS, Differs, check, renewed
from .running import Runner

# Outputs that a test of what they show compares, because it runs the command anyway.
COMPARED = "tests/integration/test_examples.py"
# A page that a program of its own fills.
FILLED = {
    "examples/whole_way.md": "tests/integration/test_examples.py::"
    "test_the_whole_way_is_that_of_its_page",
}
# Minutes, of a whole training.
LONG = ("make pretrain",)
OUTPUTS = [fence for fence in fences("text") if fence.mark in MARKS]
ELSEWHERE = [fence for fence in OUTPUTS if ".sh" in fence.said]
# Pages that a command writes; a test of each asks whether it still does so.
MADE = ("docs/parts/", "docs/presets/", "docs/troubleshooting/", "docs/reference/commands.md")
RUN_HERE = [fence for fence in OUTPUTS if fence not in ELSEWHERE]


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory.mktemp("documents"))


def _case(fence: Fence) -> object:
    marks = [pytest.mark.long] if fence.said in LONG else []
    return pytest.param(fence, id=fence.name, marks=marks)


@pytest.mark.parametrize("fence", [_case(fence) for fence in RUN_HERE])
def test_an_output_is_that_of_its_command(fence: Fence, runner: Runner) -> None:
    check(fence, runner.printed(fence.said))


def test_every_text_says_where_it_is_from() -> None:
    """An output has its command; what is none, or is compared elsewhere, says so."""
    kinds = (*MARKS, "output of", "no output")
    unsaid = [
        fence.name
        for fence in fences("text")
        if fence.mark not in kinds
        and fence.document not in FILLED
        and not fence.document.startswith(MADE)
    ]
    assert unsaid == []


def test_what_is_compared_elsewhere_is() -> None:
    tests = (ROOT / COMPARED).read_text(encoding="utf-8")
    asked = re.findall(r'(?:shows\(|command = )"(.*?)"', tests)
    assert sorted(fence.said for fence in ELSEWHERE) == sorted(asked)
    of_tests = [fence.said for fence in fences("text") if fence.mark == "output of"]
    for said in (*FILLED.values(), *of_tests):
        path, _, name = said.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), said


DOCUMENT = """
<!-- output: a command
of two lines -->
```text
 ... iteration  1/ 10 | ... | loss: 4.5E+00 | ...
...
done in 12 s
```
"""


def test_numbers_are_renewed_and_words_compared() -> None:
    (fence,) = fences_in(DOCUMENT, "a.md")
    assert (fence.mark, fence.said) == ("output", "a command of two lines")
    printed = "[x] iteration  1/ 10 | a | loss: 3.25E-01 | b\nbetween\ndone in 7 s\n"
    assert renewed(fence, printed) == (
        " ... iteration  1/ 10 | ... | loss: 3.25E-01 | ...\n...\ndone in 7 s\n"
    )
    for wrong in ("", "done in 7 s\n" + printed.removesuffix("done in 7 s\n"), printed.upper()):
        with pytest.raises(Differs, match=r"a\.md:5 shows a line that a command of two lines"):
            check(fence, wrong)


def test_an_exact_output_has_its_numbers() -> None:
    (fence,) = fences_in("<!-- exact output: x -->\n```text\nof 8\n```\n", "a.md")
    check(fence, "of 8\n")
    with pytest.raises(Differs):
        check(fence, "of 9\n")
