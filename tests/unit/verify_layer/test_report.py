"""A layer passes that computes what the folder says, and no other."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from grove_megatron.verify_layer.command import print_report, result_of
from grove_megatron.verify_layer.golden import Golden
from grove_megatron.verify_layer.measure import Measured
from grove_megatron.verify_layer.report import Report, compare
from tests.layer_folders import write_qwen2_moe

All = dict[str | None, Measured]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden.read(write_qwen2_moe(tmp_path_factory.mktemp("layer")))


@pytest.fixture
def perfect(golden: Golden) -> All:
    """What a layer without any error would give: zeros where the folder has no gradient."""
    shapes = golden.layout.shapes | {"x": tuple(golden.x.shape)}
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def measured(loss: str | None) -> Measured:
        grads = zeros | {name: grad.clone() for name, grad in golden.grads[loss].items()}
        value = None if loss is None else golden.losses[loss]
        return Measured(golden.y.clone(), golden.extras["routing_map"].bool(), grads, value)

    return {loss: measured(loss) for loss in (None, *golden.losses)}


def test_the_folders_own_numbers_pass(golden: Golden, perfect: All) -> None:
    report = compare(golden, perfect, "fp64")
    assert report.passed
    assert report.max_output_error == report.max_grad_error == report.max_loss_error == 0
    # 27 of three matrices, router, gate and x; and router and x of each loss.
    assert report.grads_compared == report.grads_in_file == 9 * 3 + 3 + 3 * 2
    assert "max_loss_error" in result_of(report)


def wrong_output(found: All) -> None:
    found[None].y[3, 2] += 0.01


def wrong_routing(found: All) -> None:
    found[None].routing_map[0] = ~found[None].routing_map[0]


def wrong_gradient(found: All) -> None:
    found[None].grads["experts.5.up_proj.weight"][1] *= 1.001


def no_gradient(found: All) -> None:
    del found[None].grads["shared_expert_gate.weight"]


def wrong_gradient_of_a_loss(found: All) -> None:
    found["z"].grads["gate.weight"].zero_()


def a_gradient_that_should_be_none(found: All) -> None:
    found["switch_aux"].grads["experts.0.up_proj.weight"][0, 0] = 1.0


def wrong_loss(found: All) -> None:
    value = found["z"].loss
    assert value is not None
    found["z"] = replace(found["z"], loss=value * 1.00001)


def no_loss(found: All) -> None:
    # Behind others: a maximum would not see it.
    found["z"] = replace(found["z"], loss=math.nan)


def no_number(found: All) -> None:
    found[None].y[0, 0] = math.nan


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (wrong_output, {"max_output_error"}),
        (no_number, {"max_output_error"}),
        (wrong_routing, {"routing_equal"}),
        (wrong_gradient, {"max_grad_error"}),
        (wrong_gradient_of_a_loss, {"max_grad_error"}),
        (a_gradient_that_should_be_none, {"max_grad_error"}),
        (no_gradient, {"grads_compared", "grads_missed"}),
        (wrong_loss, {"max_loss_error"}),
        (no_loss, {"max_loss_error"}),
    ],
)
def test_one_thing_wrong_fails_by_that(
    edit: Callable[[All], None], names: set[str], golden: Golden, perfect: All
) -> None:
    before = result_of(compare(golden, perfect, "fp32"))
    edit(perfect)
    report = compare(golden, perfect, "fp32")
    after = result_of(report)
    assert not report.passed
    assert {name for name in after if after[name] != before[name]} == names


def test_an_error_is_measured_by_the_largest_entry_of_its_tensor(
    golden: Golden, perfect: All
) -> None:
    grad = perfect[None].grads["gate.weight"]
    grad[0, 0] += 0.5 * grad.abs().max()
    assert compare(golden, perfect, "fp32").max_grad_error == pytest.approx(0.5)


def test_what_is_missed_is_named(
    golden: Golden, perfect: All, capsys: pytest.CaptureFixture[str]
) -> None:
    no_gradient(perfect)
    report = compare(golden, perfect, "fp32")
    assert report.grads_missed == ("grad.w.shared_expert_gate.weight",)
    print_report(golden, report, as_json=False)
    printed = capsys.readouterr().out
    assert "grad.w.shared_expert_gate.weight: the layer has no such gradient" in printed
    assert printed.rstrip().endswith("FAILED")


def test_json_has_no_error_of_losses_that_are_not_there_and_no_infinity() -> None:
    report = Report(
        max_output_error=math.inf,
        max_grad_error=0.0,
        grads_compared=0,
        grads_in_file=0,
        max_loss_error=None,
        routing_equal=True,
        grads_missed=(),
        dtype="fp32",
    )
    assert "max_loss_error" not in result_of(report)
    assert math.isfinite(result_of(report)["max_output_error"])


@pytest.mark.parametrize(("dtype", "passes"), [("fp32", True), ("fp64", False)])
def test_fp64_is_asked_more(dtype: str, passes: bool, golden: Golden, perfect: All) -> None:
    perfect[None].y[:] *= 1 + 1e-7
    assert compare(golden, perfect, dtype).passed is passes
