"""``grove verify --layer``: the layer computes what the authors of every system here computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.layer_folders import write_moepp, write_noisy_topk, write_qwen2_moe
from tests.ranks import Job, Ranks

GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
VERIFY = "tests.multirank.verify_layer_cases:verify"
ADJUGATES = "tests.multirank.verify_layer_cases:adjugates"
GROVE = "tests.integration.verify_job:grove"


def _gradients(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return [name for name in opened.keys() if name.startswith("grad")]  # noqa: SIM118


OWN = {
    config.parent.name: _gradients(config.with_name("layer.safetensors"))
    for config in sorted(GOLDENS.glob("*/config.json"))
    if json.loads(config.read_text(encoding="utf-8"))["system"] == "grove_megatron"
}
assert "noisy_topk" in OWN

# system, variant: gradients in the file.
LAYERS = {
    ("mixtral", "default"): 32,
    ("qwen2_moe", "default"): 48,
    ("qwen3_moe", "default"): 8,
    ("olmoe", "default"): 44,
    ("dbrx", "default"): 11,
    ("grok1", "default"): 7,
    ("deepseek_v2", "default"): 61,
    ("deepseek_v2", "greedy"): 59,
    ("deepseek_v2", "greedy_norm"): 59,
    ("deepseek_v3", "default"): 9,
    ("skywork", "default"): 33,
    ("skywork", "unbiased_std"): 33,
    ("st_moe", "default"): 28,
    ("st_moe", "capacity"): 28,
    ("st_moe", "gshard"): 28,
    ("st_moe", "gshard_capacity"): 28,
    ("switch", "default"): 18,
    ("switch", "drop"): 18,
    ("yuan", "default"): 28,
    ("hash", "default"): 25,
    ("hash", "balanced"): 25,
    ("base", "default"): 38,
    ("base", "eval_greedy"): 38,
    ("moepp", "default"): 46,
    ("moepp", "linear_nomul"): 42,
    ("moepp", "mixtral_logits_norm"): 42,
    ("moepp", "paper"): 42,
    # Parts of the router: those that are there.
    **{(name, "default"): len(grads) for name, grads in OWN.items()},
}
# Their choice of experts is what balances them.
WITHOUT_LOSS = {"hash", "base"}
TOLERANCES = {"fp32": 1e-5, "fp64": 1e-10}


def check(
    results: list[dict[str, Any]], layers: list[tuple[str, str]], dtype: str = "fp32"
) -> None:
    for (system, variant), found in zip(layers, results, strict=True):
        assert found["passed"], (system, found)
        assert found["routing_equal"], system
        errors = {"output": TOLERANCES[dtype], "grad": TOLERANCES[dtype], "loss": 1e-6}
        if system in WITHOUT_LOSS:
            assert found["max_loss_error"] is None
            del errors["loss"]
        for error, tolerance in errors.items():
            # Above 0: something was compared, and not with itself.
            assert 0 < found[f"max_{error}_error"] < tolerance, (system, found)
        assert found["grads_missed"] == []
        assert found["grads_compared"] == found["grads_in_file"] == LAYERS[system, variant]


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("auto", "fp32"), ("megatron", "fp32"), ("auto", "fp64")]
)
def test_a_layer_of_every_system(kernel: str, dtype: str, ranks: Ranks, tmp_path: Path) -> None:
    layers = [(str(GOLDENS / system), variant) for system, variant in LAYERS]
    args = (str(tmp_path), layers, dtype, ["--grove-kernel", kernel])
    (results,) = ranks.run(1, VERIFY, *args, folder=tmp_path).check().results()
    check(results, [*LAYERS], dtype)


@pytest.mark.parametrize(("size", "dtype"), [(2, "fp64"), (4, "fp32")])
def test_its_experts_and_tokens_on_several_ranks(
    size: int, dtype: str, ranks: Ranks, tmp_path: Path
) -> None:
    # Of Switch's 5 experts all are on one rank; 4 do not divide the 6 of others.
    left_out = {"switch"} if size == 2 else {"switch", "moepp", "hash", "base"}
    layers = [layer for layer in LAYERS if layer[0] not in left_out]
    folders = [(str(GOLDENS / system), variant) for system, variant in layers]
    args = (str(tmp_path), folders, dtype, ["--expert-model-parallel-size", str(size)])
    for results in ranks.run(size, VERIFY, *args, folder=tmp_path).check().results():
        check(results, layers, dtype)


@pytest.mark.parametrize(
    ("size", "experts_on"),
    [
        pytest.param(1, 1, id="ep1"),
        pytest.param(2, 2, id="ep2"),
        # Two replicas of the experts, each with gradients of its tokens.
        pytest.param(4, 2, id="ep2-of-4"),
        pytest.param(4, 4, id="ep4"),
    ],
)
def test_odd_sizes(size: int, experts_on: int, ranks: Ranks, tmp_path: Path) -> None:
    sizes: list[dict[str, Any]] = [
        {"tokens": 12},
        {"tokens": 12, "normalised": True, "seed": 2},
        # More experts than anybody asks for: some get no token.
        {"hidden": 5, "experts": 16, "topk": 1, "width": 1, "tokens": 4},
        # Padding on some ranks, and ranks that have nothing else.
        {"tokens": 11},
        {"tokens": 3},
    ]
    layers = [
        (str(write_qwen2_moe(tmp_path / f"layer{i}", **one)), "default")
        for i, one in enumerate(sizes)
    ]
    noisy: list[dict[str, Any]] = [
        {"tokens": 11, "seed": 3},
        {"tokens": 3, "experts": 4, "topk": 2},
        {"hidden": 5, "experts": 12, "topk": 11, "tokens": 9},
    ]
    layers += [
        (str(write_noisy_topk(tmp_path / f"noisy{i}", **one)), "default")
        for i, one in enumerate(noisy)
    ]
    args = (str(tmp_path), layers, "fp32", ["--expert-model-parallel-size", str(experts_on)])
    for results in ranks.run(size, VERIFY, *args, folder=tmp_path).check().results():
        assert len(results) == len(sizes) + len(noisy)
        for found in results:
            assert found["passed"], found
            assert found["grads_compared"] == found["grads_in_file"]


@pytest.mark.parametrize(("size", "experts_on"), [(1, 1), (4, 2), (4, 4)])
def test_odd_sizes_of_moepp(size: int, experts_on: int, ranks: Ranks, tmp_path: Path) -> None:
    moepp: list[dict[str, Any]] = [
        {"tokens": 11},
        {"tokens": 3, "experts": 4, "topk": 3, "scaled": False},
        {"hidden": 5, "experts": 12, "topk": 5, "tokens": 9, "tau": 0.25},
        # Most of a token's experts have no FFN.
        {"experts": 4, "topk": 7, "tokens": 13, "seed": 2},
        # Tokens that select nothing else.
        {"experts": 4, "topk": 2, "tokens": 17, "constant": 0, "copy": 0, "zero": 9},
    ]
    layers = [
        (str(write_moepp(tmp_path / f"layer{i}", **one)), "default") for i, one in enumerate(moepp)
    ]
    args = (str(tmp_path), layers, "fp64", ["--expert-model-parallel-size", str(experts_on)])
    for results in ranks.run(size, VERIFY, *args, folder=tmp_path).check().results():
        assert len(results) == len(moepp)
        for found in results:
            assert found["passed"], found
            assert found["routing_equal"]
            assert 0 < found["max_grad_error"] < 1e-10, found
            assert found["grads_compared"] == found["grads_in_file"]


def grove(ranks: Ranks, folder: Path, *argv: str, size: int = 1) -> Job:
    return ranks.run(size, GROVE, str(folder), ["verify", *argv], folder=folder)


def test_the_command(ranks: Ranks, tmp_path: Path) -> None:
    layer = str(GOLDENS / "dbrx")
    job = grove(ranks, tmp_path, "--layer", layer, "--json").check()
    result = json.loads((tmp_path / "rank0.stdout").read_text().splitlines()[-1])
    assert result["routing_equal"] is True
    assert result["grads_compared"] == result["grads_in_file"] == 11
    assert 0 < result["max_loss_error"] < 1e-6
    assert "passed" in job.log()


def test_a_wrong_weight_fails(ranks: Ranks, tmp_path: Path) -> None:
    folder = write_qwen2_moe(tmp_path / "layer")
    tensors = load_file(folder / "layer.safetensors")
    tensors["w.experts.3.down_proj.weight"][0, 0] += 0.01
    save_file(tensors, folder / "layer.safetensors")
    job = grove(ranks, tmp_path, "--layer", str(folder), "--json")
    assert job.codes == [1], job.log()
    result = json.loads((tmp_path / "rank0.stdout").read_text().splitlines()[-1])
    assert result["max_output_error"] > 1e-4
    assert result["routing_equal"] is True
    assert "FAILED" in job.log()


def test_refusals_on_every_rank(ranks: Ranks, tmp_path: Path) -> None:
    folder = tmp_path / "layer"
    shutil.copytree(GOLDENS / "mixtral", folder)
    tensors = load_file(folder / "layer.safetensors")
    del tensors["w.gate.weight"], tensors["y"]
    save_file(tensors, folder / "layer.safetensors")
    job = grove(ranks, tmp_path, "--layer", str(folder), size=2)
    assert job.codes == [2, 2]
    assert "2 problems, nothing was started" in job.log()
    assert "w.gate.weight is missing" in job.log()
    assert "y is missing" in job.log()


def test_what_splits_more_than_experts_and_tokens_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    flags = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
    job = grove(ranks, tmp_path, "--layer", str(GOLDENS / "mixtral"), *flags, size=2)
    assert job.codes == [2, 2], job.log()
    assert "--tensor-model-parallel-size (2) splits more than experts and tokens" in job.log()


def test_a_bias_that_the_system_has_not_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    job = grove(ranks, tmp_path, "--layer", str(GOLDENS / "mixtral"), "--grove-logit-bias")
    assert job.codes == [2], job.log()
    assert "router.logits_bias.bias of the layer is no weight of the system" in job.log()


# Every number of experts here has 1 and itself as divisors.
GROUPS = ["--grove-num-groups", "1", "--grove-adjugate-ffn-hidden-size", "8"]


def test_with_groups_and_scale_0_it_is_the_system(ranks: Ranks, tmp_path: Path) -> None:
    layers = [(str(GOLDENS / system), variant) for system, variant in LAYERS]
    args = (str(tmp_path), layers, "fp64", GROUPS)
    (results,) = ranks.run(1, VERIFY, *args, folder=tmp_path).check().results()
    check(results, [*LAYERS], "fp64")
    wrong = grove(ranks, tmp_path / "wrong", "--layer", layers[0][0], *GROUPS, *SCALE)
    assert wrong.codes == [1], wrong.log()


SCALE = ["--grove-adjugate-scale", "0.05"]


def test_with_groups_it_is_the_system_and_its_adjugates(ranks: Ranks, tmp_path: Path) -> None:
    # Not of MoE++, whose two layers tests/integration/test_moepp.py trains with groups.
    alone = [layer for layer in LAYERS if layer[0] != "moepp"]
    layers = [(str(GOLDENS / system), variant) for system, variant in alone]
    args = (str(tmp_path), layers, [*GROUPS, *SCALE])
    (results,) = ranks.run(1, ADJUGATES, *args, folder=tmp_path).check().results()
    for (system, _), found in zip(alone, results, strict=True):
        assert 0 < found["error"] < 1e-10, (system, found)
        assert found["adjugates"] > 1e-6, system
        assert found["compared"] > 3, system
