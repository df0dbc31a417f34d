import os
from argparse import Namespace
from collections.abc import Callable

import pytest
from hypothesis import settings

# A shared machine makes single examples slow at random; pytest-timeout ends what hangs.
settings.register_profile("unit", deadline=None, database=None)
settings.load_profile("unit")

MODEL = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 "
    "--max-position-embeddings 8 --micro-batch-size 1 --num-experts 8 --moe-router-topk 2 "
    "--moe-token-dispatcher-type alltoall"
)
GROVE = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 8"


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Namespace]:
    """Megatron's own parser with the Grove flags: a small MoE plus the given flags."""
    from megatron.training.arguments import parse_args

    from grove_megatron.arguments import add_grove_arguments

    def parse(flags: str = GROVE) -> Namespace:
        monkeypatch.setattr("sys.argv", ["pretrain", *MODEL.split(), *flags.split()])
        return parse_args(extra_args_provider=add_grove_arguments)

    return parse


@pytest.fixture
def subprocess_environment() -> dict[str, str]:
    """The environment of a fresh interpreter that imports what this one does."""
    import grove_megatron

    root = os.path.dirname(os.path.dirname(os.path.abspath(grove_megatron.__file__)))
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
