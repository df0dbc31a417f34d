"""Adjugate experts: one small FFN per group, made by the builder that makes the routed experts."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    get_expert_parallel_rng_tracker_name,
    is_graph_safe_cuda_rng_tracker,
)
from megatron.core.transformer.moe.moe_layer import ExpertsBuilder, ExpertsInterface

from ..config import GroveTransformerConfig


def build_adjugates(
    builder: ExpertsBuilder,
    num_local_groups: int,
    config: GroveTransformerConfig,
    pg_collection: ProcessGroupCollection,
    *,
    name: str | None,
) -> ExpertsInterface:
    """This rank's adjugate experts.

    The routed experts' own builder gives them what Megatron gives experts: no all-reduce over
    the dense data-parallel group, weight decay, sharded checkpoint keys, the SwiGLU factory.

    Args:
        builder: ``MoESubmodules.experts`` of the layer's spec.
        num_local_groups: adjugates on this rank.
        config: of the model; copied, so that the width is the adjugates' own.
        pg_collection: process groups of the layer.
        name: module name, for quantisation recipes.
    """
    with _own_random_stream():
        return builder(
            num_local_groups, adjugate_config(config), pg_collection=pg_collection, name=name
        )


def adjugate_config(config: GroveTransformerConfig) -> GroveTransformerConfig:
    """``config`` with the adjugates' width, and without what belongs to routed experts alone."""
    # A deep copy, not dataclasses.replace: that would run __post_init__ on finished values.
    adjugate = copy.deepcopy(config)
    # MLP takes the width of fc1 from one of these and that of fc2 from the other.
    adjugate.moe_ffn_hidden_size = config.grove_adjugate_ffn_hidden_size
    adjugate.ffn_hidden_size = config.grove_adjugate_ffn_hidden_size
    adjugate.fine_grained_activation_offloading = False
    adjugate.moe_paged_stash = False
    return adjugate


@contextmanager
def _own_random_stream() -> Iterator[None]:
    """Draw initial weights from a stream of their own.

    Adding adjugates to a model then leaves every other initial weight as it was. The stream is
    seeded by where the streams of this rank's experts stand, which the experts just built have
    moved: another place on every layer and every expert-parallel rank, the same on replicas.
    """
    tracker = get_cuda_rng_tracker()
    name = get_expert_parallel_rng_tracker_name()
    states = tracker.get_states() if tracker.is_initialized() else {}
    host_state = torch.get_rng_state()
    seed = _seed([host_state, *([states[name]] if states else [])])
    if states:
        own = _device_state(seed, is_graph_safe_cuda_rng_tracker(tracker))
        tracker.set_states({**states, name: own})
    # --use-cpu-initialization draws from the host generator instead.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(host_state)
        if states:
            tracker.set_states(states)


def _seed(states: list[torch.Tensor | torch.Generator]) -> int:
    digest = hashlib.sha256()
    for state in states:
        tensor = state.get_state() if isinstance(state, torch.Generator) else state
        digest.update(tensor.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _device_state(seed: int, graph_safe: bool) -> torch.Tensor | torch.Generator:
    if graph_safe:
        device = torch.cuda.current_device()
        generator: torch.Generator = torch.cuda.default_generators[device].clone_state()
        generator.manual_seed(seed)
        return generator
    before = torch.cuda.get_rng_state()
    torch.cuda.manual_seed(seed)
    state = torch.cuda.get_rng_state()
    torch.cuda.set_rng_state(before)
    return state
