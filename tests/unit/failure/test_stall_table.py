"""Who holds up a job that stands still, of what the ranks say."""

from typing import Any

import pytest

from grove_megatron.failure.stall_table import Row, Wait, culprit, table

EP = "EXPERT 1"


def wait(number: int = 5, ranks: tuple[int, ...] = (0, 1, 2, 3), **more: Any) -> Wait:
    return Wait(**{"name": "all_to_all", "group": EP, "ranks": ranks, "number": number, **more})


def row(rank: int, *waits: Wait, called: int = 5, group: str = EP, **more: Any) -> Row:
    given = {"host": "a", "idle": 7.0, "stage": "experts", "layer": 2, "called": {group: called}}
    return Row(rank=rank, waits=waits, **{**given, **more})


ALL = "all_to_all of EXPERT (ranks 0-3)"
P2P = Wait(name="send or receive", seconds=3.0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # One has not called what the others wait in.
        (
            [row(0, wait()), row(1, called=4, at="a.py:3 f"), row(2, wait()), row(3, wait())],
            f"rank 1 (a) is in layer 2, experts, at a.py:3 f, and holds up ranks 0, 2-3 in {ALL}",
        ),
        # Two, on two machines, in two places.
        (
            [
                row(0, wait()),
                row(1, called=4, stage="save", layer=None),
                row(2, called=4, stage="save", layer=None, host="b"),
                row(3, wait()),
            ],
            f"ranks 1-2 (a, b) are in save, and hold up ranks 0, 3 in {ALL}",
        ),
        # Who waits for one that waits itself is held up by whom that one waits for.
        (
            [
                row(0, wait(ranks=(0, 1))),
                row(1, wait(3, ranks=(1, 2), group="DATA 2"), called=4),
                row(2, called=2, group="DATA 2", stage="data loading", layer=None),
            ],
            "rank 2 (a) is in data loading, and holds up rank 1 in all_to_all of DATA (ranks 1-2)",
        ),
        (
            [
                row(0, wait(ranks=(0, 1))),
                row(1, wait(3, ranks=(0, 1), group="DATA 2"), called=4),
            ],
            "ranks wait for each other in different collectives: rank 0 in all_to_all of EXPERT "
            "(ranks 0-1); rank 1 in all_to_all of DATA (ranks 0-1)",
        ),
        (
            [row(0, wait(name="all_reduce", size=64)), row(1, wait(name="all_reduce", size=16))],
            "ranks have called different collectives: rank 0 in all_reduce of EXPERT (ranks 0-3) "
            "with 64 bytes; rank 1 in all_reduce of EXPERT (ranks 0-3) with 16 bytes",
        ),
        (
            [row(0, wait(name="broadcast")), row(1, wait())],
            "ranks have called different collectives: rank 0 in broadcast of EXPERT (ranks 0-3) "
            "with 0 bytes; rank 1 in all_to_all of EXPERT (ranks 0-3) with 0 bytes",
        ),
        # An all-to-all may be of other sizes on every rank.
        (
            [row(0, wait(size=64)), row(1, wait(size=16))],
            f"all ranks wait in ranks 0-1 in {ALL}: look at the network between them, and at the "
            "devices",
        ),
        (
            [row(0, wait()), row(1, silent="is stopped (SIGSTOP) (process 7)")],
            f"rank 1 (a) is stopped (SIGSTOP) (process 7), and holds up rank 0 in {ALL}",
        ),
        (
            [row(0, stage="save", layer=None), row(1, stage="save", layer=None)],
            "no rank waits for another: ranks 0-1 (a) are in save",
        ),
        # Nothing is known of sends and receives but who is in them.
        (
            [row(0, Wait(name="recv")), row(1, stage="optimizer", layer=None)],
            "rank 1 (a) is in optimizer, and holds up rank 0 in recv",
        ),
        # Nobody in a send or receive holds up the others, so long as there is one that waits not.
        (
            [
                row(0, P2P, called=4),
                row(1, wait(ranks=(0, 1))),
                row(2, called=4, stage="data loading", layer=None),
                row(3, wait(ranks=(2, 3))),
            ],
            "rank 2 (a) is in data loading, and holds up rank 3 in all_to_all of EXPERT "
            "(ranks 2-3)",
        ),
        (
            [
                row(0, P2P, called=4),
                row(1, wait(ranks=(0, 1))),
                row(2, stage="data loading", layer=None),
                row(3, P2P),
            ],
            "rank 2 (a) is in data loading, and holds up ranks 0, 3 in send or receive; rank 1 in "
            "all_to_all of EXPERT (ranks 0-1)",
        ),
        (
            [row(0, P2P, called=4), row(1, wait(ranks=(0, 1)))],
            "rank 0 (a) is in layer 2, experts, and holds up rank 1 in all_to_all of EXPERT "
            "(ranks 0-1)",
        ),
        # One that cannot be looked at is named if no other is.
        (
            [row(0, wait()), row(1, silent="cannot be looked at: TypeError", called=0)],
            f"rank 1 (a) cannot be looked at: TypeError, and holds up rank 0 in {ALL}",
        ),
        (
            [
                row(0, wait()),
                row(1, silent="cannot be looked at: TypeError", called=0),
                row(2, called=4, stage="save", layer=None),
            ],
            f"rank 2 (a) is in save, and holds up rank 0 in {ALL}",
        ),
        (
            [row(0, wait(ranks=(0, 1))), Row(rank=1, host="a", idle=0.0, left=True)],
            "rank 1 (a) has left the job with exit code 0, and holds up rank 0 in all_to_all of "
            "EXPERT (ranks 0-1)",
        ),
    ],
)
def test_who_holds_up_the_job(rows: list[Row], expected: str) -> None:
    assert culprit(rows) == expected


def test_ranks_in_one_place_share_a_line() -> None:
    rows = [
        row(0, wait(seconds=3.0, size=4096), iteration=9),
        row(1, wait(seconds=4.4, size=4096), iteration=9),
        row(2, iteration=9, microbatch=1, at="loop.py:3 f"),
        row(3, silent="is stopped (SIGSTOP)"),
    ]
    head, *lines = (line.split("  ") for line in table(rows))
    assert [cell.strip() for cell in head if cell] == [
        *("rank", "host", "iteration", "microbatch", "layer", "stage"),
        *("collective", "bytes", "seconds", "at"),
    ]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["0-1", "a", "9", "2", "experts", ALL, "4,096", "4"],
        ["2", "a", "9", "1", "2", "experts", "7", "loop.py:3 f"],
        ["3", "a", "7", "is stopped (SIGSTOP)"],
    ]


def test_a_thousand_ranks_that_are_all_elsewhere_do_not_fill_the_log() -> None:
    lines = table([row(rank, iteration=rank + 1) for rank in range(1000)])
    assert len(lines) == 66
    assert lines[-1] == "and 936 more lines"
