"""The table of switches is whole, agrees with Megatron's parser, and refuses what it says."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.checks.problem import shown
from grove_megatron.config import grove_problems
from grove_megatron.switches import (
    AREAS,
    OTHER_GROUPS,
    Idle,
    Ignored,
    Refused,
    named,
    refused,
    shown_by,
    works,
)
from grove_megatron.switches.page import PAGE, page
from grove_megatron.switches.rows import UNTRIED

from .conftest import GROVE, MODEL, in_lines

grove_problems = in_lines(grove_problems)


@pytest.fixture(scope="module")
def megatron() -> argparse.ArgumentParser:
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))


@pytest.fixture(scope="module")
def parse() -> Callable[[str], argparse.Namespace]:
    """As the launcher parses, but with one parser for all: to make one takes a second."""
    from megatron.training.arguments import add_megatron_arguments

    from grove_megatron.arguments import add_grove_arguments

    parser = add_grove_arguments(
        add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    )
    return lambda flags: parser.parse_args([*MODEL.split(), *flags.split()])


def test_every_switch_of_the_table_is_one_of_megatrons(megatron: argparse.ArgumentParser) -> None:
    known = {flag for action in megatron._actions for flag in action.option_strings}
    assert named() <= known


def test_every_option_of_megatron_has_a_row_or_is_in_another_group(
    megatron: argparse.ArgumentParser,
) -> None:
    missing = [
        action.option_strings
        for group in megatron._action_groups
        if group.title not in OTHER_GROUPS
        for action in group._group_actions
        if not named() & {*action.option_strings} and "--help" not in action.option_strings
    ]
    assert missing == []
    assert OTHER_GROUPS.keys() <= {group.title for group in megatron._action_groups}


def test_rows_that_are_run_have_names_of_their_own() -> None:
    names = [row.name for row in works()]
    assert len(names) == len(set(names)) > 50


def test_a_switch_without_effect_is_not_refused_as_well() -> None:
    def of(kind: type[Ignored] | type[Idle]) -> set[str]:
        rows = [row for area in AREAS for row in area.rows if isinstance(row, kind)]
        return {switch for row in rows for switch in row.switches}

    assert not of(Ignored) & ({row.switch for row in refused()} | of(Idle))


@pytest.mark.parametrize("row", refused(), ids=lambda row: row.flags)
def test_what_the_table_refuses_is_refused(row: Refused, parse: Callable[[str], Any]) -> None:
    args = parse(f"{GROVE} {row.flags}")
    value = shown(getattr(args, row.setting))
    assert grove_problems(args, num_experts=8) == [f"{row.switch} ({value}) {row.reason}"]
    without = parse(GROVE)
    assert not [p for p in grove_problems(without, num_experts=8) if p.startswith(row.switch)]


@pytest.mark.parametrize("row", refused(), ids=lambda row: row.flags)
def test_a_plain_moe_is_refused_what_the_page_says(
    row: Refused, parse: Callable[[str], Any]
) -> None:
    flags = row.flags.replace("--grove-router-scoring softmax", "")
    lines = grove_problems(parse(f"--grove-dispatch {flags}"), num_experts=8)
    reason = {"layer": row.reason, "groups": UNTRIED, "scoring": None}[row.of]
    assert [line.partition(") ")[2] for line in lines] == ([] if reason is None else [reason])


def test_a_reason_that_names_groups_is_one_of_groups() -> None:
    names = re.compile("adjugate|--grove-num-groups|with groups")
    assert [row for row in refused() if names.search(row.reason) and row.of != "groups"] == []


@pytest.mark.parametrize("row", works(), ids=lambda row: row.name)
def test_what_the_table_says_works_is_not_refused(row: Any, parse: Callable[[str], Any]) -> None:
    assert grove_problems(parse(f"{GROVE} {row.layout} {row.flags}"), num_experts=8) == []


@pytest.mark.parametrize("test", shown_by())
def test_the_tests_that_rows_name_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    source = (Path(__file__).parents[2] / path).read_text()
    assert re.search(rf"^ *def {name or 'test_'}", source, re.MULTILINE)


def test_the_page_is_made_from_the_tables() -> None:
    message = "stale: run python -m grove_megatron.switches --write"
    assert PAGE.read_text(encoding="utf-8") == page(), message
