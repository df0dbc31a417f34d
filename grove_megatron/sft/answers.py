"""A conversation as token ids, and which of them are the model's own words.

Megatron's SFTTokenizer tells them for the formats of two models; with its ``default`` every token
is trained on. Here the chat template itself says where an answer starts and ends.
"""

import hashlib
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from .conversations import ASSISTANT, Conversation, Message

# A template that marks answers itself, for transformers.
_MARKED = "{% generation", "{%- generation"


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation.

    Args:
        ids: all S of them.
        answer: of each, whether it is of an answer: to be predicted.
    """

    ids: list[int]
    answer: list[bool]


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


def _identity(tokenizer: Any, template: str) -> str:
    whole = f"{tokenizer.backend_tokenizer.to_str()}\0{template}"
    return hashlib.sha256(whole.encode()).hexdigest()


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
        except (AssertionError, ValueError) as error:
            name = self._own._prompt_format
            raise ValueError(f"does not fit --sft-tokenizer-prompt-format ({name}): {error}") from (
                error
            )
        return Encoded(ids.tolist(), (targets != IGNORE_INDEX).tolist())


class ChatTemplate:
    """By a chat template and a tokenizer of Hugging Face's.

    Args:
        tokenizer: of transformers.
        template: in Jinja.

    Raises:
        ValueError: as :func:`encoder_of`.
    """

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        fix = "take the tokenizer of a chat model, or give --chat-template"
        name = tokenizer.name_or_path
        if not template:
            raise ValueError(f"--tokenizer-model ({name}) has no chat template; {fix}")
        if not tokenizer.is_fast:
            raise ValueError(
                f"--tokenizer-model ({name}) does not say of which characters a token is; use one "
                "with a tokenizer.json"
            )
        self._own, self._template = tokenizer, template
        self.identity = _identity(tokenizer, template)
        self._is_marked = any(mark in template for mark in _MARKED)

    def __call__(self, conversation: Conversation) -> Encoded:
        if self._is_marked:
            found = self._rendered(
                conversation.messages,
                conversation.tools,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            return Encoded(found["input_ids"], [bool(one) for one in found["assistant_masks"]])
        text = self._rendered(conversation.messages, conversation.tools)
        spans = self._spans(text, conversation)
        found = self._own(text, add_special_tokens=False, return_offsets_mapping=True)
        answer = [
            any(start <= first < last <= end for start, end in spans)
            for first, last in found["offset_mapping"]
        ]
        return Encoded(found["input_ids"], answer)

    def _rendered(self, messages: list[Message], tools: Any, **named: Any) -> Any:
        named = {"tokenize": False} | named
        try:
            return self._own.apply_chat_template(
                messages, tools=tools, chat_template=self._template, **named
            )
        except Exception as error:  # of a template
            said = " ".join(str(error).split())
            raise ValueError(f"is not taken by the chat template: {said}") from error

    def _spans(self, text: str, conversation: Conversation) -> list[tuple[int, int]]:
        """First and last character of every answer, its end-of-turn token included."""
        messages, tools = conversation.messages, conversation.tools
        answers = [i for i, one in enumerate(messages) if one["role"] == ASSISTANT]
        return [self._span(text, messages, i, tools) for i in answers]

    def _span(self, text: str, messages: list[Message], index: int, tools: Any) -> tuple[int, int]:
        before = self._rendered(messages[:index], tools, add_generation_prompt=True)
        if not text.startswith(before):
            raise ValueError(
                f"has an answer (message {index + 1}) that the chat template does not put behind "
                "the words that ask for it; mark answers in it by {% generation %}"
            )
        through = self._rendered(messages[: index + 1], tools)
        if text.startswith(through):
            return len(before), len(through)
        # An answer of the past is rendered otherwise, as without its thoughts. What follows the
        # words of an answer is what two renderings with other words end with.
        ending = self._common_end(through, messages[: index + 1], index, tools)
        rest = self._common_end(text, messages, index, tools)
        return len(before), len(text) - rest + ending

    def _common_end(self, text: str, messages: list[Message], index: int, tools: Any) -> int:
        """Characters behind the words of answer ``index``, in ``text``, its rendering."""
        content = messages[index]["content"]
        other = "1" if isinstance(content, str) and content.rstrip().endswith("0") else "0"
        changed = [*messages]
        changed[index] = {"role": ASSISTANT, "content": other}
        found = self._rendered(changed, tools)
        pairs = zip(reversed(text), reversed(found), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
