"""Balanced assignment: the experts of all tokens together that fit their scores best.

max sum_t z[t, e(t)] where every expert gets as many tokens as any other, or one more (arXiv
2103.16716, section 3.1). By Bertsekas' auction: tokens without a place bid for it, an expert keeps
its highest bids, and what it asks is the least of them once it is full. When all have one, the sum
is within T times the last step of the best there is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the scores' range. Steps get smaller: with the prices of one, the next has little to do.
_FIRST_STEP = 1 / 8
_SHRINK = 1 / 8
_MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Assigned:
    """What :func:`balanced_assignment` found.

    Attributes:
        expert_T: [T] int64.
        rounds: of bids that it took.
    """

    expert_T: Tensor
    rounds: int


def balanced_assignment(
    scores_TE: Tensor, precision: float, max_rounds: int = _MAX_ROUNDS
) -> Assigned:
    """Every token's expert; an expert gets T // E tokens, or one more.

    Waits for the device in every round. After ``max_rounds`` what has no place gets one that is
    left, so that experts are balanced whatever the scores are.

    Args:
        scores_TE: [T, E]; what is not finite counts as the least that is.
        precision: the last bids rise by this part of the range of the scores; above 0.
    """
    tokens, experts = scores_TE.shape
    scores_TE = _finite(scores_TE.detach())
    each, left = divmod(tokens, experts)
    room_E = scores_TE.new_full((experts,), each, dtype=torch.int64)
    if left:
        # Beside `each` places an expert has one more, and whoever fills the places that are too
        # many takes those alone.
        nobody = scores_TE.new_full((experts - left, 2 * experts), float("-inf"))
        nobody[:, experts:] = 0
        scores_TE = torch.cat([torch.cat([scores_TE, scores_TE], dim=1), nobody])
        room_E = torch.cat([room_E, torch.ones_like(room_E)])
    auction = _Auction(scores_TE, room_E)
    rounds = auction.run(precision, max_rounds)
    return Assigned(auction.expert_T[:tokens] % experts, rounds)


def _finite(scores_TE: Tensor) -> Tensor:
    scores_TE = scores_TE.to(torch.promote_types(scores_TE.dtype, torch.float32))
    fine_TE = scores_TE.isfinite()
    least = torch.where(fine_TE, scores_TE, float("inf")).amin() if scores_TE.numel() else 0.0
    return torch.where(fine_TE, scores_TE, torch.nan_to_num(torch.as_tensor(least), posinf=0.0))


class _Auction:
    """Tokens T and experts E with as many places together as there are tokens."""

    def __init__(self, scores_TE: Tensor, room_E: Tensor) -> None:
        tokens, experts = scores_TE.shape
        self.scores_TE, self.room_E = scores_TE, room_E
        # Nobody bids for an expert without a place.
        self.values_TE = scores_TE.masked_fill(room_E == 0, float("-inf"))
        self.prices_E = scores_TE.new_zeros(experts)
        self.expert_T = room_E.new_full((tokens,), -1)
        self.bids_T = scores_TE.new_zeros(tokens)

    def run(self, precision: float, max_rounds: int) -> int:
        """Assign all; the rounds it took."""
        tokens, experts = self.scores_TE.shape
        if experts == 1 or not tokens:
            self.expert_T.zero_()
            return 0
        fine = self.scores_TE[self.scores_TE.isfinite()]
        span = float(fine.max() - fine.min())
        # Less, and a price would not rise by it.
        largest = max(abs(float(fine.max())), abs(float(fine.min())), 1e-30)
        last = max(span * precision, largest * 16 * torch.finfo(fine.dtype).eps)
        step, rounds = max(span * _FIRST_STEP, last), 0
        while True:
            self.expert_T.fill_(-1)
            start_E = self.prices_E.clone()
            while rounds < max_rounds:
                waiting = (self.expert_T < 0).nonzero().squeeze(1)
                if not len(waiting):
                    break
                self._bid(waiting, step, start_E)
                rounds += 1
            if step <= last or rounds >= max_rounds:
                self._fill()
                return rounds
            step = max(step * _SHRINK, last)

    def _bid(self, waiting: Tensor, step: float, start_E: Tensor) -> None:
        """A round: those who wait bid what the best place is worth to them above the next."""
        worth = self.values_TE[waiting] - self.prices_E
        top = worth.topk(2, dim=1)
        best, above = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
        self.expert_T[waiting] = best
        self.bids_T[waiting] = self.prices_E[best] + above + step
        # The highest bids of every expert, those it had among them.
        order = torch.argsort(self.bids_T, descending=True, stable=True)
        order = order[torch.argsort(self.expert_T[order], stable=True)]
        experts = self.expert_T[order]
        bidding = experts >= 0
        order, experts = order[bidding], experts[bidding]
        counts_E = torch.bincount(experts, minlength=len(self.room_E))
        first_E = counts_E.cumsum(0) - counts_E
        place = torch.arange(len(order), device=order.device) - first_E[experts]
        kept = place < self.room_E[experts]
        self.expert_T[order[~kept]] = -1
        asked_E = torch.full_like(start_E, float("inf")).scatter_reduce(
            0, experts[kept], self.bids_T[order[kept]], "amin"
        )
        self.prices_E = torch.where(counts_E >= self.room_E, asked_E, start_E)

    def _fill(self) -> None:
        """Whoever has no place gets one that is left."""
        waiting = (self.expert_T < 0).nonzero().squeeze(1)
        if len(waiting):
            taken_E = torch.bincount(self.expert_T[self.expert_T >= 0], minlength=len(self.room_E))
            free = torch.repeat_interleave(self.room_E - taken_E)
            # The last tokens are nobody, whom only the last experts have room for.
            self.expert_T[waiting] = free
