"""Routings whose tokens choose among few blocks of experts."""

import torch
from torch import Tensor

from ..checks.problem import Problem, Refusal
from .draw import choose, in_pieces
from .routing import Drawn
from .sizes import Sizes


def limited(sizes: Sizes, seed: int, blocks: float, chosen: float) -> Drawn:
    """Tokens are limited to a few blocks of experts, as those of DeepSeek's are to devices.

    The experts stand in G equal blocks; a token takes M of them, each choice as likely, and then K
    of their experts, each choice as likely. A router takes the blocks with the best scores
    (``--moe-router-num-groups`` G, ``--moe-router-group-topk`` M), which comes to that where all
    blocks score alike.

    Args:
        sizes, seed: see :class:`Drawn`.
        blocks, chosen: G, M.

    Raises:
        Refusal: no such blocks, or they hold fewer than K experts.
    """
    problems = limit_problems(blocks, chosen)
    if not problems:
        if sizes.experts % blocks:
            text = f"does not divide --experts ({sizes.experts}); use equal blocks of experts"
            problems.append(Problem("--routing limited groups", f"{blocks:g}", text))
        elif (inside := int(chosen * sizes.experts / blocks)) < sizes.topk:
            text = f"holds fewer experts ({inside}) than --topk ({sizes.topk}); take more of them"
            problems.append(Problem("--routing limited topk", f"{chosen:g}", text))
    if problems:
        raise Refusal(problems)
    count, taken = int(blocks), int(chosen)
    size = sizes.experts // count
    inside_C = torch.ones(taken * size, dtype=torch.float64)

    def some(tokens: int, generator: torch.Generator) -> Tensor:
        blocks_TM = torch.rand(tokens, count, generator=generator).topk(taken).indices
        place_TK = choose(inside_C, tokens, sizes.topk, generator)
        return blocks_TM.gather(1, place_TK // size) * size + place_TK % size

    return Drawn(
        sizes=sizes,
        seed=seed,
        draw=lambda step, rank, tokens, generator: in_pieces(
            tokens, max(count, sizes.topk), lambda piece: some(piece, generator)
        ),
    )


def limit_problems(blocks: float, chosen: float) -> list[Problem]:
    """What no layer could make of them."""
    found = []
    for name, number in (("groups", blocks), ("topk", chosen)):
        if number < 1 or not float(number).is_integer():
            text = "is no whole number from 1 up; correct it"
            found.append(Problem(f"--routing limited {name}", f"{number:g}", text))
    if not found and chosen > blocks:
        text = f"is above its groups ({blocks:g}); take fewer, or all of them"
        found.append(Problem("--routing limited topk", f"{chosen:g}", text))
    return found
