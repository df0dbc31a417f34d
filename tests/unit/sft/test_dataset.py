"""Samples of packed conversations."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.utils import Split
from megatron.core.tokenizers import MegatronTokenizer
from megatron.training.datasets.sft_dataset import SFTDataset

from grove_megatron.sft import counting
from grove_megatron.sft.attention import mask_of
from grove_megatron.sft.conversations import ConversationFile
from grove_megatron.sft.dataset import PackedConversations
from tests.chat_tokenizers import chat_tokenizer, save_chat_tokenizer

pytest.importorskip("transformers")
PAIRS = [("two and three?", "five"), ("a tree?", "über"), ("?", "the sum is five"), ("so", "no")]


def line(*pairs: tuple[str, str], system: str | None = None) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_chat_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def built(tokenizer: str, tmp_path: Path) -> Any:
    def build(
        text: str, size: int = 64, samples: int | None = None, cp: int = 1, name: str = tokenizer
    ) -> PackedConversations:
        file = tmp_path / "chat.jsonl"
        file.write_text(text, encoding="utf-8")
        own = MegatronTokenizer.from_pretrained(
            tokenizer_path=name, metadata_path={"library": "huggingface"}
        )
        return PackedConversations(
            ConversationFile(str(file)),
            str(file),
            numpy.arange(len(text.splitlines())),
            samples,
            Split.train,
            config(own, size, cp),
        )

    return build


def config(tokenizer: Any, size: int, cp: int = 1) -> GPTDatasetConfig:
    return GPTDatasetConfig(
        random_seed=3,
        sequence_length=size,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        context_parallel_size=cp,
        split="1",
        blend=(["x"], None),
    )


def answers_of(sample: dict[str, torch.Tensor]) -> str:
    return chat_tokenizer().decode(sample["labels"][sample["loss_mask"] > 0].tolist())


def test_a_sequence_is_of_whole_conversations(built: Any) -> None:
    found = built("".join(line(pair) for pair in PAIRS), 128)
    samples = [found[i] for i in range(len(found))]
    assert len(samples) == len(found) < len(PAIRS)
    own, texts = chat_tokenizer(), []
    for sample in samples:
        borders = sample["cu_seqlens"].unique().tolist()
        assert borders[0] == 0
        assert borders[-1] == 128 == sample["tokens"].numel()
        assert sample["max_seqlen"] == max(b - a for a, b in itertools.pairwise(borders))
        for start, end in itertools.pairwise(borders):
            assert sample["position_ids"][start:end].tolist() == [*range(end - start)]
            texts.append(own.decode(sample["tokens"][start:end]))
            # The next token, never one of the next conversation.
            trained = sample["loss_mask"][start : end - 1] > 0
            assert torch.equal(
                sample["labels"][start : end - 1][trained],
                sample["tokens"][start + 1 : end][trained],
            )
            assert sample["loss_mask"][end - 1] == 0
    for question, answer in PAIRS:
        chat = (
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        )
        assert texts.count(chat) == 1
    told = "".join(answers_of(sample) for sample in samples)
    assert sorted(told.splitlines()) == sorted(f"{answer}<|im_end|>" for _, answer in PAIRS)


def test_samples_are_those_of_megatrons_dataset(built: Any, tokenizer: str) -> None:
    """Where a line is a pack and answers are marked as Megatron marks them."""
    text = "".join(line(pair, system="s") for pair in PAIRS[:1])
    own = built(text, 64)
    theirs = SFTDataset.__new__(SFTDataset)
    theirs.indices, theirs.num_samples, theirs.config = numpy.arange(1), 1, own.config
    theirs.dataset = [json.loads(text)["messages"]]
    encode = own._encode

    class Tokenizer:
        eod, pad = own.config.tokenizer.eod, own.config.tokenizer.pad

        def tokenize_conversation(self, conversation: Any, **named: Any) -> Any:
            found = encode(own.dataset[0][0])
            targets = [i if a else -100 for i, a in zip(found.ids, found.answer, strict=True)]
            return torch.tensor(found.ids), torch.tensor(targets)

    theirs.config.tokenizer = Tokenizer()
    expected, found = theirs[0], own[0]
    assert expected["loss_mask"].sum() > 0
    trained = expected["loss_mask"] > 0
    assert torch.equal(found["loss_mask"], expected["loss_mask"])
    assert torch.equal(found["tokens"], expected["tokens"])
    assert torch.equal(found["labels"][trained], expected["labels"][trained])


def test_an_end_of_text_that_is_the_padding_is_learned(built: Any, tmp_path: Path) -> None:
    """Megatron's dataset takes it out of the loss, and the model never ends."""
    folder = save_chat_tokenizer(tmp_path / "same", pad="<|im_end|>")
    sample = built(line(PAIRS[0]), name=str(folder))[0]
    assert answers_of(sample) == "five<|im_end|>\n"


def test_a_line_of_several_conversations_is_several(built: Any) -> None:
    both = json.loads(line(PAIRS[0], system="one"))["messages"]
    both += json.loads(line(PAIRS[1], system="two"))["messages"]
    sample = built(json.dumps({"messages": both}), 128)[0]
    assert len(sample["cu_seqlens"].unique()) == 4
    assert sorted(answers_of(sample).split()) == ["five<|im_end|>", "über<|im_end|>"]


def test_epochs_are_whole_and_in_another_order(built: Any) -> None:
    text = "".join(line((f"{i}", f"{i}")) for i in range(12))
    found = built(text, 16, samples=24)
    assert len(found) == 24
    told = [answers_of(found[i]) for i in range(24)]
    assert sorted(told[:12]) == sorted(told[12:]) == sorted({*told})
    assert told[:12] != told[12:]
    again = built(text, 16, samples=24)
    assert told == [answers_of(again[i]) for i in range(24)]


def test_what_is_too_long_is_cut_and_said(built: Any, capsys: Any) -> None:
    long = line(("a " * 30, "five"))
    text = line(PAIRS[0], ("more", "word " * 40)) + long
    found = built(text, 40)
    assert len(found) == 1
    sample = found[0]
    assert answers_of(sample).startswith("five<|im_end|>\nword")
    # The last token of a sequence is trained too: what follows is known.
    assert sample["loss_mask"][-1] == 1
    said = capsys.readouterr().out
    assert "1 conversations of" in said
    assert "WARNING: 1 conversations cut at --seq-length (40); 1 conversations left out, w" in said


def test_context_parallel_ranks_can_halve_every_conversation(built: Any) -> None:
    sample = built("".join(line(pair) for pair in PAIRS), 128, cp=2)[0]
    assert not (sample["cu_seqlens"] % 4).any()
    assert set(answers_of(sample).split("<|im_end|>\n")) >= {"five", "no"}


def test_counts_are_kept_and_of_the_same_file_alone(built: Any, monkeypatch: Any) -> None:
    first = built(line(PAIRS[0]))
    told = answers_of(first[0])

    def never(*_: Any) -> None:
        raise AssertionError("counted again")

    count = counting._count
    monkeypatch.setattr(counting, "_count", never)
    file = Path(first.dataset_path)
    before = file.stat()
    # The same bytes at the same time.
    import os

    def rebuilt(text: str) -> PackedConversations:
        file.write_text(text)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return PackedConversations(
            ConversationFile(str(file)),
            str(file),
            numpy.arange(len(text.splitlines())),
            None,
            Split.train,
            first.config,
        )

    assert answers_of(rebuilt(line(PAIRS[0]))[0]) == told
    with pytest.raises(AssertionError, match="counted again"):
        rebuilt(line(PAIRS[1]))
    (kept,) = file.parent.glob("cache/sft/*.npy")
    kept.write_bytes(kept.read_bytes()[:50])
    monkeypatch.setattr(counting, "_count", count)
    assert answers_of(rebuilt(line(PAIRS[0]))[0]) == told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "chat.jsonl:2 is not JSON"),
        ("[]", "chat.jsonl:2 is not an object"),
        ('{"text": "a", "id": 3}', r"chat.jsonl:2 has no list of messages \(fields: text, id\)"),
        ('{"messages": ["a"]}', "chat.jsonl:2 has a message"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', r"has a role \(bot\) that is none of"),
        ('{"messages": [{"role": "user", "content": 3}]}', r"content \(3\) is no text"),
        ('{"messages": [{"role": "assistant", "content": ""}]}', "has an empty answer"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "has half a character"),
        ('{"messages": [{"role": "user", "content": "a", "weight": 0}]}', "with a weight"),
        ('{"system": 3, "messages": []}', r"content \(3\) is no text"),
        (
            '{"messages": [{"role": "assistant", "content": null, '
            '"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}',
            r"a tool call whose arguments \({\) are no JSON",
        ),
    ],
)
def test_lines_that_are_none_are_named_together(built: Any, text: str, says: str) -> None:
    good = line(PAIRS[0])
    with pytest.raises(ValueError, match=says) as error:
        built(good + text + "\n" + good + "nothing\n")
    assert "has 2 lines that are no conversations" in str(error.value)
    assert "chat.jsonl:4 is not JSON" in str(error.value)


def test_nothing_to_train_on_is_refused(built: Any) -> None:
    with pytest.raises(
        ValueError, match=r"has no answer for train within --seq-length \(8\); raise it"
    ):
        built(line(("a " * 30, "five")), 8)


def test_the_other_convention_is_read(built: Any) -> None:
    text = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "five"}]}
    assert answers_of(built(json.dumps(text))[0]) == "five<|im_end|>\n"


def test_the_mask_is_causal_within_a_conversation() -> None:
    begins = torch.tensor([[0, 2, 5, 6, 6, 6, 6], [0, 6, 6, 6, 6, 6, 6]], dtype=torch.int32)
    found = mask_of(begins)
    assert found.shape == (2, 1, 6, 6)
    number = [[0, 0, 1, 1, 1, 2], [0] * 6]
    for sample, of in enumerate(number):
        for query in range(6):
            for key in range(6):
                sees = key <= query and of[key] == of[query]
                assert found[sample, 0, query, key] == (not sees)


def test_a_system_message_may_stand_beside_the_turns(built: Any) -> None:
    said = {"system": "be brief", "conversations": [{"from": "human", "value": "?"}]}
    said["conversations"].append({"from": "gpt", "value": "five"})
    sample = built(json.dumps(said))[0]
    assert "system\nbe brief<|im_end|>" in chat_tokenizer().decode(sample["tokens"])


def test_arguments_of_tools_are_objects(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": messages}))
    (found,) = ConversationFile(str(file))[0]
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": [1]}


def test_lines_without_an_answer_are_counted(built: Any, capsys: Any) -> None:
    question = json.dumps({"messages": [{"role": "user", "content": "?"}]}) + "\n"
    built(line(PAIRS[0]) + question)
    assert "WARNING: 1 lines left out, without an answer" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no answer for train in its 1 lines; give conversat"):
        built(question)


def test_a_part_that_nobody_reads_may_be_empty(built: Any) -> None:
    found = built(line(PAIRS[0]))
    rest = (found.dataset, found.dataset_path, numpy.arange(0))
    assert len(PackedConversations(*rest, 0, Split.test, found.config)) == 0
    with pytest.raises(ValueError, match=r"--split \(1\) gives test none of the lines"):
        PackedConversations(*rest, 5, Split.test, found.config)


def test_a_conversation_of_another_length_takes_the_room_it_was_given(built: Any) -> None:
    """Templates may say the day, and a day may end."""
    found = built("".join(line(pair) for pair in PAIRS), 128)
    before, encode = found[0], found._encode
    for change in (lambda ids: [5, *ids], lambda ids: ids[1:]):

        def other(conversation: Any, change: Any = change) -> Any:
            one = encode(conversation)
            return replace(one, ids=change(one.ids), answer=change(one.answer))

        found._encode = other
        after = found[0]
        assert torch.equal(after["cu_seqlens"], before["cu_seqlens"])
        assert all(after[name].shape == before[name].shape for name in before)


def test_a_file_that_changes_is_noticed(built: Any) -> None:
    found = built(line(PAIRS[0]))
    with Path(found.dataset_path).open("a") as file:
        file.write(line(PAIRS[1]))
    with pytest.raises(ValueError, match="has changed since the start; start again"):
        found[0]


def test_blocks_are_counted_by_all_cores_and_kept_one_by_one(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(line((f"{i}", f"{i}")) for i in range(300))
    alone = built(text, 32)._counted
    folder = Path(built(text, 32).dataset_path).parent / "cache" / "sft"
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr(counting, "BLOCK", 256)
    monkeypatch.setattr(counting, "_MANY", 200)
    monkeypatch.setattr(counting.os, "sched_getaffinity", lambda _: {0, 1})
    found = built(text, 32)._counted
    assert all(
        (a == b).all() for a, b in zip(vars(alone).values(), vars(found).values(), strict=True)
    )
    assert len([*folder.iterdir()]) == 2
    # Of some lines, from the same blocks.
    whole = built(text, 32)
    monkeypatch.setattr(counting, "_count", None)
    part = counting.counted(whole.dataset, numpy.arange(250, 270), whole._encode, None)
    assert part.lines.tolist() == [*range(250, 270)]
