"""The commands in a shell block, as words: the shell that documents use, and no more.

Continued lines, comments, quotes, pipes and lists, assignments and what is substituted for them,
``$(...)``, ``for`` loops and here-documents are known. A placeholder, ``<training flags>``,
``FLAGS...`` or ``...``, stands for words of the reader's and is left out, and so is an array.
"""

import re
import shlex
from collections.abc import Iterator

_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1(.*?)\n(.*?)^\2$", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(r"<[A-Za-z][^<>\n|]*>|\bFLAGS\.\.\.|\"?\$\{\w+\[@\]\}\"?")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)[^}]*\})")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_BETWEEN = frozenset({"|", "||", "&", "&&", ";"})
# The value of what is not known: may stand for a number or a part of a path.
UNKNOWN = "1"

Command = tuple[str, ...]


def commands(text: str, variables: dict[str, str]) -> list[Command]:
    """The commands of a block, those in ``$(...)`` too, in their order.

    Args:
        text: of the block.
        variables: what blocks before it have assigned; those of this block are added.

    Raises:
        ValueError: a quote that is not closed.
    """
    text = _HERE.sub(lambda match: match[3], text)
    found: list[Command] = []
    for line in _lines(text):
        found += _of_line(line, variables)
    return found


def _lines(text: str) -> Iterator[str]:
    """Whole lines: continued ones joined, and those within quotes and ``$(...)``."""
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        try:
            shlex.split(waiting, comments=True)
        except ValueError:
            continue
        if waiting.strip():
            yield waiting
        waiting = ""
    if waiting:
        raise ValueError(f"a quote is not closed: {waiting}")


def _of_line(line: str, variables: dict[str, str]) -> Iterator[Command]:
    line, inner = _without_substitutions(line)
    for text in inner:
        yield from commands(text, dict(variables))
    line = _PLACEHOLDER.sub("", line)
    for words in _parted(_words(_expanded(line, variables))):
        words = list(words)
        while words and words[0] in ("do", "then", "else"):
            words.pop(0)
        if not words or words[0] in ("for", "done", "fi"):
            continue
        while words and _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            if not words:
                variables[name] = value
        words = [word for word in words if word != "..."]
        if words:
            yield tuple(words)


def _without_substitutions(line: str) -> tuple[str, list[str]]:
    """A line with what its ``$(...)`` may print in their place, and the text in each.

    Alone between blanks it may print any number of words, and nothing is put there.
    """
    inner: list[str] = []
    while (begin := line.find("$(")) >= 0:
        depth, quoted, end = 0, False, begin + 1
        for end in range(begin + 1, len(line)):
            if line[end] == "'":
                quoted = not quoted
            elif not quoted:
                depth += {"(": 1, ")": -1}.get(line[end], 0)
            if not depth:
                break
        inner.append(line[begin + 2 : end])
        before, after = line[:begin], line[end + 1 :]
        alone = before[-1:].isspace() and (not after or after[0].isspace())
        line = f"{before}{'' if alone else UNKNOWN}{after}"
    return line, inner


def _expanded(line: str, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return variables.get(match[1] or match[2], UNKNOWN)

    # What is in single quotes, a program of awk or python, has no variables.
    pieces = re.split(r"('[^']*')", line)
    return "".join(p if p.startswith("'") else _VARIABLE.sub(value, p) for p in pieces)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    return list(lexer)


def _parted(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in _BETWEEN:
            yield part
            part = []
        else:
            part.append(word)
    yield part
