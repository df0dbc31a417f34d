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
    stream: str,
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
        stream: names the random stream of the initial weights; one per layer and rank.
        name: module name, for quantisation recipes.
    """
    with _own_random_stream(stream):
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
def _own_random_stream(stream: str) -> Iterator[None]:
    """Draw initial weights from a stream of their own, derived from the seed of the run.

    Adding adjugates to a model then leaves every other initial weight as it was.
    """
    tracker = get_cuda_rng_tracker()
    host_state = torch.get_rng_state()
    seed = _seed(stream)
    if not tracker.is_initialized():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(host_state)
        return
    name = get_expert_parallel_rng_tracker_name()
    states = tracker.get_states()
    tracker.set_states({**states, name: _device_state(seed, is_graph_safe_cuda_rng_tracker(tracker))})
    # --use-cpu-initialization draws from the host generator instead.
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(host_state)
        tracker.set_states(states)


def _seed(stream: str) -> int:
    digest = hashlib.sha256(f"{torch.initial_seed()}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _device_state(seed: int, graph_safe: bool) -> torch.Tensor:
    if graph_safe:
        generator = torch.cuda.default_generators[torch.cuda.current_device()].clone_state()
        generator.manual_seed(seed)
        return generator
    before = torch.cuda.get_rng_state()
    torch.cuda.manual_seed(seed)
    state = torch.cuda.get_rng_state()
    torch.cuda.set_rng_state(before)
    return state
