"""The code that ``grove export`` writes: transformers computes with it what the authors' did."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grove_megatron.functional.reference import grove_routing

from . import tiny_grove
from .weights_folders import done, tensors_of, write_biased

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def exported(
    golden_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """A folder that was imported and exported, and its golden: of the authors, or of other sizes
    with the last of the embeddings tied."""
    made: dict[str, tuple[Path, dict[str, Tensor]]] = {}

    def export(name: str) -> tuple[Path, dict[str, Tensor]]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            source = golden_folder
            if name != "authors":
                source = tiny_grove.write_other_size(place / "source", tied=name == "tied")
            done("import", "--hf", source, "--save", place / "megatron")
            done("export", "--load", place / "megatron", "--hf", place / "hf")
            made[name] = place / "hf", load_file(source / "golden.safetensors")
        return made[name]

    return export


def loaded(folder: Path, **options: Any) -> Any:
    """By its auto_map, with every weight of the files and no other."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=True,
        attn_implementation="eager",
        output_loading_info=True,
        **{"dtype": torch.float32, **options},
    )
    assert not any(info.values()), info
    assert type(model).__name__ == "GroveMoeForCausalLM"
    assert "transformers_modules" in type(model).__module__
    return model


@pytest.mark.parametrize("name", ["authors", "other", "tied"])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_logits_are_the_golden_ones(name: str, experts: str, exported: Any) -> None:
    folder, golden = exported(name)
    model = loaded(folder, experts_implementation=experts)
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    error = float((logits.double() - golden["logits"].double()).abs().max())
    assert 0 < error < TOLERANCE


@pytest.mark.parametrize("name", ["authors", "other"])
def test_gradients_are_the_golden_ones_when_layers_run_again(name: str, exported: Any) -> None:
    folder, golden = exported(name)
    model = loaded(folder).train()
    model.gradient_checkpointing_enable()
    logits = model(golden["input_ids"]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), golden["labels"].flatten()).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    compared = set()
    for name_, expected in golden.items():
        if not name_.startswith("grad."):
            continue
        found = gradient_of(name_.removeprefix("grad."), grads)
        error = (found.double() - expected.double()).abs().max() / expected.abs().max()
        assert error < 1e-5, name_
        compared.add(name_.split(".mlp.")[-1].split(".")[0])
    assert {"experts", "chunk_experts", "gate"} <= compared


def gradient_of(name: str, grads: dict[str, Tensor]) -> Tensor:
    """Of a tensor of the files; of experts, a slice of what the modules have."""
    layer, is_expert, rest = name.partition("experts.")
    if not is_expert:
        return grads[name]
    number, which, _ = rest.split(".")
    if which == "down_proj":
        return grads[f"{layer}experts.down_proj"][int(number)]
    gate, up = grads[f"{layer}experts.gate_up_proj"][int(number)].chunk(2)
    return gate if which == "gate_proj" else up


def test_generation_with_a_cache_is_that_without(exported: Any) -> None:
    folder, golden = exported("authors")
    model, prompt = loaded(folder), golden["input_ids"][:, :8]
    found = model.generate(prompt, max_new_tokens=12, do_sample=False)
    expected = prompt
    with torch.no_grad():
        for _ in range(12):
            best = model(expected, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, best], dim=1)
    assert torch.equal(found, expected)


def test_saved_again_the_files_have_the_same_tensors(exported: Any, tmp_path: Path) -> None:
    folder, _ = exported("other")
    loaded(folder).save_pretrained(tmp_path)
    found, expected = tensors_of(tmp_path), tensors_of(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    loaded(tmp_path)
    done("import", "--hf", tmp_path, "--save", tmp_path / "megatron")


def code_of(model: Any) -> Any:
    return sys.modules[type(model).__module__]


def test_an_adjugate_computes_a_token_once(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, golden = exported("authors")
    model = loaded(folder)
    code, rows = code_of(model), []
    original = code._grouped

    def counted(x_PH: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        rows.append(len(x_PH))
        return original(x_PH, weight, ends)

    monkeypatch.setattr(code, "_grouped", counted)
    met = []
    for layer in model.model.layers:
        size = layer.mlp.group_size
        layer.mlp.gate.register_forward_hook(
            lambda _, __, out: met.append(
                sum(len(set(row)) for row in (out[2] // size).tolist())  # noqa: B023
            )
        )
    with torch.no_grad():
        model(golden["input_ids"])
    assert rows == [n for n in met for _ in range(2)]
    assert max(rows) < golden["input_ids"].numel() * 4


@pytest.mark.parametrize("biased", [False, True])
def test_the_router_is_that_of_the_paper(biased: bool, exported: Any) -> None:
    model = loaded(exported("authors")[0], dtype=torch.float64)
    router = model.model.layers[0].mlp.gate
    generator = torch.Generator().manual_seed(0)
    x = 20 * torch.randn(200, router.weight.shape[1], generator=generator, dtype=torch.float64)
    bias = torch.randn(len(router.weight), generator=generator) if biased else None
    logits, weights, index = router(x, bias)
    probs, chosen = grove_routing(logits, router.top_k, bias)
    found = torch.zeros_like(probs).scatter(1, index, weights)
    assert torch.equal(found > 0, chosen)
    torch.testing.assert_close(found, probs, rtol=1e-12, atol=1e-14)


def test_a_bias_of_the_checkpoint_selects(
    golden_folder: Path, exported: Any, tmp_path: Path
) -> None:
    folder = write_biased(tmp_path / "biased", golden_folder)
    done("import", "--hf", folder, "--save", tmp_path / "megatron")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_expert_bias"] is True
    # Rounded, it would select others.
    in_bf16 = loaded(tmp_path / "out", dtype=torch.bfloat16)
    assert in_bf16.model.layers[1].mlp.experts.down_proj.dtype == torch.bfloat16
    assert torch.equal(in_bf16.model.layers[1].mlp.expert_bias, torch.linspace(-1, 1, 16))
    model, golden = loaded(tmp_path / "out"), exported("authors")[1]
    assert torch.equal(model.model.layers[1].mlp.expert_bias, torch.linspace(-1, 1, 16))
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    assert float((logits - golden["logits"]).abs().max()) > 1e-2


def test_in_bf16_groups_of_rows_are_one_product(exported: Any) -> None:
    model = loaded(exported("authors")[0])
    grouped, generator = code_of(model)._grouped, torch.Generator().manual_seed(0)
    x = torch.randn(40, 64, generator=generator)
    weight = torch.randn(4, 32, 64, generator=generator)
    ends = torch.tensor([7, 7, 24, 40])
    # What it is rounded to may differ in the last bit of 8.
    apart = grouped(x.bfloat16().float(), weight.bfloat16().float(), ends)
    together = grouped(x.bfloat16(), weight.bfloat16(), ends).float()
    torch.testing.assert_close(together, apart, rtol=2**-7, atol=2**-7 * float(apart.abs().max()))


@pytest.mark.parametrize("width", [4, 12, 32])
def test_in_bf16_any_width_is_computed(width: int, exported: Any) -> None:
    """One product takes widths of whole 16 bytes alone."""
    grouped = code_of(loaded(exported("authors")[0]))._grouped
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, width, generator=generator).bfloat16()
    weight = torch.randn(2, 8, width, generator=generator).bfloat16()
    found = grouped(x, weight, torch.tensor([4, 10]))
    expected = torch.cat([x[:4] @ weight[0].T, x[4:] @ weight[1].T])
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bf16_the_whole_model_computes_and_trains(autocast: bool, exported: Any) -> None:
    folder, golden = exported("authors")
    model = loaded(folder, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(golden["input_ids"]).logits
    near = (logits.float().argmax(-1) == golden["logits"].argmax(-1)).float().mean()
    assert near > 0.9
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
