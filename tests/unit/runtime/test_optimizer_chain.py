"""What a checkpoint says of its optimizers, arranged for those of another layout."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grove_megatron.runtime.optimizer_chain import arranged, load_into_chain

Group = dict[str, Any]


def group(expert: bool = False, wd_mult: float = 1.0, **more: Any) -> Group:
    return {"is_expert_parallel": expert, "wd_mult": wd_mult, "max_lr": 0.1, "lr": 0.05, **more}


def saved_fp32(*groups: Group, step: float | None = 7.0) -> dict[str, Any]:
    state = {} if step is None else {"common_step": torch.tensor(step)}
    return {"state": state, "param_groups": list(groups)}


def own_fp32(first: int, *counts: int) -> dict[str, Any]:
    """Tensors and numbers of this run's parameters, ``counts`` of them in its groups."""
    groups, state = [], {}
    for count in counts:
        numbers = list(range(first, first + count))
        groups.append({"params": numbers})
        state |= {number: {"exp_avg": torch.full((2,), float(number))} for number in numbers}
        first += count
    return {"state": state, "param_groups": groups}


def merged(a: dict[Any, Any], b: dict[Any, Any]) -> dict[Any, Any]:
    from megatron.core.dist_checkpointing.dict_utils import merge

    return merge(copy.deepcopy(a), copy.deepcopy(b))


DENSE = [group(), group(wd_mult=0.0)]
EXPERTS = [group(expert=True)]


def test_two_optimizers_become_one() -> None:
    saved = {0: saved_fp32(*DENSE), 1: saved_fp32(*EXPERTS)}
    found = arranged(merged(saved, own_fp32(0, 3, 1)), [DENSE])
    assert found.keys() == {"state", "param_groups"}
    assert found["param_groups"] == [DENSE[0] | {"params": [0, 1, 2]}, DENSE[1] | {"params": [3]}]
    assert found["state"]["common_step"] == 7
    assert found["state"].keys() == {0, 1, 2, 3, "common_step"}
    assert found["state"][3]["exp_avg"].tolist() == [3.0, 3.0]


def test_one_optimizer_becomes_two() -> None:
    own = {0: own_fp32(0, 2, 1), 1: own_fp32(0, 4)}
    found = arranged(merged(saved_fp32(*DENSE), own), [DENSE, EXPERTS])
    assert found.keys() == {0, 1}
    assert found[0]["param_groups"] == [DENSE[0] | {"params": [0, 1]}, DENSE[1] | {"params": [2]}]
    assert found[1]["param_groups"] == [EXPERTS[0] | {"params": [0, 1, 2, 3]}]
    assert [found[i]["state"]["common_step"] for i in (0, 1)] == [7, 7]
    assert found[1]["state"].keys() == {0, 1, 2, 3, "common_step"}


def test_the_same_arrangement_stays() -> None:
    def saved() -> dict[int, Any]:
        return {0: saved_fp32(*DENSE), 1: saved_fp32(group(expert=True, lr=0.04))}

    own = {0: own_fp32(0, 1, 1), 1: own_fp32(0, 1)}
    found = arranged(merged(saved(), own), [DENSE, EXPERTS])
    expected = merged(saved(), {0: own_fp32(0, 1, 1), 1: own_fp32(0, 1)})
    assert [found[i]["param_groups"] for i in (0, 1)] == [
        expected[i]["param_groups"] for i in (0, 1)
    ]
    assert [found[i]["state"].keys() for i in (0, 1)] == [
        expected[i]["state"].keys() for i in (0, 1)
    ]


def test_groups_are_found_by_what_they_are_and_not_by_their_place() -> None:
    saved = saved_fp32(group(wd_mult=0.0, lr=0.01), group(lr=0.02))
    found = arranged(merged({0: saved}, own_fp32(0, 1, 1)), [DENSE])
    assert [g["lr"] for g in found["param_groups"]] == [0.02, 0.01]
    assert [g["params"] for g in found["param_groups"]] == [[0], [1]]


def test_a_group_of_the_same_kind_goes_first() -> None:
    saved = {0: saved_fp32(group(lr=0.01)), 1: saved_fp32(group(expert=True, lr=0.02))}
    own = {0: own_fp32(0, 1), 1: own_fp32(0, 1)}
    found = arranged(merged(saved, own), [[group()], EXPERTS])
    assert [found[i]["param_groups"][0]["lr"] for i in (0, 1)] == [0.01, 0.02]


@pytest.mark.parametrize("first", [None, 0.0])
def test_a_rank_without_parameters_does_not_say_the_step(first: float | None) -> None:
    saved = {0: saved_fp32(*DENSE), 1: saved_fp32(*EXPERTS, step=first)}
    own = {0: own_fp32(0, 1, 1), 1: own_fp32(0, 1)}
    found = arranged(merged(saved, own), [DENSE, EXPERTS])
    assert found[1]["state"]["common_step"] == 7


def distributed(*groups: Group) -> dict[str, Any]:
    return {"optimizer": {"param_groups": list(groups)}, "param_state_sharding_type": "any"}


def test_the_distributed_optimizer_keeps_the_step_in_its_groups() -> None:
    saved = {
        0: distributed(*(g | {"step": 7} for g in DENSE)),
        1: distributed(*(g | {"step": 0} for g in EXPERTS)),
    }
    found = arranged(
        merged(saved, {0: {"param_state": "a"}, 1: {"param_state": "b"}}), [DENSE, EXPERTS]
    )
    assert [g["step"] for i in (0, 1) for g in found[i]["optimizer"]["param_groups"]] == [7, 7, 7]
    assert "state" not in found[0]["optimizer"]
    assert [found[i]["param_state"] for i in (0, 1)] == ["a", "b"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_group_that_was_empty_where_it_was_saved_gets_the_step(missing: int) -> None:
    groups = [group(step=7), group(wd_mult=0.0, step=7)]
    del groups[missing]["step"]
    found = arranged(merged(distributed(*groups), {"param_state": "a"}), [DENSE])
    assert [g["step"] for g in found["optimizer"]["param_groups"]] == [7, 7]


def test_distributed_states_change_their_arrangement_too() -> None:
    both = [g | {"step": 7} for g in DENSE]
    one = merged({0: distributed(*both), 1: distributed(group(True, step=7))}, {"param_state": "a"})
    found = arranged(one, [DENSE])
    assert found["optimizer"]["param_groups"] == both
    assert (found["param_state"], found["param_state_sharding_type"]) == ("a", "any")

    two = merged(distributed(*both), {0: {"param_state": "a"}, 1: {"param_state": "b"}})
    found = arranged(two, [DENSE, EXPERTS])
    assert found[1]["optimizer"]["param_groups"] == [group(True, step=7)]
    assert [found[i]["param_state_sharding_type"] for i in (0, 1)] == ["any", "any"]


def test_a_loss_scale_goes_to_every_optimizer() -> None:
    saved = distributed(*DENSE) | {"grad_scaler": {"scale": 8.0}}
    found = arranged(merged(saved, {0: {}, 1: {}}), [DENSE, EXPERTS])
    assert [found[i]["grad_scaler"] for i in (0, 1)] == [{"scale": 8.0}] * 2
    assert found[0]["grad_scaler"] is not found[1]["grad_scaler"]


def test_a_group_that_the_checkpoint_lacks_is_refused_by_name() -> None:
    saved = saved_fp32(group(max_lr=0.2), group(wd_mult=0.0, max_lr=0.2))
    with pytest.raises(ValueError, match="--no-load-optim") as caught:
        arranged(merged(saved, own_fp32(0, 1, 1)), [DENSE])
    assert "max_lr (0.1) differs from max_lr of the checkpoint (0.2)" in str(caught.value)


def test_groups_that_cannot_be_paired_are_refused() -> None:
    state = {"state": {}, "param_groups": [{"params": [0]}], 0: saved_fp32(*DENSE)}
    with pytest.raises(ValueError, match=r"parameter groups in the loaded state \(1\) differ"):
        arranged(state, [DENSE])


def test_steps_that_differ_are_refused() -> None:
    saved = {0: saved_fp32(*DENSE, step=7.0), 1: saved_fp32(*EXPERTS, step=6.0)}
    with pytest.raises(ValueError, match=r"optimizer steps in the checkpoint \(\[6.0, 7.0\]\)"):
        arranged(merged(saved, own_fp32(0, 1, 1)), [DENSE])


def test_a_checkpoint_without_optimizer_groups_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameter groups in the checkpoint \(0\)"):
        arranged(own_fp32(0, 1, 1), [DENSE])


def chain(optimizer: str = "adam", kind: str = "ChainedOptimizer", **of_one: Any) -> Any:
    from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer
    from megatron.core.optimizer.optimizer import ChainedOptimizer

    kinds = {"ChainedOptimizer": ChainedOptimizer, "LayerWise": LayerWiseDistributedOptimizer}
    made = object.__new__(kinds[kind])
    made.config = SimpleNamespace(optimizer=optimizer)
    one = {"is_stub_optimizer": False, "optimizer": SimpleNamespace(param_groups=DENSE)}
    made.chained_optimizers = [SimpleNamespace(**one | of_one)]
    return made


def given_to_megatron(to: Any, state: Any) -> Any:
    seen: list[Any] = []
    load_into_chain(lambda self, state_dict: seen.append(state_dict))(to, state)
    return seen[0]


def test_a_chain_of_adam_gets_its_own_arrangement() -> None:
    state = merged({0: saved_fp32(*DENSE), 1: saved_fp32(*EXPERTS)}, own_fp32(0, 1, 1))
    assert given_to_megatron(chain(), state).keys() == {"state", "param_groups"}


@pytest.mark.parametrize(
    ("to", "state"),
    [
        ({}, [saved_fp32(*DENSE)]),
        ({"optimizer": "muon"}, {}),
        ({"kind": "LayerWise"}, {}),
        ({"is_stub_optimizer": True}, {}),
        ({"ddp_config": SimpleNamespace(use_megatron_fsdp=True)}, {}),
    ],
    ids=["list", "muon", "layer-wise", "stub", "fsdp"],
)
def test_other_formats_are_left_to_megatron(to: dict[str, Any], state: Any) -> None:
    assert given_to_megatron(chain(**to), state) is state
