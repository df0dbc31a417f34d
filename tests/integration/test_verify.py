"""``grove verify``: passes on what the authors computed, at every layout, and on nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.ranks import Ranks

from . import tiny_grove
from .launching import launch, torchrun

Edit = Callable[[dict[str, Any]], None]

FIRST_LAYER = "model.layers.0"
EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
ETP2 = ["--expert-tensor-parallel-size", "2"]

# name: (ranks, flags)
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "ep1": (1, []),
    "ep2": (2, EP2),
    "ep4": (4, EP4),
    "tp2": (2, TP2),
    "pp2": (2, PP2),
    "tp2-etp2-ep2": (4, [*TP2, *ETP2, *EP2]),
}


def long(*values: Any) -> Any:
    """A parameter of the whole matrix only."""
    return pytest.param(*values, marks=pytest.mark.long)


TOLERANCES = {"max_logit_error": 1e-5, "loss_error": 1e-6, "max_grad_error": 1e-5}


@dataclass(frozen=True)
class Verdict:
    """What one ``grove verify --json`` left behind, rank 0 first."""

    codes: list[int]
    outputs: list[str]
    logs: list[str]

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.outputs[0].splitlines()[-1])
        return report

    def assert_passed(self, gradients: int, routers: int = 0) -> None:
        assert self.codes == [0] * len(self.codes), self.logs[0][-6000:]
        of_routers = (
            {"max_router_error", "routers_compared", "routers_in_file"} if routers else set()
        )
        assert set(self.report) == {*TOLERANCES, "grads_compared", "grads_in_file", *of_routers}
        if routers:
            assert self.report["routers_compared"] == self.report["routers_in_file"] == routers
            assert 0 < self.report["max_router_error"] < 1e-5
        assert self.report["grads_compared"] == self.report["grads_in_file"] == gradients
        for error, tolerance in TOLERANCES.items():
            # Above 0: something was compared, and not with itself.
            assert 0 < self.report[error] < tolerance, self.report

    def assert_failed(self, *errors: str) -> None:
        """Exit 1 on every rank; exactly ``errors`` past tolerance (NaN and infinity are)."""
        assert self.codes == [1] * len(self.codes), self.logs[0][-6000:]
        past = {e for e, tolerance in TOLERANCES.items() if not self.report[e] <= tolerance}
        assert past == set(errors), self.report

    def assert_refused(self, *messages: str) -> None:
        """Exit 2 on every rank; rank 0 alone says ``messages`` and prints no report."""
        assert self.codes == [2] * len(self.codes), "\n\n".join(log[-3000:] for log in self.logs)
        for message in messages:
            assert message in self.logs[0]
        assert "nothing was started" in self.logs[0]
        assert all("nothing was started" not in log for log in self.logs[1:])
        assert all("max_logit_error" not in output for output in self.outputs)


class Verify:
    """Runs ``grove verify --json`` on a model folder that holds its golden."""

    def __init__(self, ranks: Ranks, folder: Path):
        self._ranks, self._folder = ranks, folder

    def __call__(self, layout: tuple[int, list[str]], model: Path) -> Verdict:
        world_size, flags = layout
        folder = self._folder / "job"
        argv = ["verify", "--hf", str(model), "--golden", str(model / "golden.safetensors")]
        job = self._ranks.run(
            world_size,
            "tests.integration.verify_job:grove",
            str(folder),
            [*argv, "--json", *flags],
            folder=folder,
        )
        outputs = [(folder / f"rank{rank}.stdout").read_text() for rank in range(world_size)]
        return Verdict(job.codes, outputs, [job.log(rank) for rank in range(world_size)])


@pytest.fixture
def verify(ranks: Ranks, tmp_path: Path) -> Verify:
    return Verify(ranks, tmp_path)


@pytest.fixture
def edited(golden_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the shipped model with tensors or settings changed by functions of their dicts."""

    def copy(
        *,
        weights: Edit | None = None,
        golden: Edit | None = None,
        config: Edit | None = None,
        source: Path = golden_folder,
    ) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(source, folder)
        for edit, name in ((weights, "model"), (golden, "golden")):
            if edit is not None:
                tensors = load_file(source / f"{name}.safetensors")
                edit(tensors)
                save_file(tensors, folder / f"{name}.safetensors")
        if config is not None:
            settings = json.loads((source / "config.json").read_text())
            config(settings)
            (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return copy


def drop(name: str) -> Edit:
    return lambda items: items.pop(name)


def put(name: str, value: Any) -> Edit:
    return lambda items: items.update({name: value})


def shift_one_entry(name: str, seed: int = 0) -> Edit:
    """Add a thousandth of the largest entry to one entry."""

    def edit(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[name]
        assert tensor.abs().max() > 0
        tensor.view(-1)[_somewhere(tensor, seed)] += tensor.abs().max() / 1000

    return edit


def set_one_entry(name: str, value: float, seed: int = 0) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[_somewhere(tensors[name], seed)] = value

    return edit


def scale_all(name: str, factor: float) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] *= factor

    return edit


def _somewhere(tensor: Tensor, seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    return int(torch.randint(tensor.numel(), (1,), generator=generator))


# ------------------------------------------------------------------------------------- it passes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_authors_model_verifies(layout: str, verify: Verify, golden_folder: Path) -> None:
    verify(LAYOUTS[layout], golden_folder).assert_passed(gradients=31)


PP3 = ["--pipeline-model-parallel-size", "3"]


@pytest.mark.parametrize(
    "layout",
    [
        (1, []),
        (2, EP2),
        long((4, EP4)),
        (3, PP3),
        long((2, TP2)),
        (4, LAYOUTS["tp2-etp2-ep2"][1]),
    ],
    ids=["ep1", "ep2", "ep4", "pp3", "tp2", "tp2-etp2-ep2"],
)
def test_moe_plus_plus_verifies(
    layout: tuple[int, list[str]], verify: Verify, moepp_folder: Path
) -> None:
    verify(layout, moepp_folder).assert_passed(gradients=42, routers=3)


def test_one_wrong_logit_of_a_router_fails(verify: Verify, edited: Any, moepp_folder: Path) -> None:
    model = edited(golden=shift_one_entry("router_logits.2"), source=moepp_folder)
    verdict = verify((3, PP3), model)
    verdict.assert_failed()
    assert verdict.report["max_router_error"] > 1e-5


def test_logits_of_a_router_that_is_not_there_are_refused(
    verify: Verify, edited: Any, moepp_folder: Path
) -> None:
    beyond = put("router_logits.3", torch.zeros(48, 12))
    verdict = verify(LAYOUTS["ep2"], edited(golden=beyond, source=moepp_folder))
    verdict.assert_refused("has logits of the router of layer (3), which is no MoE layer")


@pytest.mark.parametrize(
    "name",
    [
        f"{FIRST_LAYER}.mlp.moe.gate.wg.0.weight",
        long("model.layers.1.mlp.moe.gate.gate_map.weight"),
        "model.layers.1.mlp.moe.experts.experts.9.constant",
        long(f"{FIRST_LAYER}.mlp.moe.experts.experts.8.wg.weight"),
        "model.layers.2.mlp.moe.experts.experts.1.up_proj.weight",
    ],
)
def test_one_wrong_entry_of_a_gradient_of_moe_plus_plus_fails(
    name: str, verify: Verify, edited: Any, moepp_folder: Path
) -> None:
    model = edited(golden=shift_one_entry(f"grad.{name}"), source=moepp_folder)
    verify(LAYOUTS["ep2"], model).assert_failed("max_grad_error")


@pytest.mark.long
def test_the_command_under_torchrun_ends_with_the_report(golden_folder: Path) -> None:
    golden = str(golden_folder / "golden.safetensors")
    command = ["-m", "grove_megatron", "verify", "--hf", str(golden_folder), "--golden", golden]
    done = launch(torchrun(*command, "--json", *EP2), GROVE_RUNTIME="cpu")
    assert done.code == 0, done.output
    (report,) = [line for line in done.output.splitlines() if line.startswith("{")]
    assert json.loads(report)["grads_compared"] == 31
    assert done.output.count("passed") == 1


def test_a_sharded_folder_verifies_like_the_single_file(verify: Verify, edited: Any) -> None:
    folder = edited()
    _shard(folder)
    assert not (folder / "model.safetensors").exists()
    verify(LAYOUTS["ep1"], folder).assert_passed(gradients=31)


def test_the_expert_bias_that_the_authors_do_not_read_is_accepted(
    verify: Verify, edited: Any
) -> None:
    bias = put(f"{FIRST_LAYER}.mlp.expert_bias", torch.zeros(16))
    verify(LAYOUTS["ep1"], edited(weights=bias)).assert_passed(gradients=31)


def _shard(folder: Path) -> tuple[str, str]:
    """Split ``model.safetensors`` in two with an index, as Hugging Face does; the file names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        held = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(held, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


# ---------------------------------------------------------------------------------- another size


def test_the_plain_torch_model_is_the_authors(golden_folder: Path) -> None:
    config = json.loads((golden_folder / "config.json").read_text())
    config["small_experts_weight"] = 0.05  # a literal in their code
    weights = load_file(golden_folder / "model.safetensors")
    golden = load_file(golden_folder / "golden.safetensors")
    model = tiny_grove.TinyGrove(config, weights)
    ours = model.golden(golden["input_ids"], golden["labels"])
    for name, expected in golden.items():
        # Theirs is fp32 inside norms and softmaxes: a few of its roundings (1.2e-7), nothing more.
        tolerance = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def other_size(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A model of other dimensions, by whether its embeddings are tied."""
    folder = tmp_path_factory.mktemp("other-size")
    return lambda tied: (
        folder / str(tied)
        if (folder / str(tied)).exists()
        else tiny_grove.write_other_size(folder / str(tied), tied=tied)
    )


UNEVEN_PP2 = [*PP2, "--decoder-first-pipeline-num-layers", "1"]


@pytest.mark.parametrize(
    ("tied", "layout"),
    [
        (False, LAYOUTS["ep1"]),
        (False, LAYOUTS["ep2"]),
        long(True, LAYOUTS["ep1"]),
        long(True, LAYOUTS["ep2"]),
        (True, (2, UNEVEN_PP2)),
        long(False, (4, [*UNEVEN_PP2, *EP2])),
    ],
    ids=["ep1", "ep2", "tied-ep1", "tied-ep2", "tied-pp2", "pp2-ep2"],
)
def test_a_model_of_another_size_verifies_with_every_gradient(
    tied: bool, layout: tuple[int, list[str]], verify: Verify, other_size: Any
) -> None:
    model = other_size(tied)
    per_layer = 9 + 3 * (12 + 4)
    verify(layout, model).assert_passed(gradients=3 * per_layer + 2 + (not tied))


@pytest.mark.parametrize("name", ["experts.11.up_proj", long("chunk_experts.3.down_proj")])
def test_an_error_on_the_last_rank_alone_fails_everywhere(
    name: str, verify: Verify, edited: Any, other_size: Any
) -> None:
    wrong = shift_one_entry(f"grad.{FIRST_LAYER}.mlp.{name}.weight")
    model = edited(golden=wrong, source=other_size(False))
    verify(LAYOUTS["ep2"], model).assert_failed("max_grad_error")


# -------------------------------------------------------------------------------------- it fails


def test_one_wrong_logit_fails(verify: Verify, edited: Any) -> None:
    model = edited(golden=shift_one_entry("logits"))
    verify(LAYOUTS["ep1"], model).assert_failed("max_logit_error")


def test_a_wrong_loss_fails(verify: Verify, edited: Any) -> None:
    model = edited(golden=scale_all("loss", 1 + 1e-5))
    verify(LAYOUTS["ep1"], model).assert_failed("loss_error")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens",
        long(f"{FIRST_LAYER}.self_attn.q_proj"),
        long(f"{FIRST_LAYER}.self_attn.q_norm"),
        f"{FIRST_LAYER}.mlp.gate",
        long(f"{FIRST_LAYER}.mlp.experts.1.down_proj"),
        long("model.layers.1.mlp.experts.1.up_proj"),
        "model.layers.1.mlp.chunk_experts.3.gate_proj",
    ],
)
def test_one_wrong_entry_of_one_gradient_fails(name: str, verify: Verify, edited: Any) -> None:
    model = edited(golden=shift_one_entry(f"grad.{name}.weight"))
    verify(LAYOUTS["ep1"], model).assert_failed("max_grad_error")


def test_a_doubled_adjugate_weight_fails(verify: Verify, edited: Any) -> None:
    name = f"{FIRST_LAYER}.mlp.chunk_experts.3.down_proj.weight"
    verdict = verify(LAYOUTS["ep1"], edited(weights=scale_all(name, 2)))
    verdict.assert_failed(*TOLERANCES)


def test_nan_in_the_weights_fails(verify: Verify, edited: Any) -> None:
    wrong = set_one_entry("model.layers.1.self_attn.o_proj.weight", float("nan"))
    verdict = verify(LAYOUTS["ep1"], edited(weights=wrong))
    verdict.assert_failed(*TOLERANCES)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("logits", "max_logit_error"),
        long("loss", "loss_error"),
        long("grad.model.embed_tokens.weight", "max_grad_error"),
    ],
)
def test_nan_in_the_golden_fails(name: str, error: str, verify: Verify, edited: Any) -> None:
    model = edited(golden=set_one_entry(name, float("nan")))
    verify(LAYOUTS["ep1"], model).assert_failed(error)


def test_a_gradient_that_is_not_compared_fails(verify: Verify, edited: Any) -> None:
    name = f"{FIRST_LAYER}.mlp.expert_bias"
    with_bias, with_gradient = put(name, torch.zeros(16)), put(f"grad.{name}", torch.zeros(16))
    verdict = verify(LAYOUTS["ep1"], edited(weights=with_bias, golden=with_gradient))
    verdict.assert_failed()
    assert (verdict.report["grads_compared"], verdict.report["grads_in_file"]) == (31, 32)


@pytest.mark.parametrize("layout", ["tp2", long("ep4")])
def test_a_wrong_gradient_of_one_rank_fails_on_every_rank(
    layout: str, verify: Verify, edited: Any
) -> None:
    # Of 4 ranks the second holds adjugate 3; of 2 tensor-parallel ranks one holds the entry.
    name = "grad.model.layers.1.mlp.chunk_experts.3.gate_proj.weight"
    verdict = verify(LAYOUTS[layout], edited(golden=shift_one_entry(name)))
    verdict.assert_failed("max_grad_error")


@pytest.mark.parametrize("layout", ["ep2", long("tp2")])
def test_one_wrong_logit_fails_on_every_rank(layout: str, verify: Verify, edited: Any) -> None:
    verdict = verify(LAYOUTS[layout], edited(golden=shift_one_entry("logits")))
    verdict.assert_failed("max_logit_error")


# ------------------------------------------------------------------------------------ it refuses


def test_a_missing_weight_is_named(verify: Verify, edited: Any) -> None:
    name = "model.layers.1.mlp.chunk_experts.5.up_proj.weight"
    verdict = verify(LAYOUTS["ep1"], edited(weights=drop(name)))
    verdict.assert_refused(f"{name} (absent) is needed by ")


def test_a_weight_missing_on_one_rank_is_named_by_rank_0(verify: Verify, edited: Any) -> None:
    name = f"{FIRST_LAYER}.mlp.experts.15.up_proj.weight"
    verdict = verify(LAYOUTS["ep2"], edited(weights=drop(name)))
    verdict.assert_refused(f"{name} (absent) is needed by ")


def test_an_extra_weight_is_named(verify: Verify, edited: Any) -> None:
    name = f"{FIRST_LAYER}.mlp.shared_expert.gate_proj.weight"
    verdict = verify(LAYOUTS["ep1"], edited(weights=put(name, torch.zeros(48, 64))))
    verdict.assert_refused(f"{name} in model.safetensors is not known to the model")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{FIRST_LAYER}.mlp.gate.weight", (17, 64)),
        long(f"{FIRST_LAYER}.self_attn.q_proj.weight", (48, 64)),
        (f"{FIRST_LAYER}.self_attn.q_proj.weight", (63, 64)),
        long(f"{FIRST_LAYER}.mlp.experts.15.up_proj.weight", (48, 63)),
        long("model.norm.weight", ()),
    ],
)
def test_a_weight_of_the_wrong_shape_is_named(
    name: str, shape: tuple[int, ...], verify: Verify, edited: Any
) -> None:
    verdict = verify(LAYOUTS["ep1"], edited(weights=put(name, torch.zeros(shape))))
    verdict.assert_refused(name)


@pytest.mark.long
@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [
        ("ep2", f"{FIRST_LAYER}.mlp.experts.15.up_proj.weight", (47, 64)),
        ("tp2", "model.embed_tokens.weight", (127, 64)),
        ("tp2", f"{FIRST_LAYER}.mlp.experts.15.down_proj.weight", (64, 47)),
    ],
)
def test_a_weight_of_the_wrong_shape_is_named_by_rank_0(
    layout: str, name: str, shape: tuple[int, ...], verify: Verify, edited: Any
) -> None:
    verdict = verify(LAYOUTS[layout], edited(weights=put(name, torch.zeros(shape))))
    verdict.assert_refused(name)


def test_a_missing_file_of_the_index_is_named(verify: Verify, edited: Any) -> None:
    folder = edited()
    _, second = _shard(folder)
    (folder / second).unlink()
    verify(LAYOUTS["ep1"], folder).assert_refused(f"{folder / second} is missing")


def test_a_golden_without_logits_is_refused(verify: Verify, edited: Any) -> None:
    verdict = verify(LAYOUTS["ep1"], edited(golden=drop("logits")))
    verdict.assert_refused("golden.safetensors", "logits is missing")


def test_a_gradient_of_an_unknown_parameter_is_named(verify: Verify, edited: Any) -> None:
    name = "model.layers.9.mlp.gate.weight"
    verdict = verify(LAYOUTS["ep1"], edited(golden=put(f"grad.{name}", torch.ones(16, 64))))
    verdict.assert_refused("golden.safetensors", name)


def test_a_config_without_experts_is_refused(verify: Verify, edited: Any) -> None:
    verdict = verify(LAYOUTS["ep1"], edited(config=drop("num_experts")))
    verdict.assert_refused("config.json", "num_experts (absent) is needed")


def test_a_golden_that_is_not_there_is_named(verify: Verify, edited: Any) -> None:
    folder = edited()
    (folder / "golden.safetensors").unlink()
    verdict = verify(LAYOUTS["ep2"], folder)
    verdict.assert_refused(f"--golden ({folder / 'golden.safetensors'}) is not a file")
