"""On the ranks: layers whose experts live where a placement says, beside those in their order."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.grouped_linear import grouped_mlp
from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

TOKENS, HIDDEN, EXPERTS = 24, 16, 8


def agreement(
    folder: str, sizes: dict[str, int], variants: dict[str, dict[str, Any]], nodes: bool
) -> None:
    """Job: what layers compute with a placement, relative to the same ones without.

    Args:
        sizes: of parallelism.
        variants: by name the arguments of ``_variant``.
        nodes: two ranks are a node.
    """
    if nodes:
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    with megatron(**sizes):
        found = {name: _variant(folder, sizes, **one) for name, one in variants.items()}
    write_result(folder, found)


def renumbered(folder: str) -> None:
    """Job: what is said of a layer that gets its number twice."""
    with megatron(expert_model_parallel_size=2):
        sizes = {"expert_model_parallel_size": 2}
        path = _file(folder, [3, 0, 2, 1], sizes, {})
        layer = _layer({**sizes, "grove_placement": path}, True, False, True)
        layer.set_layer_number(1)
        try:
            layer.set_layer_number(2)
        except ValueError as error:
            write_result(folder, str(error))


def _variant(
    folder: str,
    sizes: dict[str, int],
    *,
    order: list[int],
    settings: dict[str, Any] | None = None,
    fp64: bool = True,
    grouped: bool = False,
    at_once: bool = False,
) -> dict[str, Any]:
    """One layer with the order of a placement file, and one without.

    Args:
        settings: of the layer.
        fp64: or fp32.
        grouped: its experts are Megatron's TEGroupedMLP.
        at_once: it gets its number when it is made, and no more.
    """
    split = sizes.get("tensor_model_parallel_size", 1) > 1
    common = {**sizes, **(settings or {}), "sequence_parallel": split}
    without = _layer(common, fp64, grouped)
    path = _file(folder, order, sizes, common)
    placed = _layer({**common, "grove_placement": path}, fp64, grouped, at_once)
    # Before gradients take the places of weights.
    saved = None if grouped else [_entries(layer) for layer in (placed, without)]
    named = [_names(layer) for layer in (placed, without)]
    ours, theirs = _run(placed, fp64), _run(without, fp64)
    traffic = [vars(layer.token_dispatcher.traffic) for layer in (placed, without)]
    return {
        "same_names": ours.keys() == theirs.keys(),
        "differs": {name: _relative(ours[name], theirs[name]) for name in theirs},
        "smallest": min(float(value.abs().max()) for value in theirs.values()),
        "moved": placed.columns is not None,
        "traffic": traffic,
        "same_names_of_parameters": named[0] == named[1],
        "entries": saved and len(saved[0]),
        "same_entries": saved and saved[0] == saved[1],
    }


def _file(folder: str, order: list[int], sizes: dict[str, int], settings: dict[str, Any]) -> str:
    from grove_megatron.placing.file import Assignment, write

    groups = settings.get("grove_num_groups", 4)
    ranks = sizes.get("expert_model_parallel_size", 1)
    path = Path(folder) / f"placement{dist.get_rank()}.json"
    write(path, Assignment(EXPERTS, groups, ranks, {"1": tuple(order)}))
    return str(path)


def _layer(settings: dict[str, Any], fp64: bool, grouped: bool, at_once: bool = False) -> Any:
    """A layer with the first weights of every other one here."""
    from megatron.core import tensor_parallel

    groups = {"grove_num_groups": 4, "grove_adjugate_ffn_hidden_size": 8}
    size = {"hidden_size": HIDDEN, "num_moe_experts": EXPERTS, "moe_ffn_hidden_size": 12}
    more = {"moe_router_dtype": "fp64"} if fp64 else {}
    config = grove_config(
        **({**size, **groups, "grove_adjugate_scale": 0.3, "moe_router_topk": 4, **more} | settings)
    )
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    torch.manual_seed(7)
    numbered = {"layer_number": 1} if at_once else {}
    layer = _on_the_stand_in(config) if grouped else moe_layer(config, **numbered)
    if not at_once:
        layer.set_layer_number(1)
    return layer.double() if fp64 else layer


def _on_the_stand_in(config: Any) -> Any:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec

    from grove_megatron.layer_spec import adapt_spec

    spec: Any = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts)
    spec = adapt_spec(spec, config)
    spec.keywords["submodules"].experts = grouped_mlp()
    return spec(config=config)


def _run(layer: Any, fp64: bool) -> dict[str, torch.Tensor]:
    """Output and gradients; those of experts by their numbers in the model, from all ranks."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(TOKENS, 1, HIDDEN, generator=generator, dtype=torch.float64)
    x = (x if fp64 else x.float()).requires_grad_()
    y, _ = layer(x)
    y.square().sum().backward()
    found = {"y": y.detach(), "x": x.grad, "router": layer.router.weight.grad}
    for kind in ("experts", "adjugate_experts"):
        module = getattr(layer, kind)
        if module is not None:
            found |= _by_number(layer, kind, module)
    assert all(value is not None for value in found.values())
    return {name: value for name, value in found.items() if value is not None}


def _names(layer: Any) -> dict[str, str]:
    """Every parameter of all ranks by its name in the model, and its bytes."""
    from grove_megatron.checkpoint.local_names import local_parameters

    model = torch.nn.ModuleDict({"mlp": layer})
    mine = {
        f"{one.global_name} {one.tensor_parallel}": _digest(one.tensor)
        for one in local_parameters([model])
    }
    return _together(mine)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(str(tensor.tolist()).encode()).hexdigest()


def _together(mine: dict[str, str]) -> dict[str, str]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: of for one in everyone for name, of in one.items()}


def _entries(layer: Any) -> dict[str, str]:
    """What all ranks would write into a checkpoint: key and place, and the bytes there.

    Of the model, and of an optimizer that has twice the weights for a state of them.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, apply_factories
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor

    # As in a model of three layers that keeps them as slices of one tensor.
    entries = layer.sharded_state_dict("mlp.", ((0, 1, 3),))
    states = {
        f"state.{name}": make_sharded_optimizer_tensor(entry, 2 * entry.data, "state")
        for name, entry in entries.items()
        if not isinstance(entry, ShardedObject)
    }
    entries = entries | states
    apply_factories(entries)
    mine = {}
    for piece in nested_values(entries):
        place = f"{piece.key} {[*piece.global_offset]} of {[*piece.global_shape]}"
        mine[place] = "" if isinstance(piece, ShardedObject) else _digest(piece.data)
    return _together(mine)


def _by_number(layer: Any, kind: str, module: Any) -> dict[str, torch.Tensor]:
    from megatron.core import mpu

    from grove_megatron.moe.placed import _of_each

    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.data = grads[name]
    mine = _of_each(module)
    first = mpu.get_expert_model_parallel_rank() * len(mine)
    numbers = layer.held(kind) or range(first, first + len(mine))
    part = mpu.get_expert_tensor_parallel_rank()
    found: dict[str, torch.Tensor] = {}
    for column in range(len(mine[0])):
        own = {(n, part): t[column] for n, t in zip(numbers, mine, strict=True)}
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        for one in everyone:
            for (number, of_part), value in one.items():
                name = f"{kind} {number} {column} {of_part}"
                # Replicas have parts of the sum.
                found[name] = found.get(name, 0) + value
    return found


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
