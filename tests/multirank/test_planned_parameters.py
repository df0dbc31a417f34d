"""The planner's parameters against those of the models that Megatron builds, rank by rank."""

from pathlib import Path
from typing import Any

import pytest

from grove_megatron.parts import registry
from tests.ranks import Ranks

EP2 = "--expert-model-parallel-size 2"
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
TP4 = "--tensor-model-parallel-size 4 --sequence-parallel"
PP2 = "--pipeline-model-parallel-size 2"
LATENT = (
    "--multi-latent-attention --kv-lora-rank 10 --qk-head-dim 6 --qk-pos-emb-head-dim 4 "
    "--v-head-dim 7"
)
# Of all parts that there are.
WITH_WEIGHTS = " ".join(part.tried for part in registry.parts() if part.weights)
TIED, BIASES, PLAIN = "tied", "biases", "plain"

# Name -> ranks, flags. Embeddings are apart, linear layers without biases, experts in groups; but
# for these words.
LAYOUTS = {
    "latent attention, TP2 PP2": (
        4,
        f"{TP2} {PP2} {LATENT} --q-lora-rank 12 --qk-layernorm --moe-layer-freq [0,1,1,1] "
        "--ffn-hidden-size 40 --expert-tensor-parallel-size 1",
    ),
    "EP2, query and key norms, query groups": (
        2,
        f"{EP2} --qk-layernorm --group-query-attention --num-query-groups 2 --kv-channels 12",
    ),
    "TP2 EP2 ETP1, a shared expert": (
        2,
        f"{TP2} {EP2} --expert-tensor-parallel-size 1 --moe-shared-expert-intermediate-size 20",
    ),
    "TP2 ETP2, tied": (2, f"{TP2} {TIED}"),
    "PP2 EP2, one dense layer": (
        4,
        f"{PP2} {EP2} --moe-layer-freq [0,1,1,1] --ffn-hidden-size 40",
    ),
    "TP2 EP2 ETP1, parts of the router with weights": (
        2,
        f"{TP2} {EP2} --expert-tensor-parallel-size 1 {WITH_WEIGHTS}",
    ),
    "MTP, expert bias": (
        1,
        "--mtp-num-layers 1 --moe-router-enable-expert-bias --moe-router-score-function sigmoid",
    ),
}
MORE = {
    "one rank": (1, ""),
    "latent attention, queries projected, TP2": (2, f"{TP2} {LATENT}"),
    "latent attention, no norms, PP2, tied": (2, f"{PP2} {LATENT} --q-lora-rank 12 {TIED}"),
    "latent attention, LayerNorm, biases, MTP, TP2 EP2 ETP1": (
        2,
        f"{TP2} {EP2} --expert-tensor-parallel-size 1 {LATENT} --q-lora-rank 12 --qk-layernorm "
        f"--normalization LayerNorm {BIASES} --mtp-num-layers 1 --softmax-type learnable",
    ),
    "latent attention, plain experts": (
        2,
        f"{EP2} {LATENT} --q-lora-rank 12 {PLAIN} --grove-dispatch",
    ),
    "PP2, every other layer dense": (2, f"{PP2} --moe-layer-freq 2"),
    "a gated shared expert": (
        1,
        "--moe-shared-expert-intermediate-size 20 --moe-shared-expert-gate",
    ),
    "tied": (1, TIED),
    "tied, PP2": (2, f"{PP2} {TIED}"),
    "EP4 of groups of two": (4, "--expert-model-parallel-size 4 --use-distributed-optimizer"),
    "TP2 EP2 ETP2": (4, f"{TP2} {EP2}"),
    "TP2 EP4 ETP1, two pipelines": (
        8,
        f"{TP2} {PP2} --expert-model-parallel-size 4 --expert-tensor-parallel-size 1",
    ),
    "TP4 of two query groups": (
        4,
        "--tensor-model-parallel-size 4 --sequence-parallel --group-query-attention "
        "--num-query-groups 2",
    ),
    "more layers on the first stage": (2, f"{PP2} --decoder-first-pipeline-num-layers 3"),
    "fewer layers on the last of three": (
        3,
        "--pipeline-model-parallel-size 3 --num-layers 5 --decoder-last-pipeline-num-layers 1",
    ),
    "two chunks a stage": (2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1"),
    "the embedding as a layer": (
        2,
        f"{PP2} --num-layers 5 --account-for-embedding-in-pipeline-split",
    ),
    "embedding and loss as layers, two chunks": (
        2,
        f"{PP2} --num-layers 6 --num-virtual-stages-per-pipeline-rank 2 "
        "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    ),
    "uneven, two chunks": (
        2,
        f"{PP2} --num-layers 6 --num-virtual-stages-per-pipeline-rank 2 "
        "--decoder-first-pipeline-num-layers 2",
    ),
    "a layout in letters": (2, f"{PP2} --pipeline-model-parallel-layout Et|tt|t|L"),
    "MTP, PP2": (2, f"{PP2} --mtp-num-layers 2"),
    "MTP in a layout in letters": (
        2,
        f"{PP2} --mtp-num-layers 1 --pipeline-model-parallel-layout Ett|tt|(|)*1,mL",
    ),
    "MTP, tied, PP2": (2, f"{PP2} --mtp-num-layers 1 {TIED}"),
    "MTP, one layer used twice": (1, "--mtp-num-layers 2 --mtp-use-repeated-layer"),
    "MTP after a dense layer": (1, "--mtp-num-layers 1 --moe-layer-freq [1,1,1,0]"),
    "learned positions": (2, f"{PP2} --position-embedding-type learned_absolute"),
    "LayerNorm, biases, TP2 ETP1": (
        2,
        f"{TP2} --expert-tensor-parallel-size 1 --normalization LayerNorm {BIASES} "
        "--moe-layer-freq [0,1,1,1]",
    ),
    "biases, TP2 EP2 ETP1": (2, f"{TP2} {EP2} --expert-tensor-parallel-size 1 {BIASES}"),
    "shared expert, TP2 ETP2": (2, f"{TP2} --moe-shared-expert-intermediate-size 20"),
    "a bias of QKV, TP2": (2, f"{TP2} --add-qkv-bias"),
    "norms of all heads, TP2": (2, f"{TP2} --qk-layernorm --grove-whole-qk-norm"),
    "a softmax offset of every head, TP2": (2, f"{TP2} --softmax-type learnable"),
    "plain experts": (2, f"{EP2} {PLAIN}"),
    "experts apart": (1, "--grove-kernel megatron"),
}


GROVE_33B = (
    "--num-layers 48 --hidden-size 2048 --num-attention-heads 32 --kv-channels 128 "
    "--group-query-attention --num-query-groups 4 --qk-layernorm --num-experts 128 "
    "--moe-router-topk 8 --moe-ffn-hidden-size 768 --grove-num-groups 64 "
    "--grove-adjugate-ffn-hidden-size 128 --padded-vocab-size 151936 --bf16"
)


def flags(text: str) -> list[str]:
    given = text.split()
    for word, otherwise in (
        (TIED, "--untie-embeddings-and-output-weights"),
        (BIASES, "--disable-bias-linear"),
        (PLAIN, "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 16"),
    ):
        if word in given:
            given.remove(word)
        else:
            given += otherwise.split()
    return given


def built_and_planned(
    ranks: Ranks, folder: Path, cases: dict[str, list[Any]]
) -> dict[str, list[dict[str, dict[str, int]]]]:
    target = "tests.multirank.planned_cases:built_and_planned"
    (result,) = ranks.run(1, target, str(folder), cases, folder=folder).check().results()
    assert result.keys() == cases.keys()
    return result


@pytest.mark.parametrize(
    "layouts", [LAYOUTS, pytest.param(MORE, marks=pytest.mark.long)], ids=["usual", "unusual"]
)
def test_every_rank_has_the_planned_parameters(ranks, tmp_path, layouts):
    cases = {name: [world, world, flags(text)] for name, (world, text) in layouts.items()}
    differing = {
        f"{name}, rank {rank}": one
        for name, found in built_and_planned(ranks, tmp_path, cases).items()
        for rank, one in enumerate(found)
        if one["planned"] != one["built"]
        or one["planned by name"] != one["built by name"]
        or one["planned to be trained"] != one["trained"]
    }
    assert differing == {}


# Ranks, flags; does Megatron refuse them only when it builds the model? As the rules of widths say.
WIDTHS = {
    "a shared expert": (2, f"{TP2} --moe-shared-expert-intermediate-size 15", True),
    "a dense layer": (2, f"{TP2} --moe-layer-freq [0,1,1,1] --ffn-hidden-size 33", True),
    "a dense layer by default": (
        3,
        "--tensor-model-parallel-size 3 --sequence-parallel --expert-tensor-parallel-size 1 "
        "--hidden-size 48 --num-attention-heads 6 --seq-length 30 --moe-layer-freq 2",
        True,
    ),
    "an MTP layer": (2, f"{TP2} --mtp-num-layers 1 --hidden-size 33 --kv-channels 8", True),
    "a vocabulary": (2, f"{TP2} --padded-vocab-size 257", True),
    "a part of a head": (
        4,
        f"{TP4} --group-query-attention --num-query-groups 1 --kv-channels 3",
        True,
    ),
    "compressed queries": (2, f"{TP2} {LATENT} --q-lora-rank 13", True),
    "compressed keys": (2, f"{TP2} {LATENT} --kv-lora-rank 11", True),
    "one wide head, compressed": (2, f"{TP2} {LATENT} --kv-channels 3", False),
    "an even part": (
        4,
        f"{TP4} --group-query-attention --num-query-groups 1 --kv-channels 2",
        False,
    ),
    "one head": (4, f"{TP4} --group-query-attention --num-query-groups 2 --kv-channels 6", False),
    "no dense layer": (2, f"{TP2} --ffn-hidden-size 33", False),
    "no MTP layer": (2, f"{TP2} --hidden-size 33 --kv-channels 8", False),
    "experts, whole": (
        2,
        f"{TP2} --expert-tensor-parallel-size 1 --moe-ffn-hidden-size 33",
        False,
    ),
}


@pytest.mark.long
def test_what_the_rules_of_widths_refuse_cannot_be_built(ranks, tmp_path):
    cases = {name: [world, 1, flags(text)] for name, (world, text, _) in WIDTHS.items()}
    target = "tests.multirank.planned_cases:refused_when_built"
    (said,) = ranks.run(1, target, str(tmp_path), cases, folder=tmp_path).check().results()
    assert {name: bool(line) for name, line in said.items()} == {
        name: refused for name, (_, _, refused) in WIDTHS.items()
    }
    assert all("is not divisible by" in line for line in said.values() if line)


@pytest.mark.parametrize("size", [64, pytest.param(8, marks=pytest.mark.long)])
def test_the_33b_model(ranks, tmp_path, size):
    given = flags(f"{GROVE_33B} --expert-model-parallel-size {size} {PLAIN}")
    (rank,) = built_and_planned(ranks, tmp_path, {"33B": [64, 1, given]})["33B"]
    assert rank["planned"] == rank["built"]
    built = rank["built"]
    # Every expert-parallel rank has as many, and the dense part is on each.
    total = built["dense"] + size * (built["experts"] + built["adjugates"])
    assert total == 32_948_041_728
    assert size * built["adjugates"] == 2_415_919_104
