"""Questions with several answers, of which the likeliest is a model's own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .lines import read_lines
from .scoring import Row


@dataclass(frozen=True)
class Question:
    """One, with the number of the right answer."""

    context: str
    choices: tuple[str, ...]
    answer: int


def read_questions(file: Path) -> list[Question]:
    """Of JSON lines with ``context``, ``choices`` and ``answer``, which counts from 0.

    Raises:
        ValueError: it cannot be read, or which lines are none.
    """
    wanted = "a text context, a list of two or more texts choices, and the number of one as answer"
    return read_lines("--choices", file, _question, what="question", wanted=wanted)


def _question(line: str) -> Question | None:
    try:
        row = json.loads(line)
        context, choices, answer = row["context"], row["choices"], row["answer"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = (
        isinstance(context, str)
        and isinstance(choices, list)
        and len(choices) >= 2
        and all(isinstance(choice, str) and choice for choice in choices)
        and type(answer) is int
        and 0 <= answer < len(choices)
    )
    return Question(context, tuple(choices), answer) if good else None


def rows_of(question: Question, encode: Callable[[str], list[int]], longest: int) -> list[Row]:
    """A row for every choice, of whose tokens alone the likelihood counts.

    Spaces at the end of the context belong to the choice, and both are encoded together, as
    lm-evaluation-harness does it (lm_eval/api/model.py, _encode_pair). A context that is too long
    loses its beginning.

    Raises:
        ValueError: a context without a token.
    """
    context = question.context.rstrip()
    gap = question.context[len(context) :]
    before = encode(context)
    if not before:
        raise ValueError(
            f"the context ({question.context!r}) of the question with the choice "
            f"({question.choices[0]!r}) has no token, by which the first of a choice would be "
            "predicted; give it one, such as the tokenizer's end of text"
        )
    rows = []
    for choice in question.choices:
        ids = encode(context + gap + choice)
        start = max(1, min(len(before), len(ids) - 1))
        lost = max(0, len(ids) - longest - 1)
        rows.append(Row(ids[lost:], max(1, start - lost)))
    return rows


@dataclass(frozen=True)
class Judged:
    """What a model says of a question.

    Args:
        log_likelihoods: of its choices, in nats.
        chosen, chosen_by_byte: the likeliest, of all its tokens together and by byte of its text.
        answer: the right one.
    """

    log_likelihoods: list[float]
    chosen: int
    chosen_by_byte: int
    answer: int


def judge(questions: Sequence[Question], losses: Sequence[float]) -> list[Judged]:
    """By the negative log-likelihoods of all choices, question by question."""
    found, first = [], 0
    for question in questions:
        own = losses[first : first + len(question.choices)]
        first += len(own)
        by_byte = [
            loss / len(choice.encode()) for loss, choice in zip(own, question.choices, strict=True)
        ]
        chosen, chosen_by_byte = (of.index(min(of)) for of in (list(own), by_byte))
        found.append(Judged([-loss for loss in own], chosen, chosen_by_byte, question.answer))
    return found
