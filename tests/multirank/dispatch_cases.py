"""On the ranks: random routings through the real layer, against the reference."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.drawn_cases import run_drawn
from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Case:
    """One layer and one routing. ``tokens`` has a number per rank; all sizes are per model.

    ``plain``: the same experts without groups.
    """

    experts_per_group: int
    groups_per_rank: int
    topk: int
    tokens: list[int]
    routing: str
    hidden: int
    width: int
    adjugate_width: int
    scale: float
    kernel: str
    plain: bool
    seed: int


def property_test(
    folder: str, examples: int, sizes: dict[str, int], ranks_per_node: int | None = None
) -> None:
    """Job: ``examples`` random cases at these Megatron parallel sizes.

    With ``ranks_per_node`` the ranks pretend to be on several nodes and dispatch in two hops.
    """
    torch.set_default_dtype(torch.float64)
    if ranks_per_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(ranks_per_node)
    with megatron(**sizes):
        write_result(folder, run_drawn(examples, _cases, _run))


def _nodes() -> int:
    return dist.get_world_size() // int(os.environ["LOCAL_WORLD_SIZE"])


def _cases() -> Any:
    from hypothesis import strategies as st

    return st.builds(
        Case,
        experts_per_group=st.integers(1, 4),
        groups_per_rank=st.integers(1, 3),
        topk=st.integers(1, 6),
        tokens=st.lists(
            st.integers(0, 6), min_size=dist.get_world_size(), max_size=dist.get_world_size()
        ),
        routing=st.sampled_from(["topk", "any", "one expert", "none", "dropped", "underflow"]),
        hidden=st.sampled_from([4, 6]),
        width=st.sampled_from([4, 6]),
        adjugate_width=st.sampled_from([2, 4]),
        scale=st.sampled_from([0.05, 1.0, 0.0]),
        kernel=st.sampled_from(["grouped", "megatron"]),
        plain=st.booleans(),
        seed=st.integers(0, 2**31),
    )


def _routing(case: Case, num_experts: int, tokens: int, seed: int) -> tuple[Any, Any]:
    """probs [T, E] and routing_map [T, E] of one rank."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, num_experts, generator=g)
    k = min(case.topk, num_experts)
    chosen = torch.zeros(tokens, num_experts, dtype=torch.bool)
    if tokens and case.routing in ("topk", "dropped", "underflow"):
        chosen.scatter_(1, scores.topk(k).indices, True)
    if case.routing == "any":
        chosen = torch.rand(tokens, num_experts, generator=g) < 0.4
    if case.routing == "one expert":
        chosen[:, case.seed % num_experts] = True
    if case.routing == "dropped":
        chosen &= torch.rand(tokens, num_experts, generator=g) < 0.6
    probs = torch.where(chosen, torch.rand(tokens, num_experts, generator=g), 0.0)
    if case.routing == "underflow":
        probs = torch.where(torch.rand(tokens, num_experts, generator=g) < 0.3, 0.0, probs)
    return probs, chosen


def _run(case: Case) -> list[str]:
    """Forward and backward on all ranks; rank 0 returns what differs from the reference."""
    from megatron.core import mpu

    rank, experts_ranks = dist.get_rank(), mpu.get_expert_model_parallel_world_size()
    groups = case.groups_per_rank * experts_ranks
    experts = groups * case.experts_per_group
    config = grove_config(
        hidden_size=case.hidden,
        num_moe_experts=experts,
        moe_ffn_hidden_size=case.width,
        moe_router_topk=min(case.topk, experts),
        **({"grove_dispatch": True} if case.plain else _groups(case, groups)),
        grove_kernel=case.kernel,
        grove_hierarchical_dispatch=_nodes() > 1,
        moe_router_pre_softmax=True,
        params_dtype=torch.float64,
        expert_model_parallel_size=experts_ranks,
        expert_tensor_parallel_size=mpu.get_expert_tensor_parallel_world_size(),
        tensor_model_parallel_size=mpu.get_tensor_model_parallel_world_size(),
        sequence_parallel=mpu.get_tensor_model_parallel_world_size() > 1,
    )
    layer = moe_layer(config)
    tokens = case.tokens[rank]
    generator = torch.Generator().manual_seed(case.seed + 1000 * rank)
    x = torch.randn(tokens, 1, case.hidden, generator=generator, requires_grad=True)
    probs, chosen = _routing(case, experts, tokens, case.seed + rank)
    probs.requires_grad_()
    weight = torch.randn(tokens, 1, case.hidden, generator=generator)

    rows, packed = layer.preprocess(x, probs, chosen)
    output, _ = layer.routed_experts_compute(*layer.dispatch(rows, packed))
    y = layer.postprocess(layer.combine(output), None)
    (y * weight).sum().backward()

    traffic = layer.token_dispatcher.traffic
    mine = {
        "x": x.detach(),
        "probs": probs.detach(),
        "chosen": chosen,
        "weight": weight,
        "y": y.detach(),
        "x.grad": x.grad,
        "probs.grad": probs.grad,
        "traffic": {
            "tokens": traffic.tokens,
            "pairs": traffic.routed_pairs,
            "rows out": traffic.node_rows if _nodes() > 1 else traffic.rows,
        },
        "rows": traffic.rows,
        "mlps": {n: mlps(getattr(layer, n)) for n in ("experts", "adjugate_experts")},
        "place": (mpu.get_expert_model_parallel_rank(), mpu.get_expert_tensor_parallel_rank()),
        "replica": mpu.get_expert_data_parallel_rank(),
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return _compare(case, everyone, experts_ranks) if rank == 0 else []


def _groups(case: Case, groups: int) -> dict[str, Any]:
    return {
        "grove_num_groups": groups,
        "grove_adjugate_ffn_hidden_size": case.adjugate_width,
        "grove_adjugate_scale": case.scale,
        "grove_allow_scale_above_bound": True,
        "grove_router_scoring": "softmax",
    }


def mlps(experts: torch.nn.Module | None) -> list[dict[str, Any]]:
    """Weight and gradient of both layers of every expert, however they are stored."""
    if experts is None:
        return []
    layers = ("linear_fc1", "linear_fc2")
    if hasattr(experts, "local_experts"):
        weights = [{fc: getattr(m, fc).weight for fc in layers} for m in experts.local_experts]
        return [{fc: (w.detach(), w.grad) for fc, w in mlp.items()} for mlp in weights]
    stacks = {fc: getattr(experts, fc).weight for fc in layers}
    return [
        {fc: (w.detach()[i], w.grad[i]) for fc, w in stacks.items()}
        for i in range(experts.num_local_experts)
    ]


def _met(chosen: torch.Tensor, places: int) -> int:
    """Distinct (token, place) pairs, where every place holds an equal slice of the experts."""
    return int(chosen.unflatten(1, (places, -1)).any(-1).sum())


def _compare(case: Case, everyone: list[dict[str, Any]], expert_ranks: int) -> list[str]:
    from grove_megatron.functional.reference import grove_layer, swiglu

    whole = {n: assemble(everyone, n) for n in ("experts", "adjugate_experts")}
    leaves = {
        n: [{fc: w.clone().requires_grad_() for fc, (w, _) in mlp.items()} for mlp in mlps]
        for n, mlps in whole.items()
    }
    calls = {
        n: [lambda v, m=m: swiglu(v, m["linear_fc1"], m["linear_fc2"]) for m in mlps]
        for n, mlps in leaves.items()
    }
    errors, loss = [], torch.zeros(())
    inputs = []
    for r, mine in enumerate(everyone):
        x, probs = mine["x"].clone().requires_grad_(), mine["probs"].clone().requires_grad_()
        inputs.append((x, probs))
        y = grove_layer(
            x[:, 0], probs, mine["chosen"], calls["experts"], calls["adjugate_experts"], case.scale
        )
        loss = loss + (y * mine["weight"][:, 0]).sum()
        errors += differ(f"rank {r} y", mine["y"][:, 0], y)
        first_stop = _nodes() if _nodes() > 1 else expert_ranks
        expected = {
            "tokens": len(x),
            "pairs": int(mine["chosen"].sum()),
            "rows out": _met(mine["chosen"], first_stop),
        }
        if mine["traffic"] != expected:
            errors.append(f"rank {r} traffic {mine['traffic']} instead of {expected}")
    rows = sum(mine["rows"] for mine in everyone)
    if rows != (expected_rows := sum(_met(mine["chosen"], expert_ranks) for mine in everyone)):
        errors.append(f"{rows} rows in all instead of {expected_rows}")
    if loss.requires_grad:
        loss.backward()
    for r, (mine, (x, probs)) in enumerate(zip(everyone, inputs, strict=True)):
        errors += differ(f"rank {r} x.grad", mine["x.grad"], x.grad)
        errors += differ(f"rank {r} probs.grad", mine["probs.grad"], probs.grad)
    for name, mlps in whole.items():
        for i, mlp in enumerate(mlps):
            for fc, (_, grad) in mlp.items():
                errors += differ(f"{name}.{i}.{fc}.grad", grad, leaves[name][i][fc].grad)
    return errors


def assemble(everyone: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Global list of experts: weights joined over expert tensor parallelism, gradients summed
    over replicas."""
    places = sorted({m["place"] for m in everyone})
    expert_ranks = sorted({ep for ep, _ in places})
    whole = []
    for ep in expert_ranks:
        shards = []
        for place in [p for p in places if p[0] == ep]:
            replicas = [m["mlps"][name] for m in everyone if m["place"] == place]
            shards.append(replicas)
        for i in range(len(shards[0][0])):
            mlp = {}
            for fc in ("linear_fc1", "linear_fc2"):
                weights = [replicas[0][i][fc][0] for replicas in shards]
                grads = []
                for replicas in shards:
                    found = [r[i][fc][1] for r in replicas]
                    assert all(g is not None for g in found), f"{name}.{i}.{fc} has no gradient"
                    grads.append(torch.stack(found).sum(0))
                mlp[fc] = (_join(weights, fc), _join(grads, fc))
            whole.append(mlp)
    return whole


def _join(shards: list[torch.Tensor], fc: str) -> torch.Tensor:
    if fc == "linear_fc2":
        return torch.cat(shards, dim=1)
    gates, ups = zip(*(s.chunk(2) for s in shards), strict=True)
    return torch.cat([*gates, *ups])


def differ(what: str, found: Any, expected: Any) -> list[str]:
    if expected is None:
        expected = torch.zeros_like(found)
    if found is None:
        return [f"{what} is missing"]
    error = float((found - expected).abs().max()) if found.numel() else 0.0
    return [] if error <= TOLERANCE else [f"{what} is off by {error:.3g}"]
