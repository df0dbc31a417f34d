"""On the ranks: the same bits from run to run, and the same layer in one hop and in two."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.multirank.on_ranks import gathered, grove_config, megatron, moe_layer
from tests.ranks import write_result

HIDDEN, EXPERTS, TOPK = 16, 16, 3
PER_NODE = 2


def same_bits(folder: str, kernel: str, hierarchical: bool) -> None:
    """Job: one layer, three times: as always, and twice where torch is asked for determinism."""
    with _world(hierarchical):
        layer = moe_layer(_config(kernel, hierarchical))
        x = _tokens()
        as_always = _run(layer, x)
        torch.use_deterministic_algorithms(True)
        # What is allocated is filled with NaN first, so nothing unwritten goes unnoticed.
        assert torch.utils.deterministic.fill_uninitialized_memory
        first, second = (_run(layer, x) for _ in range(2))
        torch.use_deterministic_algorithms(False)
        names = sorted(first)
        assert names == sorted(second) == sorted(as_always)
        result = {
            "hops": len(layer.token_dispatcher.hops),
            "one pass": layer.in_one_pass,
            "finite and not 0": [n for n in names if first[n].isfinite().all() and first[n].any()],
            "names": names,
            "again": [n for n in names if torch.equal(first[n], second[n])],
            "as always": [n for n in names if torch.equal(first[n], as_always[n])],
        }
        write_result(folder, result)


def hierarchical_is_flat(folder: str, kernel: str) -> None:
    """Job: the same weights and tokens in one hop and in two, and what crossed between nodes."""
    with _world(hierarchical=True):
        flat, in_two_hops = (moe_layer(_config(kernel, two)) for two in (False, True))
        in_two_hops.load_state_dict(flat.state_dict(), strict=True)
        x = _tokens()
        expected = _run(flat, x)
        with _crossings() as crossings:
            found = _run(in_two_hops, x)
        assert found.keys() == expected.keys()
        _, chosen = flat.route(x)
        rank, nodes = dist.get_rank(), dist.get_world_size() // PER_NODE
        # Distinct (token, node), counted pair by pair.
        met = {
            (token, expert * nodes // EXPERTS) for token, expert in chosen.nonzero().cpu().tolist()
        }
        away = sum(node != rank // PER_NODE for _, node in met)
        traffic = in_two_hops.token_dispatcher.traffic
        result = {
            "hops": [len(layer.token_dispatcher.hops) for layer in (flat, in_two_hops)],
            "errors": {n: _relative(found[n], expected[n]) for n in expected},
            "met": len(met),
            "away": away,
            "pairs": int(chosen.sum()),
            "node rows": traffic.node_rows,
            "flat rows": flat.token_dispatcher.traffic.rows,
            "rows": traffic.rows,
            # Of every exchange of rows: how many left this node, and how many came from others.
            "between nodes": [[c.left, c.came] for c in crossings if c.left or c.came],
        }
        result["away of all"] = [int(n) for n in gathered(torch.tensor(away))]
        write_result(folder, result)


@contextmanager
def _world(hierarchical: bool) -> Iterator[None]:
    """All ranks of the job are one expert-parallel group."""
    if hierarchical:
        # Two ranks count as a node.
        os.environ["LOCAL_WORLD_SIZE"] = str(PER_NODE)
    with megatron(expert_model_parallel_size=int(os.environ["WORLD_SIZE"])):
        yield


def _config(kernel: str, hierarchical: bool) -> Any:
    return grove_config(
        hidden_size=HIDDEN,
        num_moe_experts=EXPERTS,
        moe_ffn_hidden_size=12,
        moe_router_topk=TOPK,
        expert_model_parallel_size=dist.get_world_size(),
        grove_num_groups=EXPERTS // 2,
        grove_adjugate_ffn_hidden_size=8,
        grove_adjugate_scale=0.4,
        grove_kernel=kernel,
        grove_hierarchical_dispatch=hierarchical,
    )


def _tokens() -> Tensor:
    """Another number of other tokens on every rank."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(40 + rank)
    return torch.randn(29 - 6 * rank, 1, HIDDEN, generator=generator)


def _run(layer: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and every gradient."""
    layer.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    y, _ = layer(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(50 + dist.get_rank()))
    y.backward(upstream)
    grads = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    assert len(grads) == len(list(layer.parameters()))
    return {"y": y.detach().clone(), "x": x.grad, **grads}


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


@dataclass(frozen=True)
class _Exchanged:
    left: int
    came: int


@contextmanager
def _crossings() -> Iterator[list[_Exchanged]]:
    """What every exchange of rows of the model's width moves to and from other nodes."""
    seen: list[_Exchanged] = []
    original = dist.all_to_all_single

    def noted(
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        group: Any = None,
        **named: Any,
    ) -> Any:
        if input.dim() == 2 and input.shape[1] == HIDDEN and input.is_floating_point():
            assert input_split_sizes is not None
            assert output_split_sizes is not None
            here = dist.get_rank() // PER_NODE
            others = [
                place
                for place, rank in enumerate(dist.get_process_group_ranks(group))
                if rank // PER_NODE != here
            ]
            left = sum(input_split_sizes[place] for place in others)
            came = sum(output_split_sizes[place] for place in others)
            seen.append(_Exchanged(left, came))
        return original(output, input, output_split_sizes, input_split_sizes, group, **named)

    dist.all_to_all_single = noted
    try:
        yield seen
    finally:
        dist.all_to_all_single = original
