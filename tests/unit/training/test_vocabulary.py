"""The tokens of a job, by the tokenizers that Megatron would build of the same files."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.training.vocabulary import Vocabulary, read_vocabulary

from .command_lines import parsed


def job(kind: str, **settings: Any) -> Namespace:
    args = parsed()
    args.tokenizer_type, args.vocab_size = kind, None
    for name, value in settings.items():
        assert hasattr(args, name), name
        setattr(args, name, value)
    return args


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` makes it: 40 tokens and two that were added."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    words = {f"t{n}": n for n in range(40)}
    made = Tokenizer(models.WordLevel(words, unk_token="t0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="t0")
    fast.add_tokens(["added"])
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 64}))
    return folder


def test_a_folder_of_hugging_face_has_those_it_added(hugging_face: Path) -> None:
    found = read_vocabulary(job("HuggingFaceTokenizer", tokenizer_model=str(hugging_face)))
    assert found == Vocabulary(42, str(hugging_face), ids=42)
    # Megatron asks the tokenizer, whatever the flag says, and adds what it is told to.
    args = job("HuggingFaceTokenizer", tokenizer_model=str(hugging_face), vocab_size=1000)
    args.special_tokens = ["<mine>"]
    assert read_vocabulary(args).tokens == 43
    assert (args.trust_remote_code, args.padded_vocab_size) == (parsed().trust_remote_code, None)


def test_a_folder_whose_tokenizer_cannot_be_read_says_what_its_model_has(
    hugging_face: Path, tmp_path: Path
) -> None:
    for file in hugging_face.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    args = job("HuggingFaceTokenizer", tokenizer_model=str(tmp_path))
    found = read_vocabulary(args)
    assert found.tokens == 64
    assert found.source.endswith("config.json; the tokenizer beside it cannot be read here")
    (tmp_path / "config.json").unlink()
    found = read_vocabulary(args)
    assert found.tokens is None
    assert f"--tokenizer-model ({tmp_path}), which cannot be read here: " in found.source


def test_a_sentencepiece_model_has_its_pieces(tmp_path: Path) -> None:
    import sentencepiece

    text = tmp_path / "text"
    text.write_text("a row goes where a group is\nthe adjugate adds to what an expert writes\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "it"), vocab_size=30, minloglevel=2
    )
    model = str(tmp_path / "it.model")
    for kind in ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"):
        assert read_vocabulary(job(kind, tokenizer_model=model)) == Vocabulary(30, model, ids=30)


def test_tokens_that_flags_or_megatron_decide(tmp_path: Path) -> None:
    assert read_vocabulary(job("NullTokenizer", vocab_size=96)).tokens == 96
    assert read_vocabulary(job("TikTokenizer")).tokens == 131072
    assert read_vocabulary(job("TikTokenizer", vocab_size=9000)).tokens == 9000
    assert read_vocabulary(job("GPT2BPETokenizer")).tokens == 50257
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps({"a": 0, "b": 1}))
    assert read_vocabulary(job("GPT2BPETokenizer", vocab_file=str(file))).tokens == 2
    # Without padding Megatron takes the flag, whatever the tokenizer has.
    args = job("GPT2BPETokenizer", vocab_file=str(file), vocab_size=7, pad_vocab_size=False)
    assert read_vocabulary(args).tokens == 7


@pytest.mark.parametrize("given", [None, 96])
@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "some/where"}, "is not on"),
        ({"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": "/no/such"}, "is not on this"),
        (
            {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "name" * 999},
            "which is not on this machine",
        ),
        ({"tokenizer_type": "SFTTokenizer"}, "--tokenizer-type (SFTTokenizer) without --tok"),
        ({"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "/no/such"}, "cannot be read here"),
    ],
)
def test_what_is_not_here_is_not_guessed(
    settings: dict[str, Any], source: str, given: int | None
) -> None:
    kind = settings["tokenizer_type"]
    found = read_vocabulary(job(kind, vocab_size=given, **settings))
    assert found.tokens == given
    assert source in found.source
    assert found.source.startswith("--vocab-size; the job asks its tokenizer, ") == bool(given)
