"""Ids outside of the vocabulary are refused, with where they come from."""

from argparse import Namespace

import pytest
import torch
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

from grove_megatron.training.token_ids import (
    CheckedLoader,
    check_tokens,
    tokenizer_problem,
    vocabulary_problems,
    vocabulary_size,
)

from ..conftest import in_lines

tokenizer_problem = in_lines(tokenizer_problem)
vocabulary_problems = in_lines(vocabulary_problems)

NULL = "--tokenizer-type NullTokenizer --vocab-size 96"
FINE = {"tokens": torch.tensor([[0, 95]]), "labels": torch.tensor([[95, 0]])}


@pytest.fixture
def args(parse) -> Namespace:
    return parse(f"{NULL} --data-path 0.3 one 0.7 two")


def test_a_sound_batch_passes(args):
    check_tokens({**FINE, "attention_mask": None}, 96, args)
    check_tokens({}, 96, args)


@pytest.mark.parametrize("name", ["tokens", "labels"])
@pytest.mark.parametrize("token", [96, 127, 50_000, -1])
def test_an_id_outside_is_named_with_vocabulary_and_data(args, name, token):
    batch = {**FINE, name: torch.tensor([[3, token], [5, 5]])}
    with pytest.raises(ValueError, match="not in the vocabulary") as raised:
        check_tokens(batch, 96, args)
    assert str(raised.value) == (
        f"token id ({token}) in the data of --data-path (0.3 one 0.7 two) is not in the vocabulary "
        "of --tokenizer-type (NullTokenizer, --vocab-size 96), 0 to 95; use the tokenizer that "
        "made the data, or make them again"
    )


def test_labels_that_the_loss_leaves_out_are_not_looked_at(args):
    mask = torch.tensor([[1.0, 0.0]])
    check_tokens({**FINE, "labels": torch.tensor([[5, -100]]), "loss_mask": mask}, 96, args)
    with pytest.raises(ValueError, match=r"token id \(-100\)"):
        check_tokens({**FINE, "labels": torch.tensor([[-100, 5]]), "loss_mask": mask}, 96, args)
    with pytest.raises(ValueError, match=r"token id \(-100\)"):
        check_tokens({**FINE, "tokens": torch.tensor([[5, -100]]), "loss_mask": mask}, 96, args)


def test_a_loader_is_looked_at_batch_by_batch_and_begins_as_without(args):
    torch.manual_seed(5)
    loader = torch.utils.data.DataLoader([{"tokens": torch.tensor(t)} for t in (1, 95, 96)])
    checked = CheckedLoader(loader, 96, args)
    assert (len(checked), checked.batch_size) == (3, 1)
    torch.manual_seed(5)
    iter(loader)
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    batches = iter(checked)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [int(next(batches)["tokens"]) for _ in range(2)] == [1, 95]
    with pytest.raises(ValueError, match=r"token id \(96\)"):
        next(batches)


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--vocab-size 0", "--vocab-size (0) is below 1"),
        (
            "--vocab-size 96 --padded-vocab-size 95",
            "--padded-vocab-size (95) is below --vocab-size",
        ),
        ("--tokenizer-model here", "--tokenizer-model (here) is not read without --tokenizer-ty"),
        (f"{NULL} --mock-data --null-tokenizer-eod-id 96", "--null-tokenizer-eod-id (96) is not"),
    ],
)
def test_what_the_flags_tell_is_refused_at_start(parse, flags, begin):
    (problem,) = vocabulary_problems(parse(flags))
    assert problem.startswith(begin)


@pytest.mark.parametrize("flags", ["", NULL, f"{NULL} --padded-vocab-size 96"])
def test_a_vocabulary_that_fits_is_no_problem(parse, flags):
    assert [*vocabulary_problems(parse(flags))] == []


def test_a_tokenizer_needs_a_row_for_every_token(parse):
    args = parse(f"{NULL} --padded-vocab-size 128")
    tokenizer = build_tokenizer(args)
    assert vocabulary_size(tokenizer) == 96
    assert tokenizer_problem(args, tokenizer) is None
    args.padded_vocab_size = 64
    assert tokenizer_problem(args, tokenizer).startswith(
        "--padded-vocab-size (64) is below the vocabulary (96) of --tokenizer-type (NullTokenizer"
    )


def test_ids_that_are_left_out_count():
    """Of a Hugging Face tokenizer with 3 tokens of which one has the id 7."""
    inner = Namespace(get_vocab=lambda: {"a": 0, "b": 1, "c": 7})
    assert vocabulary_size(_Tokenizer(inner)) == 8


class _Tokenizer:
    vocab_size = 3

    def __init__(self, inner: Namespace) -> None:
        self._tokenizer = Namespace(tokenizer=inner)
