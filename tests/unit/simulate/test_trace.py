from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from grove_megatron.checks.problem import Refusal
from grove_megatron.report.trace import open_trace, write_trace
from grove_megatron.simulate.sizes import Sizes
from grove_megatron.simulate.trace import Replayed

SIZES = Sizes(experts=8, topk=2, ranks=4, tokens=2, row_bytes=2)
TOKENS = torch.tensor([[0, 7], [3, -1], [-1, -1], [4, 2], [6, 5], [1, 0]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.safetensors"


def replayed(file: Path) -> Replayed:
    trace = open_trace(file)
    return Replayed(SIZES, trace, trace.layers)


def refusal(file: Path) -> str:
    with pytest.raises(Refusal) as refused:
        replayed(file)
    return str(refused.value)


def test_ranks_get_their_tokens_in_order(file: Path) -> None:
    write_trace(file, {"mtp 1": TOKENS, "10": TOKENS[:4], "2": TOKENS}, experts=8, groups=4)
    trace = open_trace(file)
    assert (trace.experts, trace.groups, trace.topk, trace.tokens) == (
        8,
        4,
        2,
        {"2": 6, "10": 4, "mtp 1": 6},
    )
    assert trace.layers == ("2", "10", "mtp 1")
    routing = Replayed(SIZES, trace, trace.layers)
    for layer, tokens in (("2", TOKENS), ("10", TOKENS[:4]), ("mtp 1", TOKENS)):
        slices = [routing.experts(layer, 0, rank) for rank in range(4)]
        assert torch.equal(torch.cat(slices), tokens)
        assert {len(one) for one in slices} <= {len(tokens) // 4, -(-len(tokens) // 4)}
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


def test_any_integers_without_a_word_beside_them_are_a_trace(file: Path) -> None:
    save_file({"layers.1": TOKENS.to(torch.int8)}, file)
    trace = open_trace(file)
    assert (trace.experts, trace.groups) == (None, None)
    assert np.array_equal(trace.of("1"), TOKENS.numpy())


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (TOKENS + 1, "has in layer (1) expert (8), not one of 0 to 7"),
        (TOKENS - 1, "has in layer (1) expert (-2), not one of 0 to 7"),
        (torch.zeros(6, 2, dtype=torch.int32), "has in layer (1) a token with one expert twice"),
        (TOKENS.float(), "has for layer (1) values of type (F32), not integers; write it anew"),
        (TOKENS[:3], "has for layer (1) fewer tokens (3) than --ranks (4); use fewer ranks"),
    ],
)
def test_tokens_of_another_model_are_refused(file: Path, tokens: Tensor, said: str) -> None:
    save_file({"layers.1": tokens.contiguous()}, file)
    assert f"trace ({file}) {said}" in refusal(file)


@pytest.mark.parametrize(
    ("tensors", "about", "said"),
    [
        ({"weight": TOKENS}, {}, "has no tensor (layers.N)"),
        ({"layers.1": TOKENS}, {"format": "pt"}, "has format (pt), not (grove_trace)"),
        ({"layers.1": TOKENS}, {"experts": "many"}, "has experts (many), which is no number"),
        ({"layers.1": TOKENS[:, 0]}, {}, "has for layer (1) the shape [6], not [tokens, topk]"),
        ({"layers.1": TOKENS[:0]}, {}, "has for layer (1) the shape [0, 2]"),
        ({"layers.1": TOKENS}, {"experts": "1" * 5000}, f"has experts ({'1' * 60}), which is no"),
        ({"layers.1": TOKENS}, {"experts": "0"}, "has experts (0), of which none can be chosen"),
        (
            {"layers.1": TOKENS},
            {"experts": "8", "groups": "3"},
            "has experts (8), not a multiple of its groups (3)",
        ),
        ({"layers.0": TOKENS}, {}, "names a layer (0), where names are as (3) and (mtp 1)"),
        ({"layers.decoder.3": TOKENS}, {}, "names a layer (decoder.3), where names are as (3)"),
    ],
)
def test_what_is_no_trace_is_refused(
    file: Path, tensors: dict[str, Tensor], about: dict[str, str], said: str
) -> None:
    save_file({name: of.contiguous() for name, of in tensors.items()}, file, about)
    assert f"trace ({file}) {said}" in refusal(file)


def test_what_cannot_be_read_is_refused(file: Path) -> None:
    assert f"trace ({file}) cannot be read" in refusal(file)
    file.write_bytes(b"no tensors")
    assert f"trace ({file}) cannot be read" in refusal(file)


def test_nothing_is_written_that_is_no_trace(file: Path) -> None:
    for layers in ({"1": TOKENS + 1}, {}, {"0": TOKENS}, {"1": TOKENS[0]}, {"1": TOKENS.float()}):
        with pytest.raises(Refusal):
            write_trace(file, layers, experts=8)
    with pytest.raises(Refusal, match="experts \\(8\\), not a multiple of its groups \\(3\\)"):
        write_trace(file, {"1": TOKENS}, experts=8, groups=3)
    assert not any(file.parent.iterdir())
