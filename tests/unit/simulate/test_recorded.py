from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grove_megatron.report.record import Run, Writer
from grove_megatron.simulate.pairs import fitted, shares
from grove_megatron.simulate.recorded import Loads, Recorded, counted_rows, read_loads
from grove_megatron.simulate.replay import replay, routing_map
from grove_megatron.simulate.routing import Routing, generator_of, planted, zipf
from grove_megatron.simulate.sizes import Sizes
from tests.unit.report.intervals import RUN, interval

SIZES = Sizes(experts=32, groups=16, topk=4, ranks=8, gpus_per_node=4, tokens=1024, row_bytes=64)
OF_SIZES: Run = replace(RUN, layers=("1",), experts=32, groups=16, topk=4, ranks=8)


def recorded(routing: Routing) -> Loads:
    """What a job with that routing would have counted."""
    chosen = [row for rank in range(8) for row in routing.experts("1", 0, rank).tolist()]
    return Loads(interval([chosen], OF_SIZES))


def rows_per_token(routing: Routing) -> float:
    found = replay(routing, SIZES, "1", 0)
    return int(found.flat.sent_rows.sum()) / int(found.tokens.sum())


def drawn(loads: Loads, seed: int = 1) -> torch.Tensor:
    routing = Recorded(SIZES, seed, loads, ("1",))
    return torch.cat([routing.experts("1", 0, rank) for rank in range(8)])


def test_loads_are_the_records(tmp_path: Path) -> None:
    whole = recorded(zipf(SIZES, 0, 1.0)).whole
    writer = Writer(tmp_path)
    writer.run(OF_SIZES)
    for iteration in (10, 20):
        writer.interval(replace(whole, iteration=iteration))
    read = read_loads(tmp_path)
    assert read.whole.iterations == 20
    assert (read.whole.experts == 2 * whole.experts).all()
    share = torch.bincount(drawn(read).flatten(), minlength=32) / 8192
    assert share.tolist() == pytest.approx((whole.experts[0] / 8192).tolist(), abs=0.02)
    # Zipf's choices are made apart, so that the rows are those that were counted.
    routing = Recorded(SIZES, 1, read, ("1",))
    assert rows_per_token(routing) == pytest.approx(counted_rows(read, ("1",)), rel=0.01)


def test_intervals_of_other_ranks_are_left_out(tmp_path: Path) -> None:
    whole = recorded(zipf(SIZES, 0, 1.0)).whole
    writer = Writer(tmp_path)
    for ranks, iteration in ((4, 10), (8, 20)):
        run = replace(OF_SIZES, id=str(ranks), ranks=ranks, resumed=iteration - 10)
        writer.run(run)
        rows = whole.rows.reshape(1, ranks, -1).sum(2)
        writer.interval(replace(whole, run=run, iteration=iteration, rows=rows))
    assert read_loads(tmp_path).whole.iterations == 10


def test_intervals_of_another_order_of_groups_are_left_out(tmp_path: Path) -> None:
    whole = recorded(zipf(SIZES, 0, 1.0)).whole
    writer = Writer(tmp_path)
    for path, iteration in (("old.json", 10), (None, 20), ("p.json", 30)):
        placed = {} if path is None else {"grove-placement": path}
        run = replace(OF_SIZES, id=str(path), resumed=iteration - 10, settings=placed)
        writer.run(run)
        writer.interval(replace(whole, run=run, iteration=iteration))
        read = read_loads(tmp_path)
        assert (read.whole.iterations, read.placement) == (10, path)


def test_pairs_are_kept_where_they_were_counted() -> None:
    routing = planted(SIZES, 0, 0.8)
    tokens = torch.cat([routing.experts("1", 0, rank) for rank in range(8)])
    alone = recorded(routing)
    map_TU = routing_map(tokens, 32).reshape(-1, 16, 2).any(2).double()
    counts = (map_TU.T @ map_TU).long().numpy()
    together = Loads(alone.whole, counts[None])
    true = rows_per_token(routing)
    assert counted_rows(alone, ("1",)) == pytest.approx(true)
    assert rows_per_token(Recorded(SIZES, 1, alone, ("1",))) > 1.1 * true
    assert rows_per_token(Recorded(SIZES, 1, together, ("1",))) == pytest.approx(true, rel=0.02)
    loads, pairs = shares(drawn(together), 32, 16)
    assert loads.tolist() == pytest.approx((alone.whole.experts[0] / 8192).tolist(), abs=0.03)
    assert np.abs(pairs.numpy() - counts / 8192).max() < 0.04


def test_groups_that_tokens_choose_often_are_kept() -> None:
    sizes = replace(SIZES, groups=8)
    routing = planted(sizes, 0, 0.8, 1)
    tokens = torch.cat([routing.experts("1", 0, rank) for rank in range(8)])
    loads, pairs = shares(tokens, 32, 8)
    again = fitted(loads, pairs, 4, 1)(0, 0, 8192, generator_of(1))
    _, seen = shares(again, 32, 8)
    # Groups of a token: fewer than it has experts.
    assert pairs.trace() < 2
    assert seen.trace() == pytest.approx(float(pairs.trace()), rel=0.02)


def test_dropped_pairs_and_local_experts_leave_fewer_experts() -> None:
    whole = recorded(zipf(SIZES, 0, 0.0)).whole
    half = replace(whole, experts=whole.experts // 2)
    drops = replace(half, run=replace(OF_SIZES, drops=True))
    local = replace(
        half,
        run=replace(OF_SIZES, local={"zero": 4}),
        local=np.full((1, 4), (4 * 8192 - half.experts.sum()) // 4),
    )
    for one in (drops, local):
        chosen = drawn(Loads(one))
        assert (chosen >= 0).sum() / 8192 == pytest.approx(2, rel=0.02)
