"""Trains with a set of switches, and compares what two runs computed."""

import re

import pytest
import torch

from tests.integration.flags import GROVE
from tests.ranks import Job, Ranks

# Later flags win.
THREE = "--train-iters 3 --lr-decay-iters 3 --clip-grad 1e9 --lr 1e-3".split()
SCALE_0 = [*GROVE, "--grove-adjugate-scale", "0"]


class Runner:
    """Trains with a set of flags, once."""

    def __init__(self, ranks: Ranks, factory: pytest.TempPathFactory):
        self.ranks, self.factory = ranks, factory
        self.done: dict[tuple[int, int, str, tuple[str, ...]], Job] = {}

    def __call__(
        self, processes: int, argv: list[str], simulated: int = 0, how: str = "train"
    ) -> Job:
        key = (processes, simulated, how, tuple(argv))
        if key not in self.done:
            folder = self.factory.mktemp("run")
            filled = [word.replace("{tmp}", str(folder)) for word in argv]
            target = f"tests.integration.gradients_job:{how}"
            env = {"WORLD_SIZE": str(simulated)} if simulated else {}
            job = self.ranks.run(processes, target, str(folder), filled, folder=folder, env=env)
            self.done[key] = job.check()
        return self.done[key]


def losses(job: Job) -> list[dict[str, float]]:
    """Of every step, from the last pipeline stage."""
    found: list[dict[str, float]] = job.results()[-1]["losses"]
    assert len(found) == 3
    return found


def gradients(job: Job, rank: int) -> list[dict[str, torch.Tensor]]:
    found: list[dict[str, torch.Tensor]] = torch.load(
        job.folder / f"gradients{rank}.pt", map_location="cpu"
    )
    return found


def assert_losses(one: Job, other: Job, tolerance: float) -> None:
    for a, b in zip(losses(one), losses(other), strict=True):
        assert a.keys() == b.keys()
        assert [*a.values()] == pytest.approx([*b.values()], rel=tolerance)


def assert_gradients(one: Job, other: Job, ranks: int, tolerance: float, grown: float = 1) -> None:
    """Every gradient of the first step, and in fp32 of the last, to its largest entry.

    In 16 bits three steps of Adam make two runs of a few rounding errors.

    Args:
        grown: by how much rounding errors may have grown until the last step.
    """
    steps = 2 if tolerance < 1e-3 else 1
    for rank in range(ranks):
        pairs = zip(gradients(one, rank)[:steps], gradients(other, rank)[:steps], strict=True)
        for step, (mine, theirs) in enumerate(pairs):
            allowed = tolerance * (grown if step else 1)
            assert theirs
            assert {n for n in mine if "adjugate" not in n} <= theirs.keys() <= mine.keys()
            for name, expected in theirs.items():
                largest = float(expected.abs().max())
                assert torch.isfinite(mine[name]).all(), name
                difference = float((mine[name] - expected).abs().max())
                assert difference <= allowed * largest + 1e-12, (name, difference, largest)


def assert_similar_gradients(one: Job, other: Job, ranks: int) -> None:
    """The gradients of the first step point the same way, kind by kind, and are as long.

    In 16 bits a few tokens choose other experts than in fp32, so that no entry is the same, and
    those of a single expert may differ by a quarter. Kinds are parameters of one name but for
    numbers; a loss scale (fp16) is in the gradients and not in the norm that is reported.
    """
    for rank in range(ranks):
        mine, theirs = gradients(one, rank)[0], gradients(other, rank)[0]
        assert mine.keys() == theirs.keys()
        kinds: dict[str, list[str]] = {}
        for name in theirs:
            kinds.setdefault(re.sub(r"\d+", "N", name), []).append(name)
        for kind, names in kinds.items():
            a, b = (torch.cat([found[n].flatten() for n in names]) for found in (mine, theirs))
            assert float(torch.cosine_similarity(a, b, dim=0)) > 0.98, kind
    norms = [job.results()[-1]["grad_norms"][0] for job in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def without_grove(flags: list[str]) -> list[str]:
    """Megatron's own run has no groups, and no settings of theirs."""
    kept, skip = [], False
    for word in flags:
        skip = word.startswith("--grove-") or (skip and not word.startswith("--"))
        if not skip:
            kept.append(word)
    return kept
