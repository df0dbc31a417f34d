"""``python -m tests.docs --write [PART]``: outputs in the documents as their commands print now.

PART: of the name of a document, or of a command; without, all of them, in minutes.
"""

import sys
import tempfile
from pathlib import Path

from tests.ranks import Ranks

from .fences import ROOT, Fence, fences, read
from .outputs import MARKS, Differs, renewed
from .running import Runner


def main(words: list[str]) -> int:
    """Exit code: 1 if a line that is shown was not printed, and is to be changed by hand."""
    if not words or words[0] != "--write" or len(words) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    part = words[1] if words[1:] else ""
    chosen = [
        fence
        for fence in fences("text")
        if fence.mark in MARKS and (part in fence.document or part in fence.said)
    ]
    ranks, failed = Ranks(), 0
    try:
        runner = Runner(ranks, Path(tempfile.mkdtemp()))
        # From the last of a document to its first, so that places stay what they are.
        for fence in reversed(chosen):
            try:
                _put(fence, renewed(fence, runner.printed(fence.said)))
            except Differs as error:
                failed = 1
                print(error, file=sys.stderr)
    finally:
        ranks.close()
    return failed


def _put(fence: Fence, text: str) -> None:
    document = read(fence.document)
    begin, end = fence.span
    (ROOT / fence.document).write_text(document[:begin] + text + document[end:], encoding="utf-8")
    print(f"{fence.name}: {fence.said}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
