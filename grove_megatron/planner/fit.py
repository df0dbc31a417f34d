"""Does a job fit into the memory of its GPUs, and if not, what takes most?"""

from dataclasses import dataclass

from .inputs import Sizes
from .memory import MARGIN, largest, stage_memory

_GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """The rank that needs most, beside one size of GPU; sizes in GiB.

    Attributes:
        gpu: what there is.
        where: the rank.
        needed, with_margin: estimated for it.
        part, part_size: what takes most of that.
        less: the flags that make this part smaller.
    """

    gpu: float
    where: str
    needed: float
    with_margin: float
    part: str
    part_size: float
    less: str

    @property
    def fits(self) -> bool:
        """Without the margin: an estimate refuses only what it is sure of."""
        return self.needed <= self.gpu

    @property
    def verdict(self) -> str:
        """To be read in a plan."""
        largest = f"the largest part is {self.part}, {self.part_size:.2f}"
        needs = f"{self.where} needs {self.with_margin:.2f} of {self.gpu:g} GiB with the margin"
        if self.with_margin <= self.gpu:
            return f"fits: {needs}; {largest}"
        if self.fits:
            return (
                f"close: {needs} of {MARGIN:.0%}, {self.needed:.2f} without; {largest}; less with "
                f"{self.less}"
            )
        return f"does not fit: {needs}; {largest}"

    @property
    def problem(self) -> str:
        """As a line of what keeps the job from running."""
        return (
            f"--gpu-memory ({self.gpu:g} GiB) is below what {self.where} needs "
            f"({self.needed:.2f} GiB, of it {self.part} {self.part_size:.2f}); use {self.less}"
        )


def fit(sizes: Sizes, gpu: float) -> Fit:
    """Compare the rank that needs most with a GPU.

    Args:
        gpu: GiB of one GPU.
    """
    memories = stage_memory(sizes)
    stage = largest(memories)
    memory = memories[stage]
    part, size = max(memory.state.items(), key=lambda named: named[1])
    return Fit(
        gpu=gpu,
        where=f"a rank of stage {stage}" if sizes.layout.pipeline > 1 else "a rank",
        needed=memory.total / _GIB,
        with_margin=memory.with_margin / _GIB,
        part=part,
        part_size=size / _GIB,
        less=_less(part, sizes),
    )


def _less(part: str, sizes: Sizes) -> str:
    model, layout, training = sizes.model, sizes.layout, sizes.training
    if part == "activations":
        if training.micro_batch > 1:
            return "a smaller --micro-batch-size or --recompute-granularity"
        if "full" not in training.recompute:
            return "--recompute-granularity"
        return "a larger --tensor-model-parallel-size or --context-parallel-size"
    copies = layout.dense_copies > 1 or layout.expert_copies > 1
    if part == "optimizer" and copies and not training.distributed_optimizer:
        return "--use-distributed-optimizer, which divides it over data-parallel ranks"
    larger = ["--tensor-model-parallel-size", "--pipeline-model-parallel-size"]
    if layout.expert < (model.num_groups or model.num_experts):
        larger.insert(0, "--expert-model-parallel-size")
    return f"a larger {' or '.join([', '.join(larger[:-1]), larger[-1]])}"
