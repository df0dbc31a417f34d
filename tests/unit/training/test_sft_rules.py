"""What --sft needs, said before anything is built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron.core.tokenizers import MegatronTokenizer

from grove_megatron.training.sft_rules import (
    conversation_file_problems,
    packing_problems,
    sft_problems,
    sft_tokenizer_problems,
)
from tests.chat_tokenizers import save_chat_tokenizer

from ..conftest import in_lines
from .command_lines import parsed

in_lines_of: Callable[..., list[str]] = in_lines(sft_problems)
files_in_lines = in_lines(conversation_file_problems)
tokenizers_in_lines = in_lines(sft_tokenizer_problems)
FLAGS = "--sft --tokenizer-type HuggingFaceTokenizer --tokenizer-model t --data-path d"
TE = "--transformer-impl transformer_engine"
GOOD = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "five"}]}


def args_of(flags: str) -> Any:
    args = parsed(flags)
    args.mock_data = "--mock-data" in flags
    return args


@pytest.mark.parametrize(
    "flags",
    [
        FLAGS,
        f"{FLAGS} --bf16",
        f"{FLAGS} --tokenizer-type SFTTokenizer --sft-tokenizer-prompt-format default",
        f"{FLAGS} {TE} --bf16 --window-size 4,4 --mtp-num-layers 1",
        f"{FLAGS} {TE} --pipeline-model-parallel-size 2",
        "--eod-mask-loss --reset-position-ids --mtp-num-layers 1",
    ],
)
def test_what_works_is_no_problem(flags: str) -> None:
    assert in_lines_of(args_of(flags)) == []


@pytest.mark.parametrize(
    ("flags", "begin"),
    [
        ("--tokenizer-type TikTokenizer", "--sft (True) needs the chat template of a tokenizer, w"),
        ("--mock-data", "--sft (True) excludes --mock-data (True); give a file of conv"),
        ("--chat-template chat.jinja", "--chat-template (chat.jinja) is no Jinja template but a"),
        ("--context-parallel-size 2 " + TE, "--sft (True) with --context-parallel-size (2) needs"),
        (
            "--tokenizer-type SFTTokenizer --sft-tokenizer-prompt-format chatml",
            "--sft-tokenizer-prompt-format (chatml) is none of nemotron-nano-v2, ",
        ),
        ("--bf16 FUSED", "--sft (True) packs conversations, which fused softmax kernels do not"),
        ("--window-size 4,4", "--sft (True) packs conversations, whose borders --window-size ("),
        ("--mtp-num-layers 1", "--sft (True) packs conversations, over whose borders --mtp-num"),
        (
            "--experimental-attention-variant gated_delta_net",
            "--sft (True) packs conversations, which --experimental-attention-variant (gated",
        ),
        (f"{TE} --overlap-moe-expert-parallel-comm", "--sft (True) packs conversations, whose bor"),
        (
            f"{TE} --pipeline-model-parallel-size 2 --micro-batch-size 2",
            "--sft (True) makes one row of the samples (2) of a microbatch, which the next",
        ),
        ("--eod-mask-loss", "--sft (True) excludes --eod-mask-loss (True)"),
        ("--reset-position-ids", "--sft (True) excludes --reset-position-ids (True)"),
        ("--reset-attention-mask", "--sft (True) excludes --reset-attention-mask (True)"),
    ],
)
def test_what_would_train_something_else_is_refused(flags: str, begin: str) -> None:
    args = args_of(f"{FLAGS} {flags.replace('FUSED', '')}")
    args.masked_softmax_fusion = "FUSED" in flags
    (line,) = in_lines_of(args)
    assert line.startswith(begin)


def test_a_foreign_script_passes_borders_that_local_attention_does_not_take() -> None:
    (line,) = in_lines_of(args_of(FLAGS), own_script=True)
    assert "--transformer-impl (local)" in line
    assert "use grove_megatron.pretrain, or --transformer-impl transformer_engine" in line
    assert in_lines_of(args_of(f"{FLAGS} {TE}"), own_script=True) == []


def test_files_are_looked_at(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(GOOD) + "\n")
    bad.write_text(json.dumps(GOOD) + '\n{"text": "a"}\n')
    paths = f"--data-path {good} {bad} {tmp_path / 'none'} {tmp_path} s3://a/b"
    found = files_in_lines(args_of(f"--sft {paths}"))
    assert len(found) == 4
    assert f"--data-path ({bad}:2) has no list of messages (fields: text)" in found[0]
    assert found[1].startswith(f"--data-path ({tmp_path / 'none'}) is not there; give a file of")
    assert found[2].startswith(f"--data-path ({tmp_path}) is a folder; give a file of conversat")
    assert found[3].startswith("--data-path (s3://a/b) is not on this machine")
    assert files_in_lines(args_of(f"--sft --data-path 1 {good}")) == []
    assert files_in_lines(args_of(paths)) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no conversation; give conversations with messages of assistant"),
        (b'{"messages": [{"role": "user", "content": "?"}]}\n', "has no answer in its first 1 lin"),
        (b"\x1f\x8b\x08", ":1) is compressed; unpack the file"),
        (b'{"messages": []}', "has no answer in its first 1 lines"),
        (b'[{"messages": []}]', ":1) is not an object; write"),
        (b"[\n{}\n]", ":1) is the beginning of a JSON array; write one conversation a line"),
        (b"a\tb\n", ":1) is not JSON"),
        (
            b'{"messages": [{"role": "User", "content": "?"}]}',
            "none of system, developer, user, as",
        ),
        (
            b'{"messages": [{"role": "user", "text": "?"}]}',
            "(role, text) whose content (None) is no",
        ),
    ],
)
def test_what_a_file_is_instead_is_said(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_bytes(content)
    (line,) = files_in_lines(args_of(f"--sft --data-path {file}"))
    assert says in line


def test_a_prefix_of_tokens_is_no_file_of_conversations(tmp_path: Path) -> None:
    (tmp_path / "text.idx").write_bytes(b"")
    (line,) = files_in_lines(args_of(f"--sft --data-path {tmp_path / 'text'}"))
    assert "is a prefix of .bin and .idx, which hold no conversations" in line


def test_a_run_goes_on_with_the_same_sequences_alone() -> None:
    args, saved = args_of(FLAGS), args_of(f"{FLAGS} --seq-length 16 --data-path other")
    found = [str(one) for one in packing_problems(args, saved)]
    assert [line.split(" differs")[0] for line in found] == ["--seq-length (8)", "--data-path (d)"]
    assert [*packing_problems(args, args_of(FLAGS))] == []
    args.finetune = True
    assert [*packing_problems(args, saved)] == []


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template; take the tokenizer of a chat model, or give --chat-template"),
        ("{{ raise_exception('no') }}", "chats.jsonl:1) is not taken by the chat template: no"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
    ],
)
def test_the_chat_template_is_tried(template: str | None, says: str | None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(GOOD) + "\n")
    own = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(save_chat_tokenizer(tmp_path / "tokenizer", template)),
        metadata_path={"library": "huggingface"},
    )
    found = tokenizers_in_lines(args_of(f"--sft --data-path {file}"), own)
    assert len(found) == (0 if says is None else 1)
    assert says is None or says in found[0]
