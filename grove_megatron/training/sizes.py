"""The planner's sizes of a Megatron command line, with the parts of its router as they are here."""

from argparse import Namespace

from ..model.settings import has_grove_layers
from ..parts import registry
from ..planner import sizes
from ..planner.inputs import Sizes
from .vocabulary import Vocabulary


def sizes_of(
    args: Namespace, world_size: int | None = None, vocabulary: Vocabulary | None = None
) -> Sizes:
    """What the planner asks of a job.

    Args:
        args: Megatron's namespace with the Grove flags, before or after its validation.
        world_size: ranks of the job; None for those of ``args``.
        vocabulary: its tokens; None for ``--vocab-size``. ``--padded-vocab-size`` overrules both.

    Raises:
        ValueError: a setting that the planner does not know, or sizes that do not fit.
    """
    tokens = args.vocab_size if vocabulary is None else vocabulary.tokens
    return sizes.sizes_of(args, router_parts(args), world_size, tokens)


def router_parts(args: Namespace) -> sizes.RouterParts:
    """What the parts of its router add to a model, of the files that are here."""
    if not has_grove_layers(args):
        return sizes.RouterParts()
    return sizes.RouterParts(
        local_experts=registry.local_experts(args), weights=registry.weights(args)
    )
