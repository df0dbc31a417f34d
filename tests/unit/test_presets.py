"""``--grove-preset``: sizes of released models, counted by hand and by the planner."""

import copy
import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import grove_megatron
from grove_megatron.cli import app
from grove_megatron.model.parameters import active_parameters, total_parameters
from grove_megatron.presets.flags import preset_notices, preset_problems
from grove_megatron.presets.table import MEGATRONS, PRESETS
from grove_megatron.runtime import cpu
from grove_megatron.training import checks, launch
from grove_megatron.training.megatrons_flags import megatrons_flags
from grove_megatron.training.sizes import sizes_of

from .conftest import in_lines, parser
from .training.command_lines import validated
from .training.test_saved_arguments import torch_dist

preset_problems = in_lines(preset_problems)
every_problem = in_lines(checks.every_problem)

JOB = (
    "--micro-batch-size 1 --seq-length 512 --train-iters 1 --lr 1e-4 --eval-interval 1 "
    "--moe-token-dispatcher-type alltoall --mock-data --tokenizer-type NullTokenizer"
)
ON_CPU = (
    "--transformer-impl local --attention-backend unfused --no-gradient-accumulation-fusion "
    "--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion --no-persist-layer-norm "
    "--distributed-backend gloo"
)
# Parameters of the released models: everything but routed experts, routed experts and adjugates.
# An attention of hidden size d: d (Q + 2 K) + Q d, where Q and K are all its heads of 128 wide.
BY_HAND = {
    # 48 layers: attention 2048 (4096 + 2 512) + 4096 2048 = 18,874,368, norms of heads 2 128,
    # norms 2 2048, router 128 2048. Embedding and output 2 151936 2048, norm 2048.
    # Experts 128 x 3 2048 768, adjugates 64 x 3 2048 128.
    "grovemoe-33b": (
        48 * (18_874_368 + 256 + 4_096 + 262_144) + 622_329_856 + 2_048,
        48 * 128 * 4_718_592,
        48 * 64 * 786_432,
    ),
    "qwen3-30b-a3b": (
        48 * (18_874_368 + 256 + 4_096 + 262_144) + 622_329_856 + 2_048,
        48 * 128 * 4_718_592,
        0,
    ),
    # 32 layers: attention 4096 (4096 + 2 1024) + 4096 4096 = 41,943,040, norms 2 4096,
    # router 8 4096. Embedding and output 2 32000 4096, norm 4096. Experts 8 x 3 4096 14336.
    "mixtral-8x7b": (
        32 * (41_943_040 + 8_192 + 32_768) + 262_144_000 + 4_096,
        32 * 8 * 176_160_768,
        0,
    ),
    # 56 layers: attention 6144 (6144 + 2 1024) + 6144 6144 = 88,080,384, norms 2 6144,
    # router 8 6144. Embedding and output 2 32768 6144, norm 6144. Experts 8 x 3 6144 16384.
    "mixtral-8x22b": (
        56 * (88_080_384 + 12_288 + 49_152) + 402_653_184 + 6_144,
        56 * 8 * 301_989_888,
        0,
    ),
    # 24 layers: attention 4 2048 2048 and a bias of 3 2048, norms 2 2048, router 60 2048, shared
    # expert 3 2048 5632 and its gate 2048. Embedding and output 2 151936 2048, norm 2048.
    # Experts 60 x 3 2048 1408.
    "qwen1.5-moe-a2.7b": (
        24 * (16_777_216 + 6_144 + 4_096 + 122_880 + 34_603_008 + 2_048) + 622_329_856 + 2_048,
        24 * 60 * 8_650_752,
        0,
    ),
    # 16 layers: attention 4 2048 2048, norms of all queries and all keys 2 2048, norms 2 2048,
    # router 64 2048. Embedding and output 2 50304 2048, norm 2048. Experts 64 x 3 2048 1024.
    "olmoe-7b": (
        16 * (16_777_216 + 4_096 + 4_096 + 131_072) + 206_045_184 + 2_048,
        16 * 64 * 6_291_456,
        0,
    ),
    # 40 layers: attention as of 8x22B, norms 2 6144, router 16 6144.
    # Embedding and output 2 100352 6144, norm 6144. Experts 16 x 3 6144 10752.
    "dbrx": (
        40 * (88_080_384 + 12_288 + 98_304) + 1_233_125_376 + 6_144,
        40 * 16 * 198_180_864,
        0,
    ),
    # 64 layers: attention as of 8x22B, norms 4 6144, router 8 6144. Embedding, which is the output
    # too, 131072 6144, norm 6144. Experts 8 x 3 6144 32768.
    "grok-1": (
        64 * (88_080_384 + 24_576 + 49_152) + 805_306_368 + 6_144,
        64 * 8 * 603_979_776,
        0,
    ),
    # 28 layers: attention 4 2048 2048, norms 2 2048. The first: 3 2048 10944. 27: router 64 2048,
    # shared experts 3 2048 2816. Embedding and output 2 102400 2048, norm 2048.
    # Experts 64 x 3 2048 1408.
    "deepseekmoe-16b": (
        28 * (16_777_216 + 4_096) + 67_239_936 + 27 * (131_072 + 17_301_504) + 419_430_400 + 2_048,
        27 * 64 * 8_650_752,
        0,
    ),
    # Encoder and decoder, 12 layers each: attention 4 768 768, norms 2 768; 6 of them 2 768 3072,
    # 6 a router 128 768; relative positions 32 12, norm 768. In the decoder attention to the
    # encoder, 12 x (4 768 768 + 768). Embedding, which is the output too, 32128 768.
    # Experts 128 x 2 768 3072, in 6 layers each.
    "switch-base-128": (
        2 * (12 * (2_359_296 + 1_536) + 6 * 4_718_592 + 6 * 98_304 + 384 + 768)
        + 12 * 2_360_064
        + 24_674_304,
        2 * 6 * 128 * 4_718_592,
        0,
    ),
    # 12 layers: attention 4 768 768, norms 2 768, router N 768, its map N N, constants 3 768 each.
    # Embedding and output 2 65536 768, norm 768. Experts with an FFN of 3 768 2048.
    **{
        f"moe++-{name}": (
            12 * (2_359_296 + 1_536 + columns * 768 + columns**2 + constants * 2_304)
            + 100_663_296
            + 768,
            12 * experts * 4_718_592,
            0,
        )
        for name, experts, constants, columns in (
            ("0.6b", 8, 2, 12),
            ("1b", 16, 2, 20),
            ("2b", 32, 6, 40),
        )
    },
    # The same with 24 layers of 1536, experts of 3 1536 4096 and 20 columns.
    "moe++-7b": (
        24 * (9_437_184 + 3_072 + 30_720 + 400 + 9_216) + 201_326_592 + 1_536,
        24 * 16 * 18_874_368,
        0,
    ),
}
# As published, in billions with as many decimals.
PUBLISHED = {
    "grovemoe-33b": ("33", None),
    "qwen3-30b-a3b": ("30.5", "3.4"),  # "3.3B"
    "mixtral-8x7b": ("47", "12.9"),
    "mixtral-8x22b": ("141", "39"),
    "qwen1.5-moe-a2.7b": ("14.3", "2.7"),
    "olmoe-7b": ("6.9", "1.3"),
    "dbrx": ("132", "36"),
    "grok-1": ("316", None),  # "314B", 25 % active
    "deepseekmoe-16b": ("16.4", "2.8"),
    "switch-base-128": ("7.4", None),
    "moe++-0.6b": ("0.6", None),
    "moe++-1b": ("1", None),
    "moe++-2b": ("2", None),
    "moe++-7b": ("7.7", None),  # "7B", which it is without embedding and output
}


def filled(name: str, flags: str = "") -> Namespace:
    words = f"--grove-preset {name} {JOB} {flags}".split()
    args = copy.deepcopy(parser().parse_args(words))
    checks.as_launched(args)
    return args


def rounded(count: int, like: str) -> str:
    return f"{count / 1e9:.{len(like.partition('.')[2])}f}"


def test_the_presets_are_these() -> None:
    assert {*PRESETS} == {*BY_HAND} == {*PUBLISHED}


@pytest.mark.parametrize("name", PRESETS)
def test_the_released_parameters_are_those_counted_by_hand(name: str) -> None:
    preset, counts = PRESETS[name], BY_HAND[name]
    assert preset.released == sum(counts)
    total, active = PUBLISHED[name]
    assert rounded(preset.released, total) == total
    if preset.active is None:
        return
    dense, experts, _ = counts
    topk, of = preset.settings["moe_router_topk"], preset.settings["num_experts"]
    assert preset.active == dense + experts * topk // of
    assert active is None or rounded(preset.active, active) == active


@pytest.mark.parametrize("name", PRESETS)
def test_the_planner_counts_the_released_and_what_differs(name: str) -> None:
    preset = PRESETS[name]
    model = sizes_of(filled(name), 1).model
    assert model.num_layers == preset.settings["num_layers"]
    differs = sum(one.parameters for one in preset.differs)
    assert total_parameters(model).total == sum(BY_HAND[name]) + differs == preset.built
    if preset.active is not None:
        assert active_parameters(model, 0) == preset.active + differs


def test_what_differs_is_these_parameters() -> None:
    found = {
        name: [one.parameters for one in preset.differs if one.parameters]
        for name, preset in PRESETS.items()
        if preset.built != preset.released
    }
    expected = {
        # A bias in 2 norms of 40 layers and the last.
        "dbrx": [81 * 6_144],
        # 2 norms of 4 in 64 layers.
        "grok-1": [-64 * 12_288],
        # The encoder is 28,329,984 + 28,311,552 + 589,824 + 3,623,878,656 + 384 + 768.
        "switch-base-128": [-3_681_111_168, -12 * 2_360_064, -384],
    }
    assert found == expected


@pytest.mark.parametrize("name", PRESETS)
def test_the_flags_it_says_are_the_settings(name: str) -> None:
    preset = PRESETS[name]
    typed = parser().parse_args(preset.flags())
    by_name = parser().parse_args(["--grove-preset", name])
    assert by_name.grove_preset == name
    assert vars(by_name) == vars(typed) | {"grove_preset": name}
    for setting, value in preset.settings.items():
        found = getattr(by_name, setting)
        assert (found, type(found)) == (value, type(value)), setting


def test_the_flags_of_a_preset_end_with_its_command_line() -> None:
    plain = parser().parse_args([])
    for name in PRESETS:
        parser().parse_args(["--grove-preset", name]).moe_router_load_balancing_type.append("none")
    assert parser().parse_args([]) == plain
    assert parser().parse_args(["--grove-preset", "dbrx"]).moe_router_load_balancing_type == [
        "aux_loss"
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_doctor_finds_no_problem_in_a_preset_and_a_few_flags_of_the_job(name: str) -> None:
    ranks = 4 if name == "qwen1.5-moe-a2.7b" else 8
    words = f"--json --device cuda --grove-preset {name} {JOB} --expert-model-parallel-size {ranks}"
    result = CliRunner().invoke(app, ["doctor", *words.split()])
    assert result.exit_code == 0, result.output
    found, preset = json.loads(result.stdout.splitlines()[-1]), PRESETS[name]
    assert (found["world_size"], found["problems"]) == (ranks, [])
    assert found["numbers"]["params_total"] == preset.built
    said = "\n".join(found["notices"])
    assert f"--grove-preset ({name}) is {' '.join(preset.flags())}\n" in said
    assert f"the released model has {preset.released:,} parameters" in said
    assert f"{preset.built:,}" in said
    for one in preset.differs:
        assert one.what in said


def test_what_is_said_of_a_model_that_is_not_built_as_released() -> None:
    released, built, norms, clip = [*preset_notices(filled("dbrx"))][1:]
    said = "--grove-preset (dbrx): "
    active = "36,469,708,800 of them active for a token"
    assert released == f"{said}the released model has 131,596,523,520 parameters, {active}"
    assert built == f"{said}the model of its flags alone has 131,597,021,184, 497,664 more"
    assert norms.endswith("LayerNorms without a bias; here with one (+497,664 parameters)")
    assert clip.endswith("clipped at 8 (clip_qkv); here not")
    assert [*preset_notices(parser().parse_args([]))] == []


def test_the_command_line_may_repeat_a_preset() -> None:
    args = filled("mixtral-8x7b", "--num-layers 32 --moe-aux-loss-coeff 0.00125")
    assert preset_problems(args) == []
    assert (args.num_layers, args.hidden_size, args.grove_dispatch) == (32, 4096, True)


def test_every_contradiction_is_refused_at_once() -> None:
    # 2 and LayerNorm are Megatron's defaults, and given all the same.
    given = "--num-layers 12 --moe-router-topk 2 --normalization LayerNorm --moe-layer-freq 2"
    fix = "remove one of them"
    preset = "differs from --grove-preset (deepseekmoe-16b), which has"
    pattern = f"[0,{','.join('1' * 27)}]"
    assert preset_problems(filled("deepseekmoe-16b", given)) == [
        f"--normalization (LayerNorm) {preset} RMSNorm; {fix}",
        f"--num-layers (12) {preset} 28; {fix}",
        f"--moe-router-topk (2) {preset} 6; {fix}",
        f"--moe-layer-freq (2) {preset} {pattern}; {fix}",
    ]


def test_a_switch_that_a_preset_has_off_is_refused_too() -> None:
    (problem,) = preset_problems(filled("grok-1", "--swiglu"))
    assert problem.startswith("--swiglu (True) differs from --grove-preset (grok-1), which has Fal")


def test_what_no_preset_has_is_refused_beside_one() -> None:
    given = "--rotary-percent 0.5 --squared-relu --moe-router-score-function sigmoid"
    preset = "differs from --grove-preset (mixtral-8x7b), which has"
    assert preset_problems(filled("mixtral-8x7b", given)) == [
        f"--moe-router-score-function (sigmoid) {preset} softmax; remove one of them",
        f"--rotary-percent (0.5) {preset} 1.0; remove one of them",
        f"--squared-relu (True) {preset} False; remove one of them",
    ]


def test_what_presets_leave_out_is_as_megatron_has_it() -> None:
    _, defaults = megatrons_flags()
    assert {name: getattr(defaults, name) for name in MEGATRONS} == MEGATRONS


def test_a_contradiction_is_one_of_all_problems() -> None:
    found = every_problem(filled("mixtral-8x7b", "--num-layers 12 --lr -1"), 1, "cuda")
    assert found[0].startswith("--num-layers (12) differs from --grove-preset (mixtral-8x7b)")
    assert found[1:] == [
        "--min-lr (0.0) is above --lr (-1.0); lower it",
        "--lr-warmup-init (0.0) is above --lr (-1.0); lower it",
    ]


def test_of_a_contradiction_nothing_else_is_said() -> None:
    (problem,) = every_problem(filled("mixtral-8x7b", "--num-layers 0"), 1, "cuda")
    assert problem.startswith("--num-layers (0) differs from --grove-preset (mixtral-8x7b)")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is read at start of a checkpoint of a job with a preset."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    (folder / "iter_0000007").mkdir()
    args = validated(filled("grovemoe-33b", ON_CPU))
    torch_dist(folder / "iter_0000007", args, None)
    return folder


@pytest.mark.parametrize("more", ["", "--use-checkpoint-args"])
@pytest.mark.parametrize("model", ["--grove-preset grovemoe-33b", "the flags of it"])
def test_a_job_goes_on_from_its_checkpoint(saved: Path, model: str, more: str) -> None:
    words = model.split() if model[0] == "-" else PRESETS["grovemoe-33b"].flags()
    words += f"{JOB} {ON_CPU} --load {saved} {more}".split()
    args = copy.deepcopy(parser().parse_args(words))
    checks.as_launched(args)
    with cpu():
        assert every_problem(args, 1) == []


def test_a_checkpoint_must_agree(saved: Path) -> None:
    with cpu():
        flags = f"{ON_CPU} --load {saved} --use-checkpoint-args"
        found = every_problem(filled("mixtral-8x7b", flags), 1)
    differing = [line for line in found if "differs from --grove-preset (mixtral-8x7b)" in line]
    assert all(line.endswith("; remove --grove-preset") for line in differing)
    # Restored whatever was given, or left at Megatron's default; --num-layers is neither.
    assert [line.partition(" ")[0] for line in differing] == [
        "--norm-epsilon",
        "--qk-layernorm",
        "--num-query-groups",
        "--num-experts",
        "--moe-router-topk",
        "--moe-ffn-hidden-size",
    ]


def test_what_contradicts_a_preset_is_said_as_that_alone() -> None:
    args = filled("grovemoe-33b")
    for name in ("grove_num_groups", "grove_adjugate_ffn_hidden_size"):
        setattr(args, name, None)
    about = [line for line in every_problem(args, 1, "cuda") if "preset" in line]
    assert [line.partition(" ")[0] for line in about] == [
        "--grove-num-groups",
        "--grove-adjugate-ffn-hidden-size",
    ]


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    words = f"--device cuda --grove-preset mixtral {JOB}"
    result = CliRunner().invoke(app, ["doctor", *words.split()])
    assert result.exit_code == 2
    choices = ", ".join(PRESETS)
    assert f"--grove-preset (mixtral) is not one of {choices}; use one" in result.output


@pytest.mark.parametrize("word", ["--grove-preset dbrx", "--grove-preset=dbrx"])
def test_a_job_reads_it(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    from megatron.training.arguments import parse_args

    monkeypatch.setattr(sys, "argv", ["pretrain", *word.split(), *JOB.split()])
    args = parse_args(extra_args_provider=launch._add_arguments)
    assert (args.num_layers, args.num_experts, args.padded_vocab_size) == (40, 16, 100352)


def test_the_table_of_the_readme_is_that_of_the_presets() -> None:
    text = (Path(grove_megatron.__file__).parent / "presets" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| ([\d,]+) \|", text, re.MULTILINE)
    assert rows == [(p.name, f"{p.released:,}", f"{p.built:,}") for p in PRESETS.values()]
