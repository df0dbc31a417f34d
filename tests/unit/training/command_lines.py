"""Arguments of small models for the CPU, parsed, and as Megatron makes them before training."""

import copy
from argparse import Namespace

from grove_megatron.runtime import cpu

from ..conftest import GROVE, MODEL, parser

_CPU = (
    "--transformer-impl local --attention-backend unfused --no-gradient-accumulation-fusion "
    "--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion --no-persist-layer-norm "
    "--distributed-backend gloo --train-iters 1 --lr 1e-3 --disable-bias-linear --swiglu "
    "--tokenizer-type NullTokenizer --vocab-size 96 --mock-data"
)


def parsed(flags: str = "", *, ranks: int = 1, plain: bool = False) -> Namespace:
    """A small MoE of ``ranks`` processes with the given flags; ``plain`` leaves the groups out."""
    words = f"{MODEL} {_CPU} {'' if plain else GROVE} {flags}".split()
    args = copy.deepcopy(parser().parse_args(words))
    args.rank, args.world_size = 0, ranks
    return args


def validated(args: Namespace) -> Namespace:
    """A copy that has been through Megatron's own checks."""
    from megatron.training.arguments import validate_args

    args = copy.deepcopy(args)
    with cpu():
        validate_args(args, {})
    return args
