"""``grove import`` and ``grove export``: nothing is lost, whoever reads or wrote the result."""

import hashlib
import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grove_megatron.checkpoint.hf_names import NameTable
from grove_megatron.checkpoint.safetensors_io import bytes_of
from grove_megatron.checkpoint.source import hf_source
from grove_megatron.checkpoint.transforms import TensorParallel
from tests.ranks import Ranks

from . import qwen3_models
from .tiny_grove import random_weights
from .weights_folders import CODE, INDEX, SMALL, done, grove, tensors_of, write_shards, write_small

EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
TP2 = ["--tensor-model-parallel-size", "2"]
ETP1 = ["--expert-tensor-parallel-size", "1"]
PP2 = ["--pipeline-model-parallel-size", "2"]


def long(*values: Any, id: str | None = None) -> Any:
    """A parameter of the whole matrix only."""
    return pytest.param(*values, marks=pytest.mark.long, id=id)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bytes_of(found[name]) == bytes_of(tensor), name


def settings_of(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return settings


# ---------------------------------------------------------------------- there and back again


@pytest.fixture(scope="module")
def imported(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a Megatron checkpoint."""
    folder = tmp_path_factory.mktemp("imported") / "megatron"
    done("import", "--hf", golden_folder, "--save", folder)
    return folder


def test_export_is_the_inverse_of_import(
    imported: Path, golden_folder: Path, tmp_path: Path
) -> None:
    result = done("export", "--load", imported, "--hf", tmp_path / "out", "--json")
    expected = tensors_of(golden_folder)
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "tensors": 165,
        "parameters": sum(t.numel() for t in expected.values()),
        "bytes": sum(t.nbytes for t in expected.values()),
    }
    assert_same(tensors_of(tmp_path / "out"), expected)
    exported = settings_of(tmp_path / "out")
    assert exported == settings_of(golden_folder) | CODE
    assert list(exported) == [*settings_of(golden_folder), *CODE]
    done("export", "--load", imported, "--hf", tmp_path / "plain", "--no-modeling")
    assert settings_of(tmp_path / "plain") == settings_of(golden_folder)
    assert not list((tmp_path / "plain").glob("*.py"))


@pytest.mark.parametrize("dtype", ["bf16", long("fp16")])
@pytest.mark.parametrize("cast_on", ["import", "export"])
def test_a_cast_is_torchs(cast_on: str, dtype: str, imported: Path, golden_folder: Path, tmp_path):
    cast = ["--dtype", dtype]
    if cast_on == "import":
        done("import", "--hf", golden_folder, "--save", tmp_path / "megatron", *cast)
        done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    else:
        done("export", "--load", imported, "--hf", tmp_path / "out", *cast)
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    expected = {n: t.to(torch_dtype) for n, t in tensors_of(golden_folder).items()}
    assert_same(tensors_of(tmp_path / "out"), expected)
    name = str(torch_dtype).removeprefix("torch.")
    assert settings_of(tmp_path / "out") == settings_of(golden_folder) | CODE | {
        "torch_dtype": name
    }


def test_small_shards_have_an_index(imported: Path, golden_folder: Path, tmp_path: Path) -> None:
    size = 200_000
    done("export", "--load", imported, "--hf", tmp_path / "out", "--max-shard-size", size / 2**30)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 10
    assert max(f.stat().st_size for f in files) < size + 5000
    assert_same(tensors_of(tmp_path / "out"), tensors_of(golden_folder))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    total = sum(t.nbytes for t in tensors_of(golden_folder).values())
    assert index["metadata"]["total_size"] == total


def test_the_other_files_come_along(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "hf")
    others = {
        "tokenizer.json": b'{"model": "none"}',
        "tokenizer_config.json": b"{}",
        "merges.txt": "ü\n".encode(),
        "LICENSE": b"Apache",
        "modeling_grove_moe.py": b"raise SystemExit",
        "generation_config.json": b"{}",
    }
    for name, content in others.items():
        (folder / name).write_bytes(content)
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / "folder").mkdir()
    done("import", "--hf", folder, "--save", tmp_path / "megatron")
    export = ["export", "--load", tmp_path / "megatron", "--hf"]
    done(*export, tmp_path / "out", "--no-modeling")
    ours = done(*export, tmp_path / "ours")
    assert "modeling_grove_moe.py of" in ours.stderr
    assert b"GroveMoeForCausalLM" in (tmp_path / "ours" / "modeling_grove_moe.py").read_bytes()
    for place in (tmp_path / "megatron" / "hf", tmp_path / "out"):
        for name, content in others.items():
            assert (place / name).read_bytes() == content
        assert not (place / "pytorch_model.bin").exists()
    assert settings_of(tmp_path / "out") == SMALL


def test_the_manifest_says_what_was_written(imported: Path, golden_folder: Path, tmp_path: Path):
    done("export", "--load", imported, "--hf", tmp_path / "out", "--max-shard-size", "1e-3")
    expected = tensors_of(golden_folder)
    for place in (imported / "release", tmp_path / "out"):
        manifest = json.loads((place / "grove_manifest.json").read_text())
        assert manifest["counts"] == {
            "tensors": len(expected),
            "parameters": sum(t.numel() for t in expected.values()),
            "bytes": sum(t.nbytes for t in expected.values()),
        }
        assert manifest["skipped"] == []
        assert manifest["tensors"].keys() == expected.keys()
        for name, tensor in expected.items():
            said = manifest["tensors"][name]
            assert (said["dtype"], said["shape"]) == ("F32", list(tensor.shape))
            assert said["bytes"] == 4 * prod(tensor.shape)
            assert said["sha256"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    weight_map = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    manifest = json.loads((tmp_path / "out" / "grove_manifest.json").read_text())
    assert {name: t["file"] for name, t in manifest["tensors"].items()} == weight_map
    assert manifest["made_by"]["load"] == imported.name
    # It is uploaded with the weights.
    assert str(imported.parent) not in json.dumps(manifest)


def with_bias(folder: Path) -> dict[str, Tensor]:
    """Give a small model expert biases, in fp32 beside weights in bf16."""
    tensors = {n: t.bfloat16() for n, t in tensors_of(folder).items()}
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.expert_bias"] = torch.tensor([0.25, -0.5, 0.1, layer])
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(SMALL | {"torch_dtype": "bfloat16"}))
    return tensors


@pytest.mark.parametrize("cast", [[], ["--dtype", "bf16"]], ids=["kept", "cast"])
def test_the_bias_of_the_experts_comes_back_in_fp32(cast: list[str], tmp_path: Path) -> None:
    tensors = with_bias(write_small(tmp_path / "hf"))
    done("import", "--hf", tmp_path / "hf", "--save", tmp_path / "megatron", *cast)
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out", *cast)
    assert_same(tensors_of(tmp_path / "out"), tensors)
    flags = (tmp_path / "megatron" / "megatron_flags.txt").read_text().split()
    assert "--moe-router-enable-expert-bias" in flags


def test_settings_the_released_code_ignores_are_written_only_when_asked_for(tmp_path: Path):
    settings = SMALL | {
        "num_experts": 8,
        "num_experts_per_group": 4,
        "parallel_expert_intermediate_size": 16,
        "small_experts_weight": 0.1,
    }
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
    tensors = random_weights(settings, seed=3)
    write_shards(tmp_path / "hf", tensors)
    done("import", "--hf", tmp_path / "hf", "--save", tmp_path / "megatron")
    code = tmp_path / "code"
    done("export", "--load", tmp_path / "megatron", "--hf", code)
    assert settings_of(code) == settings | CODE
    export = ["export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out", "--no-modeling"]
    result = grove(*export)
    assert result.exit_code == 2
    assert "3 problems" in result.stderr
    for said in (
        "num_experts_per_group (4)",
        "parallel_expert_intermediate_size (16)",
        "small_experts_weight (0.1)",
    ):
        assert said in result.stderr
    assert not (tmp_path / "out").exists()
    done(*export, "--write-grove-keys")
    assert_same(tensors_of(tmp_path / "out"), tensors)
    assert settings_of(tmp_path / "out") == settings
    done("import", "--hf", tmp_path / "out", "--save", tmp_path / "again")
    again = ["export", "--load", tmp_path / "again", "--hf", tmp_path / "back", "--no-modeling"]
    done(*again, "--write-grove-keys")
    assert_same(tensors_of(tmp_path / "back"), tensors)


def test_a_config_is_written_where_there_was_none(
    imported: Path, golden_folder: Path, tmp_path: Path
) -> None:
    """As for a model that was never a Hugging Face one."""
    shutil.copytree(imported, tmp_path / "megatron")
    shutil.rmtree(tmp_path / "megatron" / "hf")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    expected = hf_source(golden_folder).architecture
    assert hf_source(tmp_path / "out").architecture == expected
    assert_same(tensors_of(tmp_path / "out"), tensors_of(golden_folder))


def test_what_is_not_of_a_moe_plus_plus_is_refused(moepp_folder: Path, tmp_path: Path) -> None:
    done("import", "--hf", moepp_folder, "--save", tmp_path / "megatron")
    export = ["export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out"]
    other = tmp_path / "other"
    other.mkdir()
    config = settings_of(moepp_folder) | {"moe_use_mixtral_gating": True}
    (other / "config.json").write_text(json.dumps(config))
    for more, said in (
        (["--hf-config", other], "grove_zero_expert_weight (the default) of"),
        (["--fused-experts"], "--fused-experts is a layout of Qwen3-MoE"),
    ):
        result = grove(*export, *more)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    grouping = ["--grouping", tmp_path / "groups.json"]
    parent = grove("upcycle", "--hf", moepp_folder, "--save", tmp_path / "child", *grouping)
    assert parent.exit_code == 2
    assert "is not handled beside experts without an FFN" in " ".join(parent.stderr.split())
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "child").exists()


def test_moe_plus_plus_comes_back(moepp_folder: Path, tmp_path: Path) -> None:
    done("import", "--hf", moepp_folder, "--save", tmp_path / "megatron")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert_same(tensors_of(tmp_path / "out"), tensors_of(moepp_folder))
    assert settings_of(tmp_path / "out") == settings_of(moepp_folder)
    shutil.rmtree(tmp_path / "megatron" / "hf")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "new")
    expected = hf_source(moepp_folder).architecture
    assert hf_source(tmp_path / "new").architecture == expected


# ----------------------------------------------------------------------- Megatron's own loader


@pytest.fixture
def verify(ranks: Ranks, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``grove verify --json`` at a layout; its report, if it passed."""

    def verify(world_size: int, *arguments: Any) -> dict[str, Any]:
        folder = tmp_path / "verify"
        argv = ["verify", "--json", *map(str, arguments)]
        target = "tests.integration.verify_job:grove"
        ranks.run(world_size, target, str(folder), argv, folder=folder).check()
        report: dict[str, Any] = json.loads((folder / "rank0.stdout").read_text().splitlines()[-1])
        assert 0 < report["max_logit_error"] < 1e-5
        return report

    return verify


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [long(1, []), (2, EP2), long(4, EP4), long(2, TP2), long(2, PP2), long(4, [*TP2, *EP2])],
    ids=["ep1", "ep2", "ep4", "tp2", "pp2", "tp2-ep2"],
)
def test_megatron_loads_an_import_at_any_layout(
    world_size: int, layout: list[str], imported: Path, golden_folder: Path, verify: Any
) -> None:
    golden = golden_folder / "golden.safetensors"
    report = verify(world_size, "--load", imported, "--golden", golden, *layout)
    assert report["grads_compared"] == report["grads_in_file"] == 31


# --------------------------------------------------------------------------------------- Qwen3


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model that transformers saved, in one of two layouts of its experts."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qwen3")

    def saved(name: str, fused: bool = False) -> Path:
        place = folder / f"{name}-{fused}"
        return place if place.exists() else qwen3_models.save(name, place, fused=fused)

    return saved


def test_transformers_saves_both_layouts(qwen3: Any) -> None:
    single, fused = tensors_of(qwen3("moe")), tensors_of(qwen3("moe", fused=True))
    name = "model.layers.2.mlp.experts"
    assert fused[f"{name}.gate_up_proj"].shape == (8, 40, 48)
    assert torch.equal(fused[f"{name}.gate_up_proj"][5, 20:], single[f"{name}.5.up_proj.weight"])
    assert f"{name}.gate_up_proj" not in single


@pytest.mark.parametrize(
    ("name", "fused", "layout"),
    [
        ("moe", False, EP2),
        long("moe", False, []),
        long("moe", True, []),
        long("moe", True, EP2),
        ("mixed", False, []),
        long("mixed", True, EP2),
        long("dense", False, []),
        long("dense-tied", False, PP2),
    ],
)
def test_megatron_computes_what_transformers_does(
    name: str, fused: bool, layout: list[str], qwen3: Any, verify: Any
) -> None:
    report = verify(2 if layout else 1, "--hf", qwen3(name, fused), *layout)
    assert report["grads_compared"] == len(tensors_of(qwen3(name)))


@pytest.mark.parametrize("to_fused", [False, True], ids=["to-single", "to-fused"])
@pytest.mark.parametrize("from_fused", [False, True], ids=["from-single", "from-fused"])
def test_a_qwen3_moe_comes_back_in_either_layout(
    from_fused: bool, to_fused: bool, qwen3: Any, tmp_path: Path
) -> None:
    done("import", "--hf", qwen3("moe", from_fused), "--save", tmp_path / "megatron")
    layout = ["--fused-experts"] if to_fused else []
    small = ["--max-shard-size", "1e-4"]
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out", *layout, *small)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert_same(tensors_of(tmp_path / "out"), tensors_of(qwen3("moe", to_fused)))
    assert settings_of(tmp_path / "out") == settings_of(qwen3("moe"))
    assert torch.equal(qwen3_models.logits(tmp_path / "out"), qwen3_models.logits(qwen3("moe")))


@pytest.mark.parametrize("name", ["mixed", "dense", "dense-tied"])
def test_other_qwen3_models_come_back(name: str, qwen3: Any, tmp_path: Path) -> None:
    done("import", "--hf", qwen3(name), "--save", tmp_path / "megatron")
    done("export", "--load", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert_same(tensors_of(tmp_path / "out"), tensors_of(qwen3(name)))
    assert settings_of(tmp_path / "out") == settings_of(qwen3(name))
    assert torch.equal(qwen3_models.logits(tmp_path / "out"), qwen3_models.logits(qwen3(name)))


@pytest.mark.parametrize("name", ["dense", "grove"])
def test_fused_experts_are_refused_where_nobody_reads_them(
    name: str, qwen3: Any, imported: Path, tmp_path: Path
) -> None:
    load = imported
    if name == "dense":
        load = tmp_path / "megatron"
        done("import", "--hf", qwen3("dense"), "--save", load)
    result = grove("export", "--load", load, "--hf", tmp_path / "out", "--fused-experts")
    assert result.exit_code == 2
    assert "--fused-experts is a layout of Qwen3-MoE" in result.stderr
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ training

# Mock data ends with token --vocab-size, which the embedding has to have.
TRAIN = (
    "--micro-batch-size 1 --global-batch-size 4 --seq-length 16 "
    "--weight-decay 0 --tokenizer-type NullTokenizer --mock-data --split 100,0,0 "
    "--no-create-attention-mask-in-dataloader --log-interval 1 --eval-interval 1000 "
    "--eval-iters 0 --num-workers 0"
).split()
STILL = ["--lr", "0", "--min-lr", "0", "--moe-router-bias-update-rate", "0"]
SP = ["--sequence-parallel"]
GROUPED, SEQUENTIAL = (["--grove-kernel", kernel] for kernel in ("grouped", "megatron"))
DISTRIBUTED = ["--use-distributed-optimizer"]
PADDED = ["--padded-vocab-size", "64"]
# As the paper trains it: the authors' code has no capacity.
OF_MOEPP = "--moe-expert-capacity-factor 1.1 --grove-heterogeneous-loss-coeff 0.01".split()


@pytest.fixture
def train(ranks: Ranks, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Train from a checkpoint through the launcher; what every rank recorded."""

    def train(
        world_size: int, load: Path, vocab_size: int, *flags: str, steps: int = 1
    ) -> list[dict[str, Any]]:
        folder = tmp_path / "job"
        # The last of two values counts.
        vocabulary = ["--vocab-size", str(vocab_size - 1)]
        argv = [*TRAIN, "--train-iters", str(steps), "--load", str(load), *flags, *vocabulary]
        target = "tests.integration.recorded_run:train"
        job = ranks.run(world_size, target, str(folder), argv, folder=folder)
        results: list[dict[str, Any]] = job.check().results()
        assert len(results[0]["losses"]) == steps
        return results

    return train


ONLY = ["--grove-train-only", "adjugates"]


# With the whole state of an optimizer beside the weights, or that of a part.
@pytest.mark.parametrize("only", [[], ONLY], ids=["all", "adjugates"])
def test_a_padded_checkpoint_is_verified_by_its_own_folder(
    only: list[str], imported: Path, golden_folder: Path, train: Any, verify: Any, tmp_path: Path
) -> None:
    flags = [*flags_of(imported), *STILL, *only, "--padded-vocab-size", "256"]
    train(1, imported, 128, *flags, "--save", str(tmp_path / "saved"), "--save-interval", "1")
    one = tmp_path / "saved" / "iter_0000001"
    # Not what the tracker names.
    (tmp_path / "saved" / "latest_checkpointed_iteration.txt").write_text("7")
    report = verify(1, "--load", one, "--golden", golden_folder / "golden.safetensors")
    assert report["grads_compared"] == report["grads_in_file"] == 31


def flags_of(megatron: Path) -> list[str]:
    return (megatron / "megatron_flags.txt").read_text().split()


def sources(name: str, folder: Path, qwen3: Any) -> tuple[Path, int]:
    """A Hugging Face folder to train from, and its vocabulary."""
    if name == "moe++":
        return Path(__file__).parents[1] / "data" / "moepp-tiny", 120
    if name.startswith("grove"):
        write_small(folder)
        if name == "grove-bias":
            with_bias(folder)
        return folder, 40
    return qwen3(name), 96


@pytest.mark.parametrize(
    ("name", "world_size", "flags"),
    [
        long("grove", 2, [*EP2, *GROUPED, *DISTRIBUTED], id="ep2"),
        long("grove", 2, [*EP2, *SEQUENTIAL], id="ep2-sequential"),
        long("grove", 2, [*TP2, *SP, *SEQUENTIAL, *PADDED], id="tp2-padded-sequential"),
        long("grove", 2, [*TP2, *SP, *GROUPED], id="tp2"),
        pytest.param("grove-bias", 2, [*PP2, *GROUPED, "--bf16"], id="pp2-bias-bf16"),
        long("grove-bias", 4, [*PP2, *EP2, *SEQUENTIAL, "--bf16", *DISTRIBUTED], id="pp2-ep2-bf16"),
        long("grove-bias", 2, [*TP2, *SP, *EP2, *ETP1, *GROUPED, "--bf16"], id="tp2-ep2-bf16"),
        long("moe", 2, EP2, id="plain-ep2"),
        long("moe", 1, DISTRIBUTED, id="plain-distributed"),
        long("mixed", 2, EP2, id="mixed-ep2"),
        long("mixed", 2, [*PP2], id="mixed-pp2"),
        long("mixed", 2, [*EP2, "--grove-dispatch"], id="mixed-ep2-grove-dispatch"),
        long("dense", 2, [*TP2, "--padded-vocab-size", "128"], id="dense-tp2-padded"),
        long("dense-tied", 2, PP2, id="dense-tied-pp2"),
        pytest.param("moe++", 2, [*EP2, *GROUPED, *DISTRIBUTED, *OF_MOEPP], id="moe++-ep2"),
        long("moe++", 2, [*TP2, *SP, *SEQUENTIAL, *OF_MOEPP], id="moe++-tp2-sequential"),
    ],
)
def test_what_training_saves_at_any_layout_is_exported(
    name: str, world_size: int, flags: list[str], train: Any, qwen3: Any, tmp_path: Path
) -> None:
    hf, vocab_size = sources(name, tmp_path / "hf", qwen3)
    megatron, saved, out = (tmp_path / n for n in ("megatron", "saved", "out"))
    done("import", "--hf", hf, "--save", megatron)
    model = [*flags_of(megatron), *STILL, *flags]
    train(world_size, megatron, vocab_size, *model, "--save", str(saved), "--save-interval", "1")
    done("export", "--load", saved, "--hf", out, "--hf-config", hf)
    assert_same(tensors_of(out), tensors_of(hf))
    code = CODE if name.startswith("grove") else {}
    biased = {"use_expert_bias": True} if name == "grove-bias" else {}
    assert settings_of(out) == settings_of(hf) | code | biased


# What Megatron does not take from a checkpoint.
NOT_IN_ARGS = (
    "--moe-token-dispatcher-type alltoall --moe-router-load-balancing-type none "
    "--moe-router-dtype fp32 --qk-layernorm --norm-epsilon 1e-6"
).split()


def assert_model_has(parameters: dict[str, str], hf: Path) -> None:
    """Hashes of the parameters of a model on one rank are those of a folder's tensors."""
    tensors, table = tensors_of(hf), NameTable(hf_source(hf).architecture)
    used = set()
    for name, digest in parameters.items():
        names, transform = table.find(name)
        whole = transform.local([tensors[n] for n in names], TensorParallel(0, 1))
        assert hashlib.sha256(bytes_of(whole.contiguous())).hexdigest() == digest, name
        used |= set(names)
    assert used == {n for n in tensors if not n.endswith("expert_bias")}


@pytest.mark.parametrize("how", [long("flags"), "use-checkpoint-args"])
def test_training_starts_from_exactly_the_imported_weights(
    how: str, train: Any, tmp_path: Path
) -> None:
    hf, megatron = write_small(tmp_path / "hf"), tmp_path / "megatron"
    done("import", "--hf", hf, "--save", megatron)
    flags = flags_of(megatron) if how == "flags" else ["--use-checkpoint-args", *NOT_IN_ARGS]
    (still,) = train(1, megatron, 40, *flags, *STILL)
    assert_model_has(still["parameters"], hf)


def test_trained_weights_are_exported(train: Any, tmp_path: Path) -> None:
    hf, megatron, saved = write_small(tmp_path / "hf"), tmp_path / "megatron", tmp_path / "saved"
    done("import", "--hf", hf, "--save", megatron)
    learn = ["--lr", "1e-2", "--lr-decay-style", "constant"]
    save = ["--save", str(saved), "--save-interval", "1"]
    (trained,) = train(1, megatron, 40, *flags_of(megatron), *learn, *save)
    done("export", "--load", saved, "--hf", tmp_path / "out", "--hf-config", hf)
    assert_model_has(trained["parameters"], tmp_path / "out")
    changed = [
        name
        for name, tensor in tensors_of(tmp_path / "out").items()
        if not torch.equal(tensor, tensors_of(hf)[name])
    ]
    assert len(changed) > 50
    # An iteration by its number, and by its folder.
    for i, load in enumerate(([saved, "--ckpt-step", "1"], [saved / "iter_0000001"])):
        done("export", "--load", *load, "--hf", tmp_path / f"again{i}", "--hf-config", hf)
        assert_same(tensors_of(tmp_path / f"again{i}"), tensors_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "world_size", "flags"),
    [
        ("grove-bias", 2, [*EP2, *GROUPED, "--bf16", *DISTRIBUTED]),
        long("grove-bias", 2, [*PP2, *SEQUENTIAL, "--bf16"]),
        long("grove", 2, [*TP2, *SP, *GROUPED, *DISTRIBUTED]),
    ],
    ids=["ep2-bf16-distributed", "pp2-bf16-sequential", "tp2"],
)
def test_what_is_frozen_is_exported_as_it_was(
    name: str, world_size: int, flags: list[str], train: Any, tmp_path: Path
) -> None:
    """After ten steps, bit for bit, an expert bias too; and every adjugate has moved."""
    hf, vocab_size = sources(name, tmp_path / "hf", None)
    megatron, saved, out = (tmp_path / n for n in ("megatron", "saved", "out"))
    done("import", "--hf", hf, "--save", megatron)
    learn = ["--lr", "1e-2", "--lr-decay-style", "constant", *ONLY, *flags]
    save = ["--save", str(saved), "--save-interval", "10"]
    train(world_size, megatron, vocab_size, *flags_of(megatron), *learn, *save, steps=10)
    done("export", "--load", saved, "--hf", out, "--hf-config", hf)
    before, after = tensors_of(hf), tensors_of(out)
    frozen = {n for n in before if "chunk_experts" not in n}
    assert_same({n: after[n] for n in frozen}, {n: before[n] for n in frozen})
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == before.keys() - frozen != set()
    # What came out goes in, and comes out once more.
    done("import", "--hf", out, "--save", tmp_path / "again")
    done("export", "--load", tmp_path / "again", "--hf", tmp_path / "out again")
    assert_same(tensors_of(tmp_path / "out again"), after)
    assert made_by(out)["train_only"] == ["adjugates"]
    assert "train_only" not in made_by(tmp_path / "out again")


def made_by(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "grove_manifest.json").read_text())
    return manifest["made_by"]
