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
_FIRST_STEP = 1 / 50
_SHRINK = 1 / 8
_MAX_ROUNDS = 2000


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
    if experts == 1 or not tokens:
        return Assigned(torch.zeros_like(scores_TE[:, :0].sum(1), dtype=torch.int64), 0)
    scores_TE = _finite(scores_TE.detach())
    if tokens % experts == 0:
        # An expert gets as many tokens whatever it is worth to all, which so is no reason to bid.
        scores_TE = scores_TE - scores_TE.mean(0)
    auction = _Auction(scores_TE)
    rounds = auction.run(precision, max_rounds)
    auction.fill()
    return Assigned(auction.place_T[:tokens] % experts, rounds)


def _finite(scores_TE: Tensor) -> Tensor:
    scores_TE = scores_TE.to(torch.promote_types(scores_TE.dtype, torch.float32))
    fine_TE = scores_TE.isfinite()
    least = torch.where(fine_TE, scores_TE, float("inf")).amin()
    return torch.where(fine_TE, scores_TE, torch.nan_to_num(least, posinf=0.0))


class _Auction:
    """Of tokens and places. Expert e has T // E of kind e and, where T % E, one of kind E + e.

    Of these last ones E - T % E are too many. As many others take them, to whom all are alike: rows
    after the tokens, "nobody".
    """

    def __init__(self, scores_TE: Tensor) -> None:
        tokens, experts = scores_TE.shape
        each, left = divmod(tokens, experts)
        self.scores_TE, self.tokens, self.experts = scores_TE, tokens, experts
        self.room_P = torch.full((experts,), each, device=scores_TE.device)
        self.worth_TP = scores_TE if each else torch.full_like(scores_TE, float("-inf"))
        nobody = 0
        if left:
            nobody = experts - left
            self.room_P = torch.cat([self.room_P, torch.ones_like(self.room_P)])
            self.worth_TP = torch.cat([self.worth_TP, scores_TE], dim=1)
        self.prices_P = scores_TE.new_zeros(len(self.room_P))
        self.place_T = self.room_P.new_full((tokens + nobody,), -1)
        self.bids_T = scores_TE.new_zeros(tokens + nobody)

    def run(self, precision: float, max_rounds: int) -> int:
        """Auction after auction, with smaller steps; the rounds it took."""
        least, most = self.scores_TE.aminmax()
        span, largest = float(most - least), max(abs(float(most)), abs(float(least)), 1e-30)
        # Of less, prices would not rise.
        last = max(span * precision, largest * 16 * torch.finfo(self.scores_TE.dtype).eps)
        step, rounds = max(span * _FIRST_STEP, last), 0
        while True:
            self.place_T.fill_(-1)
            start_P = self.prices_P
            while rounds < max_rounds:
                waiting = (self.place_T < 0).nonzero().squeeze(1)
                if not len(waiting):
                    break
                self._bid(waiting, step)
                self._keep_the_highest(start_P)
                rounds += 1
            if step <= last or rounds >= max_rounds:
                return rounds
            step = max(step * _SHRINK, last)

    def _bid(self, waiting: Tensor, step: float) -> None:
        """Who waits bids what the best place is worth to them above the next."""
        tokens = waiting[waiting < self.tokens]
        top = (self.worth_TP[tokens] - self.prices_P).topk(2, dim=1)
        best, above = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
        nobody = waiting[waiting >= self.tokens]
        if len(nobody):
            self._bid_for_nobody(nobody, step)
        self.place_T[tokens] = best
        self.bids_T[tokens] = self.prices_P[best] + above + step

    def _bid_for_nobody(self, waiting: Tensor, step: float) -> None:
        """They take the cheapest places, all at the price of the next one.

        One by one they would outbid each other step by step.
        """
        prices_E = self.prices_P[self.experts :].clone()
        held = self.place_T[self.tokens :]
        prices_E[held[held >= 0] - self.experts] = float("inf")
        cheapest = prices_E.argsort(stable=True)
        after = cheapest[min(len(waiting), len(cheapest) - 1)]
        level = torch.where(prices_E[after].isfinite(), prices_E[after], self.prices_P.max())
        self.place_T[waiting] = self.experts + cheapest[: len(waiting)]
        self.bids_T[self.tokens :] = torch.maximum(self.bids_T[self.tokens :], level + step)

    def _keep_the_highest(self, start_P: Tensor) -> None:
        """Of the bids for a place; the least that is kept is its price, once there is no more."""
        order = torch.argsort(self.bids_T, descending=True, stable=True)
        order = order[torch.argsort(self.place_T[order], stable=True)]
        order = order[self.place_T[order] >= 0]
        places = self.place_T[order]
        counts_P = torch.bincount(places, minlength=len(self.room_P))
        first_P = counts_P.cumsum(0) - counts_P
        rank = torch.arange(len(order), device=order.device) - first_P[places]
        kept = rank < self.room_P[places]
        self.place_T[order[~kept]] = -1
        asked_P = torch.full_like(start_P, float("inf")).scatter_reduce(
            0, places[kept], self.bids_T[order[kept]], "amin"
        )
        self.prices_P = torch.where(counts_P >= self.room_P, asked_P, start_P)

    def fill(self) -> None:
        """After rounds that were too few: who has no place gets one, and experts stay balanced."""
        place_T, experts = self.place_T[: self.tokens], self.experts
        if not bool((place_T < 0).any()):
            return
        each = self.tokens // experts
        expert_T = torch.where(place_T < 0, -1, place_T % experts)
        counts_E = torch.bincount(expert_T[expert_T >= 0], minlength=experts)
        missing_E = (each - counts_E).clamp(min=0)
        waiting = (expert_T < 0).nonzero().squeeze(1)
        short = int(missing_E.sum()) - len(waiting)
        if short > 0:
            # Of experts with one more, one each.
            more = (counts_E > each).nonzero().squeeze(1)[:short]
            first = [int((expert_T == expert).nonzero()[0]) for expert in more]
            waiting = torch.cat([waiting, waiting.new_tensor(first)])
            counts_E[more] -= 1
        free = torch.repeat_interleave(missing_E)
        # What is left after that goes to those that have not one more yet.
        others = (counts_E <= each).nonzero().squeeze(1)
        place_T[waiting] = torch.cat([free, others])[: len(waiting)]
