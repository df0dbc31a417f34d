"""The small model of the examples, and command lines of it."""

import copy
import re
import shlex
from argparse import ArgumentParser, Namespace
from functools import cache
from pathlib import Path

from megatron.training.arguments import add_megatron_arguments

from ..arguments import add_grove_arguments
from ..model.architecture import Model
from ..training.sizes import sizes_of

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = "examples/01_cpu_two_ranks.sh"
_FLAGS = CHECKOUT / "examples" / "tiny_model.sh"


def is_checkout() -> bool:
    """Is there a repository around the package?"""
    return _FLAGS.is_file()


@cache
def _parser() -> ArgumentParser:
    return add_grove_arguments(add_megatron_arguments(ArgumentParser(allow_abbrev=False)))


def known_flags() -> frozenset[str]:
    """Every flag of a job."""
    return frozenset(flag for action in _parser()._actions for flag in action.option_strings)


@cache
def flags() -> tuple[str, ...]:
    """Of the small model."""
    array = re.search(r"^tiny_model=\((.*?)^\)", _FLAGS.read_text(encoding="utf-8"), re.M | re.S)
    assert array is not None, "an array of flags"
    return tuple(shlex.split(array[1]))


@cache
def _parsed(more: str) -> Namespace:
    args = _parser().parse_args([*flags(), *more.split()])
    args.rank, args.world_size = 0, 1
    return args


def parsed(more: str = "") -> Namespace:
    """The small model with more flags."""
    return copy.copy(_parsed(more))


def given(more: str) -> dict[str, object]:
    """What these flags change of the small model."""
    base = vars(_parsed(""))
    return {name: value for name, value in vars(_parsed(more)).items() if value != base[name]}


def model(more: str = "") -> Model:
    """What the planner makes of it."""
    return sizes_of(parsed(more)).model
