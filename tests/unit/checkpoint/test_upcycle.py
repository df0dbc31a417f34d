"""A child has its parent's weights bit for bit, and beside them only what the paper says."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grove_megatron.checkpoint.convert import Options, write_hf
from grove_megatron.checkpoint.megatron_args import megatron_flags
from grove_megatron.checkpoint.safetensors_io import NAME_OF, bytes_of
from grove_megatron.checkpoint.source import Source
from grove_megatron.checkpoint.units import hf_shapes
from grove_megatron.checkpoint.upcycle import (
    ADJUGATE_STD,
    ROUTER_STD,
    GroveChild,
    MoeChild,
    grove_architecture,
    grove_child,
    moe_architecture,
    moe_child,
    read_grouping,
)
from grove_megatron.checkpoint.weights import ConversionError, Weights, mismatches
from grove_megatron.functional.reference import grove_layer, grove_routing, swiglu
from grove_megatron.model.architecture import Architecture
from grove_megatron.model.parameters import total_parameters

from .architectures import DENSE, GROVE, MIXED, QWEN3_MOE
from .stored_weights import StoredWeights, random_weights

# MoE layers 0 and 2 of three, 6 experts.
PARENT = replace(MIXED, normalized_topk=True)
CHILD = replace(
    PARENT, num_groups=3, adjugate_ffn_hidden_size=10, adjugate_scale=0.25, expert_bias=True
)
GROUPS = [[4, 1], [0, 5], [3, 2]]
ORDER = [4, 1, 0, 5, 3, 2]
SEED = 5


def source(architecture: Architecture, dtype: torch.dtype = torch.float32) -> Source:
    weights = StoredWeights(random_weights(architecture, dtype))
    return Source(weights, architecture, {}, [], None, None, {})


def tensors_of(weights: Weights) -> dict[str, Tensor]:
    return {name: weights.read(name) for name in weights.infos()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b.contiguous())


def grove(
    parent: Source, grouping: Path | None = None, group_size: int = 2, seed: int = SEED
) -> Source:
    return grove_child(parent, group_size, 10, min(0.25, 1 / group_size), grouping, seed)


def is_own(name: str) -> bool:
    return ".chunk_experts." in name or name.endswith(".expert_bias")


def problems_of(make: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConversionError) as refused:
        make()
    return refused.value.problems


@pytest.fixture
def groups_file(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        file = tmp_path / "groups.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return write


# ------------------------------------------------------------------------------------ Grove: copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_tensor_of_the_parent_is_there_bit_for_bit(dtype: torch.dtype) -> None:
    parent = source(PARENT, dtype)
    # What arithmetic would not keep: minus zero, subnormal numbers, the payload of a NaN.
    odd = parent.weights.read("model.layers.0.mlp.gate.weight")
    odd.view(torch.uint8).random_(256, generator=torch.Generator().manual_seed(1))
    odd[0, 0] = -0.0
    child = grove(parent)
    found = tensors_of(child.weights)
    expected = tensors_of(parent.weights)
    assert {name for name in found if not is_own(name)} == expected.keys()
    assert [name for name in expected if not same_bits(found[name], expected[name])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_child_has_the_tensors_of_its_architecture(dtype: torch.dtype) -> None:
    child = grove(source(PARENT, dtype))
    assert child.architecture == CHILD
    assert mismatches(hf_shapes(CHILD), child.infos(), frozenset()) == []
    for name, tensor in tensors_of(child.weights).items():
        info = child.infos()[name]
        assert (tuple(tensor.shape), NAME_OF[tensor.dtype]) == (info.shape, info.dtype)


# -------------------------------------------------------------------------------------- Grove: made


def made(parent: Source, seed: int = SEED, **options: Any) -> dict[str, Tensor]:
    found = tensors_of(grove(parent, seed=seed, **options).weights)
    return {name: tensor for name, tensor in found.items() if is_own(name)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_down_projections_and_biases_are_zero_in_their_dtypes(dtype: torch.dtype) -> None:
    own = made(source(PARENT, dtype))
    # Two MoE layers; of each three groups with three matrices, and a bias.
    assert len(own) == 2 * (3 * 3 + 1)
    for name, tensor in own.items():
        assert tensor.dtype == (torch.float32 if name.endswith(".expert_bias") else dtype), name
        is_zero = name.endswith((".down_proj.weight", ".expert_bias"))
        assert bool((tensor == 0).all()) == is_zero, name


def test_most_tensors_decide_the_dtype() -> None:
    parent = source(PARENT, torch.bfloat16)
    # Some models keep their routers in fp32.
    for layer in (0, 2):
        name = f"model.layers.{layer}.mlp.gate.weight"
        parent.weights.tensors[name] = parent.weights.tensors[name].float()  # type: ignore[attr-defined]
    child = grove(parent)
    dtypes = {info.dtype for name, info in child.infos().items() if ".chunk_experts." in name}
    assert dtypes == {"BF16"}
    assert child.weights.read("model.layers.0.mlp.gate.weight").dtype == torch.float32


def large_adjugates() -> dict[str, Tensor]:
    """Gate and up of a child wide enough for sharp statistics: 16 matrices, 2^20 entries."""
    parent = replace(
        PARENT,
        hidden_size=512,
        num_experts=4,
        moe_layers=(True, False, True),
    )
    child = grove_architecture(parent, 1, 128, 0.0)
    own = GroveChild(StoredWeights({}), child, SEED)
    names = [n for n in own.infos() if n.endswith((".gate_proj.weight", ".up_proj.weight"))]
    return {n: own.read(n).double() for n in names if ".chunk_experts." in n}


def test_gate_and_up_projections_are_normal_with_the_papers_deviation() -> None:
    matrices = large_adjugates()
    everything = torch.cat([m.flatten() for m in matrices.values()])
    count = everything.numel()
    assert (len(matrices), count) == (16, 2**20)
    # Five standard errors each: of the mean, of the deviation, of the part beyond 2 deviations.
    assert abs(everything.mean()) < 5 * ADJUGATE_STD / sqrt(count)
    assert abs(everything.std() / 0.006 - 1) < 5 / sqrt(2 * count)
    beyond = (everything.abs() > 2 * 0.006).double().mean()
    assert abs(beyond - 0.0455) < 5 * sqrt(0.0455 * 0.9545 / count)
    for name, matrix in matrices.items():
        assert abs(matrix.mean()) < 5 * 0.006 / sqrt(matrix.numel()), name
        assert abs(matrix.std() / 0.006 - 1) < 5 / sqrt(2 * matrix.numel()), name


def test_no_two_matrices_go_together() -> None:
    flat = [m.flatten() / m.norm() for m in large_adjugates().values()]
    for a, b in itertools.combinations(flat, 2):
        assert abs(a @ b) < 5 / sqrt(a.numel())


def test_the_seed_alone_decides() -> None:
    parent = source(PARENT)
    first, again = grove(parent).weights, grove(parent).weights
    backwards = {name: again.read(name) for name in reversed(list(again.infos()))}
    assert all(same_bits(tensor, backwards[name]) for name, tensor in tensors_of(first).items())
    other = made(parent, seed=SEED + 1)
    for name, tensor in made(parent).items():
        assert torch.equal(tensor, other[name]) == bool((tensor == 0).all()), name


def test_the_parents_dtype_does_not_choose_other_numbers() -> None:
    whole, half = made(source(PARENT)), made(source(PARENT, torch.bfloat16))
    for name, tensor in whole.items():
        assert torch.equal(tensor.to(half[name].dtype), half[name]), name


# ------------------------------------------------------------------------------------- Grove: sizes


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_every_group_size_that_divides_the_experts(size: int) -> None:
    child = grove(source(PARENT), group_size=size)
    assert child.architecture.num_groups == 6 // size
    groups = {name.split(".")[5] for name in child.infos() if ".chunk_experts." in name}
    assert groups == {str(i) for i in range(6 // size)}
    assert mismatches(hf_shapes(child.architecture), child.infos(), frozenset()) == []


@pytest.mark.parametrize("size", [2**i for i in range(8)])
def test_every_group_size_of_a_real_layer(size: int) -> None:
    parent = replace(QWEN3_MOE, moe_layers=(True,))
    child = grove_architecture(parent, size, 128, 1 / size)
    assert child.num_groups * size == 128
    assert total_parameters(child).total - total_parameters(parent).total == (128 // size) * 786_432


@pytest.mark.parametrize(("groups", "width"), [(64, 128), (32, 256), (16, 512)])
def test_the_papers_three_configurations_have_33_billion_parameters(
    groups: int, width: int
) -> None:
    child = grove_architecture(QWEN3_MOE, 128 // groups, width, 0.05)
    assert child.num_groups == groups
    assert total_parameters(QWEN3_MOE).total == 30_532_122_624
    assert total_parameters(child).total == 32_948_041_728


# ---------------------------------------------------------------------------------- Grove: refusals


@pytest.mark.parametrize("size", [-2, 0, 4, 5, 7, 12])
def test_a_group_size_that_does_not_divide_is_refused(size: int) -> None:
    problems = problems_of(lambda: grove_architecture(PARENT, size, 10, 0.0))
    assert problems == [
        f"--group-size ({size}) does not divide the experts (6); use one of 1, 2, 3, 6"
    ]


@pytest.mark.parametrize("scale", [0.51, -0.1, float("nan"), float("inf")])
def test_a_scale_beyond_the_papers_bound_is_refused(scale: float) -> None:
    (problem,) = problems_of(lambda: grove_architecture(PARENT, 2, 10, scale))
    assert problem.startswith(f"--adjugate-scale ({scale}) is not between 0 and")
    assert "(0.5)" in problem


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_bound_itself_is_accepted(scale: float) -> None:
    assert grove_architecture(PARENT, 2, 10, scale).adjugate_scale == scale


def test_a_parent_with_groups_is_refused() -> None:
    (problem,) = problems_of(lambda: grove_architecture(GROVE, 2, 10, 0.05))
    assert problem.startswith("the parent has groups (2) already")


def test_a_dense_parent_is_told_about_experts() -> None:
    (problem,) = problems_of(lambda: grove_architecture(DENSE, 2, 10, 0.05))
    assert "--num-experts" in problem


def test_a_parent_that_does_not_normalize_keeps_its_router() -> None:
    child = grove_architecture(MIXED, 2, 10, 0.05)
    assert not child.normalized_topk
    assert not child.expert_bias
    flags = " ".join(megatron_flags(child))
    assert "--grove-router-scoring softmax" in flags
    assert "--moe-router-pre-softmax" in flags


def test_all_that_does_not_fit_is_said_at_once() -> None:
    problems = problems_of(lambda: grove_architecture(MIXED, 4, 0, 2.0))
    for part in ("--group-size", "--adjugate-ffn-hidden-size", "--adjugate-sc"):
        assert any(part in problem for problem in problems)
    assert len(problems) == 3


# ---------------------------------------------------------------------------------- Grove: grouping


def childs_of_two_groupings(write: Callable[[Any], Path]) -> tuple[Source, Source, Source]:
    """A parent, its child with neighbours in a group, and one grouped by a file."""
    parent = source(PARENT)
    return parent, grove(parent), grove(parent, write(GROUPS))


def test_grouping_moves_experts_and_rows_of_the_router_and_nothing_else(
    groups_file: Callable[[Any], Path],
) -> None:
    _, plain, grouped = childs_of_two_groupings(groups_file)
    before, after = tensors_of(plain.weights), tensors_of(grouped.weights)
    assert before.keys() == after.keys()
    moved = {name for name in before if not same_bits(before[name], after[name])}
    # Of GROUPS no expert stays where it was but 1.
    expected = {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"
        for layer in (0, 2)
        for expert in (0, 2, 3, 4, 5)
        for projection in ("gate", "up", "down")
    } | {f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 2)}
    assert moved == expected
    for name in moved - {f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 2)}:
        number = name.split(".")[5]
        there = name.replace(f".experts.{number}.", f".experts.{ORDER[int(number)]}.")
        assert same_bits(after[name], before[there])
    for layer in (0, 2):
        name = f"model.layers.{layer}.mlp.gate.weight"
        assert same_bits(after[name], before[name][ORDER])


def moe_output(weights: Weights, layer: int, groups: int, x_TH: Tensor) -> Tensor:
    """A layer in plain torch, fp64; its adjugates count, so that groups matter too."""
    name = f"model.layers.{layer}.mlp"

    def block(prefix: str) -> Callable[[Tensor], Tensor]:
        gate, up, down = (
            weights.read(f"{prefix}.{p}_proj.weight").double() for p in ("gate", "up", "down")
        )
        return lambda x: swiglu(x, torch.cat([gate, up]), down)

    logits_TE = x_TH @ weights.read(f"{name}.gate.weight").double().T
    probs_TE, map_TE = grove_routing(logits_TE, topk=2)
    return grove_layer(
        x_TH,
        probs_TE,
        map_TE,
        [block(f"{name}.experts.{i}") for i in range(6)],
        [block(f"{name}.chunk_experts.{j}") for j in range(groups)],
        0.25,
    )


def test_the_layer_computes_the_same_in_another_order(groups_file: Callable[[Any], Path]) -> None:
    _, plain, grouped = childs_of_two_groupings(groups_file)
    x_TH = torch.randn(40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for layer in (0, 2):
        before = moe_output(plain.weights, layer, 3, x_TH)
        after = moe_output(grouped.weights, layer, 3, x_TH)
        assert before.abs().max() > 1
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_layers_can_have_groups_of_their_own(groups_file: Callable[[Any], Path]) -> None:
    other = [[0, 3], [1, 4], [2, 5]]
    file = groups_file({"0": GROUPS, "2": other})
    assert read_grouping(file, CHILD) == {0: ORDER, 2: [0, 3, 1, 4, 2, 5]}
    parent = source(PARENT)
    child = grove(parent, file)
    name = "model.layers.{}.mlp.experts.1.up_proj.weight"
    for layer, expert in ((0, 1), (2, 3)):
        there = f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
        assert same_bits(child.weights.read(name.format(layer)), parent.weights.read(there))


def test_one_list_is_for_all_moe_layers(groups_file: Callable[[Any], Path]) -> None:
    assert read_grouping(groups_file(GROUPS), CHILD) == {0: ORDER, 2: ORDER}


NO_EXPERT = "are not experts; their numbers go from 0 to 5"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param("{", ["cannot be read"], id="no JSON"),
        pytest.param("3", ["is neither a list of groups nor an object"], id="a number"),
        pytest.param("null", ["is neither a list of groups nor an object"], id="null"),
        pytest.param(
            {"0": GROUPS}, ["layer 2: its groups (absent) are needed"], id="a layer too few"
        ),
        pytest.param(
            {"0": GROUPS, "2": GROUPS, "1": GROUPS},
            ["names a layer '1', which is no MoE layer"],
            id="a dense layer",
        ),
        pytest.param(
            {"0": GROUPS, "2": GROUPS, "3": GROUPS, "x": GROUPS},
            ["names a layer '3'", "names a layer 'x'"],
            id="no layers",
        ),
        pytest.param({"0": GROUPS, "2": [0, 1]}, ["layer 2: its groups ([0, 1])"], id="flat"),
        pytest.param({"0": GROUPS, "2": 7}, ["layer 2: its groups (7)"], id="no list"),
        pytest.param(
            {"0": [[0, 1, 2], [3, 4, 5]], "2": GROUPS},
            [
                "layer 0: group [0, 1, 2] has 3 experts, not --group-size (2)",
                "layer 0: group [3, 4, 5] has 3 experts",
            ],
            id="another size",
        ),
        pytest.param(
            {"0": [[0, 1], [2, 3], [4, 4]], "2": GROUPS},
            ["layer 0: experts [4] are there twice", "layer 0: experts [5] are in no group"],
            id="twice",
        ),
        pytest.param(
            {"0": GROUPS, "2": [[0, 1], [2, 3]]},
            ["layer 2: experts [4, 5] are in no group"],
            id="a group too few",
        ),
        pytest.param(
            {"0": [[0, 1], [2, 3], [4, 6]], "2": [[0, -1], [2, 3], [4, 5]]},
            [
                f"layer 0: [6] {NO_EXPERT}",
                "layer 0: experts [5] are in no group",
                f"layer 2: [-1] {NO_EXPERT}",
                "layer 2: experts [1] are in no group",
            ],
            id="no such expert",
        ),
        pytest.param(
            {"0": [[0, True], [2.0, 3], ["4", None]], "2": GROUPS},
            [
                f"layer 0: [True, 2.0, '4', None] {NO_EXPERT}",
                "layer 0: experts [1, 2, 4, 5] are in no group",
            ],
            id="no numbers",
        ),
        pytest.param(
            f'{{"0": {GROUPS}, "0": {GROUPS}, "2": {GROUPS}}}',
            ["layers ['0'] are there twice"],
            id="a layer twice",
        ),
        pytest.param({}, ["layer 0: its groups", "layer 2: its groups"], id="empty"),
        pytest.param(
            [],
            [f"layer {i}: experts [0, 1, 2, 3, 4, 5] are in no group" for i in (0, 2)],
            id="no groups",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_all_that_is_wrong(
    content: Any, lines: list[str], groups_file: Callable[[Any], Path]
) -> None:
    file = groups_file(content)
    with pytest.raises(ValueError, match="--grouping") as refused:
        read_grouping(file, CHILD)
    problems = getattr(refused.value, "problems", [str(refused.value)])
    assert len(problems) == len(lines), problems
    for problem, line in zip(problems, lines, strict=True):
        assert str(file) in problem
        assert line in problem


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json\) cannot be read"):
        read_grouping(tmp_path / "none.json", CHILD)


# -------------------------------------------------------------------------------- Grove: the parent


def manifest_of(weights: StoredWeights) -> dict[str, tuple[str, str]]:
    """As if every tensor had another checksum."""
    return {name: (info.dtype, f"checksum of {name}") for name, info in weights.infos().items()}


def test_what_is_copied_is_checked_against_the_parents_manifest(
    groups_file: Callable[[Any], Path],
) -> None:
    parent = source(PARENT)
    parent = replace(parent, checksums=manifest_of(parent.weights))  # type: ignore[arg-type]
    plain, grouped = grove(parent), grove(parent, groups_file(GROUPS))
    assert plain.checksums == parent.checksums
    routers = {f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 2)}
    assert grouped.checksums.keys() == parent.checksums.keys() - routers
    name, there = (f"model.layers.2.mlp.experts.{i}.up_proj.weight" for i in (0, 4))
    assert grouped.checksums[name] == parent.checksums[there]


def test_a_damaged_parent_is_not_copied(tmp_path: Path) -> None:
    parent = source(PARENT, torch.bfloat16)
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    child = grove(replace(parent, checksums={name: ("BF16", "0" * 64)}))
    lines = problems_of(lambda: write(child, tmp_path / "child"))
    assert len(lines) == 1
    assert lines[0].startswith(f"{name} in memory")
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize("name", ["experts.2.up_proj.weight", "gate.weight"])
@pytest.mark.parametrize("grouped", [False, True], ids=["neighbours", "grouped"])
def test_a_tensor_that_the_parent_lacks_is_named_once_as_the_parent_calls_it(
    name: str, grouped: bool, groups_file: Callable[[Any], Path]
) -> None:
    name = f"model.layers.0.mlp.{name}"
    parent = source(PARENT)
    del parent.weights.tensors[name]  # type: ignore[attr-defined]
    child = grove(parent, groups_file(GROUPS) if grouped else None)
    # An expert has another name in the child, and whoever skips that one does not mean this.
    renamed = grouped and "experts" in name
    (problem,) = child.refusals(frozenset({name}) if renamed else frozenset())
    assert problem.startswith(f"{name} (absent)")


def test_a_wrong_shape_names_the_tensor_of_the_parent(groups_file: Callable[[Any], Path]) -> None:
    parent = source(PARENT)
    there = "model.layers.0.mlp.experts.4.up_proj.weight"
    parent.weights.tensors[there] = torch.zeros(19, 24)  # type: ignore[attr-defined]
    child = grove(parent, groups_file(GROUPS))
    (problem,) = mismatches(hf_shapes(CHILD), child.infos(), frozenset())
    assert f"experts.0.up_proj.weight in memory (there {there}) has shape [19, 24]" in problem


@pytest.mark.parametrize("name", ["chunk_experts.0.down_proj.weight", "expert_bias"])
def test_a_tensor_that_the_childs_would_hide_is_refused(name: str) -> None:
    parent = source(PARENT)
    name = f"model.layers.0.mlp.{name}"
    parent.weights.tensors[name] = torch.ones(6)  # type: ignore[attr-defined]
    (problem,) = grove(parent).refusals(frozenset({name}))
    assert problem.startswith(f"{name} in memory is not known to the parent's model")


def test_an_unknown_tensor_of_the_parent_is_not_dropped() -> None:
    parent = source(PARENT)
    parent.weights.tensors["model.extra.weight"] = torch.ones(6)  # type: ignore[attr-defined]
    (problem,) = mismatches(hf_shapes(CHILD), grove(parent).infos(), frozenset())
    assert problem.startswith("model.extra.weight in memory is not known")


# ------------------------------------------------------------------------------- dense: the experts


def moe(parent: Source, num_experts: int = 4, granularity: int = 1, seed: int = SEED) -> Source:
    return moe_child(parent, num_experts, 2, granularity, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("granularity", [1, 2, 4, 8])
def test_the_slices_of_every_copy_are_the_parents_mlp(granularity: int, dtype: torch.dtype) -> None:
    parent = source(DENSE, dtype)
    child = moe(parent, granularity=granularity)
    for layer, copy in itertools.product(range(3), range(4)):
        numbers = range(copy * granularity, (copy + 1) * granularity)
        for projection, dim in (("gate", 0), ("up", 0), ("down", 1)):
            slices = [
                child.weights.read(f"model.layers.{layer}.mlp.experts.{i}.{projection}_proj.weight")
                for i in numbers
            ]
            whole = torch.cat(slices, dim)
            mlp = parent.weights.read(f"model.layers.{layer}.mlp.{projection}_proj.weight")
            if projection == "down":
                # A power of two changes the exponent alone.
                whole = whole / granularity
            assert same_bits(whole, mlp)


@pytest.mark.parametrize("granularity", [1, 2])
def test_all_but_the_mlps_is_copied(granularity: int) -> None:
    parent = source(DENSE, torch.bfloat16)
    child = moe(parent, granularity=granularity)
    found = tensors_of(child.weights)
    kept = {name for name in parent.infos() if ".mlp." not in name}
    assert kept == {name for name in found if ".mlp." not in name}
    assert all(same_bits(found[name], parent.weights.read(name)) for name in kept)
    assert mismatches(hf_shapes(child.architecture), child.infos(), frozenset()) == []
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert tuple(tensor.shape) == child.infos()[name].shape


@pytest.mark.parametrize("granularity", [1, 2, 4])
def test_the_slices_of_a_copy_have_one_row_of_the_router(granularity: int) -> None:
    child = moe(source(DENSE), granularity=granularity)
    routers = []
    for layer in range(3):
        gate = child.weights.read(f"model.layers.{layer}.mlp.gate.weight")
        rows = gate.view(4, granularity, -1)
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert len(gate.unique(dim=0)) == 4
        routers.append(rows[:, 0])
    assert not torch.equal(routers[0], routers[1])
    assert not torch.equal(
        routers[0], moe(source(DENSE), seed=6).weights.read("model.layers.0.mlp.gate.weight")
    )


def test_a_router_is_normal() -> None:
    architecture = moe_architecture(replace(DENSE, hidden_size=4096), 64, 2, 1)
    gate = MoeChild(StoredWeights({}), architecture, SEED).read("model.layers.0.mlp.gate.weight")
    count = 64 * 4096
    assert abs(gate.mean()) < 5 * ROUTER_STD / sqrt(count)
    assert abs(gate.std() / 0.02 - 1) < 5 / sqrt(2 * count)


@pytest.mark.parametrize("granularity", [1, 2, 5])
def test_the_layer_computes_what_the_mlp_does(granularity: int) -> None:
    parent = source(DENSE)
    child = moe(parent, granularity=granularity)
    x_TH = torch.randn(30, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def block(weights: Weights, prefix: str) -> Callable[[Tensor], Tensor]:
        gate, up, down = (
            weights.read(f"{prefix}.{p}_proj.weight").double() for p in ("gate", "up", "down")
        )
        return lambda x: swiglu(x, torch.cat([gate, up]), down)

    name = "model.layers.1.mlp"
    experts = child.architecture.num_experts
    logits_TE = x_TH @ child.weights.read(f"{name}.gate.weight").double().T
    probs_TE, map_TE = grove_routing(logits_TE, child.architecture.topk)
    after = grove_layer(
        x_TH,
        probs_TE,
        map_TE,
        [block(child.weights, f"{name}.experts.{i}") for i in range(experts)],
        [torch.zeros_like] * experts,
        0.0,
    )
    before = torch.stack([block(parent.weights, name)(x) for x in x_TH])
    # 5 is no power of two: the product is rounded, in fp32.
    tolerance = float(before.abs().max()) * (1e-12 if granularity < 5 else 1e-6)
    torch.testing.assert_close(after, before, rtol=0, atol=tolerance)


def test_both_steps_at_once_are_one_after_the_other() -> None:
    parent = source(DENSE, torch.bfloat16)
    child = grove(moe(parent, granularity=2))
    assert mismatches(hf_shapes(child.architecture), child.infos(), frozenset()) == []
    assert child.architecture.num_groups == 4
    assert {"adjugates", "routers", "granularity", "seed"} <= child.generated.keys()
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert same_bits(child.weights.read(name), moe(parent, granularity=2).weights.read(name))


# ---------------------------------------------------------------------------------- dense: refusals


@pytest.mark.parametrize(
    ("sizes", "flag"),
    [
        ((1, 1, 1), "--num-experts (1)"),
        ((4, 0, 1), "--topk (0)"),
        ((4, 5, 1), "--topk (5)"),
        ((4, 2, 3), "--granularity (3)"),
        ((4, 2, 0), "--granularity (0)"),
        ((4, 2, -2), "--granularity (-2)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int], flag: str) -> None:
    (problem,) = problems_of(lambda: moe_architecture(DENSE, *sizes))
    assert problem.startswith(flag)


def test_a_parent_with_experts_is_told_that_it_has_them() -> None:
    (problem,) = problems_of(lambda: moe_architecture(QWEN3_MOE, 4, 2, 1))
    assert problem.startswith("--num-experts (4) is for dense parents; this one has 128 experts")


def test_an_mlp_that_the_parent_lacks_is_named_once() -> None:
    parent = source(DENSE)
    name = "model.layers.1.mlp.down_proj.weight"
    del parent.weights.tensors[name]  # type: ignore[attr-defined]
    for child in (moe(parent), moe(parent, granularity=2), grove(moe(parent))):
        assert child.refusals() == [f"{name} (absent) is needed of the parent; add it"]


@pytest.mark.parametrize("shape", [(24, 41), (23, 40), (24,), (24, 38)])
@pytest.mark.parametrize("granularity", [1, 4])
def test_an_mlp_of_a_wrong_shape_is_refused(shape: tuple[int, ...], granularity: int) -> None:
    parent = source(DENSE)
    name = "model.layers.1.mlp.down_proj.weight"
    parent.weights.tensors[name] = torch.zeros(shape)  # type: ignore[attr-defined]
    child = moe(parent, granularity=granularity)
    problems = mismatches(hf_shapes(child.architecture), child.infos(), frozenset())
    assert len(problems) == child.architecture.num_experts
    assert all(f"(there {name}) has shape" in problem for problem in problems)


def test_copies_are_checked_against_the_manifest_and_slices_cannot_be() -> None:
    parent = source(DENSE)
    parent = replace(parent, checksums=manifest_of(parent.weights))  # type: ignore[arg-type]
    whole, sliced = moe(parent).checksums, moe(parent, granularity=2).checksums
    kept = {name: known for name, known in parent.checksums.items() if ".mlp." not in name}
    assert sliced == kept
    mlp, expert = (f"model.layers.1.mlp.{e}up_proj.weight" for e in ("", "experts.3."))
    assert whole[expert] == parent.checksums[mlp]
    assert len(whole) == len(kept) + 3 * 4 * 3


# ----------------------------------------------------------------------------- what is written down


def write(child: Source, folder: Path) -> Any:
    return write_hf(child, folder, Options(), {}, shard_bytes=20_000, grove_keys=True)


def test_the_manifest_says_how_tensors_were_made(
    groups_file: Callable[[Any], Path], tmp_path: Path
) -> None:
    parent = source(PARENT)
    manifest = write(grove(parent, groups_file(GROUPS)), tmp_path / "child")
    stored = json.loads((tmp_path / "child" / "grove_manifest.json").read_text())
    assert stored["generated"] == {
        "adjugates": 2 * 3 * 3,
        "down_proj": "zero",
        "gate_proj, up_proj": "normal, std 0.006",
        "expert_bias": "zero",
        "seed": SEED,
        "grouping": {"0": ORDER, "2": ORDER},
    }
    assert manifest.counts["parameters"] == total_parameters(CHILD).total
    assert stored["made_by"]["source"]["parent"] == parent.weights.identity()


class Killed(BaseException):
    """What no code of ours handles."""


class KilledBefore(GroveChild):
    """A child that ends the process when ``model.norm.weight``, the last but one, is read."""

    def read(self, name: str) -> Tensor:
        if name == "model.norm.weight":
            raise Killed
        return super().read(name)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": SEED + 1},
        {"group_size": 3},
        {"grouping": [[1, 0], [2, 3], [4, 5]]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_begun_work_goes_on_for_the_same_child_alone(
    other: dict[str, Any], groups_file: Callable[[Any], Path], tmp_path: Path
) -> None:
    parent, place = source(PARENT), tmp_path / "child"
    killed = replace(grove(parent), weights=KilledBefore(parent.weights, CHILD, SEED))
    with pytest.raises(Killed):
        write(killed, place)
    reads = parent.weights.reads  # type: ignore[attr-defined]
    if "grouping" in other:
        other = {"grouping": groups_file(other["grouping"])}
    with pytest.raises(ValueError, match="was begun for another source or with other options"):
        write(grove(parent, **other), place)
    reads.clear()
    write(grove(parent), place)
    # What was done is not read again.
    assert "model.norm.weight" in reads
    assert "model.embed_tokens.weight" not in reads
    write(grove(parent), tmp_path / "whole")
    assert files_of(place) == files_of(tmp_path / "whole")
    assert load_tensors(place).keys() == hf_shapes(CHILD).keys()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def load_tensors(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
