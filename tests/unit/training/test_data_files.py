"""What is said of files of tokens before anything is built."""

import json
from pathlib import Path

import numpy
import pytest

from grove_megatron.training.data_files import data_file_problems

from ..conftest import in_lines
from .data import write_tokens

data_file_problems = in_lines(data_file_problems)

NULL = "--tokenizer-type NullTokenizer --vocab-size 96"


@pytest.fixture
def problems(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tokens(tmp_path / "here")
    return lambda flags: data_file_problems(parse(f"{NULL} {flags}"))


@pytest.mark.parametrize(
    "flags",
    [
        "--data-path here",
        "--data-path 1 here 2.5 here",
        "--data-path here here",
        "--train-data-path here --valid-data-path 1 here",
        "--data-args-path blend.txt",
        "--per-split-data-args-path splits.json",
        "--data-path s3://bucket/there",
        "--mock-data",
        "--mock-data --data-path there",
        "--dataloader-type external --data-path there",
        "--sft --data-path there.jsonl",
        "--data-path here --per-dataset-sequences-path sequences.json",
    ],
)
def test_data_that_can_be_read_are_no_problem(problems, flags):
    Path("blend.txt").write_text("0.5 here\n0.5 here\n")
    splits = {"train": "1 here", "valid": ["here"], "test": None}
    Path("splits.json").write_text(json.dumps(splits))
    Path("sequences.json").write_text(json.dumps({"here": [1, 1]}))
    assert problems(flags) == []


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            "--data-path there",
            "--data-path (there) has no there.bin and there.idx; give the path of both without "
            "their suffix",
        ),
        (
            "--data-path 0.3 here 0.7 there",
            "--data-path (there) has no there.bin and there.idx; give the path of both without "
            "their suffix",
        ),
        (
            "--data-path here.bin",
            "--data-path (here.bin) has no here.bin.bin and here.bin.idx; give here, without the "
            "suffix",
        ),
        (
            "--data-path 0.3",
            "--data-path (0.3) has no 0.3.bin and 0.3.idx; give a weight before every prefix, or "
            "none",
        ),
        (
            "--data-path 0.3 here here here",
            "--data-path (0.3 here here here) mixes prefixes with and without a weight; give a "
            "weight before every prefix, or none",
        ),
        (
            "--data-path 0 here",
            "--data-path has a weight (0.0) that is not above 0; leave that prefix out",
        ),
        (
            "--data-path nan here",
            "--data-path has a weight (nan) that is not above 0; leave that prefix out",
        ),
        ("--valid-data-path there", "--valid-data-path (there) has no there.bin and"),
        ("--data-args-path none.txt", "--data-args-path (none.txt) cannot be read: No such file"),
        ("--data-args-path empty.txt", "--data-args-path (empty.txt) is empty; write weights"),
        ("--data-args-path blend.txt", "--data-args-path (blend.txt): (there) has no there.bin"),
        (
            "--per-split-data-args-path none.json",
            "--per-split-data-args-path (none.json) cannot be read: No such file",
        ),
        (
            "--per-split-data-args-path blend.txt",
            "--per-split-data-args-path (blend.txt) cannot be read: Expecting value",
        ),
        (
            "--per-split-data-args-path train.json",
            "--per-split-data-args-path (train.json) has no lists of prefixes for train, valid, t",
        ),
        (
            "--per-split-data-args-path there.json",
            "--per-split-data-args-path: test (there) has no there.bin and there.idx",
        ),
        (
            "--data-path here --per-dataset-sequences-path train.json",
            "--per-dataset-sequences-path (train.json) does not name (here), which the data",
        ),
    ],
)
def test_what_is_not_there_is_named(problems, flags, line):
    Path("empty.txt").write_text("\n")
    Path("blend.txt").write_text("there")
    Path("train.json").write_text('{"train": ["here"]}')
    Path("there.json").write_text('{"train": ["here"], "valid": "here", "test": ["1", "there"]}')
    (problem,) = problems(flags)
    assert problem.startswith(line)


def test_of_hundreds_the_first_are_named(problems):
    found = problems(f"--data-path {' '.join(f'there{i}' for i in range(101))}")
    assert len(found) == 11
    assert found[-1] == "91 more problems of the data files; correct these first"


@pytest.mark.parametrize(
    ("suffix", "keep", "says"),
    [
        (".idx", 0, "is not an index of Megatron's"),
        (".idx", 12, "(12 bytes) is cut off"),
        (".idx", -1, "is cut off, it needs"),
        (".bin", -1, "(11 bytes) is cut off, its index needs (12)"),
        (".bin", 0, "(0 bytes) is cut off, its index needs (12)"),
    ],
)
def test_a_file_that_was_cut_off_is_named(problems, suffix, keep, says):
    path = Path(f"here{suffix}")
    path.write_bytes(path.read_bytes()[:keep])
    (problem,) = problems("--data-path here")
    assert problem.startswith(f"--data-path (here): {path}")
    assert says in problem
    assert "grove data" in problem


def test_an_index_of_something_else_is_named(problems):
    content = Path("here.idx").read_bytes()
    for changed, says in ((b"x" + content[1:], "not an index"), (content[:17] + b"\x63", "63")):
        Path("here.idx").write_bytes(changed + content[len(changed) :])
        (problem,) = problems("--data-path here")
        assert says in problem or "99" in problem


def test_data_without_a_sequence_are_named(problems, tmp_path):
    write_tokens(tmp_path / "empty", [])
    (problem,) = problems("--data-path empty")
    assert "has no sequence" in problem


@pytest.mark.parametrize("dtype", [numpy.uint16, numpy.int32])
def test_data_of_another_vocabulary_are_named_at_start(problems, tmp_path, dtype):
    write_tokens(tmp_path / "other", [[1, 2], [3, 96]], dtype)
    (problem,) = problems("--data-path 1 here 1 other")
    assert problem.startswith(
        "token id (96) in the data of --data-path (other) is not in the vocabulary of "
        "--tokenizer-type (NullTokenizer, --vocab-size 96), 0 to 95; "
    )
    assert problems("--data-path other --vocab-size 97") == []


def test_data_of_another_tokenizer_are_refused(parse, tmp_path):
    from grove_megatron.data.tokenizers import fingerprint

    write_tokens(tmp_path / "here")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"version": name}))
    said = {"kind": "HuggingFaceTokenizer", "model": "one", "size": 96, "end": 0}
    said["fingerprint"] = fingerprint(str(tmp_path / "one"))
    manifest = {"format": "grove_data", "tokenizer": said, "bin_sha256": ""}
    (tmp_path / "here.json").write_text(json.dumps(manifest))

    def problems(name):
        model = f"--tokenizer-type HuggingFaceTokenizer --tokenizer-model {tmp_path / name}"
        found = data_file_problems(parse(f"{model} --data-path {tmp_path / 'here'}"))
        return [line for line in found if line.startswith("--tokenizer-model")]

    assert problems("one") == []
    (line,) = problems("other")
    assert f"than the tokenizer that ({tmp_path / 'here'}) was made with (one, a Hugging" in line
    # A record of somebody else's, and a tokenizer that stands for any.
    assert data_file_problems(parse(f"{NULL} --data-path {tmp_path / 'here'}")) == []
    (tmp_path / "here.json").write_text("[]")
    assert problems("other") == []
    (tmp_path / "here.json").write_text('{"format": "grove_data"}')
    model = f"--tokenizer-type HuggingFaceTokenizer --tokenizer-model {tmp_path / 'one'}"
    (line,) = [
        line
        for line in data_file_problems(parse(f"{model} --data-path {tmp_path / 'here'}"))
        if "manifest" in line
    ]
    assert line.startswith(f"{tmp_path / 'here.json'} is a manifest that lacks its tokenizer")
