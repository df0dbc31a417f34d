"""What a simulation says is sent is what the dispatchers hand over, byte for byte."""

from pathlib import Path

import torch

from grove_megatron.report.trace import open_trace, write_trace
from grove_megatron.simulate.flow import Flow
from grove_megatron.simulate.replay import replay
from grove_megatron.simulate.sizes import MAP_BYTES, RECORD_BYTES, WEIGHT_BYTES, Sizes
from grove_megatron.simulate.trace import Replayed
from tests.multirank.simulated_cases import HIDDEN
from tests.ranks import Ranks

ROW = HIDDEN * 4


def test_bytes_are_those_that_are_handed_over(ranks: Ranks, tmp_path: Path) -> None:
    # Experts of a few ranks for many, so that rows are shared. Megatron's takes no fewer than two.
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.rand(40, 8, generator=generator) * torch.arange(1, 9)).topk(2).indices
    file = tmp_path / "trace"
    write_trace(file, {"1": tokens}, experts=8, groups=4)
    job = ranks.run(
        4, "tests.multirank.simulated_cases:send", str(tmp_path), str(file), folder=tmp_path
    )
    sizes = Sizes(experts=8, groups=4, topk=2, ranks=4, gpus_per_node=2, tokens=10, row_bytes=ROW)
    found = replay(Replayed(sizes, open_trace(file), ("1",)), sizes, "1", 0)
    assert found.two_hops is not None

    def sent(flow: Flow, rank: int, row: int, pair: int) -> int:
        """Bytes of a rank, those to itself included, as a collective is handed them."""
        return int(flow.sent_rows[rank].sum() * row + flow.sent_pairs[rank].sum() * pair)

    for rank, result in enumerate(job.check().results()):
        # Numbers of 8 bytes that are exchanged first: rows, and pairs of experts and of groups.
        counts = 8 * 4 * (1 + 2 + 1)
        assert sum(result["flat"]) == counts + sent(found.flat, rank, ROW, RECORD_BYTES)
        counts = 8 * 2 * (1 + 4 + 2) + 8 * 2 * (1 + 2 + 1)
        assert sum(result["two_hops"]) == counts + sent(found.two_hops, rank, ROW, RECORD_BYTES)
        # Megatron gathers the counts of all experts; a row has no record, but its weight.
        counts = 4 * 8 * 8
        stock = sent(found.stock, rank, ROW + WEIGHT_BYTES, 0)
        assert sum(result["stock"]) == counts + stock
        beside = 8 * (MAP_BYTES + WEIGHT_BYTES)
        assert sum(result["all_gather"]) == sent(found.all_gather, rank, ROW + beside, 0)
