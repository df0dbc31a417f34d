"""The one message, of how ranks ended and what they found."""

import pytest

from grove_megatron.failure.message import Ending, Finding, cause, message, numbers


def ending(rank: int, kind: str, text: str = "", code: int = 1, host: str = "a") -> Ending:
    return Ending(rank=rank, host=host, kind=kind, text=text, code=code)


FOUND = Finding(rank=1, iteration=3, layer=2, text="layer 2: nan")
LOST = (
    "lost: killed (SIGKILL, out of memory), crashed, or no longer reachable; all ranks end. See "
    "the log of that rank and the system log of its machine"
)


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        ([ending(3, "lost", host="b")], f"rank 3 (b) was {LOST}"),
        # A whole node.
        (
            [ending(r, "lost", host="b") for r in (5, 4, 6)],
            f"ranks 4-6 (b) were lost, rank 5 first{LOST[4:]}",
        ),
        # An error in a collective with the rank that is gone is none of its own.
        ([ending(0, "failed", "RuntimeError: x"), ending(3, "lost")], f"rank 3 (a) was {LOST}"),
        ([ending(3, "lost"), ending(1, "sigterm", code=143)], f"rank 3 (a) was {LOST}"),
        ([ending(2, "failed", "KeyError: 1")], "rank 2 (a) failed: KeyError: 1"),
        (
            [ending(2, "followed", "X"), ending(1, "failed", "Y"), ending(0, "failed", "Z")],
            "rank 1 (a) failed: Y (1 more failed too)",
        ),
        ([ending(2, "followed", "X")], "rank 2 (a) failed: X"),
        (
            [ending(2, "followed", "X"), ending(1, "left", code=0)],
            "rank 1 (a) left with exit code 0 while other ranks still needed it; all ranks end. "
            "Look for what ends the process there: sys.exit, or a loop that is done early",
        ),
        (
            [ending(1, "sigterm"), ending(0, "sigterm")],
            "ranks 0-1 (a) were asked to end (SIGTERM); all ranks end",
        ),
        (
            [ending(1, "sigterm", "the last is 4"), ending(0, "sigterm", "the last is 4")],
            "ranks 0-1 (a) were asked to end (SIGTERM); all ranks end; the last is 4",
        ),
        # Ctrl-C reaches whom it reaches, and the others find them gone.
        (
            [ending(2, "followed", "X"), ending(3, "lost"), ending(0, "interrupted", "nothing")],
            "interrupted (Ctrl-C); nothing",
        ),
        (
            [ending(1, "exit", code=7)],
            "rank 1 (a) ended with exit code 7, and the other ranks did not follow",
        ),
        ([ending(r, "exit", code=7) for r in range(8)], ""),
        ([ending(1, "refused", code=2)], ""),
    ],
)
def test_the_ending_that_explains_the_others_is_told(endings: list[Ending], expected: str) -> None:
    assert message(endings, [], world_size=8) == expected


def test_of_the_findings_the_earliest_is_told() -> None:
    later = [
        Finding(rank=0, iteration=4, layer=1, text="later"),
        Finding(rank=0, iteration=3, layer=5, text="deeper"),
        Finding(rank=2, iteration=3, layer=2, text="the same on another rank"),
    ]
    endings = [ending(0, "failed", "X")]
    assert message(endings, [*later, FOUND], 8) == "rank 0 (a) failed: X\n  rank 1, layer 2: nan"


def test_a_finding_is_told_where_all_leave_with_a_code() -> None:
    endings = [ending(r, "exit", code=16) for r in range(8)]
    assert message(endings, [FOUND], 8) == (
        "all ranks end with exit code 16\n  rank 1, layer 2: nan"
    )


def test_a_refusal_has_been_printed_before() -> None:
    assert message([ending(1, "refused", code=2)], [FOUND], 8) == ""


def test_of_endings_of_a_kind_the_first_known_is_the_cause() -> None:
    assert cause([ending(5, "failed"), ending(2, "failed")]).rank == 5


def test_numbers_in_a_row_are_a_range() -> None:
    assert numbers([7, 0, 1, 2, 4]) == "0-2, 4, 7"
    assert numbers([1, 2]) == "1-2"
