"""Megatron's own flags and what they are by default."""

from argparse import ArgumentParser, Namespace
from functools import cache


@cache
def megatrons_flags() -> tuple[ArgumentParser, Namespace]:
    """Megatron's parser, and what it makes of an empty command line. Neither is to be changed."""
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(ArgumentParser(allow_abbrev=False))
    return parser, parser.parse_args([])
