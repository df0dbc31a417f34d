"""Intervals of made-up routing, counted from the choices of single tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grove_megatron.report.record import Interval, Run

RUN = Run(
    id="a",
    started=1.0,
    resumed=0,
    layers=("1", "mtp 1"),
    experts=8,
    groups=4,
    topk=2,
    ranks=2,
    dispatcher="alltoall",
    world_size=4,
    row_bytes=64,
    drops=False,
    parameters=(1000, 800, 400),
    settings={"num-layers": 1, "lr": 1e-3, "moe-router-load-balancing-type": "aux_loss"},
)

# Of every layer: the experts of every token.
TOKENS: tuple[list[list[int]], ...] = ([[0, 1], [0, 1], [0, 7], [2, 4]], [[3, 6], [3, 7], [], [3]])


def interval(tokens: Sequence[list[list[int]]] = TOKENS, run: Run = RUN, **fields: Any) -> Interval:
    """Tokens owned by rank 0, all of them: one list of experts per token and layer."""
    experts = np.zeros((len(run.layers), run.experts), np.int64)
    groups = np.zeros((len(run.layers), run.groups), np.int64)
    sharing = np.zeros((len(run.layers), 1 + min(run.topk, run.groups)), np.int64)
    rows = np.zeros((len(run.layers), run.ranks), np.int64)
    coactivation = np.zeros((len(run.layers), run.units, run.units), np.int64)
    for layer, of_layer in enumerate(tokens):
        for chosen in of_layer:
            met = {e * run.groups // run.experts for e in chosen} if run.groups else set()
            experts[layer, chosen] += 1
            groups[layer, list(met)] += 1
            sharing[layer, len(met)] += 1
            units = list(met if run.groups else chosen)
            coactivation[layer][np.ix_(units, units)] += 1
            rows[layer, list({e * run.ranks // run.experts for e in chosen})] += 1
    count = np.array([len(of_layer) for of_layer in tokens])
    return Interval(
        **{
            "run": run,
            "iteration": 10,
            "iterations": 10,
            "time": 2.0,
            "losses": {"lm loss": 3.0},
            "sent_tokens": count,
            "rerun_tokens": 0 * count,
            "left_rows": rows[:, 1:].sum(1),
            "node_rows": 0 * count,
            "experts": experts,
            "groups": groups,
            "sharing": sharing,
            "rows": rows,
            "coactivation": coactivation,
            **fields,
        }
    )


def random_tokens(run: Run, count: int, seed: int, skew: float = 1.0) -> list[list[list[int]]]:
    """Choices of ``count`` tokens in every layer, of experts that some layers favour."""
    generator = np.random.default_rng(seed)
    liking = np.random.default_rng(0).normal(0, skew, (len(run.layers), run.experts))
    scores = liking[:, None] + generator.gumbel(size=(len(run.layers), count, run.experts))
    chosen: list[list[list[int]]] = np.argsort(-scores, axis=2)[:, :, : run.topk].tolist()
    return chosen


def a_training(run: Run, number: int, tokens: int, every: int = 10) -> Iterator[Interval]:
    """Intervals that become balanced, with a bias, falling losses, and a dead expert."""
    bias = np.zeros((len(run.layers), run.experts), np.float32)
    for index in range(number):
        made = interval(random_tokens(run, tokens, index + 1, 1.5 / (1 + index / 4)), run)
        experts = made.experts.copy()
        experts[0, 3] = 0
        bias = bias - np.sign(experts - experts.mean()).astype(np.float32) * 1e-3
        yield replace(
            made,
            experts=experts,
            iteration=every * (index + 1),
            iterations=every,
            time=2.0 + index,
            bias=bias,
            losses={"lm loss": 2 + 3 / (index + 1), "load_balancing_loss": 1.0},
        )
