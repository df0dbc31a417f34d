"""What a rank says of itself when it is asked, from its stack alone."""

import inspect
import json
import os
import tempfile
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.failure import position
from grove_megatron.failure.position import _stage, mark
from grove_megatron.failure.stall_table import Wait

MEGATRON = "/x/site-packages/megatron"
TRAINING = f"{MEGATRON}/training/training.py"
SCHEDULES = f"{MEGATRON}/core/pipeline_parallel/schedules.py"
STEP = [f"{SCHEDULES}:forward_step", f"{TRAINING}:train_step", f"{TRAINING}:train"]


@pytest.mark.parametrize(
    ("places", "stage"),
    [
        (["/g/grove_megatron/moe/layer.py:GroveMoELayer.route", *STEP], "router"),
        (["/g/grove_megatron/moe/dispatcher.py:D.token_dispatch", *STEP], "dispatch"),
        (["/g/grove_megatron/moe/layer.py:GroveMoELayer.routed_experts_compute", *STEP], "experts"),
        ([f"{MEGATRON}/core/transformer/moe/moe_layer.py:MoELayer.combine", *STEP], "combine"),
        ([f"{MEGATRON}/core/transformer/attention.py:SelfAttention.forward", *STEP], "attention"),
        (["/x/torch/utils/data/dataloader.py:_DataLoaderIter.__next__", *STEP], "data loading"),
        ([f"{MEGATRON}/core/optimizer/optimizer.py:F.step", f"{TRAINING}:train"], "optimizer"),
        (["/x/torch/a.py:f", *STEP], "forward"),
        ([f"{MEGATRON}/core/distributed/distributed_data_parallel.py:D.forward", *STEP], "forward"),
        (
            [f"{MEGATRON}/core/distributed/param_and_grad_buffer.py:B.start_grad_sync", *STEP],
            "gradients between ranks",
        ),
        ([f"{SCHEDULES}:backward_step", f"{TRAINING}:train"], "backward"),
        # The optimizer's state is saved too.
        (
            [
                f"{MEGATRON}/core/optimizer/optimizer.py:F.sharded_state_dict",
                f"{MEGATRON}/training/checkpointing.py:save_checkpoint",
                f"{TRAINING}:train",
            ],
            "save",
        ),
        (
            [
                "/g/grove_megatron/moe/layer.py:GroveMoELayer.route",
                f"{SCHEDULES}:forward_step",
                f"{TRAINING}:evaluate",
                f"{TRAINING}:train",
            ],
            "evaluation, router",
        ),
        ([f"{TRAINING}:train"], "training loop"),
        (["/x/my_script.py:main"], "elsewhere"),
    ],
)
def test_stages_by_the_stack(places: list[str], stage: str) -> None:
    assert _stage(places) == stage


class Layer:
    layer_number = 7

    def forward_step(self, current_microbatch: int, asked: Any) -> dict[str, Any]:
        said: dict[str, Any] = {}
        thread = threading.Thread(target=lambda: said.update(asked()))
        thread.start()
        thread.join()
        return said


def test_layer_microbatch_and_line_are_those_of_the_main_thread() -> None:
    args = Namespace(curr_iteration=4)
    said = Layer().forward_step(3, lambda: position.position(args))
    assert {name: said[name] for name in ("iteration", "layer", "microbatch")} == {
        "iteration": 5,
        "layer": 7,
        "microbatch": 3,
    }
    assert said["at"].startswith("test_position.py:")
    assert said["at"].endswith(" forward_step")
    json.dumps(said)


def test_a_mark_changes_with_the_iteration_and_not_with_time() -> None:
    args = Namespace()
    first = mark(args)
    assert mark(args) == first
    args.curr_iteration = 0
    assert mark(args) != first
    json.dumps(first)


def evaluate(iteration: int, asked: Any) -> Any:
    return Layer().forward_step(iteration, asked)


def test_a_mark_changes_with_the_microbatch_and_the_iteration_of_an_evaluation() -> None:
    def marked() -> dict[str, Any]:
        return {"mark": mark(Namespace())}

    places = [Layer().forward_step(n, marked)["mark"][2] for n in (0, 1)]
    places += [evaluate(n, marked)["mark"][2] for n in (0, 1)]
    assert len({*places}) == 4


def test_megatron_counts_in_locals_of_these_names() -> None:
    """Nothing fails without them, but a long accumulation of gradients looks like a stall."""
    from megatron.core.pipeline_parallel import schedules
    from megatron.training import training

    assert "current_microbatch" in inspect.unwrap(schedules.forward_step).__code__.co_varnames
    assert "iteration" in inspect.unwrap(training.evaluate).__code__.co_varnames


def test_bytes_that_are_in_no_block_are_progress(tmp_path: Path) -> None:
    ask = position._bytes_of_files
    assert any(ask() == ask() for _ in range(20))  # to ask is no progress
    before = ask()
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    with tempfile.TemporaryFile(dir=memory) as file:
        file.write(bytes(4 << 20))
        file.flush()
        assert ask() >= before + 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"TORCH_FR_BUFFER_SIZE": "2000"}),
        ({"TORCH_FR_BUFFER_SIZE": "7"}, {"TORCH_FR_BUFFER_SIZE": "7"}),
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}, {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}),
    ],
)
def test_the_recorder_is_as_large_as_the_user_says(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    position.record_collectives()
    assert environment == expected


def entry(number: int, name: str, *, retired: bool = False, p2p: bool = False) -> dict[str, Any]:
    """As torch's recorder has it."""
    return {
        "process_group": ["3", "PIPELINE_MODEL_PARALLEL_GROUP" if p2p else "DATA"],
        "collective_seq_id": 9 if p2p else number,
        "p2p_seq_id": number if p2p else 0,
        "is_p2p": p2p,
        "profiling_name": name,
        "state": "scheduled",
        "retired": retired,
        "time_created_ns": int((time.time() - 10) * 1e9),
        "input_sizes": [[2, 3]],
        "input_dtypes": ["Float"],
    }


def test_sends_and_receives_are_waited_in_as_collectives_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [
        # Two at once that have ended: only what stands for both knows.
        entry(1, "nccl:send 0->1", p2p=True),
        entry(1, "nccl:recv 0<-1", p2p=True),
        entry(1, "nccl:coalesced", p2p=True, retired=True),
        entry(4, "nccl:all_reduce", retired=True),
    ]
    monkeypatch.setattr(position, "_recorded", lambda: entries)
    assert [*position._waits([])] == []
    entries += [entry(2, "nccl:recv 0<-1", p2p=True), entry(2, "nccl:coalesced", p2p=True)]
    (said,) = position._waits([])
    assert said == {"name": "send or receive", "seconds": pytest.approx(10, abs=5)}
    entries += [entry(5, "nccl:all_reduce")]
    _, said = position._waits([])
    assert {**said, "seconds": 0} == {
        "name": "all_reduce",
        "group": "DATA 3",
        "ranks": [],
        "size": 24,
        "number": 5,
        "seconds": 0,
    }


@pytest.mark.parametrize(
    ("ranks", "length"),
    [
        ([], 0),
        ([5], 1),
        ([0, 1, 2, 3], 1),
        ([1, 9], 1),
        ([*range(3, 4096, 8)], 1),
        ([0, 1, 8, 9, 16, 17], 3),
        ([0, 2, 3, 4, 9], 3),
    ],
)
def test_the_ranks_of_a_group_are_said_as_ranges(ranks: list[int], length: int) -> None:
    said = position._as_ranges(ranks)
    assert len(said) == length
    assert Wait.of({"name": "all_reduce", "ranks": said}).ranks == ranks
