"""Which values a search tries for every setting of a layout that the command line leaves open.

What is on the command line stays as it is. Of the rest:

- tensor parallelism up to the GPUs that the fast link joins, with sequence parallelism;
- context parallelism as long as a rank keeps a thousand tokens of a sequence;
- pipeline stages up to the layers, where these do not divide with embedding and loss each in the
  place of a layer, or else with a shorter last stage; and every number of model chunks;
- expert parallelism up to the experts; an expert whole, or split as a dense layer is;
- micro-batches of 1, 2, 4 and 8;
- all-to-all, and a hierarchical one too where an expert-parallel group spans nodes;
- of recomputation the least that fits: none, of whole FFNs, of whole layers.
"""

from argparse import Namespace
from collections.abc import Iterator

from ...model.settings import has_grove_layers
from ..rules.pipeline_rules import COUNTED
from ..rules.validity import (
    CHUNKS,
    CONTEXT,
    DISPATCHER,
    EXPERT,
    EXPERT_TENSOR,
    HIERARCHICAL,
    PIPELINE,
    TENSOR,
)
from ..sizes import split_layers

Values = dict[str, object]
"""By setting."""

LEAST_TOKENS = 1024
"""Of a sequence on a context-parallel rank."""
MICRO_BATCHES = (1, 2, 4, 8)
LAST = "decoder_last_pipeline_num_layers"
_STAGES = (
    *("num_layers_per_virtual_pipeline_stage", CHUNKS, "pipeline_model_parallel_layout"),
    *("decoder_first_pipeline_num_layers", LAST, *COUNTED),
)
RECOMPUTE = (
    *("recompute_granularity", "recompute_activations", "recompute_modules", "recompute_method"),
    *("recompute_num_layers", "moe_layer_recompute"),
)
_FULL: Values = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


def divisors(number: int, most: int) -> list[int]:
    """Of ``number``, up to ``most``."""
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def dense(args: Namespace, given: frozenset[str], world: int, domain: int) -> Iterator[Values]:
    """Tensor, context and pipeline parallelism.

    Args:
        args: of the command line.
        given: names of the settings that it says.
        world: ranks.
        domain: neighbouring ranks that the fast link joins.
    """
    tensors = [args.tensor_model_parallel_size] if TENSOR in given else divisors(world, domain)
    most = max(1, args.seq_length // LEAST_TOKENS)
    contexts = [args.context_parallel_size] if CONTEXT in given else divisors(world, most)
    layers = args.num_layers + len(COUNTED)
    stages = [args.pipeline_model_parallel_size] if PIPELINE in given else divisors(world, layers)
    for tensor in tensors:
        own: Values = {} if TENSOR in given else {"sequence_parallel": tensor > 1}
        for context in contexts:
            for pipeline in stages:
                yield {TENSOR: tensor, CONTEXT: context, PIPELINE: pipeline, **own}


def chunks(args: Namespace, given: frozenset[str]) -> Iterator[Values]:
    """Layers of stages, and their model chunks.

    Args:
        args: with the pipeline's size.
    """
    stages = args.pipeline_model_parallel_size
    if not given.isdisjoint(_STAGES):
        yield {}
        return
    layers, counted = split_layers(args), False
    if layers % stages and (layers + len(COUNTED)) % stages == 0:
        layers, counted = layers + len(COUNTED), True
    split: Values = dict.fromkeys(COUNTED, counted)
    if stages == 1:
        yield {**split, CHUNKS: None}
        return
    if layers % stages:
        yield from _shorter_last(layers, stages, split)
        return
    for number in divisors(layers // stages, layers):
        yield {**split, CHUNKS: None if number == 1 else number}


def _shorter_last(layers: int, stages: int, split: Values) -> Iterator[Values]:
    """All stages alike but the last, which has the rest; even so where there is none."""
    each = -(-layers // stages)
    last = layers - each * (stages - 1)
    if last < 1:
        yield {**split, CHUNKS: None}
        return
    for number in divisors(each, each):
        if last % number == 0:
            yield {**split, LAST: last, CHUNKS: None if number == 1 else number}


def experts(args: Namespace, given: frozenset[str], world: int) -> Iterator[Values]:
    """Expert parallelism, of whole experts or of parts.

    Args:
        args: with the size of tensor parallelism.
    """
    if not args.num_experts:
        yield {}
        return
    tensor = args.tensor_model_parallel_size
    ranks = [args.expert_model_parallel_size]
    if EXPERT not in given:
        ranks = divisors(world, args.num_experts)
    parts = sorted({1, tensor})
    if EXPERT_TENSOR in given:
        parts = [args.expert_tensor_parallel_size]
    for number in ranks:
        for split in parts:
            yield {EXPERT: number, EXPERT_TENSOR: split}


def micro_batches(args: Namespace, given: frozenset[str]) -> tuple[int, ...]:
    """Samples of a forward pass."""
    return (args.micro_batch_size,) if "micro_batch_size" in given else MICRO_BATCHES


def dispatches(args: Namespace, given: frozenset[str], per_node: int) -> tuple[Values, ...]:
    """All-to-all, flat and where it makes a difference hierarchical.

    Args:
        args: with the size of expert parallelism.
        per_node: ranks of a node.
    """
    kind: Values = {}
    if args.num_experts and DISPATCHER not in given:
        kind = {DISPATCHER: "alltoall"}
    if not has_grove_layers(args) or HIERARCHICAL in given:
        return (kind,)
    split = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    spans = args.expert_model_parallel_size * split > per_node
    flat, hierarchical = {**kind, HIERARCHICAL: False}, {**kind, HIERARCHICAL: True}
    gathers = kind.get(DISPATCHER, args.moe_token_dispatcher_type) == "allgather"
    return (flat, hierarchical) if spans and split < per_node and not gathers else (flat,)


def recomputations(args: Namespace, given: frozenset[str]) -> tuple[Values, ...]:
    """The least first."""
    if not given.isdisjoint(RECOMPUTE):
        return ({},)
    modules = ["moe"] if args.num_experts else ["mlp"]
    selective: Values = {"recompute_granularity": "selective", "recompute_modules": modules}
    nothing: Values = dict.fromkeys([*_FULL, "recompute_modules"])
    return (nothing, nothing | selective, nothing | _FULL)
