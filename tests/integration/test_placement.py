"""``--grove-placement`` in real training: the rows it saves, the losses it leaves, and resuming.

One run without a placement, one with the placement that its own routing asks for, and runs that go
on from what the second saved.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grove_megatron.placing.file import Assignment, write
from grove_megatron.report.record import read_record
from tests.integration.checkpoints import differences
from tests.integration.flags import MODEL
from tests.integration.test_convert import STILL, TRAIN, assert_same, flags_of
from tests.integration.weights_folders import done, tensors_of
from tests.ranks import Job, Ranks

E, G = 16, 8
SIZE = f"--num-experts {E} --grove-num-groups {G} --moe-router-topk 4 --train-iters 6".split()
STEPS = ["--lr-decay-iters", "6", "--use-distributed-optimizer"]
ANYWHERE = ["--dist-ckpt-optim-fully-reshardable"]
EP2 = ["--expert-model-parallel-size", "2"]
EP4 = ["--expert-model-parallel-size", "4"]
MEGATRONS = ["--grove-kernel", "megatron"]
MIXED = (5, 0, 7, 2, 1, 4, 3, 6)
SAVE = 3
# Sums in fp32 that are taken in another order.
TOLERANCE = 1e-5

Routing = list[dict[str, list[list[int]]]]


def left_rows(steps: Routing, own: int, orders: dict[str, tuple[int, ...]]) -> int:
    """Rows that leave a rank of four, token by token.

    Args:
        steps: by layer the experts of every token of the rank ``own``.
        orders: of groups, by layer; the order of their numbers where there is none.
    """
    left = 0
    for layer, tokens in ((layer, tokens) for step in steps for layer, tokens in step.items()):
        order = orders.get(layer, range(G))
        rank_of = {group: place * 4 // G for place, group in enumerate(order)}
        left += sum(len({rank_of[e * G // E] for e in chosen} - {own}) for chosen in tokens)
    return left


def pairings(groups: list[int]) -> Iterator[list[int]]:
    """All ways to give every rank two groups, as orders."""
    if not groups:
        yield []
        return
    first, *others = groups
    for other in others:
        rest = [g for g in others if g != other]
        yield from ([first, other, *more] for more in pairings(rest))


@dataclass
class Trained:
    """A run of four ranks: what it routed, what its record counted, and what it saved."""

    job: Job
    saved: Path

    def routed(self, orders: dict[str, tuple[int, ...]]) -> int:
        """Rows that would leave their ranks with these orders."""
        return sum(left_rows(r["steps"], r["ep_rank"], orders) for r in self.job.results())

    @property
    def counted(self) -> int:
        intervals = read_record(self.job.folder / "metrics" / "routing.jsonl").intervals
        return sum(int(interval.left_rows.sum()) for interval in intervals)

    @property
    def losses(self) -> list[float]:
        intervals = read_record(self.job.folder / "metrics" / "routing.jsonl").intervals
        return [interval.losses["lm loss"] for interval in intervals]

    @property
    def norms(self) -> list[float]:
        norms: list[float] = json.loads((self.job.folder / "norms0.json").read_text())
        return norms


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Train:
    def train(world_size: int, *flags: str) -> Trained:
        folder = tmp_path_factory.mktemp("run")
        records = ["--grove-metrics-dir", str(folder / "metrics"), "--grove-metrics-interval", "1"]
        saves = ["--save", str(folder / "saved"), "--save-interval", str(SAVE)]
        argv = [*MODEL, *SIZE, *STEPS, *records, *saves, *flags]
        target = "tests.integration.placed_job:train"
        job = ranks.run(world_size, target, str(folder), argv, folder=folder).check()
        return Trained(job, folder / "saved")

    return train


@pytest.fixture(scope="module")
def without(train: Train) -> Trained:
    return train(4, *EP4, *ANYWHERE)


@pytest.fixture(scope="module")
def orders(without: Trained) -> dict[str, tuple[int, ...]]:
    """Of both layers, those with which the fewest rows leave; never mind which rank has a pair."""
    found = {}
    for layer in ("1", "2"):
        counts = np.zeros((G, G), int)
        for result in without.job.results():
            for chosen in (tokens for step in result["steps"] for tokens in step[layer]):
                for a, b in itertools.permutations({e * G // E for e in chosen}, 2):
                    counts[a, b] += 1
        together = {
            tuple(order): sum(int(counts[order[i], order[i + 1]]) for i in range(0, G, 2))
            for order in pairings([*range(G)])
        }
        assert len(together) == 105
        best = max(together, key=lambda order: together[order])
        # Of the places of pairs, one in which most move.
        found[layer] = (*best[2:], *best[:2])
    return found


@pytest.fixture(scope="module")
def placed(train: Train, orders: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    file = write_file(tmp_path_factory.mktemp("placement") / "a.json", 4, orders)
    return train(4, *EP4, *ANYWHERE, "--grove-placement", file)


def write_file(path: Path, num_ranks: int, orders: dict[str, tuple[int, ...]]) -> str:
    write(path, Assignment(E, G, num_ranks, orders))
    return str(path)


def test_the_saving_that_was_predicted_is_counted(
    without: Trained, placed: Trained, orders: dict[str, tuple[int, ...]]
) -> None:
    predicted, before = without.routed(orders), without.routed({})
    assert predicted < before
    assert without.counted == before
    assert placed.counted == placed.routed(orders)
    assert placed.routed({}) - placed.counted > 0
    # The same routing but for what rounding decides otherwise.
    assert placed.counted == pytest.approx(predicted, rel=5e-3)


def test_losses_and_gradients_are_those_without(without: Trained, placed: Trained) -> None:
    assert placed.losses == pytest.approx(without.losses, rel=TOLERANCE)
    assert placed.norms == pytest.approx(without.norms, rel=TOLERANCE)
    assert len(without.losses) == len(without.norms) == 6
    assert without.losses[-1] < without.losses[0] - 0.1


@pytest.mark.parametrize(
    ("world_size", "sizes", "turned"),
    [
        pytest.param(2, EP2, None, id="none-ep2"),
        pytest.param(4, EP4, 4, id="other-ep4", marks=pytest.mark.long),
        pytest.param(2, [*EP2, *MEGATRONS], 2, id="other-ep2-megatrons", marks=pytest.mark.long),
        pytest.param(1, [], None, id="none-one", marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_goes_on_with_another_placement_or_none(
    world_size: int,
    sizes: list[str],
    turned: int | None,
    placed: Trained,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    """``turned``: ranks of a placement that has the groups of layer 1 the other way round, odd
    ones first."""
    flags = [*MODEL, *SIZE, *STEPS, *ANYWHERE, *sizes]
    if turned:
        order = (*range(G - 1, 0, -2), *range(G - 2, -1, -2))
        other = write_file(tmp_path / "b.json", turned, {"1": order})
        flags += ["--grove-placement", other]
    flags += ["--load", str(placed.saved), "--ckpt-step", str(SAVE)]
    target = "tests.integration.resumed_run:train_and_show_first"
    again = str(tmp_path / "again")
    job = ranks.run(world_size, target, str(tmp_path), flags, again, folder=tmp_path).check()
    # Weights and the optimizer's moments, by their names and places in the model, bit for bit.
    step = f"iter_{SAVE:07d}"
    assert differences(placed.saved / step, tmp_path / "again" / step) == []
    resumed = job.results()[-1]
    losses = [step["lm loss"] for step in resumed["losses"]]
    assert losses == pytest.approx(placed.losses[SAVE:], rel=TOLERANCE)
    assert resumed["grad_norms"] == pytest.approx(placed.norms[SAVE:], rel=TOLERANCE)


@pytest.mark.long
def test_what_is_kept_in_the_order_of_memory_goes_on_with_the_same_file_alone(
    train: Train, orders: Any, ranks: Ranks, tmp_path: Path
) -> None:
    file = write_file(tmp_path / "a.json", 2, orders)
    saved = train(2, *EP2, "--grove-placement", file)
    target = "tests.integration.recorded_run:train"
    flags = [*MODEL, *SIZE, *STEPS, *EP2, "--load", str(saved.saved), "--ckpt-step", str(SAVE)]
    job = ranks.run(
        2, target, str(tmp_path), [*flags, "--grove-placement", file], folder=tmp_path
    ).check()
    resumed = [step["lm loss"] for step in job.results()[-1]["losses"]]
    assert resumed == saved.losses[SAVE:]
    job = ranks.run(2, target, str(tmp_path), flags, folder=tmp_path)
    assert job.codes == [2, 2]
    assert (
        f"  1. --grove-placement (None) differs from --grove-placement of the checkpoint ({file}), "
        "whose distributed optimizer state fits no other"
    ) in job.log()


@pytest.mark.long
def test_weights_by_rank_go_on_with_the_same_file_alone(
    train: Train, orders: Any, ranks: Ranks, tmp_path: Path
) -> None:
    """Megatron's oldest format: a file of every rank, with what the rank has."""
    file = write_file(tmp_path / "a.json", 2, orders)
    by_rank = ["--ckpt-format", "torch"]
    saved = train(2, *EP2, *by_rank, "--no-save-optim", "--grove-placement", file)
    target = "tests.integration.recorded_run:train"
    flags = [*MODEL, *SIZE, *STEPS, *EP2, *by_rank, "--load", str(saved.saved), "--no-load-optim"]
    flags += ["--ckpt-step", str(SAVE)]
    job = ranks.run(
        2, target, str(tmp_path), [*flags, "--grove-placement", file], folder=tmp_path
    ).check()
    # Of the weights that were saved; the optimizer begins anew.
    assert job.results()[-1]["losses"][0]["lm loss"] == saved.losses[SAVE]
    other = write_file(tmp_path / "b.json", 2, {"1": MIXED})
    moved = [*flags, "--grove-placement", other]
    job = ranks.run(2, target, str(tmp_path), moved, folder=tmp_path)
    assert job.codes == [2, 2]
    assert (
        f"  1. --grove-placement ({other}) differs from --grove-placement of the checkpoint "
        f"({file}), whose --ckpt-format (torch) does not say which experts a rank had"
    ) in job.log()


@pytest.mark.parametrize(
    "kernel", [pytest.param("grouped", marks=pytest.mark.long), pytest.param("megatron")]
)
def test_export_knows_nothing_of_a_placement(
    kernel: str, golden_folder: Path, ranks: Ranks, tmp_path: Path
) -> None:
    """In through import, a step of real training with nothing learned, and out again."""
    megatron, saved, out = (tmp_path / name for name in ("megatron", "saved", "out"))
    done("import", "--hf", golden_folder, "--save", megatron)
    file = tmp_path / "placement.json"
    write(file, Assignment(16, 8, 2, {"1": MIXED, "2": (4, 5, 6, 7, 0, 1, 2, 3)}))
    flags = [*TRAIN, "--train-iters", "1", "--vocab-size", "127", *flags_of(megatron), *STILL]
    flags += [*EP2, "--grove-kernel", kernel, "--grove-placement", str(file)]
    flags += ["--load", str(megatron), "--save", str(saved), "--save-interval", "1"]
    target = "tests.integration.recorded_run:train"
    ranks.run(2, target, str(tmp_path / "job"), flags, folder=tmp_path / "job").check()
    done("export", "--load", saved, "--hf", out, "--hf-config", golden_folder)
    assert_same(tensors_of(out), tensors_of(golden_folder))
    # A command on one rank reads what was saved, and looks for no placement of two.
    golden = ["--golden", str(golden_folder / "golden.safetensors"), "--json"]
    target = "tests.integration.verify_job:grove"
    words = ["verify", "--load", str(saved), *golden]
    ranks.run(1, target, str(tmp_path / "verify"), words, folder=tmp_path / "verify").check()
    report = json.loads((tmp_path / "verify" / "rank0.stdout").read_text().splitlines()[-1])
    assert 0 < report["max_logit_error"] < 1e-5


PP2 = ["--pipeline-model-parallel-size", "2"]
BF16 = ["--bf16", "--overlap-moe-expert-parallel-comm"]
OF_ROUTER = (
    "--moe-router-num-groups 4 --moe-router-group-topk 2 "
    "--grove-group-score max --grove-device-loss-coeff 0.1 --moe-router-enable-expert-bias"
)
BESIDE = (
    "--grove-zero-experts 2 --moe-expert-capacity-factor 1.0 "
    "--recompute-granularity selective --recompute-modules moe"
)
LATE = [*PP2, *EP2, "--mtp-num-layers", "1", "--moe-layer-freq", "[0,1]"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("world_size", "flags", "layers", "tolerance"),
    [
        # One MoE layer in the decoder, on the last stage, and one of MTP behind it.
        pytest.param(4, LATE, ("2", "mtp 1"), TOLERANCE, id="pp2-mtp"),
        pytest.param(2, [*EP2, *BF16], ("1", "2"), 2e-2, id="overlapped"),
        pytest.param(2, [*EP2, *OF_ROUTER.split()], ("1", "2"), TOLERANCE, id="limited"),
        pytest.param(2, [*EP2, *BESIDE.split()], ("1", "2"), TOLERANCE, id="zero-experts"),
    ],
)
def test_it_trains_as_without_whatever_else_is_on(
    world_size: int,
    flags: list[str],
    layers: tuple[str, ...],
    tolerance: float,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    file = write_file(tmp_path / "a.json", 2, dict.fromkeys(layers, MIXED))
    found = []
    for name, more in (("without", []), ("placed", ["--grove-placement", file])):
        argv = [*MODEL, *SIZE, "--train-iters", "3", *flags, *more]
        folder = tmp_path / name
        target = "tests.integration.recorded_run:train"
        job = ranks.run(world_size, target, str(folder), argv, folder=folder).check()
        found.append(job.results())
    without, placed = ([*r[-1]["losses"][-1].values()] + r[-1]["grad_norms"] for r in found)
    assert placed == pytest.approx(without, rel=tolerance)
    assert len(placed) == 4
    # In every layer another rank has had something else to do.
    for of_ranks in zip(*found, strict=True):
        for before, now in zip(*(result["layers"] for result in of_ranks), strict=True):
            assert before["name"] == now["name"]
            sent = [(one["rows"], one["adjugate_pairs"]) for one in (before, now)]
            assert sent[0] != sent[1], now["name"]
    assert sum(len(result["layers"]) for result in found[1]) == len(layers) * 2
