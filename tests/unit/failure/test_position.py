"""What a rank says of itself when it is asked, from its stack alone."""

import json
import threading
from argparse import Namespace
from typing import Any

import pytest

from grove_megatron.failure import position
from grove_megatron.failure.position import _stage, mark

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
