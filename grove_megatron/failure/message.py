"""What a job says when it ends badly: one message, made of how ranks ended and what they found."""

from collections.abc import Sequence
from dataclasses import dataclass

INTERRUPTED, LOST, FAILED, LEFT = "interrupted", "lost", "failed", "left"
FOLLOWED = "followed"
EXIT, SIGTERM, REFUSED = "exit", "sigterm", "refused"
"""How a rank can end, what explains the others first: the rest follows from it.

    interrupted  Ctrl-C
    lost         its connection closed without a word: killed, crashed, or its machine is gone
    failed       an exception
    left         done, with exit code 0, while others that needed it went on
    followed     an exception that only tells that another rank has failed
    exit         a code other than 0 and 2
    sigterm      asked to end from outside
    refused      exit code 2: it has said why before anything started
"""
_FIRST = (INTERRUPTED, LOST, FAILED, LEFT, FOLLOWED, EXIT, SIGTERM, REFUSED)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one rank ended.

    Args:
        kind: one of the names above.
        text: of an exception: type and message; of a rank that was asked to end: what is saved.
        code: of an exit.
    """

    rank: int
    host: str
    kind: str
    text: str = ""
    code: int = 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong that a rank knows of, though it need not be the one that failed.

    Args:
        iteration: when it was first seen; 0: outside of training.
        layer: number of the layer, from 1.
        text: the layer, the values, and what to do.
    """

    rank: int
    iteration: int
    layer: int
    text: str


def cause(endings: Sequence[Ending]) -> Ending:
    """The ending that explains the others: by kind, then the first to be known."""
    return min(endings, key=lambda ending: _FIRST.index(ending.kind))


def message(endings: Sequence[Ending], findings: Sequence[Finding], world_size: int) -> str:
    """The one message for ``endings``, in the order they were known; "" if there is none to give.

    A refusal has been printed by the rank that refuses. Where all ranks leave with a code of their
    own there is nothing to add, unless somebody has found something.
    """
    first = cause(endings)
    if first.kind == REFUSED:
        return ""
    same = [e for e in endings if e.kind == first.kind]
    lines = []
    if first.kind != EXIT:
        lines.append(_sentence(first, same))
    elif len(same) < world_size:
        lines.append(
            f"{_who(same)} ended with exit code {first.code}, and the other ranks did not follow"
        )
    elif findings:
        lines.append(f"all ranks end with exit code {first.code}")
    if findings:
        # What went wrong first; the rest follows from it.
        found = min(findings, key=lambda f: (f.iteration, f.layer, f.rank))
        lines.append(f"  rank {found.rank}, {found.text}")
    return "\n".join(lines)


def _sentence(first: Ending, same: Sequence[Ending]) -> str:
    if first.kind in (FAILED, FOLLOWED):
        others = f" ({len(same) - 1} more failed too)" if len(same) > 1 else ""
        return f"rank {first.rank} ({first.host}) failed: {first.text}{others}"
    saved = f"; {first.text}" if first.text else ""
    if first.kind == INTERRUPTED:
        return f"interrupted (Ctrl-C){saved}"
    was = "were" if len(same) > 1 else "was"
    if first.kind == LEFT:
        return (
            f"{_who(same)} left with exit code 0 while other ranks still needed it; all ranks end. "
            "Look for what ends the process there: sys.exit, or a loop that is done early"
        )
    if first.kind == LOST:
        which = f", rank {first.rank} first" if len(same) > 1 else ""
        return (
            f"{_who(same)} {was} lost{which}: killed (SIGKILL, out of memory), crashed, or no "
            "longer reachable; all ranks end. See the log of that rank and the system log of its "
            "machine"
        )
    return f"{_who(same)} {was} asked to end (SIGTERM); all ranks end{saved}"


def _who(endings: Sequence[Ending]) -> str:
    """``rank 3 (host)``, or ``ranks 8-15, 17 (host, host)``."""
    hosts = ", ".join(sorted({ending.host for ending in endings}))
    return f"{ranks_named([ending.rank for ending in endings])} ({hosts})"


def ranks_named(ranks: Sequence[int]) -> str:
    """``rank 3``, or ``ranks 8-15, 17``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {numbers(ranks)}"


def numbers(ranks: Sequence[int]) -> str:
    """``0-3, 5``: numbers in order, those in a row as a range."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
