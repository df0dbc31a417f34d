"""Numbers of tokens, rows and pairs on a rank, and bytes of the tensors that repeat."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, erf, exp, pi, sqrt

from ...model.architecture import Model
from ...model.selection import ffn_per_token
from ..inputs import Layout, Sizes
from ..traffic import busiest, groups_per_token, rows_per_token


def expected_load(mean: float, variance: float, most: float) -> float:
    """Of an expert that takes ``most`` tokens: the mean of min(load, most), load being normal."""
    if variance <= 0:
        return min(mean, most)
    deviation = sqrt(variance)
    z = (most - mean) / deviation
    below = (1 + erf(z / sqrt(2))) / 2
    density = exp(-z * z / 2) / sqrt(2 * pi)
    return mean * below + most * (1 - below) - deviation * density


class RankSizes:
    """Of one rank and one microbatch.

    Attributes:
        element: bytes of an activation.
        tokens: t, of a microbatch on a tensor-parallel group.
        own_tokens: p, those of one of its ranks between the linear layers.
        hidden, wide_hidden: bytes of [p, H], [t, H].
        sent_pairs, sent_rows: P, U, that it sends, its own rank included.
        rows, pairs, group_pairs: V, N, M, that its experts and adjugates get: with imbalanced
            routing more than that.
        largest: rows of the fullest of its experts.
        local_experts, local_groups: L, L_groups.
    """

    def __init__(self, sizes: Sizes) -> None:
        model, layout, training = sizes.model, sizes.layout, sizes.training
        self.model, self.layout, self.training = model, layout, training
        self.element = element = training.precision.weight
        self.tokens = training.micro_batch * training.sequence_length / layout.context
        split = layout.tensor if layout.sequence_parallel else 1
        self.own_tokens = self.tokens / split
        self.hidden = self.own_tokens * model.hidden_size * element
        self.wide_hidden = self.tokens * model.hidden_size * element
        if not model.num_experts:
            return
        self.local_experts = model.num_experts / layout.expert
        self.local_groups = model.num_groups / layout.expert
        per_token = ffn_per_token(model)
        kept_share = _kept_share(self.own_tokens, per_token, sizes)
        self.sent_pairs = self.own_tokens * per_token * kept_share
        kept = min(1.0, kept_share)
        if layout.all_gather:
            self.sent_rows = self.own_tokens
        elif layout.row_per_expert:
            self.sent_rows = self.sent_pairs
        else:
            self.sent_rows = self.own_tokens * _of_kept(rows_per_token, model, layout, kept)
        shared = layout.expert_tensor * busiest(model, layout, training.imbalance)
        self.pairs = self.sent_pairs * shared
        groups = _of_kept(lambda m, _: groups_per_token(m), model, layout, kept)
        self.group_pairs = self.own_tokens * groups * shared
        # Every token of every rank, and no more.
        most = self.own_tokens * layout.expert * layout.expert_tensor
        if layout.all_gather:
            self.rows = most
        elif layout.expert == 1 and not layout.row_per_expert:
            self.rows = self.own_tokens * layout.expert_tensor
        else:
            rows = self.sent_rows * shared
            self.rows = rows if layout.row_per_expert else min(rows, most)
        self.largest = min(self.pairs, self.pairs / self.local_experts * training.expert_imbalance)


def _of_kept(
    met: Callable[[Model, Layout], float], model: Model, layout: Layout, kept: float
) -> float:
    """Sets that a token meets with this share of its pairs; between two whole numbers of experts,
    in proportion."""
    if kept >= 1 or model.local_experts:
        return met(model, layout) * (1.0 if kept >= 1 else kept)
    few, rest = divmod(model.topk * kept, 1)
    found = [
        met(replace(model, topk=int(few) + more), layout) if few + more else 0.0 for more in (0, 1)
    ]
    return found[0] * (1 - rest) + found[1] * rest


def _kept_share(tokens: float, per_token: float, sizes: Sizes) -> float:
    """Of the pairs that tokens select, those that are not dropped; above 1 with padding."""
    factor, model = sizes.training.capacity_factor, sizes.model
    if factor is None or not tokens:
        return 1.0
    mean = tokens * per_token / model.num_experts
    # moe_utils.py:get_capacity @ 0.19.2.
    capacity = ceil(tokens * model.topk / model.num_experts * factor)
    if sizes.training.padded_to_capacity:
        return capacity / mean
    return expected_load(mean, mean * (1 - mean / tokens), capacity) / mean
