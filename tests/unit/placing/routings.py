"""Made-up routings, as the experts of every token, and records of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from grove_megatron.placing.counts import Array, Evidence, of_tokens
from grove_megatron.report.record import Interval, Run, Writer
from tests.unit.report.intervals import RUN


def of_scores(scores_TE: Array, topk: int, seed: int) -> Array:
    """[T, K] the best of each token, with what a softmax of the scores would draw."""
    noise = np.random.default_rng(seed).gumbel(size=scores_TE.shape)
    return np.argsort(-(scores_TE + noise), axis=1)[:, :topk]


def uniform(tokens: int, experts: int, topk: int, seed: int) -> Array:
    return of_scores(np.zeros((tokens, experts)), topk, seed)


def zipf(tokens: int, experts: int, topk: int, seed: int) -> Array:
    """Expert n is chosen as often as 1 / n."""
    rare = -np.log(np.arange(1, experts + 1))
    return of_scores(np.broadcast_to(rare, (tokens, experts)), topk, seed)


def planted(
    tokens: int, experts: int, topk: int, seed: int, strength: float, set_E: Array
) -> Array:
    """A token has a set of its own, whose experts it prefers by so many nats."""
    home_T = np.random.default_rng(seed + 1).integers(set_E.max() + 1, size=tokens)
    return of_scores(strength * (home_T[:, None] == set_E), topk, seed)


def leaning(tokens: int, experts: int, topk: int, seed: int, strength: float) -> Array:
    """Scores of few directions, as of a router over hidden states; no sets."""
    directions = np.random.default_rng(99).normal(size=(12, experts)) / np.sqrt(12)
    hidden = np.random.default_rng(seed + 1).normal(size=(tokens, 12))
    return of_scores(strength * hidden @ directions, topk, seed)


def limited(tokens: int, experts: int, topk: int, seed: int, blocks: int, chosen: int) -> Array:
    """Uniform among the experts of a token's best blocks, as ``--moe-router-group-topk``."""
    scores_TBE = np.random.default_rng(seed).gumbel(size=(tokens, blocks, experts // blocks))
    best_TBE = np.sort(scores_TBE, axis=2)[:, :, -(topk // chosen) :]
    rank_TB = (-best_TBE.sum(2)).argsort(1).argsort(1)
    scores_TBE[rank_TB >= chosen] = -np.inf
    return np.argsort(-scores_TBE.reshape(tokens, experts), axis=1)[:, :topk]


def scattered(experts: int, sets: int, unit: int = 1, seed: int = 5) -> Array:
    """[E] sets of equal size whose units of so many experts lie anywhere."""
    units = np.random.default_rng(seed).permutation(experts // unit)
    return np.repeat(units % sets, unit)


def evidence(chosen_TK: Array, experts: int, groups: int = 0, parts: int = 8) -> Evidence:
    """Every token is known."""
    pieces = np.array_split(chosen_TK, parts)
    return Evidence([of_tokens(piece, experts, groups) for piece in pieces])


def sums_of(known: Evidence) -> Evidence:
    """What a record has of it."""
    return replace(known, parts=[replace(part, met=None) for part in known.parts])


def a_run(experts: int, groups: int, topk: int, layers: int, ranks: int = 4, **sizes: Any) -> Run:
    names = tuple(str(n + 1) for n in range(layers))
    made = replace(RUN, layers=names, experts=experts, groups=groups, topk=topk, ranks=ranks)
    return replace(made, **sizes)


def an_interval(run: Run, chosen_LTK: Sequence[Array], iteration: int, **fields: Any) -> Interval:
    """Of tokens that a flat dispatch sent to the run's ranks."""
    counts = [of_tokens(chosen, run.experts, run.groups) for chosen in chosen_LTK]
    tokens = np.array([len(chosen) for chosen in chosen_LTK])
    none, width = 0 * tokens, 1 + min(run.topk, run.groups)
    experts = [np.bincount(c[c >= 0], minlength=run.experts) for c in chosen_LTK]
    rows = []
    for one in counts:
        assert one.met is not None
        rows.append(one.met.reshape(len(one.met), run.ranks, -1).any(2).sum(0))
    sharing = np.zeros((len(counts), width), np.int64)
    for of_layer, one in zip(sharing, counts, strict=True):
        of_layer[: len(one.degrees)] = one.degrees[:width] if run.groups else one.tokens
    groups = [one.together.diagonal() for one in counts] if run.groups else [np.zeros(0, int)]
    return Interval(
        **{
            "run": run,
            "iteration": iteration,
            "iterations": 10,
            "time": 1.0,
            "losses": {},
            "sent_tokens": tokens,
            "rerun_tokens": none,
            "left_rows": none,
            "node_rows": none,
            "experts": np.array(experts),
            "groups": np.broadcast_to(np.array(groups), (len(counts), run.groups)),
            "sharing": sharing,
            "rows": np.array(rows),
            "coactivation": np.array([one.together for one in counts]),
            **fields,
        }
    )


def a_record(folder: Path, run: Run, intervals: Sequence[Interval]) -> Path:
    writer = Writer(folder)
    writer.run(run)
    for interval in intervals:
        writer.interval(interval)
    return folder
