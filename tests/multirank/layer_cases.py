"""On the ranks: one Grove layer beside Megatron's, and beside its own routed experts."""

import re
from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

TOKENS, HIDDEN = 24, 16
EP2 = {"expert_model_parallel_size": 2}


def _config(**settings: Any) -> Any:
    grove = {
        "grove_num_groups": 4,
        "grove_adjugate_ffn_hidden_size": 8,
        "grove_adjugate_scale": 0.0,
    }
    size = {"hidden_size": HIDDEN, "num_moe_experts": 8, "moe_ffn_hidden_size": 12, **EP2}
    return grove_config(**(size | grove | settings))


def scale_zero(folder: str, scoring: str, kernel: str) -> None:
    """Job: the same weights and tokens through three layers; what they computed, exactly."""
    from megatron.core.transformer.moe.moe_layer import MoELayer

    with megatron(**EP2):
        config = _config(grove_router_scoring=scoring, grove_kernel=kernel)
        layer = moe_layer(config)
        plain = {"grove_num_groups": 0, "grove_adjugate_ffn_hidden_size": None}
        stock = moe_layer(_config(**plain, grove_adjugate_scale=0.05), False)
        routed_weights = {k: v for k, v in layer.state_dict().items() if "adjugate" not in k}
        stock.load_state_dict(_by_expert(routed_weights), strict=True)
        x = torch.randn(TOKENS, 1, HIDDEN, generator=torch.Generator().manual_seed(dist.get_rank()))
        ours = _run(layer, x)
        layer.zero_grad(set_to_none=True)
        # The same dispatcher and experts, without the adjugates.
        layer.routed_experts_compute = MoELayer.routed_experts_compute.__get__(layer)
        routed = _run(layer, x)
        theirs = _run(stock, x)
        same_names = {k for k in ours if "adjugate" not in k} == set(routed)
        bitwise = all(torch.equal(ours[k], routed[k]) for k in routed)
        by_expert = _by_expert({k: v for k, v in ours.items() if "adjugate" not in k})
        same_names = same_names and by_expert.keys() == theirs.keys()
        worst = max(_relative(by_expert[k], theirs[k]) for k in theirs)
        adjugate = max(float(v.abs().max()) for k, v in ours.items() if "adjugate" in k)
        write_result(
            folder,
            {"same_names": same_names, "bitwise": bitwise, "worst": worst, "adjugate": adjugate},
        )


def dispatchers(folder: str, sizes: dict[str, int], kernel: str) -> None:
    """Job: the same weights and tokens through our dispatch and through Megatron's all-gather."""
    split = sizes.get("tensor_model_parallel_size", 1) > 1
    with megatron(**sizes):
        found = []
        weights: dict[str, torch.Tensor] = {}
        for dispatcher in ("alltoall", "allgather"):
            layer = moe_layer(
                _config(
                    **sizes,
                    sequence_parallel=split,
                    grove_adjugate_scale=0.3,
                    grove_kernel=kernel,
                    moe_token_dispatcher_type=dispatcher,
                )
            )
            weights = weights or layer.state_dict()
            layer.load_state_dict(weights)
            generator = torch.Generator().manual_seed(dist.get_rank())
            found.append(_run(layer, torch.randn(TOKENS, 1, HIDDEN, generator=generator)))
        ours, theirs = found
        worst = {name: _relative(ours[name], theirs[name]) for name in ours}
        adjugate = min(float(v.abs().max()) for k, v in ours.items() if "adjugate" in k)
        result = {"worst": worst, "names": [*theirs], "adjugate": adjugate}
        write_result(folder, result | {"traffic": vars(layer.token_dispatcher.traffic)})


def _run(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y, _ = layer(x)
    y.square().sum().backward()
    grads = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}


def _by_expert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names of Megatron's SequentialMLP what GroupedExperts have stacked."""
    found = {}
    for name, tensor in tensors.items():
        if re.fullmatch(r"experts\.linear_fc[12]\.weight", name):
            names = [
                name.replace("experts.", f"experts.local_experts.{i}.") for i in range(len(tensor))
            ]
            found |= zip(names, tensor, strict=True)
        else:
            found[name] = tensor
    return found


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def parameters(folder: str, kernel: str) -> None:
    """Job: how Megatron sees experts and adjugates: attributes, optimizer groups, sharding."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import apply_factories
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    attributes = ("allreduce", "tensor_model_parallel", "partition_dim", "partition_stride")
    with megatron(**EP2):
        config = _config(grove_adjugate_scale=0.3, grove_kernel=kernel)
        layer = moe_layer(config)
        described = {
            name: [getattr(p, a, None) for a in attributes] + [p.dim()]
            for name, p in layer.named_parameters()
        }
        wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(), layer)
        optimizer = get_megatron_optimizer(
            OptimizerConfig(optimizer="adam", lr=1e-3, weight_decay=0.1), [wrapped]
        )
        names = {id(p): n for n, p in layer.named_parameters()}
        groups = {
            names[id(p)]: [g["wd_mult"], g["is_expert_parallel"]]
            for chained in optimizer.chained_optimizers
            for g in chained.param_groups
            for p in g["params"]
        }
        sharded: dict[str, list[Any]] = {}
        entries = layer.sharded_state_dict(prefix="mlp.")
        apply_factories(entries)
        for name, entry in entries.items():
            for piece in nested_values([entry]):
                place = [name, list(piece.global_shape), list(piece.global_offset)]
                sharded.setdefault(piece.key, []).append(place)
        write_result(folder, {"described": described, "groups": groups, "sharded": sharded})


def aliasing(folder: str, kernel: str) -> None:
    """Job: does a stage hand on memory of its input? Megatron frees what it has handed on.

    One group a rank and all experts selected: an adjugate's rows are just the received rows, in
    their order, and the temptation not to copy them is greatest.
    """
    with megatron(**EP2):
        layer = moe_layer(_config(grove_num_groups=2, moe_router_topk=8, grove_kernel=kernel))
        x = torch.randn(TOKENS, 1, HIDDEN)
        probs, chosen = layer.route(x)
        rows, packed = layer.preprocess(x, probs, chosen)
        received, packed = layer.dispatch(rows, packed)
        fed = _record_what_experts_read(layer)
        layer.routed_experts_compute(received, packed)
        assert [len(seen) for seen in fed] == [TOKENS * 2 * n for n in EXPERT_ROWS[kernel]]
        assert all(torch.isin(seen, received).all() for seen in fed)
        stages = [t.untyped_storage().data_ptr() for t in (x, rows, received)]
        # All are alive until here: no two can have had the same memory one after the other.
        places = [seen.untyped_storage().data_ptr() for seen in fed]
        write_result(folder, {"stages": stages, "fed": places})


# Rows per received row that each call reads: 4 experts of one rank, and their adjugate.
EXPERT_ROWS = {"grouped": [4], "megatron": [4, 1]}


def _record_what_experts_read(layer: torch.nn.Module) -> list[torch.Tensor]:
    """The list that every input of experts and adjugates will be put into."""
    from grove_megatron.moe import compute

    fed: list[torch.Tensor] = []
    if layer.in_one_pass:
        original = compute.grouped_up

        def recorded(x: torch.Tensor, *rest: Any) -> Any:
            fed.append(x)
            return original(x, *rest)

        compute.grouped_up = recorded
    else:
        for experts in (layer.experts, layer.adjugate_experts):
            experts.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    return fed
