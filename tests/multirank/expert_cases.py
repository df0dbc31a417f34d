"""On the ranks: GroupedExperts beside Megatron's two kinds of experts of the same weights.

TransformerEngine is not needed: what TEGroupedMLP writes is computed by Megatron's own source.
"""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.on_ranks import grove_config, megatron
from tests.ranks import write_result

LOCAL, HIDDEN, WIDTH = 3, 8, 12
PREFIX = "decoder.layers.mlp.experts."
FC = ("linear_fc1", "linear_fc2")
# As a layer of a stack of 5 layers passes them on, and as one on its own.
OFFSETS = {"stacked": ((0, 2, 5),), "alone": ()}
METADATA: dict[str, Any] = {
    "none": None,
    "empty": {},
    "singleton": {"singleton_local_shards": True},
}


def beside_sequential(folder: str, sizes: dict[str, int]) -> None:
    """Job: everything Megatron reads off a module of experts, from both."""
    with megatron(**sizes):
        from megatron.core.transformer.moe.experts import SequentialMLP

        from grove_megatron.moe.experts import GroupedExperts

        grouped, sequential = _build(GroupedExperts), _build(SequentialMLP)
        result: dict[str, Any] = {
            "weights": [torch.equal(_stack(grouped, fc), _stack(sequential, fc)) for fc in FC],
            "marks": {
                name: {fc: dict(vars(_weights(experts, fc)[0])) for fc in FC}
                for name, experts in (("grouped", grouped), ("sequential", sequential))
            },
        }
        _draw_weights(grouped, sequential)
        engine = _like_te_grouped_mlp(grouped)
        for metadata in METADATA:
            for offsets in OFFSETS:
                case = f"{metadata}, {offsets}"
                result[f"engine's entries: {case}"] = _differ(
                    _entries(_sharded(grouped, metadata, offsets)),
                    _entries(_sharded(engine, metadata, offsets)),
                )
                result[f"engine's moments: {case}"] = _differ(
                    _entries(_moments(grouped, metadata, offsets)),
                    _entries(_moments(engine, metadata, offsets)),
                )
                result[f"entries: {case}"] = _differ(
                    _entries(_sharded(grouped, metadata, offsets)),
                    _entries(_sharded(sequential, metadata, offsets)),
                )
                result[f"moments: {case}"] = _differ(
                    _entries(_moments(grouped, metadata, offsets)),
                    _entries(_moments(sequential, metadata, offsets)),
                )
                result[f"merged: {case}"] = _merge(grouped, metadata, offsets)
        write_result(folder, result)


def read_back(folder: str, sizes: dict[str, int]) -> None:
    """Job: written by either, read by either: do the weights come back?"""
    with megatron(**sizes):
        from megatron.core.transformer.moe.experts import SequentialMLP

        from grove_megatron.moe.experts import GroupedExperts

        grouped, sequential = _build(GroupedExperts), _build(SequentialMLP)
        _draw_weights(grouped, sequential)
        came_back = {}
        for metadata in ("none", "singleton"):
            path = Path(folder) / metadata
            came_back |= _read_back(path, metadata, grouped, sequential)
        write_result(folder, came_back)


def _draw_weights(grouped: torch.nn.Module, sequential: torch.nn.Module) -> None:
    """The same for both, and not those they started with."""
    with torch.no_grad():
        for fc in FC:
            for ours, theirs in zip(_stack(grouped, fc), _weights(sequential, fc), strict=True):
                ours.copy_(theirs.normal_())


def _build(kind: type) -> torch.nn.Module:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.mlp import MLPSubmodules

    groups = ProcessGroupCollection.use_mpu_process_groups()
    config = grove_config(
        hidden_size=HIDDEN,
        moe_ffn_hidden_size=WIDTH,
        num_moe_experts=LOCAL * groups.ep.size(),
        tensor_model_parallel_size=groups.tp.size(),
        sequence_parallel=groups.tp.size() > 1,
        expert_model_parallel_size=groups.ep.size(),
        expert_tensor_parallel_size=groups.expt_tp.size(),
    )
    model_parallel_cuda_manual_seed(7)
    submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return kind(LOCAL, config, submodules, pg_collection=groups)


def _like_te_grouped_mlp(grouped: torch.nn.Module) -> torch.nn.Module:
    """The weights of ``grouped`` in a module that is sharded as Megatron's TEGroupedMLP is.

    Without TransformerEngine Megatron has no class of its grouped linear layer; what shards one is
    taken from the source of that class.
    """
    from megatron.core.extensions import transformer_engine
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.experts import TEGroupedMLP

    shard = _function(transformer_engine, "_sharded_state_dict_grouped")
    groups = ProcessGroupCollection.use_mpu_process_groups()

    class Linear(torch.nn.Module):
        use_bias, num_gemms, _tp_group, _pg_collection = False, LOCAL, groups.expt_tp, groups

        def __init__(self, weights: torch.Tensor, tp_axis: int) -> None:
            super().__init__()
            self.tp_axis = tp_axis
            for index, weight in enumerate(weights):
                setattr(self, f"weight{index}", torch.nn.Parameter(weight.detach().clone()))

        def get_extra_state(self) -> None:
            """Empty, as in a checkpoint of a model that is not quantised."""

        def _split_extra_state(self, state: None) -> list[None]:
            return [state] * self.num_gemms

        def sharded_state_dict(self, prefix: str, **named: Any) -> Any:
            axes = {f"{index}.weight": self.tp_axis for index in range(self.num_gemms)}
            return shard(self, axes, prefix, **named)

    class Experts(torch.nn.Module):
        config, num_local_experts = grouped.config, LOCAL
        ep_group, tp_group = groups.ep, groups.expt_tp
        sharded_state_dict = TEGroupedMLP.sharded_state_dict

    experts = Experts()
    for fc, tp_axis in zip(FC, (0, 1), strict=True):
        setattr(experts, fc, Linear(_stack(grouped, fc), tp_axis))
    return experts


def _function(module: Any, name: str) -> Callable[..., Any]:
    """A function from the source of ``module``, also where a condition left it undefined."""
    tree = ast.parse(inspect.getsource(module))
    (found,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    names = dict(vars(module))
    exec(compile(ast.Module([found], []), module.__file__, "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


def _weights(experts: torch.nn.Module, fc: str) -> list[torch.nn.Parameter]:
    """The stacked weight, or that of every expert."""
    modules = getattr(experts, "local_experts", [experts])
    return [getattr(module, fc).weight for module in modules]


def _stack(experts: torch.nn.Module, fc: str) -> torch.Tensor:
    weights = _weights(experts, fc)
    return weights[0] if len(weights) == 1 else torch.stack(weights)


def _sharded(experts: torch.nn.Module, metadata: str, offsets: str) -> dict[str, Any]:
    given = METADATA[metadata]
    copied = None if given is None else dict(given)
    return experts.sharded_state_dict(PREFIX, OFFSETS[offsets], copied)


def _moments(experts: torch.nn.Module, metadata: str, offsets: str) -> dict[str, Any]:
    """The entries of an optimizer's state, which are made from those of the weights."""
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor

    return {
        name: make_sharded_optimizer_tensor(entry, -2 * entry.data, "optimizer.state.exp_avg")
        for name, entry in _sharded(experts, metadata, offsets).items()
        if "_extra_state" not in name
    }


def _entries(sharded: dict[str, Any]) -> dict[str, Any]:
    """What is written: every entry by its key and place, once its factory has run."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import apply_factories

    apply_factories(sharded)
    found = {}
    for entry in nested_values(sharded):
        name = f"{entry.key} at {entry.global_offset}"
        assert name not in found, f"{name} twice"
        found[name] = entry
    return found


def _differ(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How many entries there are of either kind, and in what the two differ."""
    problems = [f"only one has {name}" for name in ours.keys() ^ theirs.keys()]
    kinds: dict[str, int] = {}
    for name in ours.keys() & theirs.keys():
        mine, other = vars(ours[name]), vars(theirs[name])
        kind = type(theirs[name]).__name__
        kinds[kind] = kinds.get(kind, 0) + 1
        if type(ours[name]) is not type(theirs[name]):
            problems.append(f"{name} is a {type(ours[name])}")
        for field in mine.keys() | other.keys():
            a, b = mine.get(field), other.get(field)
            tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
            if not (torch.equal(a, b) if tensors else a == b):
                problems.append(f"{name}: {field} is {a}, not {b}")
    return {"kinds": kinds, "problems": problems}


def _merge(grouped: torch.nn.Module, metadata: str, offsets: str) -> bool:
    """Does merging what a factory has built give the weight again, in memory of its own?"""
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace

    for fc in FC:
        factory = _sharded(grouped, metadata, offsets)[f"{PREFIX}{fc}.weight"]
        pieces = dict_list_map_inplace(lambda entry: entry.data.clone(), factory.build())
        merged = factory.merge_fn(pieces)
        if merged.requires_grad or not torch.equal(merged, factory.data):
            return False
    return True


def _read_back(
    path: Path, metadata: str, grouped: torch.nn.Module, sequential: torch.nn.Module
) -> dict[str, bool]:
    from megatron.core import dist_checkpointing

    modules = {"grouped": grouped, "sequential": sequential}
    expected = {fc: _stack(sequential, fc).detach().clone() for fc in FC}
    came_back = {}
    for writer in modules:
        checkpoint = path / writer
        checkpoint.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        dist_checkpointing.save(_sharded(modules[writer], metadata, "alone"), str(checkpoint))
        for reader, module in modules.items():
            with torch.no_grad():
                for weight in module.parameters():
                    weight.fill_(-1.0)
            loaded = dist_checkpointing.load(_sharded(module, metadata, "alone"), str(checkpoint))
            names = {name.removeprefix(PREFIX): value for name, value in loaded.items()}
            module.load_state_dict(names, strict=True)
            same = [torch.equal(_stack(module, fc), expected[fc]) for fc in FC]
            came_back[f"{metadata}: {writer} to {reader}"] = all(same)
    return came_back


def each(result: dict[str, Any], what: str) -> Iterator[Any]:
    """The results under ``what``, of all cases."""
    return (value for name, value in result.items() if name.startswith(f"{what}: "))
