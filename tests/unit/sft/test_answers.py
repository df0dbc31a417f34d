"""Which tokens of a conversation are its answers, by the template."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grove_megatron.sft.answers import ChatTemplate
from grove_megatron.sft.conversations import Conversation
from tests.chat_tokenizers import CHATML, TEMPLATES, chat_tokenizer

pytest.importorskip("transformers")

# What ends an answer in each.
ENDS = {
    "chatml": "<|im_end|>\n",
    "thinking": "<|im_end|>\n",
    "headers": "<|im_end|>",
    "instructions": "<|im_end|>",
    "marked": "<|im_end|>",
}
CODERS = {
    name: ChatTemplate(chat_tokenizer(template), template) for name, template in TEMPLATES.items()
}
TEXT = st.text("ab 0€\n", min_size=1, max_size=6).map(str.strip).filter(bool) | st.sampled_from(
    ["five", "0", "1", "<think>no</think>", "user\n", "assistant", "<|im_end|>", "\N{PILE OF POO}"]
)
TURNS = st.tuples(st.none() | TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))


def conversation(system: str | None, turns: list[tuple[str, str]]) -> Conversation:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return Conversation(messages)


def spans(ids: list[int], answer: list[bool]) -> list[list[int]]:
    found: list[list[int]] = []
    for before, token, is_answer in zip([False, *answer], ids, answer, strict=False):
        if is_answer and not before:
            found.append([])
        if is_answer:
            found[-1].append(token)
    return found


@settings(max_examples=60)
@given(st.sampled_from(sorted(TEMPLATES)), TURNS)
def test_answers_are_the_models_own_words(name: str, turns: Any) -> None:
    system, pairs = turns
    coder = CODERS[name]
    found = coder(conversation(system, pairs))
    own = chat_tokenizer(TEMPLATES[name])
    rendered = own.apply_chat_template(
        conversation(system, pairs).messages, return_dict=False, tokenize=True
    )
    assert found.ids == rendered
    texts = [own.decode(ids) for ids in spans(found.ids, found.answer)]
    ends = [*(text for _, text in pairs)]
    expected = [(" " if name == "instructions" else "") + one for one in ends]
    if name in ("thinking", "headers"):
        expected = [one.strip() for one in expected]
    expected = [one + ENDS[name] for one in expected]
    if name == "thinking":
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert texts == expected


def test_what_asks_for_an_answer_is_none() -> None:
    """A token over the border would be one that no generation begins with."""
    found = CODERS["chatml"](conversation(None, [("two?", "five")]))
    own = chat_tokenizer()
    assert own.decode([i for i, one in zip(found.ids, found.answer, strict=True) if not one]) == (
        "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0].nothing.at_all }}", "is not taken by the chat template: "),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        # Answers before the words that ask for them.
        (
            "{% for m in messages|reverse %}{{ m.role + m.content }}{% endfor %}",
            r"has an answer \(message 2\) that the chat template does not put behind",
        ),
    ],
)
def test_a_template_that_hides_answers_is_refused(template: str, says: str) -> None:
    coder = ChatTemplate(chat_tokenizer(template), template)
    with pytest.raises(ValueError, match=says):
        coder(conversation(None, [("two?", "five")]))


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match="has no chat template; take the tokenizer of a chat"):
        ChatTemplate(chat_tokenizer(None), None)


def test_the_identity_is_of_tokenizer_and_template() -> None:
    own = chat_tokenizer()
    assert ChatTemplate(own, CHATML).identity == CODERS["chatml"].identity
    assert ChatTemplate(own, CHATML + " ").identity != CODERS["chatml"].identity
    own.add_tokens(["another"])
    assert ChatTemplate(own, CHATML).identity != CODERS["chatml"].identity
