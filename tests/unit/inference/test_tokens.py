"""Text as it grows, and what generation may choose."""

from types import SimpleNamespace

import pytest
import torch

from grove_megatron.inference.generation import _Controller, _Ids
from grove_megatron.inference.tokens import Stream


def bytes_of(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["abc", "für", "a\N{PILE OF POO}b", "\N{PILE OF POO}"])
def test_characters_of_several_tokens_are_written_whole(text: str) -> None:
    written: list[str] = []
    stream = Stream(bytes_of, written.append)
    for token in text.encode():
        stream.add(token)
    stream.close()
    assert "".join(written) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in written)


def test_half_a_character_is_written_at_the_end() -> None:
    written: list[str] = []
    stream = Stream(bytes_of, written.append)
    for token in "aü".encode()[:-1]:
        stream.add(token)
    assert "".join(written) == "a"
    stream.close()
    assert "".join(written) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_k": 0}, {"top_k": 5}])
def test_rows_that_are_padding_are_never_chosen(params: dict[str, int]) -> None:
    controller = object.__new__(_Controller)
    controller.tokenizer = _Ids(6, 5)
    controller.sampling_rng = torch.Generator().manual_seed(0)
    sampling = SimpleNamespace(
        temperature=1.0, top_p=0.0, top_n_logprobs=0, return_log_probs=False, **params
    )
    logits = torch.zeros(500, 8)
    logits[:, 6:] = 50
    chosen = controller.choose(logits, sampling, 8)
    assert int(chosen.max()) < 6
    # What it was given is somebody else's.
    assert float(logits.max()) == 50
