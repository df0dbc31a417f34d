"""Experts stored as two stacked matrices, for grouped products.

They stand where Megatron's SequentialMLP stands in the layer spec, are initialised to the same
bits, and write and read the same checkpoint entries.
"""

import copy
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import (
    ReplicaId,
    ShardedStateDict,
    ShardedTensorFactory,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLP, MLPSubmodules, apply_swiglu_sharded_factory
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_object_for_checkpoint,
)
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor

from ..config import grouped_experts_why_not
from ..functional.activation import weighted_swiglu
from ..functional.expand_plan import Segments
from ..functional.products import grouped_down, grouped_up
from .kernel_choice import choose_kernels, widths_of


class StackedLinear(torch.nn.Module):
    """The matrices of one linear layer of all experts: ``weight`` [experts, out, in].

    Call it to use them. With ``--overlap-param-gather`` the distributed optimizer's new weights
    arrive while the model runs, and DDP waits for a module's in a hook before its ``forward``:
    whoever reads the attribute gets the last step's.
    """

    def __init__(self, num_experts: int, like: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(like.new_empty((num_experts, *like.shape)))
        # What Megatron's optimizer and gradient reduction ask of a parameter.
        for name, value in vars(like).items():
            setattr(self.weight, name, value)
        if getattr(like, "partition_dim", -1) >= 0:
            self.weight.partition_dim = like.partition_dim + 1  # type: ignore[attr-defined]

    def forward(self) -> Tensor:
        """[experts, out, in]"""
        return self.weight


class GroupedExperts(MegatronModule):
    """This rank's experts: down(swiglu(up(x)) * weight), every row with its own expert.

    Args: as for Megatron's SequentialMLP, whose place it takes.

    Raises:
        ValueError: the configuration asks for experts this class does not compute.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: MLPSubmodules,
        pg_collection: ProcessGroupCollection | None = None,
        name: str | None = None,
    ) -> None:
        if config.ffn_hidden_size != config.moe_ffn_hidden_size:
            # Megatron's MLP takes the width of its second layer from this field.
            config = copy.deepcopy(config)
            config.ffn_hidden_size = config.moe_ffn_hidden_size
        super().__init__(config=config)
        assert pg_collection is not None
        why_not = grouped_experts_why_not(config)
        if why_not:
            raise ValueError(f"{why_not}; use SequentialMLP")
        self.num_local_experts = num_local_experts
        self.ep_group = pg_collection.ep
        self.tp_group = pg_collection.expt_tp
        self.dp_group = pg_collection.expt_dp
        for index in range(num_local_experts):
            # Megatron makes every expert, so that it has Megatron's initial weights and marks.
            made = MLP(
                config,
                submodules,
                is_expert=True,
                ffn_hidden_size=config.moe_ffn_hidden_size,
                tp_group=pg_collection.expt_tp,
                name=None if name is None else f"{name}.local_experts.{index}",
            )
            if index == 0:
                self.linear_fc1 = StackedLinear(num_local_experts, made.linear_fc1.weight)
                self.linear_fc2 = StackedLinear(num_local_experts, made.linear_fc2.weight)
            with torch.no_grad():
                self.linear_fc1.weight[index].copy_(made.linear_fc1.weight)
                self.linear_fc2.weight[index].copy_(made.linear_fc2.weight)

    def forward(self, x: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """Experts alone, as Megatron's MoELayer calls them.

        Args:
            x: [N, H], rows by expert.
            tokens_per_expert: [L] int64, their counts.
            probs: [N], the weight of every row.

        Returns:
            [N, H], and None for a bias.
        """
        segments = Segments.of_experts(tokens_per_expert, x.device)
        kernels = choose_kernels(self.config, x, **widths_of(self, "moe_ffn_hidden_size"))
        h, _ = grouped_up(x, self.linear_fc1(), None, segments, kernels)
        a = weighted_swiglu(h, probs, kernels)
        return grouped_down(a, None, self.linear_fc2(), None, segments, kernels), None

    def backward_dw(self) -> None:
        """Nothing is delayed: Megatron delays the weight gradients of TransformerEngine alone."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> ShardedStateDict:
        """Entries with the keys, shapes and offsets of SequentialMLP's and TEGroupedMLP's."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        entries: ShardedStateDict = {}
        for name, tp_axis in (("linear_fc1", 0), ("linear_fc2", 1)):
            shards = _ExpertShards(self, name, tp_axis, sharded_offsets, metadata)
            entries[f"{prefix}{name}.weight"] = ShardedTensorFactory(
                f"{prefix}experts.{name}.weight",
                getattr(self, name).weight,
                shards.build,
                shards.merge,
                replica_id=(0, 0, self.dp_group.rank()),
            )
            for index in range(self.num_local_experts):
                key, offsets = shards.place(f"{prefix}experts.{name}._extra_state", index)
                entries[f"{prefix}{name}._extra_state{index}"] = make_sharded_object_for_checkpoint(
                    None, key, offsets, replica_id=(0, self.tp_group.rank(), self.dp_group.rank())
                )
        return entries

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Megatron's linear layers have an empty extra state in checkpoints; these have none.
        for key in [k for k in state_dict if k.startswith(prefix) and "._extra_state" in k]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


class _ExpertShards:
    """A stacked weight [L, ...] to the checkpoint entries of its experts, and back."""

    def __init__(
        self,
        experts: GroupedExperts,
        name: str,
        tp_axis: int,
        sharded_offsets: tuple[Any, ...],
        metadata: Any,
    ) -> None:
        self.experts, self.name, self.tp_axis = experts, name, tp_axis
        self.sharded_offsets, self.metadata = sharded_offsets, metadata
        self.singleton = bool(metadata.get("singleton_local_shards", False))

    def place(self, key: str, index: int) -> tuple[str, tuple[Any, ...]]:
        """Key and offsets of a local expert's entry."""
        count = self.experts.num_local_experts
        expert = self.experts.ep_group.rank() * count + index
        if self.singleton:
            head, tail = key.rsplit(f"{self.name}.", 1)
            return f"{head}{expert}.{self.name}.{tail}", self.sharded_offsets
        axis = (len(self.sharded_offsets), expert, self.experts.ep_group.size() * count)
        return key, (*self.sharded_offsets, axis)

    def build(
        self, key: str, stacked: Tensor, replica_id: ReplicaId, flattened_range: slice | None
    ) -> list[Any]:
        assert flattened_range is None, "Megatron 0.19 does not flatten"
        return [self._one(key, stacked[i], i, replica_id) for i in range(stacked.shape[0])]

    def _one(self, key: str, weight: Tensor, index: int, replica_id: ReplicaId) -> Any:
        key, offsets = self.place(key, index)
        groups = {
            "tp_group": self.experts.tp_group,
            "dp_cp_group": self.metadata["dp_cp_group"],
        }
        shard = make_tp_sharded_tensor_for_checkpoint(
            weight, key, self.tp_axis, replica_id=replica_id, prepend_offsets=offsets, **groups
        )
        if self.name != "linear_fc1":
            return [shard]
        gate_and_up = apply_swiglu_sharded_factory(
            shard, offsets, self.singleton, self.experts.tp_group, self.metadata["dp_cp_group"]
        )
        return gate_and_up.build_fn(key, weight, replica_id, None)

    @staticmethod
    def merge(pieces: list[Any]) -> Tensor:
        with torch.no_grad():
            return torch.stack([torch.cat(list(of_one)) for of_one in pieces])
