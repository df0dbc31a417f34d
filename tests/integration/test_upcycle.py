"""``grove upcycle``: a child computes what its parent computes, and then learns more."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grove_megatron.checkpoint.golden import GRAD_PREFIX, Golden
from tests.ranks import Ranks

from .grove_commands import ONE, Finished, Grove, flags_of

transformers = pytest.importorskip("transformers")

EP2 = (2, ["--expert-model-parallel-size", "2"])
EP4 = (4, ["--expert-model-parallel-size", "4"])
TP2 = (2, ["--tensor-model-parallel-size", "2"])
PP2 = (2, ["--pipeline-model-parallel-size", "2"])

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
ADJUGATES = ["--adjugate-ffn-hidden-size", "16", "--adjugate-scale", "0.1", "--seed", "7"]
TRAINING = (
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 90 --split 90,5,5 --num-workers 0 "
    "--no-create-attention-mask-in-dataloader --log-interval 1 --eval-interval 1000 "
    "--eval-iters 0 --seq-length 32 --micro-batch-size 1 --global-batch-size 4 --train-iters 3 "
    "--lr 1e-2"
).split()


def long(*values: Any) -> Any:
    """A parameter of the whole matrix only."""
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def grove(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Grove:
    return Grove(ranks, tmp_path_factory)


def save_random(config: Any, folder: Path) -> Path:
    """A model that transformers makes, with norms that are not all ones."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Qwen3MoeConfig(**SIZES, **EXPERTS)
    return save_random(config, tmp_path_factory.mktemp("parents") / "qwen3-moe")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Qwen3Config(**SIZES)
    return save_random(config, tmp_path_factory.mktemp("parents") / "qwen3")


@pytest.fixture(scope="module")
def child(grove: Grove, qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Megatron checkpoint of a Grove child, groups of two."""
    save = tmp_path_factory.mktemp("children") / "grove"
    grove("upcycle", "--hf", str(qwen3_moe), "--save", str(save), *ADJUGATES).check()
    return save


@pytest.fixture
def groups_file(tmp_path: Path) -> str:
    file = tmp_path / "groups.json"
    file.write_text("[[7, 0], [2, 5], [1, 6], [4, 3]]")
    return str(file)


# ------------------------------------------------------------------------------------------ --check


def upcycle(parent: Path, *options: str) -> list[str]:
    return ["upcycle", "--hf", str(parent), *ADJUGATES, *options, "--check", "--json"]


def assert_same(finished: Finished) -> None:
    report = finished.check().report
    assert report["passed"] is True
    assert report["same_layer"] == 0.0
    # Not NaN, and not the child itself.
    assert 0 <= report["megatron_layer"] <= 1e-5


@pytest.mark.parametrize(
    "layout",
    [ONE, EP2, long(EP4), long(TP2), long(PP2)],
    ids=["one", "ep2", "ep4", "tp2", "pp2"],
)
def test_a_child_computes_what_its_parent_does(
    layout: tuple[int, list[str]], grove: Grove, qwen3_moe: Path
) -> None:
    finished = grove(*upcycle(qwen3_moe), layout=layout)
    assert_same(finished)
    per_layer = 4 * 3 * 32 * 16
    report = finished.report
    assert report["parameters_after"] - report["parameters_before"] == 2 * per_layer
    # Rank 0 alone reports.
    assert all('"passed"' not in output for output in finished.outputs[1:])


@pytest.mark.parametrize("size", [long("1"), long("4"), long("8")])
def test_at_every_group_size(size: str, grove: Grove, qwen3_moe: Path) -> None:
    assert_same(grove(*upcycle(qwen3_moe, "--group-size", size)))


@pytest.mark.long
@pytest.mark.parametrize("layout", [ONE, EP2], ids=["one", "ep2"])
def test_with_other_groups_than_neighbours(
    layout: tuple[int, list[str]], grove: Grove, qwen3_moe: Path, groups_file: str
) -> None:
    assert_same(grove(*upcycle(qwen3_moe, "--grouping", groups_file), layout=layout))


DOWN = ".mlp.chunk_experts.2.down_proj.weight"


SAME, MEGATRON = "same_layer", "megatron_layer"


@pytest.mark.parametrize(
    ("part", "shift", "wrong"),
    [
        # Behind projections of 0.006 it moves no logit by 1e-5: only the first comparison sees it.
        (DOWN, 0.01, {SAME}),
        ("model.layers.1.mlp.experts.3.up_proj.weight", 0.01, {MEGATRON}),
        long(DOWN, 10.0, {SAME, MEGATRON}),
        long("model.layers.0.mlp.gate.weight", 0.1, {MEGATRON}),
        long("model.layers.1.self_attn.q_norm.weight", 0.01, {MEGATRON}),
        long("lm_head.weight", 1e-3, {MEGATRON}),
        long(DOWN, float("nan"), {SAME, MEGATRON}),
        long("model.norm.weight", float("nan"), {SAME, MEGATRON}),
    ],
)
def test_a_broken_child_fails(
    part: str, shift: float, wrong: set[str], grove: Grove, qwen3_moe: Path
) -> None:
    report = grove.job("upcycle_job:broken", part, shift, upcycle(qwen3_moe)).check(1).report
    assert report["passed"] is False
    # An infinite difference is no JSON, so it is left out.
    tolerances = {SAME: 0.0, MEGATRON: 1e-5}
    assert {c for c, asked in tolerances.items() if not report.get(c, 1) <= asked} == wrong


@pytest.mark.long
def test_an_error_that_one_rank_sees_fails_everywhere(grove: Grove, qwen3_moe: Path) -> None:
    # Logits are on the last stage alone.
    argv = [*upcycle(qwen3_moe), *PP2[1]]
    grove.job("upcycle_job:broken", DOWN, 0.01, argv, world_size=2).check(1)


def test_a_tensor_that_is_missing_is_named_by_the_check(
    grove: Grove, qwen3_moe: Path, groups_file: str, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "config.json").write_text((qwen3_moe / "config.json").read_text())
    tensors = load_file(qwen3_moe / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    del tensors[name]
    save_file(tensors, parent / "model.safetensors")
    for options in ([], ["--grouping", groups_file]):
        finished = grove(*upcycle(parent, *options)).check(2)
        assert f"1. {name} (absent) is needed " in finished.logs[0]
        assert "1 problem," in finished.logs[0]


# ----------------------------------------------------------------------------- the child as a model


@pytest.fixture(scope="module")
def golden(qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers computes with the parent: logits, loss, every gradient."""
    return write_golden(qwen3_moe, tmp_path_factory.mktemp("golden") / "golden.safetensors")


def write_golden(model: Path, file: Path, without: str = "none") -> Path:
    golden = Golden.of_transformers(model)
    named = {GRAD_PREFIX + name: grad for name, grad in golden.grads.items() if without not in name}
    whole = {key: getattr(golden, key) for key in ("input_ids", "labels", "logits", "loss")}
    save_file({key: tensor.contiguous() for key, tensor in (whole | named).items()}, file)
    return file


@pytest.mark.parametrize("layout", [long(ONE), long(EP2), long(TP2)], ids=["one", "ep2", "tp2"])
def test_a_loaded_child_is_the_parent_of_transformers(
    layout: tuple[int, list[str]], grove: Grove, child: Path, golden: Path
) -> None:
    # Adjugates of zero send no gradient to their inputs, so the parent's are the child's.
    argv = ["verify", "--load", str(child), "--golden", str(golden), "--json"]
    report = grove(*argv, layout=layout).check().report
    assert report["grads_compared"] == 3 + 2 * (9 + 3 * 8)
    assert 0 < report["max_logit_error"] <= 1e-5


def test_a_child_in_hugging_faces_format_is_the_same_one(
    grove: Grove, qwen3_moe: Path, child: Path, golden: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "child"
    argv = ["--hf", str(qwen3_moe), *ADJUGATES, "--save-hf", str(folder)]
    refused = grove("upcycle", *argv, "--no-modeling").check(2)
    assert "parallel_expert_intermediate_size (16)" in refused.logs[0]
    grove("upcycle", *argv).check()
    assert checksums(folder) == checksums(child / "release")
    parents = load_file(qwen3_moe / "model.safetensors")
    own = load_file(folder / "model.safetensors")
    assert [name for name in parents if not torch.equal(parents[name], own[name])] == []
    grove("verify", "--hf", str(folder), "--golden", str(golden)).check()


def checksums(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "grove_manifest.json").read_text())
    return {name: tensor["sha256"] for name, tensor in manifest["tensors"].items()}


def test_a_parent_from_a_megatron_checkpoint_gives_the_same_bytes(
    grove: Grove, qwen3_moe: Path, child: Path, groups_file: str, tmp_path: Path
) -> None:
    grove("import", "--hf", str(qwen3_moe), "--save", str(tmp_path / "parent")).check()
    argv = ["upcycle", "--load", str(tmp_path / "parent"), *ADJUGATES]
    grove(*argv, "--save", str(tmp_path / "child")).check()
    found = checksums(tmp_path / "child" / "release")
    assert found == checksums(child / "release")
    assert len(found) == 3 + 2 * (9 + 3 * 8 + 3 * 4 + 1)
    argv += ["--grouping", groups_file, "--check", "--json"]
    assert_same(grove(*argv))


# ---------------------------------------------------------------------------------------- it learns


@pytest.mark.parametrize("layout", [ONE, long(EP2)], ids=["one", "ep2"])
def test_at_the_first_step_only_down_projections_of_selected_groups_have_gradients(
    layout: tuple[int, list[str]], grove: Grove, qwen3_moe: Path, tmp_path: Path
) -> None:
    save = str(tmp_path / "child")
    argv = ["--hf", str(qwen3_moe), *ADJUGATES, "--group-size", "1", "--save", save]
    grove("upcycle", *argv).check()
    world_size, flags = layout
    results = grove.results("upcycle_job:adjugate_gradients", save, flags, world_size=world_size)
    largest: dict[str, float] = {}
    for result in results:
        assert largest.keys().isdisjoint(result["largest"])
        largest |= result["largest"]
    assert len(largest) == 2 * 8 * 2
    for layer, selected in results[0]["selected"].items():
        # 3 tokens select 2 experts each, of 8.
        assert 2 <= len(selected) <= 6
        for name, size in largest.items():
            if name.startswith(f"decoder.layers.{layer}."):
                has_gradient = "linear_fc2" in name and group_of(name) in selected
                assert (size > 0) == has_gradient, (name, size)


def group_of(name: str) -> int:
    """Of a parameter in one of the layouts of experts that Megatron has."""
    found = re.search(r"local_experts\.(\d+)\.|weight(\d+)$", name)
    assert found is not None
    return int(found[1] or found[2])


@pytest.mark.parametrize("layout", [ONE, long(EP2)], ids=["one", "ep2"])
def test_training_begins_at_the_parents_loss(
    layout: tuple[int, list[str]], grove: Grove, qwen3_moe: Path, child: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    grove("import", "--hf", str(qwen3_moe), "--save", str(parent)).check()
    before, after = (train(grove, folder, layout) for folder in (parent, child))
    assert "--moe-router-enable-expert-bias" in flags_of(child)
    assert len(before) == len(after) == 3
    assert abs(after[0] - before[0]) <= 1e-5 * before[0]
    # What the child has more of is trained.
    assert abs(after[2] - before[2]) > 1e-5 * before[2]


def train(grove: Grove, load: Path, layout: tuple[int, list[str]]) -> list[float]:
    """Losses of three iterations from a checkpoint."""
    argv = [*flags_of(load), *TRAINING, "--load", str(load), *layout[1]]
    results = grove.results("recorded_run:train", argv, world_size=layout[0])
    return [losses["lm loss"] for losses in results[0]["losses"]]


# ------------------------------------------------------------------------------ from a dense parent


@pytest.mark.parametrize(
    ("granularity", "group_size", "layout"),
    [
        ("1", "0", ONE),
        ("2", "2", ONE),
        long("1", "2", ONE),
        long("2", "0", ONE),
        long("3", "4", ONE),
        long("4", "2", ONE),
        long("1", "0", EP2),
        long("2", "2", EP2),
        long("2", "2", TP2),
    ],
)
def test_a_dense_parent_becomes_experts_that_compute_the_same(
    granularity: str, group_size: str, layout: tuple[int, list[str]], grove: Grove, qwen3: Path
) -> None:
    sizes = ["--num-experts", "4", "--topk", "2", "--granularity", granularity]
    command = upcycle(qwen3, *sizes, "--group-size", group_size)
    if group_size == "0":
        # Settings of adjugates are refused where there are none.
        command = [part for part in command if part not in ADJUGATES[:4]]
    finished = grove(*command, layout=layout)
    report = finished.check().report
    assert report["passed"] is True
    assert report["same_layer"] == (None if group_size == "0" else 0.0)
    assert 0 < report["megatron_layer"] <= 1e-5
    copies = 3 * 2 * 3 * 32 * 48
    routers = 2 * 4 * int(granularity) * 32
    groups = 0 if group_size == "0" else 4 * int(granularity) // int(group_size)
    adjugates = 2 * groups * 3 * 32 * 16
    more = report["parameters_after"] - report["parameters_before"]
    assert more == copies + routers + adjugates


@pytest.mark.parametrize("granularity", [long("1"), long("2")])
def test_the_experts_are_those_of_transformers(
    granularity: str, grove: Grove, qwen3: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "qwen3-moe"
    sizes = ["--num-experts", "4", "--topk", "2", "--granularity", granularity]
    argv = ["--hf", str(qwen3), *sizes, "--group-size", "0", "--save-hf", str(folder)]
    grove("upcycle", *argv).check()
    # Equal copies leave a router without gradient: what there is of it is rounding.
    golden = write_golden(folder, tmp_path / "golden.safetensors", without=".mlp.gate.")
    argv = ["verify", "--hf", str(folder), "--golden", str(golden), "--json"]
    report = grove(*argv).check().report
    assert report["grads_compared"] == 3 + 2 * (8 + 3 * 4 * int(granularity))
    # To transformers, too, the child is the parent.
    ids = torch.arange(40).reshape(2, 20)
    parent, child = (logits_of_transformers(model, ids) for model in (qwen3, folder))
    # Its router computes in fp32.
    torch.testing.assert_close(child, parent, rtol=0, atol=5e-6)


def logits_of_transformers(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    )
    logits: torch.Tensor = model(ids).logits.detach()
    return logits


# ------------------------------------------------------------------------------- Megatron's own way


@pytest.mark.long
def test_megatrons_own_upcycling_does_not_run(grove: Grove, qwen3: Path, tmp_path: Path) -> None:
    """Fails once ``--moe-use-upcycling`` works: ``grove upcycle`` then has a second oracle.

    In 0.19.2 it hands ``load_checkpoint`` the keyword ``model`` (training.py, line 2175), which is
    called ``ddp_model`` there; and behind that it builds the dense model from a configuration that
    still has the experts (lines 2041 and 2157).
    """
    dense = tmp_path / "dense"
    grove("import", "--hf", str(qwen3), "--save", str(dense)).check()
    moe = ["--num-experts", "4", "--moe-router-topk", "2", "--moe-use-upcycling"]
    moe += ["--moe-token-dispatcher-type", "alltoall", "--save-interval", "10"]
    argv = [*flags_of(dense), *TRAINING, *moe, "--load", str(dense)]
    argv += ["--save", str(tmp_path / "moe")]
    finished = grove.job("recorded_run:train", argv).check(1)
    assert "load_checkpoint() got an unexpected keyword argument 'model'" in finished.logs[0]
