from dataclasses import replace

import pytest

from grove_megatron.model.parameters import active_parameters, total_parameters
from tests.unit.checkpoint.architectures import QWEN3_MOE, RELEASED


def test_the_released_models():
    grove, parent = total_parameters(RELEASED), total_parameters(QWEN3_MOE)
    assert grove.total == 32_948_041_728
    assert grove.adjugates == 2_415_919_104
    assert parent.total == 30_532_122_624
    assert (grove.dense, grove.experts) == (parent.dense, parent.experts)


@pytest.mark.parametrize(("groups", "width"), [(64, 128), (32, 256), (16, 512)])
def test_the_papers_three_configurations_have_as_many_parameters(groups, width):
    model = replace(RELEASED, num_groups=groups, adjugate_ffn_hidden_size=width)
    assert total_parameters(model).total == 32_948_041_728


@pytest.mark.parametrize(
    ("groups", "width", "fewest", "least", "most"),
    [
        (64, 128, 4, 150_994_944, 301_989_888),
        (32, 256, 2, 150_994_944, 603_979_776),
        (16, 512, 1, 150_994_944, 1_207_959_552),
    ],
)
def test_adjugates_active_for_a_token(groups, width, fewest, least, most):
    model = replace(RELEASED, num_groups=groups, adjugate_ffn_hidden_size=width)
    parent = active_parameters(QWEN3_MOE, 0)
    assert parent == 3_353_032_704
    assert active_parameters(model, fewest) - parent == least
    assert active_parameters(model, 8) - parent == most
    # A measured mean may be anything between.
    assert active_parameters(model, 7.5) - parent == most * 7.5 / 8
