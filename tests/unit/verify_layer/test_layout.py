"""One table for both directions: weights go in by it, and gradients come out."""

import pytest
import torch
from torch import Tensor

from grove_megatron.verify_layer.layout import Layout, Take

SHAPES = {"up": (2, 3, 4), "gate": (3, 4), "transposed": (4, 2), "rows": (6, 2)}


def parameters(take: Take) -> dict[str, Tensor]:
    """Stacked, cut, put together, transposed."""
    up = take("up", 2, 3, 4)
    first, second = take("rows", 6, 2).chunk(2)
    return {
        "a": torch.cat([take("gate", 3, 4), up[0]]),
        "b": up[1],
        "c": take("transposed", 4, 2).T,
        "d": second,
        "e": first.T,
    }


def tensors() -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def test_it_moves_weights_as_the_function_does() -> None:
    weights = tensors()
    layout = Layout.of(parameters)
    assert layout.shapes == SHAPES
    flat = layout.flat(weights)
    expected = parameters(lambda name, *_: weights[name])
    assert layout.entries.keys() == expected.keys()
    for name, places in layout.entries.items():
        assert torch.equal(flat[places], expected[name])


def test_gradients_come_back_to_where_the_weights_were() -> None:
    weights = tensors()
    layout = Layout.of(parameters)
    flat = torch.zeros(layout.size)
    for name, parameter in parameters(lambda name, *_: weights[name]).items():
        flat[layout.entries[name]] = parameter
    found = layout.named(flat)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda take: {"a": take("w", 4)[:3]}, id="left out"),
        pytest.param(lambda take: {"a": (w := take("w", 4)), "b": w}, id="used twice"),
        pytest.param(lambda take: {"a": take("w", 4), "b": take("w", 4)}, id="asked for twice"),
    ],
)
def test_an_entry_is_used_once(wrong: object) -> None:
    with pytest.raises(AssertionError):
        Layout.of(wrong)  # type: ignore[arg-type]
