"""Flags of a command line that Megatron takes and does nothing with, by the table of switches."""

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator

from ..checks.problem import Problem
from ..switches import Idle, idle, named
from .megatrons_flags import megatrons_flags


def idle_flags(args: Namespace) -> Iterator[Problem]:
    """Each flag that was given and does nothing beside the others.

    Args:
        args: parsed, not yet validated.
    """
    parser, defaults = megatrons_flags()
    for row in idle():
        if not row.when(args):
            continue
        for flag, action in _options(row, parser):
            value = getattr(args, action.dest, None)
            # Of a pair with one setting it may have been the other.
            other = isinstance(action.const, bool) and action.const != value
            if value != getattr(defaults, action.dest) and not other:
                yield Problem(flag, value, f"does nothing{row.reason}")


def _options(row: Idle, parser: ArgumentParser) -> Iterator[tuple[str, Action]]:
    for name in row.switches:
        yield name, parser._option_string_actions[name]
    for group in parser._action_groups:
        if row.group and group.title == row.group:
            for action in group._group_actions:
                if not named() & {*action.option_strings}:
                    yield action.option_strings[0], action
