"""What tests of routers share: process groups of one rank, and a parser."""

import pytest

from tests.unit.moe.routers import one_rank


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory):
    with one_rank(tmp_path_factory.mktemp("store") / "file"):
        yield


@pytest.fixture(scope="module")
def parse():
    import argparse

    from megatron.training.arguments import add_megatron_arguments

    from grove_megatron.arguments import add_grove_arguments

    parser = add_grove_arguments(add_megatron_arguments(argparse.ArgumentParser()))
    return lambda flags: parser.parse_args(flags.split())
