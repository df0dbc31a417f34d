"""Tables from token ids to experts, for hash layers (arXiv 2106.04426, section 3.2).

Every layer has the same, which is made once.
"""

import random
from functools import cache
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor


@cache
def random_table(vocabulary: int, experts: int, per_token: int, seed: int) -> Tensor:
    """Experts drawn for every id, one after the other: [V, K] int32, different in a row.

    With K of 1 that of the authors' code for the same seed (ParlAI@a29567f hash_ladder.py:190-204),
    which draws from Python's global generator; this one has its own.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(vocabulary):
        row: list[int] = []
        while len(row) < per_token:
            expert = draw.randrange(experts)
            if expert not in row:
                row.append(expert)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int32).reshape(vocabulary, per_token)


@cache
def balanced_table(counts: tuple[int, ...], experts: int, per_token: int) -> Tensor:
    """Experts with as many tokens of a corpus as any other: [V, K] int32, different in a row.

    Ids by falling count, the lower first, each to the experts that have the fewest tokens until
    then, the lower first.

    Args:
        counts: of every id in the corpus.
    """
    table = torch.zeros(len(counts), per_token, dtype=torch.int32)
    loads = [(0, expert) for expert in range(experts)]
    heapify(loads)
    for token in sorted(range(len(counts)), key=lambda token: -counts[token]):
        taken = [heappop(loads) for _ in range(per_token)]
        table[token] = torch.tensor([expert for _, expert in taken], dtype=torch.int32)
        for load, expert in taken:
            heappush(loads, (load + counts[token], expert))
    return table
