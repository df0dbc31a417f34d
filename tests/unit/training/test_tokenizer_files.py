"""A tokenizer that is not there is named before Megatron asks the Hugging Face Hub for it."""

import pytest

from grove_megatron.training.tokenizer_files import tokenizer_file_problems

HF = "--tokenizer-type HuggingFaceTokenizer --tokenizer-model"


@pytest.fixture
def problems(parse, tmp_path, monkeypatch):
    """Nothing of the Hub is here, and nobody asks it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return lambda flags: [*tokenizer_file_problems(parse(flags))]


@pytest.mark.parametrize("kind", ["NullTokenizer", "NullMultimodalTokenizer"])
def test_some_have_no_files(problems, kind):
    assert problems(f"--tokenizer-type {kind} --vocab-size 96") == []


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (f"{HF} /missing/folder", "--tokenizer-model (/missing/folder) is not a folder; correct"),
        (f"{HF} ./missing", "--tokenizer-model (./missing) is not a folder; correct the path"),
        (f"{HF} ../a/b", "--tokenizer-model (../a/b) is not a folder; correct the path"),
        (f"{HF} a/b/c", "--tokenizer-model (a/b/c) is not a folder; correct the path"),
        (
            f"{HF} tokenizers/mine",
            "--tokenizer-model (tokenizers/mine) is no folder here and cannot be had from the "
            "Hugging Face Hub: not in its cache, and HF_HUB_OFFLINE is set; correct the path, or",
        ),
        (f"{HF} empty", "--tokenizer-model (empty) has no files of a tokenizer; correct the path"),
        (
            "--tokenizer-type SFTTokenizer --tokenizer-model /missing",
            "--tokenizer-model (/missing) is not a folder",
        ),
        ("", "--tokenizer-type (GPT2BPETokenizer, the default) needs gpt2 of the Hugging Face"),
        (
            "--tokenizer-type BertWordPieceCase",
            "--tokenizer-type (BertWordPieceCase) needs bert-large-cased of the Hugging Face Hub",
        ),
        ("--tokenizer-type TikTokenizer", "--tokenizer-type (TikTokenizer) needs --tokenizer-mo"),
        (
            "--tokenizer-type TikTokenizer --tokenizer-model empty",
            "--tokenizer-model (empty) is not a file; correct the path",
        ),
        ("--tokenizer-type NullTokenizer --vocab-file a", "--vocab-file (a) is not a file"),
        ("--tokenizer-type NullTokenizer --merge-file a", "--merge-file (a) is not a file"),
        ("--tokenizer-type NullTokenizer --tokenizer-metadata a", "--tokenizer-metadata (a) is no"),
    ],
)
def test_what_is_not_there_is_named(problems, tmp_path, flags, line):
    (tmp_path / "empty").mkdir()
    (problem,) = problems(flags)
    assert problem.startswith(line)


@pytest.mark.parametrize(
    "kind", ["SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"]
)
def test_a_model_of_sentencepiece_is_a_file(problems, kind):
    *_, problem = problems(f"--tokenizer-type {kind} --tokenizer-model missing.model")
    assert problem == "--tokenizer-model (missing.model) is not a file; correct the path"


def test_a_package_that_is_not_installed_is_named(problems, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert problems(f"{HF} .")[0] == (
        "--tokenizer-type (HuggingFaceTokenizer) needs transformers (not installed); pip install "
        "transformers"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "spiece.model"])
def test_a_folder_with_a_tokenizer_is_no_problem(problems, tmp_path, name):
    (tmp_path / name).write_text("")
    assert problems(f"{HF} {tmp_path}") == []
    assert problems(f"{HF} {tmp_path / name}") == []
