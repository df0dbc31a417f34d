"""Mixtral, Qwen2-MoE and OLMoE: read, written, computed as their authors' code, and upcycled."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ranks import Ranks

from .grove_commands import ONE, Grove, flags_of
from .launching import launch, torchrun
from .weights_folders import done, tensors_of
from .weights_folders import grove as command

transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parents[1] / "data"
PARENTS = {name: DATA / f"{name}-tiny" for name in ("mixtral", "qwen2_moe", "olmoe")}
# Gradients in the file.
GRADIENTS = {"mixtral": 29, "qwen2_moe": 41, "olmoe": 33}
# One that no other family has.
OWN = {
    "mixtral": "model.layers.1.block_sparse_moe.experts.2.w3.weight",
    "qwen2_moe": "model.layers.0.mlp.shared_expert_gate.weight",
    "olmoe": "model.layers.1.self_attn.k_norm.weight",
}
LAYOUTS = {
    "one": ONE,
    "ep2": (2, ["--expert-model-parallel-size", "2"]),
    "tp2": (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "pp2": (2, ["--pipeline-model-parallel-size", "2"]),
}
EVERY_RUN = {("mixtral", "ep2"), ("qwen2_moe", "tp2"), ("olmoe", "tp2"), ("qwen2_moe", "pp2")}
CASES = [
    pytest.param(p, n, marks=[] if (p, n) in EVERY_RUN else [pytest.mark.long])
    for p in PARENTS
    for n in LAYOUTS
]
ADJUGATES = ["--adjugate-ffn-hidden-size", "16", "--adjugate-scale", "0.1", "--seed", "7"]
TRAINING = (
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 110 --split 90,5,5 --num-workers 0 "
    "--no-create-attention-mask-in-dataloader --log-interval 1 --eval-interval 1000 "
    "--eval-iters 0 --seq-length 32 --micro-batch-size 1 --global-batch-size 4 --train-iters 3 "
    "--lr 1e-2 --save-interval 3"
).split()


@pytest.fixture(scope="module")
def grove(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Grove:
    return Grove(ranks, tmp_path_factory)


def verify(grove: Grove, layout: str, *where: Any) -> dict[str, Any]:
    finished = grove("verify", "--json", *map(str, where), layout=LAYOUTS[layout])
    return finished.check().report


def assert_passed(report: dict[str, Any], name: str) -> None:
    assert report["grads_compared"] == report["grads_in_file"] == GRADIENTS[name]
    assert report["routers_compared"] == 2
    for error in ("max_logit_error", "max_grad_error", "max_router_error"):
        assert 0 < report[error] < 1e-5


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_authors_numbers_at_every_layout(name: str, layout: str, grove: Grove) -> None:
    folder = PARENTS[name]
    golden = folder / "golden.safetensors"
    assert_passed(verify(grove, layout, "--hf", folder, "--golden", golden), name)


@pytest.mark.parametrize("name", PARENTS)
def test_one_other_weight_is_seen(name: str, grove: Grove, tmp_path: Path) -> None:
    folder = shutil.copytree(PARENTS[name], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors[OWN[name]].flatten()[0] += 0.05
    save_file(tensors, folder / "model.safetensors")
    argv = ["verify", "--json", "--hf", str(folder), "--golden", str(folder / "golden.safetensors")]
    report = grove(*argv).check(1).report
    assert max(report["max_logit_error"], report["max_grad_error"]) > 1e-5


@pytest.mark.parametrize("name", PARENTS)
def test_there_and_back_nothing_changes(name: str, tmp_path: Path) -> None:
    source = PARENTS[name]
    done("import", "--hf", source, "--save", tmp_path / "megatron")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert_same(tmp_path / "out", source)
    config = json.loads((source / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    # Of the arguments alone.
    shutil.rmtree(tmp_path / "megatron" / "hf")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "new")
    assert_same(tmp_path / "new", source)
    ids = load_file(source / "golden.safetensors")["input_ids"]
    loaded = [logits_of(folder, ids) for folder in (tmp_path / "new", source)]
    assert torch.equal(*loaded)


def assert_same(folder: Path, source: Path) -> None:
    found, expected = tensors_of(folder), tensors_of(source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("name", PARENTS)
def test_what_transformers_5_holds_in_memory_is_read(name: str, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(PARENTS[name], dtype=torch.float32)
    model.save_pretrained(tmp_path / "five", save_original_format=False)
    held = tensors_of(tmp_path / "five")
    assert any(name.endswith(".mlp.experts.gate_up_proj") for name in held)
    done("import", "--hf", tmp_path / "five", "--save", tmp_path / "megatron")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert_same(tmp_path / "out", PARENTS[name])
    export = ["export", "--load", tmp_path / "megatron", "--hf", tmp_path / "fused"]
    result = command(*export, "--fused-experts")
    if name == "mixtral":
        assert result.exit_code == 2
        assert "--fused-experts is a layout of Qwen3-MoE, Qwen2-MoE and OLMoE" in result.stderr
    else:
        found = tensors_of(tmp_path / "fused")
        assert found.keys() == held.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in held.items())


@pytest.mark.parametrize("name", PARENTS)
def test_transformers_computes_the_reference_itself(name: str, grove: Grove) -> None:
    report = verify(grove, "one", "--hf", PARENTS[name])
    tensors = load_file(PARENTS[name] / "model.safetensors")
    assert report["grads_compared"] == report["grads_in_file"] == len(tensors)


SMALL: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
# What the golden models do not have.
VARIANTS = {
    "Mixtral, heads of another width, tied": (
        "Mixtral",
        {
            "intermediate_size": 24,
            "num_local_experts": 6,
            "head_dim": 12,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2Moe, dense layers, no biases, normalised": (
        "Qwen2Moe",
        {
            "intermediate_size": 40,
            "moe_intermediate_size": 20,
            "num_experts": 6,
            "shared_expert_intermediate_size": 28,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "qkv_bias": False,
            "norm_topk_prob": True,
        },
    ),
    "Olmoe, normalised": (
        "Olmoe",
        {"intermediate_size": 24, "num_experts": 6, "norm_topk_prob": True, "pad_token_id": None},
    ),
}


def made(variant: str, folder: Path) -> Path:
    kind, keys = VARIANTS[variant]
    torch.manual_seed(4)
    config = getattr(transformers, f"{kind}Config")(**SMALL | keys)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            normal = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * normal if parameter.dim() == 1 else 0.15 * normal)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_others_of_the_families_are_computed_too(
    variant: str, grove: Grove, tmp_path: Path
) -> None:
    folder = made(variant, tmp_path / "model")
    report = verify(grove, "one", "--hf", folder)
    assert 0 < report["max_logit_error"] < 1e-5
    assert report["grads_compared"] == report["grads_in_file"] > 20
    done("import", "--hf", folder, "--save", tmp_path / "megatron")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert_same(tmp_path / "out", folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixtral", "--moe-aux-loss-coeff 0.02, which is 0.02 x 2 / 2 layers"),
        ("qwen2_moe", "--moe-aux-loss-coeff 0.002, which is 0.001 x 4 / 2 layers"),
    ],
)
def test_the_coefficient_of_balance_is_translated(name: str, said: str, tmp_path: Path) -> None:
    result = done("import", "--hf", PARENTS[name], "--save", tmp_path / "megatron")
    assert said in " ".join(result.stderr.split())


def test_balanced_both_losses_are_as_strong() -> None:
    """transformers' loss of all layers, and Megatron's with the translated coefficient."""
    from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers, experts, topk, tokens, said = 3, 4, 2, 12, 0.02
    # Each token likes two; all are liked as often.
    logits = torch.zeros(tokens, experts)
    for token in range(tokens):
        logits[token, [token % experts, (token + 1) % experts]] = 5.0
    theirs = said * load_balancing_loss_func((logits,) * layers, experts, topk)
    ours = layers * switch_load_balancing_loss_func(
        logits.softmax(-1),
        torch.full((experts,), tokens * topk / experts),
        tokens,
        topk,
        experts,
        said * topk / layers,
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


# ---------------------------------------------------------------------------------------- upcycling


@pytest.mark.parametrize(
    ("name", "layout"),
    [("mixtral", "ep2"), ("qwen2_moe", "one"), ("olmoe", "tp2"), ("moepp", "ep2")],
)
def test_a_child_computes_what_the_parent_computes(name: str, layout: str, grove: Grove) -> None:
    parent = DATA / f"{name}-tiny"
    argv = ["upcycle", "--hf", str(parent), *ADJUGATES, "--check", "--json"]
    report = grove(*argv, layout=LAYOUTS[layout]).check().report
    assert report["same_layer"] == 0.0
    assert report["megatron_layer"] <= 1e-5


@pytest.mark.parametrize("name", PARENTS)
def test_a_child_of_other_groups_and_of_a_checkpoint_is_the_same(name: str, tmp_path: Path) -> None:
    source = PARENTS[name]
    config = json.loads((source / "config.json").read_text())
    count = config.get("num_experts") or config["num_local_experts"]
    groups = [[i, count - 1 - i] for i in range(count // 2)]
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    done("import", "--hf", source, "--save", tmp_path / "parent")
    grouped = ["--grouping", tmp_path / "groups.json", "--save-hf", tmp_path / "child"]
    done("upcycle", "--load", tmp_path / "parent", *ADJUGATES, *grouped)
    golden = load_file(source / "golden.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "child", trust_remote_code=True, dtype=torch.float32
    )
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    assert 0 < float((logits.double() - golden["logits"]).abs().max()) < 1e-5
    # Experts are where the groups say, and no other.
    first = model.model.layers[0].mlp.gate.weight
    theirs = {"mixtral": "block_sparse_moe"}.get(name, "mlp")
    gate = load_file(source / "model.safetensors")[f"model.layers.0.{theirs}.gate.weight"]
    assert torch.equal(first, gate[[expert for group in groups for expert in group]])


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def child(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "child"
            parent = DATA / f"{name}-tiny"
            done("upcycle", "--hf", parent, "--save", made[name], *ADJUGATES)
        return made[name]

    return child


@pytest.mark.parametrize("name", PARENTS)
def test_the_exported_child_is_the_parent_for_transformers(
    name: str, children: Any, tmp_path: Path
) -> None:
    export = ["export", "--load", children(name), "--hf", tmp_path / "out"]
    refused = command(*export, "--no-modeling")
    assert refused.exit_code == 2
    keys = {
        "mixtral": ["qk_norm (none) is not head"],
        "qwen2_moe": ["router_pre_softmax (True)", "qkv_bias (True)", "shared_expert_inte"],
        "olmoe": ["qk_norm (all_heads) is not head"],
    }[name]
    assert all(key in refused.stderr for key in keys)
    done(*export)
    golden = load_file(PARENTS[name] / "golden.safetensors")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert type(model).__name__ == "GroveMoeForCausalLM"
    logits = model(golden["input_ids"]).logits
    assert 0 < float((logits.double() - golden["logits"]).abs().max().detach()) < 1e-5
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), golden["labels"].flatten()).backward()
    for of_parent, expected in golden.items():
        parameter = dict(model.named_parameters()).get(of_parent.removeprefix("grad."))
        if parameter is not None:
            error = (parameter.grad.double() - expected).abs().max() / expected.abs().max()
            assert error < 1e-5, of_parent
    # What groups add is there, and adds nothing yet.
    assert not model.model.layers[0].mlp.chunk_experts.down_proj.any()


IN_PARALLEL = """
import sys, torch, transformers
from safetensors.torch import load_file
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], trust_remote_code=True, dtype=torch.float32, tp_plan="auto"
)
golden = load_file(sys.argv[2])
found = model(golden["input_ids"]).logits.double()
print("error:", float((found - golden["logits"]).abs().max()))
"""


@pytest.mark.long
def test_transformers_divides_an_exported_child(children: Any, tmp_path: Path) -> None:
    """Its norms of all heads are no part of a plan that divides heads."""
    done("export", "--load", children("olmoe"), "--hf", tmp_path / "out")
    (tmp_path / "script.py").write_text(IN_PARALLEL)
    golden = PARENTS["olmoe"] / "golden.safetensors"
    ran = launch(torchrun(str(tmp_path / "script.py"), str(tmp_path / "out"), str(golden)))
    assert ran.code == 0, ran.output
    errors = [float(n) for n in re.findall(r"error: (\S+)", ran.output)]
    assert len(errors) == 2
    assert max(errors) < 1e-5


@pytest.mark.parametrize("name", ["olmoe", "moepp"])
def test_a_child_is_trained_and_goes_on(
    name: str, children: Any, grove: Grove, tmp_path: Path
) -> None:
    child, run = children(name), tmp_path / "run"
    flags = [*flags_of(child), *TRAINING, "--save", str(run)]
    size, ep2 = LAYOUTS["ep2"]
    first = grove.results(
        "recorded_run:train", [*flags, "--load", str(child), "--finetune", *ep2], world_size=size
    )
    losses = [step["lm loss"] for step in first[0]["losses"]]
    assert len(losses) == 3
    assert losses[2] != losses[0]
    more = ["--train-iters", "5", "--load", str(run), "--override-opt-param-scheduler"]
    again = grove.results("recorded_run:train", [*flags, *more, *ep2], world_size=size)
    assert len(again[0]["losses"]) == 2
    export = command("export", "--load", run, "--hf", tmp_path / "out")
    if name == "moepp":
        # In no Hugging Face model.
        assert export.exit_code == 2
        assert "is beside experts without an FFN, and no Hugging Face model has both" in (
            " ".join(export.stderr.split())
        )
        generated = grove(
            "generate", "--load", str(run), "--prompt-ids", "1,2,3", "--max-new-tokens", "3"
        )
        assert generated.check().outputs[0].splitlines()[-1].startswith("-> ")
    else:
        assert export.exit_code == 0, export.output
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", trust_remote_code=True, dtype=torch.float32
        )
        # The adjugates have learned.
        assert model.model.layers[0].mlp.chunk_experts.down_proj.any()
