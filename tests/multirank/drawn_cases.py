"""On the ranks: cases that rank 0 draws with hypothesis and all ranks run together, the shrunk ones
included."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def run_drawn(
    examples: int, cases: Callable[[], Any], run: Callable[[Any], list[str]]
) -> dict[str, Any] | None:
    """``examples`` cases; of rank 0 how many ran and what failed.

    Args:
        cases: makes the strategy.
        run: a case, on every rank; of rank 0 what is wrong.
    """
    if dist.get_rank() == 0:
        return _drive(examples, cases(), run)
    while True:
        box: list[Any] = [None]
        dist.broadcast_object_list(box)
        if box[0] is None:
            return None
        run(box[0])


def _drive(examples: int, cases: Any, run: Callable[[Any], list[str]]) -> dict[str, Any]:
    from hypothesis import HealthCheck, given, settings

    ran = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def check(case: Any) -> None:
        nonlocal ran
        ran += 1
        dist.broadcast_object_list([case])
        errors = run(case)
        assert not errors, f"{case}: {errors}"

    try:
        check()
        failure = None
    except BaseException as error:  # the other ranks wait for the last word
        failure = repr(error)
    dist.broadcast_object_list([None])
    return {"ran": ran, "failure": failure}
