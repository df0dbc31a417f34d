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
TRIMMING = {
    name: ChatTemplate(chat_tokenizer(template, trims=True), template)
    for name, template in TEMPLATES.items()
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
@given(st.sampled_from(sorted(TEMPLATES)), TURNS, st.booleans())
def test_answers_are_the_models_own_words(name: str, turns: Any, trims: bool) -> None:
    system, pairs = turns
    coder = (TRIMMING if trims else CODERS)[name]
    found = coder(conversation(system, pairs))
    own = chat_tokenizer(TEMPLATES[name])
    rendered = own.apply_chat_template(
        conversation(system, pairs).messages, return_dict=False, tokenize=True
    )
    assert found.ids == rendered
    texts = [own.decode(ids) for ids in spans(found.ids, found.answer)]
    expected = [(" " if name == "instructions" else "") + text for _, text in pairs]
    if name in ("thinking", "headers"):
        expected = [one.strip() for one in expected]
    expected = [one + ENDS[name] for one in expected]
    if name == "thinking":
        # Those of the past have no thoughts, which a generation would have.
        assert found.left_out == len(pairs) - 1
        expected = ["<think>\n\n</think>\n\n" + expected[-1]]
    assert texts == expected


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        # As Qwen1.5: the end stands where something follows.
        (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
            "{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\n' }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            ["one<|im_end|>", "two<|im_end|>"],
        ),
        # As GLM-4: the next role ends a turn.
        (
            "{% for m in messages %}{{ '<|sep|>' if m.role == 'user' else '<|im_start|>' }}"
            "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
            ["one<|sep|>", "two<|im_end|>"],
        ),
        # Marked, and closed before the end.
        (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}",
            ["one<|im_end|>", "two<|im_end|>"],
        ),
    ],
)
@pytest.mark.parametrize("trims", [False, True])
def test_what_ends_an_answer_is_learned(template: str, trained: list[str], trims: bool) -> None:
    own = chat_tokenizer(template, trims=trims)
    found = ChatTemplate(own, template)(conversation(None, [("?", "one"), ("!", "two")]))
    assert [own.decode(ids) for ids in spans(found.ids, found.answer)] == trained


def test_spaces_are_learned_by_a_tokenizer_that_trims() -> None:
    own = chat_tokenizer(trims=True)
    code = "  def f():\n    return  1\n\n  x"
    found = ChatTemplate(own, CHATML)(conversation(None, [("?", code)]))
    assert [own.decode(ids) for ids in spans(found.ids, found.answer)] == [f"{code}<|im_end|>\n"]


def test_an_answer_at_the_beginning_is_left_out() -> None:
    """Nothing asks for it."""
    messages = [{"role": "assistant", "content": "hello"}]
    messages += conversation(None, [("?", "five")]).messages
    found = CODERS["chatml"](Conversation(messages))
    own = chat_tokenizer()
    assert [own.decode(ids) for ids in spans(found.ids, found.answer)] == ["five<|im_end|>\n"]
    assert found.left_out == 1


def test_words_that_the_template_takes_out_are_counted() -> None:
    template = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    coder = ChatTemplate(chat_tokenizer(template), template)
    found = coder(conversation(None, [("?", "<think>so</think>five"), ("?", "six")]))
    assert (found.left_out, found.altered) == (0, 1)


def test_tools_have_a_template_of_their_own() -> None:
    templates = {"default": CHATML, "tool_use": "{{ tools|length }}" + CHATML}
    coder = ChatTemplate(chat_tokenizer(CHATML), templates)
    plain = conversation(None, [("?", "five")])
    own = chat_tokenizer()
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert own.decode(coder(plain).ids).startswith("<|im_start|>")
    assert own.decode(coder(Conversation(plain.messages, tools)).ids).startswith("1<|im_start|>")
    with pytest.raises(ValueError, match=r"has chat templates \(other\) and no default"):
        ChatTemplate(own, {"other": CHATML})


def test_the_identity_has_what_a_template_says_of_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    own = chat_tokenizer()
    dated = "{{ day }}" + CHATML
    original = own.apply_chat_template

    def of_day(day: str) -> str:
        def rendered(*args: Any, **named: Any) -> Any:
            return original(*args, day=day, **named)

        monkeypatch.setattr(own, "apply_chat_template", rendered)
        return ChatTemplate(own, dated).identity

    assert of_day("3 May") == of_day("3 May") != of_day("30 September")


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
