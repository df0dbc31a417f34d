"""The verdict on a size of GPU."""

from dataclasses import replace

import pytest

from grove_megatron.planner.fit import fit
from grove_megatron.planner.inputs import Layout
from grove_megatron.planner.memory import stage_memory

from .test_report import ON_64 as LONG_SEQUENCES

ON_64 = replace(LONG_SEQUENCES, training=replace(LONG_SEQUENCES.training, sequence_length=64))
(_MEMORY,) = stage_memory(ON_64)
NEEDED, WITH_MARGIN = _MEMORY.total / 2**30, _MEMORY.with_margin / 2**30


@pytest.mark.parametrize(
    ("gpu", "fits", "begin"),
    [
        (WITH_MARGIN + 0.01, True, "fits: a rank needs "),
        (NEEDED + 0.01, True, "close: a rank needs "),
        (NEEDED - 0.01, False, "does not fit: a rank needs "),
    ],
)
def test_the_margin_is_warned_of_and_only_the_rest_is_refused(gpu, fits, begin):
    found = fit(ON_64, gpu)
    assert found.fits == fits
    assert found.verdict.startswith(begin)
    assert f" needs {WITH_MARGIN:.2f} of " in found.verdict
    assert "the largest part is gradients, 20.37" in found.verdict
    assert found.problem.startswith(f"--gpu-memory ({gpu:g} GiB) is below what a rank needs (")


@pytest.mark.parametrize(
    ("layout", "changes", "part", "less"),
    [
        ({}, {}, "gradients", "a larger --expert-model-parallel-size, --tensor"),
        ({}, {"distributed_optimizer": False}, "optimizer", "--use-distributed-optimizer, which"),
        ({}, {"micro_batch": 999}, "activations", "a smaller --micro-batch-size or --recompute"),
        ({}, {"sequence_length": 400_000}, "activations", "--recompute-granularity"),
        (
            {},
            {"sequence_length": 9_000_000, "recompute": frozenset(["full"])},
            "activations",
            "a larger --tensor-model-parallel-size or --context-parallel-size",
        ),
        ({"expert": 64}, {}, "gradients", "a larger --tensor-model-parallel-size or --pipeline"),
        ({"pipeline": 4}, {}, "optimizer", "a larger --expert-model-parallel-size, --tensor"),
    ],
)
def test_the_largest_part_is_named_with_what_makes_it_smaller(layout, changes, part, less):
    sizes = replace(
        ON_64,
        layout=Layout(**({"expert": 8, "world": 64} | layout)),
        training=replace(ON_64.training, **({"micro_batch": 1} | changes)),
    )
    found = fit(sizes, 1)
    assert found.part == part
    most = max(stage_memory(sizes), key=lambda memory: memory.total)
    assert found.part_size == max(most.state.values()) / 2**30
    assert found.less.startswith(less)
    assert (found.where == "a rank of stage 0") == ("pipeline" in layout)
