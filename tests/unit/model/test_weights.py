import pytest

from grove_megatron.model.weights import Split, Weight

SIZES = {"E": 4, "G": 2, "H": 6, "I": 8, "Q": 12, "K": 2}


@pytest.mark.parametrize(
    ("weight", "shape", "numel", "width"),
    [
        (Weight("mlp.router.weight", ("EH",)), (4, 6), 24, 4),
        (Weight("rows", ("IH",), Split.ROWS), (8, 6), 48, 8),
        (Weight("columns", ("HI",), Split.COLUMNS), (6, 8), 48, 8),
        (Weight("gate, up", ("IH", "IH"), Split.GATED), (16, 6), 96, 8),
        (Weight("q, k, v", ("QH", "KH", "KH"), Split.QKV), (16, 6), 96, 16),
        (Weight("bias of q, k, v", ("Q", "K", "K"), Split.QKV), (16,), 16, 16),
        (Weight("experts", ("IH", "IH"), Split.GATED, stack="E"), (16, 6), 4 * 96, 8),
        (Weight("adjugates", ("HI",), Split.COLUMNS, stack="G"), (6, 8), 2 * 48, 8),
    ],
    ids=lambda value: value.name if isinstance(value, Weight) else "",
)
def test_sizes_follow_from_the_letters(
    weight: Weight, shape: tuple[int, ...], numel: int, width: int
) -> None:
    assert weight.shape(SIZES) == shape
    assert weight.numel(SIZES) == numel
    assert weight.width(SIZES) == width


def test_a_stacked_entry_is_no_parameter_of_a_module() -> None:
    plain = Weight("name", ("H",), modules=("other",))
    assert plain.module_names == ("name", "other")
    stacked = Weight("name", ("H",), stack="E", modules=("weight{index}",))
    assert stacked.module_names == ("weight{index}",)
