"""What routing would give if a token chose its experts uniformly, without repetition.

``planner.traffic.expected_distinct`` is the mean of this distribution.
"""

from math import comb

from ..planner.traffic import expected_distinct
from .record import Run


def distribution(experts: int, topk: int, parts: int) -> list[float]:
    """Probability that a token's experts lie in exactly 0, 1, ... min(topk, parts) equal parts.

    Choose the parts; then count, by inclusion and exclusion, the choices of experts among them
    that leave none of them out.
    """
    size = experts // parts
    chances = []
    for met in range(min(topk, parts) + 1):
        ways = sum((-1) ** j * comb(met, j) * comb((met - j) * size, topk) for j in range(met + 1))
        chances.append(comb(parts, met) * ways / comb(experts, topk))
    return chances


def uniform_rows(run: Run) -> float:
    """Rows a token sends, the one to the own rank included."""
    if run.dispatcher == "allgather":
        # To every rank, however a token is routed.
        return float(run.ranks)
    return expected_distinct(run.experts, run.topk, run.ranks)
