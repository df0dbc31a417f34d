"""Every tensor is read once, cast, looked at and summed."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.checkpoint.checked import CheckedReader, Plan, plan
from grove_megatron.checkpoint.safetensors_io import bytes_of
from grove_megatron.checkpoint.weights import TensorInfo

from .stored_weights import StoredWeights

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def read(
    tensor: torch.Tensor,
    dtype: torch.dtype | None = None,
    known: dict[str, tuple[str, str]] | None = None,
) -> tuple[torch.Tensor, dict[str, str], list[str]]:
    """What becomes of one tensor ``t``: itself, checksums, problems."""
    plans = {"t": Plan(tuple(tensor.shape), dtype or tensor.dtype)}
    reader = CheckedReader(StoredWeights({"t": tensor}), plans, known or {})
    try:
        return reader.read("t"), reader.take(), reader.problems
    finally:
        reader.close()


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    at=st.floats(0, 0.999),
)
@settings(max_examples=60)
def test_one_entry_that_is_not_finite_is_found_wherever_it_is(
    dtype: torch.dtype, shape: list[int], value: float, at: float
) -> None:
    tensor = torch.randn(shape).to(dtype)
    assert read(tensor)[2] == []
    tensor.view(-1)[int(at * tensor.numel())] = value
    (problem,) = read(tensor)[2]
    assert problem == "t in memory has entries that are not finite; --skip t writes zeros"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert read(torch.tensor([largest, -largest], dtype=dtype))[2] == []
    assert read(torch.empty(0, 3, dtype=dtype))[2] == []


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("own", DTYPES)
def test_a_tensor_is_cast_as_torch_casts(own: torch.dtype, wanted: torch.dtype) -> None:
    tensor = torch.randn(5, 7).to(own)
    found, sums, problems = read(tensor, wanted)
    assert problems == []
    assert found.dtype == wanted
    assert torch.equal(found, tensor.to(wanted))
    assert sums == {"t": sha256(tensor.to(wanted))}


def test_what_a_cast_makes_infinite_is_found() -> None:
    (problem,) = read(torch.tensor([1e6]), torch.float16)[2]
    assert problem == (
        "t in memory has entries that are too large for torch.float16; choose another --dtype, or "
        "--skip t writes zeros"
    )
    (problem,) = read(torch.tensor([math.inf]), torch.float16)[2]
    assert "not finite" in problem


def test_a_view_is_summed_in_the_order_of_its_entries() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    found, sums, _ = read(whole.T)
    assert found.is_contiguous()
    assert sums == {"t": sha256(whole.T.contiguous())}


def test_another_checksum_than_that_of_the_manifest_is_found() -> None:
    tensor = torch.arange(3.0)
    assert read(tensor, known={"t": ("F32", sha256(tensor))})[2] == []
    (problem,) = read(tensor, known={"t": ("F32", "0" * 64)})[2]
    assert problem.startswith("t in memory (sha256 ")
    assert "differs from its manifest (000000000000...)" in problem


def test_a_changed_tensor_is_found_when_it_is_cast_as_well() -> None:
    tensor = torch.arange(3.0)
    assert read(tensor, torch.bfloat16, {"t": ("F32", sha256(tensor))})[2] == []
    (problem,) = read(tensor, torch.bfloat16, {"t": ("F32", "0" * 64)})[2]
    assert "differs from its manifest" in problem


def test_checksums_of_another_dtype_say_nothing() -> None:
    assert read(torch.arange(3.0), known={"t": ("BF16", "0" * 64)})[2] == []


def test_everything_is_read_and_listed_in_spite_of_what_was_wrong() -> None:
    tensors = {f"t{i}": torch.full((2,), float(i)) for i in range(20)}
    tensors["t3"][0] = math.nan
    source = StoredWeights(tensors, unreadable={"t5"})
    plans = {n: Plan((2,), torch.float32, skipped=n == "t7") for n in tensors}
    reader = CheckedReader(source, plans, {})
    found = {name: reader.read(name) for name in tensors}
    sums = reader.take()
    reader.close()
    assert [p.split()[0] for p in sorted(reader.problems)] == ["memory:", "t3"]
    assert source.reads == [n for n in tensors if n != "t7"]
    assert set(sums) == set(tensors) - {"t5"}
    for name in ("t5", "t7"):
        assert torch.equal(found[name], torch.zeros(2))
    assert reader.take() == {}


def test_the_same_line_is_said_once() -> None:
    class Broken(StoredWeights):
        def read(self, name: str) -> torch.Tensor:
            raise ValueError("one record")

    tensors = {"q": torch.zeros(1), "k": torch.zeros(1)}
    reader = CheckedReader(Broken(tensors), {n: Plan((1,), torch.float32) for n in tensors}, {})
    for name in tensors:
        reader.read(name)
    assert reader.problems == ["one record"]
    reader.close()


# ------------------------------------------------------------------------------------------ plans


def info(dtype: str) -> TensorInfo:
    return TensorInfo((2,), dtype, "memory")


def test_a_plan_keeps_or_casts_and_knows_what_stays() -> None:
    infos = {"a": info("BF16"), "b": info("BF16"), "bias": info("F32"), "odd": info("F8_E4M3")}
    expected = dict.fromkeys([*infos, "absent"], (2,))

    def dtypes(dtype: torch.dtype | None) -> dict[str, torch.dtype]:
        skip = frozenset({"b", "absent"})
        plans = plan(expected, infos, dtype, skip, lambda name: name == "bias")
        assert [name for name, p in plans.items() if p.skipped] == ["b", "absent"]
        assert list(plans) == list(expected)
        return {name: p.dtype for name, p in plans.items()}

    kept = dict.fromkeys(expected, torch.bfloat16) | {"bias": torch.float32}
    assert dtypes(None) == kept
    assert dtypes(torch.float16) == dict.fromkeys(expected, torch.float16) | {"bias": torch.float32}


def test_bytes_of_a_plan() -> None:
    assert Plan((3, 5), torch.bfloat16).bytes == 30
    assert Plan((), torch.float32).bytes == 4
