"""What a job needs and sends, counted by hand."""

import pytest

from grove_megatron.machines.planned import message_bytes, needs_of
from grove_megatron.planner.memory import stage_memory
from grove_megatron.training.sizes import sizes_of
from tests.unit.training.command_lines import parsed

TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"


@pytest.mark.parametrize(
    ("flags", "split"),
    [("", 1), (TP2, 2), ("--context-parallel-size 2", 2), ("--micro-batch-size 3", 1 / 3)],
)
def test_a_message_is_the_rows_of_a_microbatch_for_one_rank(flags: str, split: float) -> None:
    args = parsed(f"--expert-model-parallel-size 4 --bf16 {flags}", ranks=8)
    sizes = sizes_of(args)
    experts, per_rank = args.num_experts, args.num_experts // 4
    assert args.moe_router_topk == 2
    missed = (experts - per_rank) * (experts - per_rank - 1) / (experts * (experts - 1))
    tokens = args.seq_length / split
    if "--micro-batch-size" not in flags:
        tokens *= args.micro_batch_size
    assert message_bytes(sizes) == int(tokens * (1 - missed) * args.hidden_size * 2)


def test_a_job_without_experts_sends_nothing() -> None:
    args = parsed(plain=True)
    args.num_experts = None
    assert message_bytes(sizes_of(args)) == 0


def test_needs() -> None:
    args = parsed("--num-workers 3 --pipeline-model-parallel-size 4 --num-layers 8", ranks=8)
    sizes = sizes_of(args)
    needs = needs_of(args, sizes, "cpu")
    assert needs.rank_bytes == int(max(memory.total for memory in stage_memory(sizes)))
    # Three workers with two batches each, on two of four stages: ids, labels, positions, weights,
    # and a mask of a byte for each pair.
    length = args.seq_length
    batch = args.micro_batch_size * (length * 28 + length * length)
    assert needs.loader_bytes == 3 * 2 * batch // 2
    assert not needs.hierarchical
    args.create_attention_mask_in_dataloader = False
    batch = args.micro_batch_size * length * 28
    assert needs_of(args, sizes, "cpu").loader_bytes == 3 * 2 * batch // 2
    assert needs_of(args, None, "cuda").rank_bytes is None
