import argparse

import pytest

from grove_megatron.checks.flags import _SPELLED, flag_of

from ..conftest import parser


@pytest.fixture(scope="module")
def options() -> dict[str, argparse.Action]:
    return parser()._option_string_actions


@pytest.mark.parametrize("setting", _SPELLED)
def test_a_flag_that_has_not_its_settings_name_is_megatrons(
    setting: str, options: dict[str, argparse.Action]
) -> None:
    assert options[flag_of(setting)].dest == setting
    assert flag_of("num_experts") == "--num-experts"
