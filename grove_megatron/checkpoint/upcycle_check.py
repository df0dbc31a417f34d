"""``grove upcycle --check``: does the child compute what the parent computes?"""

import argparse
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.architecture import Architecture
from .model_run import ModelRun, load_weights
from .source import Source
from .weights import ConversionError

# Another order of the same fp32 sums.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Difference:
    """The largest differences of logits of random tokens, in fp32, over all ranks.

    same_layer: from the child with its adjugates off (scale 0): the parent's weights through the
    same dispatcher and kernels; None for a child without groups. megatron_layer: from the parent in
    Megatron's own layers.
    """

    same_layer: float | None
    megatron_layer: float

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return self.same_layer in (None, 0.0) and self.megatron_layer <= TOLERANCE


def compare(parent: Source, child: Source, extra_flags: list[str], seed: int) -> Difference:
    """Run both models on [2, 32] random tokens; every rank calls this and gets the same answer.

    Args:
        parent, child: as the conversion has them.
        extra_flags: Megatron flags, such as parallel sizes.
        seed: of the tokens.

    Raises:
        ValueError: tensors that are missing, unknown or wrong.
    """
    if problems := child.refusals(can_skip=False):
        raise ConversionError(problems)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, parent.architecture.vocab_size, (2, 32), generator=generator)

    def logits(source: Source, scale: float | None = None) -> Tensor | None:
        # A zero bias selects what no bias selects.
        architecture = replace(source.architecture, expert_bias=False)
        if scale is not None:
            architecture = replace(architecture, adjugate_scale=scale)
        load = load_weights(source.weights, architecture)
        flags = _flags(architecture, extra_flags)
        return ModelRun(architecture, ids, flags, load, gradients=False).logits()

    of_child = logits(child)
    same = _largest(of_child, logits(child, scale=0.0)) if child.architecture.is_grove else None
    return Difference(same, _largest(of_child, logits(parent)))


def _flags(architecture: Architecture, extra_flags: list[str]) -> list[str]:
    """Those that go with the model: Megatron refuses flags of experts where there are none."""
    if architecture.num_experts:
        return extra_flags
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--expert-model-parallel-size")
    parser.add_argument("--expert-tensor-parallel-size")
    _, others = parser.parse_known_args(extra_flags)
    return others


def _largest(here: Tensor | None, there: Tensor | None) -> float:
    """The largest difference on any rank; NaN counts as infinite."""
    worst = torch.zeros((), dtype=torch.float64, device=torch.cuda.current_device())
    if here is not None and there is not None:
        difference = (here.double() - there.double()).abs()
        worst = torch.nan_to_num(difference, nan=float("inf"), posinf=float("inf")).max()
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)
