"""The entries that a checkpoint is written with are those of a real model, at any layout."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from grove_megatron.checkpoint.checked import Plan
from grove_megatron.checkpoint.megatron_args import megatron_flags
from grove_megatron.checkpoint.sinks import MegatronSink
from grove_megatron.checkpoint.units import Unit, hf_shapes, units
from grove_megatron.model.architecture import Architecture
from tests.ranks import Ranks
from tests.unit.checkpoint.architectures import with_local_experts

DENSE = Architecture(
    hidden_size=16,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=6,
    vocab_size=48,
    max_position_embeddings=32,
    norm_epsilon=1e-6,
    rotary_base=10000.0,
    tied_embeddings=False,
    qk_layernorm=True,
    moe_layers=(False,) * 4,
    ffn_hidden_size=20,
)
PLAIN = replace(
    DENSE,
    moe_layers=(True,) * 4,
    ffn_hidden_size=0,
    num_experts=8,
    moe_ffn_hidden_size=12,
    topk=2,
)
GROVE = replace(
    PLAIN, num_groups=4, adjugate_ffn_hidden_size=10, adjugate_scale=0.1, expert_bias=True
)
MIXED = {"moe_layers": (True, False, True, True), "ffn_hidden_size": 20}
MODELS = {
    "grove": GROVE,
    "grove-softmax": replace(GROVE, expert_bias=False),
    "plain": replace(PLAIN, normalized_topk=False),
    "mixed": replace(PLAIN, **MIXED),
    "mixed-grove": replace(GROVE, **MIXED),
    "dense": DENSE,
    "tied": replace(DENSE, tied_embeddings=True),
    "moe++": with_local_experts(
        DENSE, 8, 12, mixtral_gating=False, two_layer_gate=True, norm_std=None, multiplied=True
    ),
    "moe++-linear": with_local_experts(
        DENSE, 8, 12, mixtral_gating=True, two_layer_gate=False, norm_std=2.0, multiplied=False
    ),
    "tied-plain": replace(PLAIN, tied_embeddings=True),
}
GROUPED, SEQUENTIAL = (["--grove-kernel", kernel] for kernel in ("grouped", "megatron"))
EP2 = ["--expert-model-parallel-size", "2"]
TP2, SP = ["--tensor-model-parallel-size", "2"], ["--sequence-parallel"]
PP2 = ["--pipeline-model-parallel-size", "2"]

Results = list[dict[str, Any]]
Piece = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def saved(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """What the ranks of a job would save, each job run once."""
    done: dict[Any, Results] = {}

    def run(name: str, world_size: int, flags: list[str]) -> Results:
        case = (name, world_size, tuple(flags))
        if case not in done:
            folder = tmp_path_factory.mktemp(name)
            argv = [*megatron_flags(MODELS[name]), *flags]
            target = "tests.multirank.entry_cases:saved"
            job = ranks.run(world_size, target, str(folder), argv, folder=folder)
            done[case] = job.check().results()
        return done[case]

    return run


def pieces_of(results: Results) -> set[Piece]:
    """Key, global shape, offset and shape of what all ranks save."""
    return {
        (key, tuple(whole), tuple(offset), tuple(shape))
        for result in results
        for key, whole, offset, shape in result["tensors"]
    }


def key_in(unit: Unit, keys: set[str]) -> str:
    """The one of a unit's two keys that this model asks for."""
    (key,) = {unit.key, unit.also} & keys
    assert key is not None
    return key


def predicted(architecture: Architecture, keys: set[str]) -> set[Piece]:
    """The chunks that are written at tensor-parallel size 1."""
    found = set()
    for unit in units(architecture):
        tensors = [torch.empty(shape) for shape in unit.shapes]
        for row, rows in unit.transform.chunks(tensors):
            offset = (*unit.place, row, *(0 for _ in unit.shape[1:]))
            shape = (*(1 for _ in unit.place), *rows.shape)
            found.add((key_in(unit, keys), unit.global_shape, offset, tuple(shape)))
    return found


@pytest.mark.parametrize(
    ("name", "world_size", "flags"),
    [
        *((name, 1, []) for name in MODELS),
        ("grove", 2, [*EP2, *SEQUENTIAL]),
        ("tied", 2, PP2),
        ("moe++", 2, [*EP2, *SEQUENTIAL]),
        pytest.param("plain", 2, EP2, marks=pytest.mark.long),
        pytest.param("grove-softmax", 2, [*PP2, *GROUPED], marks=pytest.mark.long),
        pytest.param("mixed-grove", 2, [*EP2, *GROUPED], marks=pytest.mark.long),
        pytest.param("mixed-grove", 4, [*PP2, *EP2, *SEQUENTIAL], marks=pytest.mark.long),
    ],
)
def test_a_model_saves_the_chunks_that_are_written(
    name: str, world_size: int, flags: list[str], saved: Any
) -> None:
    found = pieces_of(saved(name, world_size, flags))
    expected = predicted(MODELS[name], {key for key, *_ in found})
    assert found == expected


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("grove", [*SP, *GROUPED]),
        pytest.param("grove", [*SP, *SEQUENTIAL], marks=pytest.mark.long),
        pytest.param("mixed-grove", [*SP, *GROUPED], marks=pytest.mark.long),
        # Without TransformerEngine, Megatron's own norms refuse sequence parallelism.
        pytest.param("dense", [], marks=pytest.mark.long),
    ],
)
def test_with_tensor_parallelism_the_entries_are_the_same(
    name: str, flags: list[str], saved: Any
) -> None:
    found = {(key, whole) for key, whole, *_ in pieces_of(saved(name, 2, [*TP2, *flags]))}
    keys = {key for key, _ in found}
    assert found == {(key_in(u, keys), u.global_shape) for u in units(MODELS[name])}


@pytest.mark.parametrize("name", MODELS)
def test_every_object_that_a_model_asks_for_is_written(name: str, saved: Any) -> None:
    (result,) = saved(name, 1, [])
    architecture = MODELS[name]
    plans = {n: Plan(s, torch.float32) for n, s in hf_shapes(architecture).items()}
    written = MegatronSink(plans, list(units(architecture)))._extra_states()
    assert len(set(written)) == len(written)
    assert result["objects"]
    assert set(result["objects"]) <= set(written)


def test_both_storages_are_looked_at(saved: Any) -> None:
    storages = {"GroupedExperts", "SequentialMLP"}
    (grouped,), (sequential, _) = saved("grove", 1, []), saved("grove", 2, [*EP2, *SEQUENTIAL])
    assert storages & set(grouped["modules"]) == {"GroupedExperts"}
    assert storages & set(sequential["modules"]) == {"SequentialMLP"}
