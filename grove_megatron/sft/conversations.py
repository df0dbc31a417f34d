"""Conversations out of files of JSON lines, which stay on disk."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy

Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
# Names of the other convention, {"conversations": [{"from": ..., "value": ...}]}.
_OTHER_ROLES = {"human": "user", "gpt": "assistant"}
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Conversation:
    """One, up to its last answer.

    Args:
        messages: with ``role`` and ``content``, as a chat template takes them.
        tools: that the conversation may call, as the template takes them, or None.
    """

    messages: list[Message]
    tools: Any = None


class ConversationFile:
    """Lines of ``{"messages": [{"role": ..., "content": ...}]}``.

    A line may hold several conversations, each but the first from its system message on, as
    Megatron's SFTDataset has them.

    Args:
        path: of the file. Its lines are found, and none is kept.

    Raises:
        ValueError: it cannot be read, or has no line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Of every line its first byte, its last and its number in the file.
        places, start = [], 0
        try:
            with Path(path).open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        places.append((start, len(line), number))
                    start += len(line)
        except OSError as error:
            raise ValueError(
                f"--data-path ({path}) cannot be read: {error.strerror}; correct it"
            ) from error
        if not places:
            raise ValueError(f"--data-path ({path}) has no conversation; correct the path")
        self._places = numpy.array(places, dtype=numpy.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, line: int) -> list[Conversation]:
        """Conversations of a line, counted from 0, empty ones left out.

        Raises:
            ValueError: the line is none.
        """
        start, size, _ = (int(n) for n in self._places[line])
        with Path(self.path).open("rb") as file:
            file.seek(start)
            text = file.read(size)
        return [*_of_line(text)]

    def place(self, line: int) -> str:
        """``file:line``, to find it again."""
        return f"{self.path}:{int(self._places[line, 2])}"


def first_lines(path: str, count: int) -> Iterator[list[Conversation]]:
    """Conversations of the first lines of a file, however large it is.

    Raises:
        ValueError: it cannot be read, or a line is none; with its place.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(islice(file, count), 1):
                if line.strip():
                    try:
                        yield [*_of_line(line)]
                    except ValueError as error:
                        raise ValueError(f"({path}:{number}) {error}") from None
    except OSError as error:
        raise ValueError(f"({path}) cannot be read: {error.strerror}; correct it") from error


def _of_line(text: bytes) -> Iterator[Conversation]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}; correct the line") from None
    if not isinstance(said, dict):
        raise ValueError('is not an object; write {"messages": [...]}')
    given = said.get("messages", said.get("conversations"))
    if not isinstance(given, list):
        fields = ", ".join(map(str, said)) or "none"
        raise ValueError(f'has no list of messages (fields: {fields}); write {{"messages": [...]}}')
    messages = [_message(one) for one in given]
    starts = [i for i, one in enumerate(messages) if i and one["role"] == "system"]
    for start, end in zip([0, *starts], [*starts, len(messages)], strict=True):
        last = max((i for i in range(start, end) if messages[i]["role"] == ASSISTANT), default=-1)
        if last >= 0:
            yield Conversation(messages[start : last + 1], said.get("tools"))


def _message(given: Any) -> Message:
    if not isinstance(given, dict):
        raise ValueError(f'has a message ({given!r:.60}) that is not {{"role", "content"}}')
    message = dict(given)
    if "role" not in message and "from" in message:
        message = {"role": message.pop("from"), "content": message.pop("value", None), **message}
    role = message.get("role")
    role = _OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        raise ValueError(f"has a role ({role}) that is none of {', '.join(_ROLES)}")
    message["role"] = role
    content = message.get("content")
    calls = role == ASSISTANT and message.get("tool_calls")
    if not (calls and content is None) and not isinstance(content, str | list):
        raise ValueError(f"has a message of {role} whose content ({content!r:.60}) is no text")
    if role == ASSISTANT and not calls and not content:
        raise ValueError("has an empty answer; leave it out")
    return message
