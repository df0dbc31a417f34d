"""Conversations out of files of JSON lines, which stay on disk."""

import json
import os
from array import array
from collections.abc import Iterator
from copy import copy
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
        # Of every line its first byte, its bytes and its number in the file.
        places, start = array("q"), 0
        try:
            with Path(path).open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        places.extend((start, len(line), number))
                    start += len(line)
                self.identity = _identity(file.fileno())
        except OSError as error:
            raise ValueError(
                f"--data-path ({path}) cannot be read: {error.strerror}; correct it"
            ) from error
        if not places:
            raise ValueError(f"--data-path ({path}) has no conversation; correct the path")
        self._places = numpy.frombuffer(places, dtype=numpy.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, line: int) -> list[Conversation]:
        """Conversations of a line, counted from 0; those without an answer are left out.

        Raises:
            ValueError: the line is none, or the file has changed.
        """
        start, size, _ = (int(n) for n in self._places[line])
        with Path(self.path).open("rb") as file:
            if _identity(file.fileno()) != self.identity:
                raise ValueError("has changed since the start; start again")
            file.seek(start)
            text = file.read(size)
        return [*_of_line(text)]

    def taken(self, lines: range) -> "ConversationFile":
        """Some lines of it, counted from 0."""
        part = copy(self)
        part._places = self._places[lines.start : lines.stop]
        return part

    def place(self, line: int) -> str:
        """``file:line``, to find it again."""
        return f"{self.path}:{int(self._places[line, 2])}"


def _identity(file: int) -> tuple[int, int]:
    about = os.fstat(file)
    return about.st_size, about.st_mtime_ns


def first_lines(path: str, count: int) -> Iterator[tuple[str, list[Conversation]]]:
    """Places and conversations of the first lines of a file, however large it is.

    Raises:
        ValueError: it cannot be read, or a line is none; with its place.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(islice(file, count), 1):
                if line.strip():
                    place = f"({path}:{number})"
                    try:
                        yield place, [*_of_line(line)]
                    except ValueError as error:
                        raise ValueError(f"{place} {error}") from None
    except OSError as error:
        raise ValueError(f"({path}) cannot be read: {error.strerror}; correct it") from error


def _of_line(text: bytes) -> Iterator[Conversation]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            raise ValueError("is compressed; unpack the file") from None
        if text.lstrip().startswith(b"["):
            said = "is the beginning of a JSON array; write one conversation a line (.jsonl)"
            raise ValueError(said) from None
        raise ValueError(f"is not JSON: {error}; write one conversation a line (.jsonl)") from None
    if not isinstance(said, dict):
        raise ValueError('is not an object; write {"messages": [...]}')
    given = said.get("messages", said.get("conversations"))
    if not isinstance(given, list):
        fields = ", ".join(map(str, said)) or "none"
        raise ValueError(f'has no list of messages (fields: {fields}); write {{"messages": [...]}}')
    messages = [_message(one) for one in given]
    if (system := said.get("system")) is not None:
        # As ShareGPT's files have it, beside the turns.
        if messages and messages[0]["role"] == "system":
            raise ValueError("has a system message beside the field system; leave one out")
        messages.insert(0, _message({"role": "system", "content": system}))
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
        raise ValueError(f"has a role ({role}) that is none of {', '.join(_ROLES)}; rename it")
    message["role"] = role
    if message.pop("weight", 1) != 1:
        raise ValueError("has a message with a weight, which is not handled; leave the field out")
    content = message.get("content")
    calls = role == ASSISTANT and message.get("tool_calls")
    if not (calls and content is None) and not isinstance(content, str | list):
        keys = ", ".join(given)
        raise ValueError(
            f"has a message of {role} ({keys}) whose content ({content!r:.60}) is no text; write "
            "role and content"
        )
    if role == ASSISTANT and not calls and not content:
        raise ValueError("has an empty answer; leave it out")
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"has half a character in a message of {role}; correct it") from None
    if calls:
        message["tool_calls"] = [_call(one) for one in calls]
    return message


def _call(given: Any) -> Any:
    """With arguments as templates take them; in files of OpenAI's format they are JSON in text."""
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return given
    arguments: str = function["arguments"]
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        raise ValueError(f"has a tool call whose arguments ({arguments:.60}) are no JSON") from None
    return {**given, "function": {**function, "arguments": read}}
