"""Messages that the tests of this repository ask for, out of their source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from grove_megatron.messages.entries import WORD

TESTS = Path(__file__).parents[2]
UNKNOWN = "\0"
# `--flag (value) relation`, as problems are written.
_PROBLEM = re.compile(r"^-{0,2}[\w-]+ \([^)]*\) [a-z]")
# Of no message of the package: made up to test what carries messages, or what the tests compare.
_MADE_UP = (
    "unit/checks",
    "unit/messages",
    "unit/cards",
    "multirank/dispatch_cases.py",
    "unit/examples",
)


def asserted(folder: Path = TESTS) -> Iterator[tuple[str, str]]:
    """Where, and the message or its beginning.

    Texts that read as a problem, and patterns of ``pytest.raises`` of four words or more that no
    wildcard is in; without what stands behind something that is made when the test runs.
    """
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder).as_posix()
        if not name.startswith(_MADE_UP):
            for line, text in _texts(ast.parse(file.read_text(encoding="utf-8"))):
                yield f"{name}:{line}", text


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        parent = parents.get(node)
        if isinstance(parent, ast.JoinedStr | ast.BinOp) or not isinstance(
            node, ast.Constant | ast.JoinedStr | ast.BinOp
        ):
            continue
        text = _read(node)
        if isinstance(parent, ast.keyword) and parent.arg == "match":
            if re.search(r"(?<!\\)[.*|?+\[]", text):
                continue
            text = re.sub(r"\\(.)", r"\1", text).strip("^$")
        elif not _PROBLEM.match(text):
            continue
        text = text.split(UNKNOWN)[0].strip()
        if len(text.split()) >= 4 and len(WORD.findall(text)) >= 3:
            yield node.lineno, text


def _read(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                _read(part) if isinstance(part, ast.Constant) else UNKNOWN for part in parts
            )
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _read(left) + _read(right)
    return UNKNOWN
