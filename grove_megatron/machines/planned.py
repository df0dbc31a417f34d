"""What the job will ask of its machines, from its flags and the planner."""

from argparse import Namespace

from ..config import has_grove_layers
from ..planner.inputs import Sizes
from ..planner.memory import largest, stage_memory
from ..planner.traffic import rows_per_token
from .records import Needs

# What torch's data loader keeps ready for every worker.
_PREFETCHED = 2
# Of a token in a batch: its id, label and position in int64, its weight in the loss in fp32.
_TOKEN_BYTES = 3 * 8 + 4


def needs_of(args: Namespace, sizes: Sizes | None, device: str) -> Needs:
    """What the machines have to have.

    Args:
        args: Megatron's, parsed.
        sizes: of the job; None: the planner does not know it.
        device: ``cpu`` or ``cuda``.
    """
    hierarchical = bool(has_grove_layers(args) and args.grove_hierarchical_dispatch)
    if sizes is None:
        return Needs(device=device, hierarchical=hierarchical)
    memories = stage_memory(sizes)
    return Needs(
        device=device,
        rank_bytes=int(memories[largest(memories)].total),
        loader_bytes=_loader_bytes(args, sizes),
        hierarchical=hierarchical,
    )


def _loader_bytes(args: Namespace, sizes: Sizes) -> int:
    """Of a rank on average: one of those that share a tensor reads, in the first and last stage."""
    layout, training = sizes.layout, sizes.training
    length = training.sequence_length
    sample = length * _TOKEN_BYTES
    if args.create_attention_mask_in_dataloader:
        sample += length**2
    batches = args.num_workers * _PREFETCHED * training.micro_batch
    return int(batches * sample * min(1.0, 2 / layout.pipeline) / layout.tensor)


def message_bytes(sizes: Sizes) -> int:
    """From a rank to every other of its expert-parallel group in one layer's dispatch.

    Rows of a microbatch under uniform routing, as they are sent in the precision of activations; 0
    without experts.
    """
    layout, training = sizes.layout, sizes.training
    split = layout.context * (layout.tensor if layout.sequence_parallel else 1)
    tokens = training.sequence_length * training.micro_batch // split
    rows = tokens * rows_per_token(sizes.model, layout) / layout.expert
    return int(rows * sizes.model.hidden_size * training.precision.weight)
