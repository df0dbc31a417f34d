"""Every token is on one rank, in its place, and comes back to its row."""

import pytest
import torch
import torch.distributed as dist

from grove_megatron.verify_layer.spread import Spread

SIZES = [(1, 37, 1), (1, 37, 2), (3, 13, 4), (2, 8, 4), (2, 3, 4), (1, 1, 3)]


@pytest.mark.parametrize(("batch", "sequence", "ranks"), SIZES)
def test_tokens_are_spread_evenly_and_found_again(
    batch: int, sequence: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows that say which token they are.
    tokens = torch.arange(1.0, batch * sequence + 1).reshape(-1, 1).expand(-1, 2)
    spreads = [Spread(batch, sequence, rank, ranks) for rank in range(ranks)]
    parts = [spread.local(tokens) for spread in spreads]
    assert {tuple(part.shape) for part in parts} == {(-(-sequence // ranks), batch, 2)}
    counts = [spread.here.stop - spread.here.start for spread in spreads]
    assert sum(counts) == sequence
    assert max(counts) - min(counts) <= 1
    # What an all-reduce would sum.
    monkeypatch.setattr(dist, "all_reduce", lambda rows: rows)
    alone = [spread.whole(part) for spread, part in zip(spreads, parts, strict=True)]
    assert torch.equal(torch.stack(alone).sum(0), tokens.double())
    for spread, part in zip(spreads, parts, strict=True):
        zero = (part == 0).all(-1).T
        padding = spread.padding
        assert torch.equal(zero, torch.zeros_like(zero) if padding is None else padding)
        assert (padding is None) == (sequence % ranks == 0)


def test_a_row_is_a_sequence_and_its_place() -> None:
    rows = torch.arange(6.0).reshape(6, 1)
    # Two sequences of three tokens.
    assert Spread(2, 3, 0, 1).local(rows).squeeze(-1).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert torch.equal(Spread(2, 3, 0, 1).whole(Spread(2, 3, 0, 1).local(rows)), rows.double())
