"""A tokenizer that is not there is named before Megatron asks the Hugging Face Hub for it."""

import importlib.util

import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from grove_megatron.training import tokenizer_files
from grove_megatron.training.tokenizer_files import tokenizer_file_problems, tokenizer_notice

from ..conftest import in_lines

tokenizer_file_problems = in_lines(tokenizer_file_problems)

HF = "--tokenizer-type HuggingFaceTokenizer --tokenizer-model"


@pytest.fixture
def problems(parse, tmp_path, monkeypatch):
    """Nothing of the Hub is here, and nobody asks it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    fetched = tmp_path / "torch" / "megatron"
    fetched.mkdir(parents=True)
    for name in ("GPT2BPETokenizer_vocab", "GPT2BPETokenizer_merges", "BertWordPieceCase_vocab"):
        (fetched / name).write_text("")
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


def test_what_megatron_fetches_needs_the_module_it_fetches_with(problems, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "wget" else find(n))
    assert len(problems("")) == 1
    (tmp_path / "torch" / "megatron" / "GPT2BPETokenizer_merges").unlink()
    *_, problem = problems("")
    assert problem == (
        "--tokenizer-type (GPT2BPETokenizer, the default) without --merge-file (None) needs wget "
        "(not installed), with which Megatron fetches their files; give them, or pip install wget"
    )
    (tmp_path / "merges").write_text("")
    assert len(problems("--merge-file merges")) == 1
    *_, problem = problems("--tokenizer-type BertWordPieceLowerCase")
    assert "(BertWordPieceLowerCase) without --vocab-file (None) needs wget" in problem


def test_tokens_of_tiktoken_need_its_package(problems, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "file").write_text("")
    (problem,) = problems("--tokenizer-type TikTokenizer --tokenizer-model file")
    assert problem.startswith("--tokenizer-type (TikTokenizer) needs tiktoken (not installed)")


class ConnectTimeout(ConnectionError):
    """As of the library that the Hub's client asks with."""


@pytest.mark.parametrize(
    ("error", "is_refused"),
    [
        (RepositoryNotFoundError, True),
        (HfHubHTTPError, False),  # 429, and all of 500 and more
        (ConnectionError, True),
        (ConnectTimeout, False),
        (RuntimeError, False),
    ],
)
def test_what_the_hub_may_answer_otherwise_a_moment_later_is_noted(
    problems, parse, monkeypatch, error, is_refused
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    def model_info(self, model, timeout):
        asked.append(model)
        raised = error.__new__(error)
        raised.args = ("429 Client Error\nmore",)
        raise raised

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    tokenizer_files._error_of_the_hub.cache_clear()
    flags = f"{HF} a/b"
    found, notice = problems(flags), tokenizer_notice(parse(flags))
    assert len(found) == is_refused
    assert (notice is None) == is_refused
    said = found[0] if found else notice
    assert "429 Client Error" in said
    assert "more" not in said
    assert asked == ["a/b"]
    tokenizer_files._error_of_the_hub.cache_clear()
    monkeypatch.setenv("RANK", "1")
    assert problems(flags) == []
    assert asked == ["a/b"]
