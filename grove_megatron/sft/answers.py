"""A conversation as token ids, and which of them are the model's own words.

Megatron's SFTTokenizer tells them for the formats of two models; with its ``default`` every token
is trained on. Here the chat template itself says where an answer starts and ends.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .conversations import ASSISTANT, Conversation, Message

# What is counted and kept by one version of this file is of no use to another.
_VERSION = 1
# A template that marks answers itself, for transformers.
_MARKED = ("{% generation", "{%- generation")
# Shows what a template adds of its own, as today's date.
_PROBE = (
    {"role": "user", "content": "a  b\n\n  c"},
    {"role": ASSISTANT, "content": "d"},
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation.

    Args:
        ids: all S of them.
        answer: of each, whether it is of an answer: to be predicted.
        left_out: answers that the template shows otherwise when more follows, and which are
            therefore not predicted.
        altered: answers that are, without some of their words: the template takes them out.
    """

    ids: list[int]
    answer: list[bool]
    left_out: int = 0
    altered: int = 0


class Encoder(Protocol):
    """How conversations become ids.

    Attributes:
        identity: of tokenizer and template; another where they give other ids.
    """

    identity: str

    def __call__(self, conversation: Conversation) -> Encoded:
        """Ids and answers.

        Raises:
            ValueError: the template does not take the conversation, or hides where an answer is.
        """


def encoder_of(tokenizer: Any) -> Encoder:
    """How conversations become ids.

    Args:
        tokenizer: Megatron's, of the type HuggingFaceTokenizer or SFTTokenizer.

    Raises:
        ValueError: it has no chat template, or cannot say which characters a token is of.
    """
    own = tokenizer._tokenizer
    prompts = getattr(own, "_prompt_config", None)
    if prompts is None:
        return ChatTemplate(own.tokenizer, own.tokenizer.chat_template)
    if own._prompt_format in ("default", "identity"):
        return ChatTemplate(own._tokenizer, prompts.custom_chat_template)
    return _MegatronsFormat(own)


def _identity(tokenizer: Any, template: str, probe: str = "") -> str:
    special = sorted(map(str, tokenizer.special_tokens_map.items()))
    parts = [str(_VERSION), tokenizer.backend_tokenizer.to_str(), *special, template, probe]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class _MegatronsFormat:
    """One that Megatron's SFTTokenizer knows the answers of."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self.identity = _identity(own._tokenizer, own._prompt_format)

    def __call__(self, conversation: Conversation) -> Encoded:
        from megatron.training.datasets.sft_dataset import IGNORE_INDEX

        try:
            ids, targets = self._own.tokenize_conversation(
                conversation.messages, return_target=True, add_generation_prompt=False
            )
        except Exception as error:  # of a template too
            name = self._own._prompt_format
            said = f"does not fit --sft-tokenizer-prompt-format ({name}): {error}"
            raise ValueError(said) from error
        return Encoded(ids.tolist(), (targets != IGNORE_INDEX).tolist())


class ChatTemplate:
    """By a chat template and a tokenizer of Hugging Face's.

    Args:
        tokenizer: of transformers.
        template: in Jinja; or several by name, of which ``tool_use`` is for conversations with
            tools, and ``default``.

    Raises:
        ValueError: as :func:`encoder_of`.
    """

    def __init__(self, tokenizer: Any, template: str | dict[str, str] | None) -> None:
        fix = "take the tokenizer of a chat model, or give --chat-template"
        name = tokenizer.name_or_path
        if isinstance(template, dict) and "default" not in template:
            shown = ", ".join(template)
            raise ValueError(
                f"--tokenizer-model ({name}) has chat templates ({shown}) and no default; give "
                "--chat-template"
            )
        if not template:
            raise ValueError(f"--tokenizer-model ({name}) has no chat template; {fix}")
        if not tokenizer.is_fast:
            raise ValueError(
                f"--tokenizer-model ({name}) does not say of which characters a token is; use one "
                "with a tokenizer.json"
            )
        self._own = tokenizer
        self._templates = template if isinstance(template, dict) else {"default": template}
        self._special = frozenset(tokenizer.added_tokens_decoder)
        try:
            probe = self._rendered(Conversation([*_PROBE]), list(_PROBE))
        except ValueError:
            probe = ""  # of a template that does not take it
        self.identity = _identity(tokenizer, str(sorted(self._templates.items())), probe)

    def __call__(self, conversation: Conversation) -> Encoded:
        """Ids and answers.

        Raises:
            ValueError: the template does not take the conversation, or hides where an answer is.
        """
        template = self._template(conversation)
        answers: Sequence[Span | None]
        if any(mark in template for mark in _MARKED):
            text, answers = self._marked(conversation, template)
        else:
            text = self._rendered(conversation, conversation.messages)
            answers = self._spans(text, conversation)
        try:
            found = self._own(text, add_special_tokens=False, return_offsets_mapping=True)
        except Exception as error:  # of the tokenizer
            raise ValueError(f"is not taken by the tokenizer: {error}") from error
        ids = found["input_ids"]
        wanted = [span for span in answers if span is not None]
        answer = self._with_ends(ids, _within(found["offset_mapping"], wanted))
        end = self._own.eos_token_id
        if answer and answer[-1] and end is not None and not self._ends(ids, len(ids)):
            # Some templates end the last answer for nobody but a generation.
            ids, answer = [*ids, end], [*answer, True]
        left_out = len(answers) - len(wanted)
        return Encoded(ids, answer, left_out, self._altered(text, conversation, answers))

    def _template(self, conversation: Conversation) -> str:
        default = self._templates["default"]
        return self._templates.get("tool_use", default) if conversation.tools else default

    def _rendered(self, conversation: Conversation, messages: list[Message], **named: Any) -> str:
        try:
            text: str = self._own.apply_chat_template(
                messages,
                tools=conversation.tools,
                chat_template=self._template(conversation),
                tokenize=False,
                **named,
            )
        except Exception as error:  # of a template
            said = " ".join(str(error).split())
            raise ValueError(f"is not taken by the chat template: {said}") from error
        return text

    def _marked(self, conversation: Conversation, template: str) -> tuple[str, list[Span]]:
        """By the template's own marks; transformers finds tokens for them that may be others."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [conversation.messages],
                tools=conversation.tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._own.special_tokens_map,
            )
        except Exception as error:  # of a template
            said = " ".join(str(error).split())
            raise ValueError(f"is not taken by the chat template: {said}") from error
        return texts[0], [(int(start), int(end)) for start, end in spans[0]]

    def _spans(self, text: str, conversation: Conversation) -> list[Span | None]:
        """First and last character of every answer, with what ends it.

        None where the text has it otherwise than a generation would: an answer of the past without
        its thoughts, or one with which the conversation begins.
        """
        messages = conversation.messages
        numbers = [i for i, one in enumerate(messages) if one["role"] == ASSISTANT]
        spans = [self._span(text, conversation, number) for number in numbers]
        if spans and spans[-1] is None:
            raise ValueError(
                f"has an answer (message {numbers[-1] + 1}) that the chat template does not put "
                "behind the words that ask for it; mark answers in it by {% generation %}"
            )
        return spans

    def _span(self, text: str, conversation: Conversation, number: int) -> Span | None:
        if not number:
            return None if len(conversation.messages) > 1 else (0, len(text))
        messages = conversation.messages
        before = self._rendered(conversation, messages[:number], add_generation_prompt=True)
        if not text.startswith(before):
            return None
        through = self._rendered(conversation, messages[: number + 1])
        return (len(before), len(through)) if text.startswith(through) else None

    def _altered(
        self, text: str, conversation: Conversation, answers: Sequence[Span | None]
    ) -> int:
        given = [one["content"] for one in conversation.messages if one["role"] == ASSISTANT]
        if len(given) != len(answers):
            return 0  # marked otherwise than message by message
        return sum(
            span is not None
            and isinstance(words, str)
            and words.strip() not in text[span[0] : span[1]]
            for words, span in zip(given, answers, strict=True)
        )

    def _with_ends(self, ids: list[int], answer: list[bool]) -> list[bool]:
        """With the special token behind an answer that has none: what ends it in a generation."""
        found = [*answer]
        for place in range(1, len(ids)):
            is_behind = answer[place - 1] and not answer[place]
            if is_behind and ids[place] in self._special and not self._ends(ids, place):
                found[place] = True
        return found

    def _ends(self, ids: list[int], end: int) -> bool:
        """Is the last token before ``end`` a special one, spaces aside?"""
        while end and ids[end - 1] not in self._special:
            if self._own.decode([ids[end - 1]]).strip():
                return False
            end -= 1
        return end > 0


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Of every token, whether all its characters are in one span.

    A tokenizer that trims offsets says of spaces that they have no width: they reach from the
    token before to the next one.
    """
    starts = [0] * len(offsets)
    following = offsets[-1][1] if offsets else 0
    for place in range(len(offsets) - 1, -1, -1):
        first, last = offsets[place]
        starts[place] = following
        following = first if last > first else following
    found, before = [], 0
    for (first, last), next_start in zip(offsets, starts, strict=True):
        if last <= first:
            first, last = before, max(before, next_start)
        else:
            before = last
        found.append(any(start <= first < last <= end for start, end in spans))
    return found
