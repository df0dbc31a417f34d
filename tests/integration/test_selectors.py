"""Selectors of their own, capacities and weights that move: every layout is one model."""

import pytest
import torch

from tests.integration.flags import GROVE, PLAIN_MODEL
from tests.integration.switch_runs import THREE, Runner, gradients
from tests.ranks import Ranks

LONG = pytest.mark.long
FOUR = "--num-layers 4 --train-iters 4 --lr-decay-iters 4 --clip-grad 1e9 --lr 1e-3".split()
NO_LOSS = "--moe-aux-loss-coeff 0 --moe-z-loss-coeff 0".split()
SELECTORS = {
    "hash": ["--grove-router-selector", "hash", *NO_LOSS],
    "reinforce": ["--grove-router-selector", "reinforce"],
    "base": [
        *"--grove-router-selector base --moe-router-topk 1 --grove-base-precision 1e-6".split(),
        *NO_LOSS,
    ],
    # Twenty iterations in fp32 round more than a layout does, and tokens near a tie go elsewhere.
    "sinkhorn": ["--grove-router-selector", "sinkhorn", "--moe-router-dtype", "fp64", *NO_LOSS],
    "expert_choice": [
        *"--grove-router-selector expert_choice --grove-expert-choice-sees-future".split(),
        *NO_LOSS,
    ],
    "capacity": (
        "--moe-expert-capacity-factor 0.7 --grove-capacity-scope sequence "
        "--moe-token-drop-policy position --grove-capacity-first-choices"
    ).split(),
    "noise": ["--grove-noisy-topk"],
    "adaptive": "--grove-adaptive-aux-loss --grove-adaptive-decay 0.5".split(),
}
SPEC = "--spec grove_megatron.layer_spec grove_layer_spec"
EP2 = "--expert-model-parallel-size 2"
LAYOUTS = {
    "tp2": f"{EP2} --tensor-model-parallel-size 2 --sequence-parallel "
    f"--expert-tensor-parallel-size 1 {SPEC}",
    "pp2": f"{EP2} --pipeline-model-parallel-size 2",
    "vpp": "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    "full": f"{EP2} --recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1",
    "moe": f"{EP2} --recompute-granularity selective --recompute-modules moe",
}
# What travels beside the hidden states goes everywhere; what looks at a microbatch, over its ranks.
CASES = {
    "hash": [*LAYOUTS],
    "reinforce": [*LAYOUTS],
    **{name: ["tp2", "full"] for name in ("base", "sinkhorn", "expert_choice", "capacity")},
    "adaptive": ["tp2", "pp2", "moe"],
}
EVERY_RUN = {("hash", "vpp"), ("reinforce", "vpp")}


@pytest.fixture(scope="module")
def runner(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(ranks, tmp_path_factory)


def trained(runner: Runner, flags: list[str], layout: str) -> dict[str, list[object]]:
    """Four steps from one checkpoint."""
    model = [*PLAIN_MODEL, *GROVE, *FOUR, *flags]
    save = ["--train-iters", "1", "--save", "{tmp}/start", "--save-interval", "1"]
    start = runner(1, [*model, *save, "--no-save-optim", "--no-save-rng"]).folder / "start"
    load = ["--load", str(start), "--finetune", "--no-load-optim", "--no-load-rng"]
    how = "train_with_known_draws" if "reinforce" in flags else "train"
    found: dict[str, list[object]] = runner(4, [*model, *load, *layout.split()], how=how).results()[
        -1
    ]
    return found


def assert_alike(one: dict[str, list[object]], other: dict[str, list[object]]) -> None:
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert [*a.values()] == pytest.approx([*b.values()], rel=1e-5)
    assert one["grad_norms"] == pytest.approx(other["grad_norms"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=[] if (name, layout) in EVERY_RUN else [LONG])
        for name, layouts in CASES.items()
        for layout in layouts
    ],
)
def test_every_layout_is_one_model(name: str, layout: str, runner: Runner) -> None:
    alone = trained(runner, SELECTORS[name], "")
    assert_alike(trained(runner, SELECTORS[name], LAYOUTS[layout]), alone)


@LONG
@pytest.mark.parametrize("layout", ["pp2", "tp2", "full"])
def test_hash_layers_know_the_tokens_of_mtp(layout: str, runner: Runner) -> None:
    flags = [*SELECTORS["hash"], "--mtp-num-layers", "1"]
    assert_alike(trained(runner, flags, LAYOUTS[layout]), trained(runner, flags, ""))


def test_losses_reach_the_routers_of_every_layer(runner: Runner) -> None:
    """The gradient of a policy is not that of its weights alone."""
    flags = [*PLAIN_MODEL, "--grove-dispatch", *THREE, *SELECTORS["reinforce"]]
    how = "train_with_known_draws"
    taught = gradients(runner(1, flags, how=how), 0)[0]
    off = gradients(runner(1, [*flags, "--grove-reinforce-coeff", "0"], how=how), 0)[0]
    for layer in (0, 1):
        name = f"0.decoder.layers.{layer}.mlp.router."
        router = f"{name}weight"
        assert (taught[router] - off[router]).abs().max() > 0.1 * off[router].abs().max()
        assert taught[f"{name}selector_reinforce.bias"].abs().max() > 0
        assert torch.equal(
            taught[f"{name}selector_reinforce.bias"], off[f"{name}selector_reinforce.bias"]
        )


@LONG
@pytest.mark.parametrize("name", ["hash", "adaptive", "reinforce", "noise"])
def test_it_goes_on_from_its_checkpoint(name: str, runner: Runner) -> None:
    """Tables, weights that have moved, baselines, draws: as if it had never stopped."""
    constant = ["--lr-decay-style", "constant", "--override-opt-param-scheduler"]
    model = [*PLAIN_MODEL, *GROVE, *FOUR, *SELECTORS[name], *constant]
    save = ["--save", "{tmp}/half", "--save-interval", "2"]
    whole = runner(2, [*model, *EP2.split(), *save])
    half = ["--load", str(whole.folder / "half"), "--ckpt-step", "2"]
    rest = runner(2, [*model, *EP2.split(), *half]).results()[-1]
    assert rest["losses"] == whole.results()[-1]["losses"][2:]
    assert rest["parameters"] == whole.results()[-1]["parameters"]
