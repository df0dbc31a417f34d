"""The table of versions in README.md, and the command that writes it."""

import platform
from datetime import date

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.meta import test_packaging as packaged
from tests.meta.versions import (
    PACKAGES,
    PINNED,
    ROOT,
    filled,
    outcome,
    pinned,
    row_of_this_python,
    rows,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
RECORD = (
    '<testsuites><testsuite tests="10" failures="{}" errors="{}" skipped="3"/>'
    '<testsuite tests="2" failures="0" errors="0" skipped="0"/></testsuites>'
)
EMPTY = "before\n<!-- versions -->\n<!-- end -->\nbehind\n"


def test_the_readme_has_the_pinned_row_as_it_is_now() -> None:
    assert filled(README, CONSTRAINTS) == README
    assert rows(README)[0] == pinned(CONSTRAINTS)
    assert all(pinned(CONSTRAINTS)[1:])


def test_an_outcome_counts_every_suite() -> None:
    assert outcome(RECORD.format(0, 0)) == f"9 passed, 3 skipped, {date.today()}"
    assert outcome(RECORD.format(2, 1)) == f"6 passed, 3 failed, 3 skipped, {date.today()}"


def test_a_row_says_what_is_installed_here() -> None:
    row = row_of_this_python(RECORD.format(0, 0))
    assert row[0] == platform.python_version()
    assert len(row) == len(PACKAGES) + 2
    assert row[1].startswith("2.")


def test_a_run_takes_the_place_of_the_last_one_with_its_python() -> None:
    def row(python: str, said: str) -> list[str]:
        return [python, *PACKAGES, said]

    text = filled(EMPTY, CONSTRAINTS)
    assert text.startswith("before\n<!-- versions -->\n| Python |")
    assert text.endswith("|\n<!-- end -->\nbehind\n")
    for new in (row("3.13.0", "old"), row("3.12.1", "other"), row("3.13.9", "new")):
        text = filled(text, CONSTRAINTS, new)
    found = rows(text)
    assert [cells[-1] for cells in found] == [PINNED, "other", "new"]
    assert found[1:] == [row("3.12.1", "other"), row("3.13.9", "new")]


def test_every_row_and_every_pin_is_in_the_ranges_of_setup() -> None:
    ranges: dict[str, SpecifierSet] = {}
    for one in map(Requirement, packaged.requirements()):
        # Two extras may name the same package.
        ranges[one.name] = ranges.get(one.name, SpecifierSet()) & one.specifier
    assert all(map(ranges.__getitem__, ("torch", "megatron-core", "transformers")))
    pins = packaged.pinned()
    for python, *versions, _ in rows(README):
        # The pinned row has no third number.
        patch = python if python.count(".") == 2 else f"{python}.0"
        assert patch in SpecifierSet(packaged.metadata()["python_requires"])
        for name, version in zip(PACKAGES, versions, strict=True):
            assert version in ranges.get(name, SpecifierSet()), name
    for name in set(ranges) & set(pins):
        assert pins[name] in ranges[name], name


def test_every_required_package_is_pinned() -> None:
    unpinned = {packaged.project(r) for r in packaged.metadata()["install_requires"]}
    unpinned |= {packaged.project(r) for r in packaged.metadata()["extras_require"]["dev"]}
    assert unpinned - set(packaged.pinned()) == set()
