"""``grove bench routers``: a whole layer with every router, beside the one with plain top-k.

Forward and backward. All layers have the same experts. A router that gives a token one expert is
beside top-1, the others beside the ``--topk`` of the shape.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from ..functional import assignment
from ..moe.carried import REWARD_COLUMNS, Carried, digits
from . import ranks
from .harness import Samples, Subject, cuda_clock, interleave, ratio, wall_clock
from .layer import subject, tokens
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings
from .variants import layer_with

VOCABULARY = 32768


@dataclass(frozen=True)
class Arm:
    """A router.

    Args:
        settings: of the configuration.
        one: does a token get one expert?
        iterations: of what the router repeats; 0 for none, None for what is counted.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    one: bool = False
    iterations: int | None = 0


_FUTURE = {"grove_expert_choice_sees_future": True}
ARMS = {
    "top-k": Arm(),
    "attention gate": Arm({"grove_router_gate": "attention"}),
    "two-layer gate": Arm({"grove_router_gate": "two_layer"}),
    "logit norm": Arm({"grove_logit_norm": "population"}),
    "noisy top-k": Arm({"grove_noisy_topk": True}),
    "capacity of sequences": Arm(
        {"moe_expert_capacity_factor": 1.25, "grove_capacity_scope": "sequence"}
    ),
    "sinkhorn": Arm({"grove_router_selector": "sinkhorn"}, iterations=20),
    "expert choice": Arm({"grove_router_selector": "expert_choice"} | _FUTURE),
    "reinforce": Arm({"grove_router_selector": "reinforce"}),
    "hash": Arm({"grove_router_selector": "hash", "grove_hash_vocabulary": VOCABULARY}),
    "top-1": Arm({"moe_router_pre_softmax": True}, one=True),
    "base": Arm({"grove_router_selector": "base"}, one=True, iterations=None),
}


def measure(settings: Settings) -> Findings:
    """Build, time in turns, and count what routers repeat."""
    with ranks.process_groups(settings.ranks, settings.seed):
        x, grad = tokens(settings.shape, settings.seed + dist.get_rank())
        built = _build(settings, x)
        subjects = {name: _subject(name, layer, x, grad) for name, layer in built.items()}
        times = interleave(
            [*subjects.values()],
            rounds=settings.rounds,
            warmup=settings.warmup,
            clock=cuda_clock if ranks.cuda_is_used() else wall_clock,
        )
        counted = {}
        for name, arm in ARMS.items():
            with _counting() as rounds:
                if arm.iterations is None:
                    subjects[name].run()
            counted[name] = sum(rounds) if arm.iterations is None else arm.iterations
    return findings(settings, times, counted)


def _build(settings: Settings, x: Tensor) -> dict[str, MoELayer]:
    built: dict[str, MoELayer] = {}
    for name, arm in ARMS.items():
        more = {**arm.settings, **({"moe_router_topk": 1} if arm.one else {})}
        layer = layer_with(settings.shape, settings.ranks, settings.kernels[0], more)
        if built:
            layer.experts = next(iter(built.values())).experts
        built[name] = layer
    return built


def _subject(name: str, layer: MoELayer, x: Tensor, grad: Tensor) -> Subject:
    """With token ids and columns for rewards beside the tokens where the router reads them."""
    needs = layer.router.needs
    if needs:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(VOCABULARY, x.shape[:2], generator=generator).to(x.device)
        reward = x.new_zeros((*x.shape[:2], REWARD_COLUMNS))
        layer.previous = Carried(
            ids=digits(ids, x.dtype) if "ids" in needs else None,
            reward=reward if "reward" in needs else None,
        ).columns
    return subject(name, layer, x, grad)


@contextmanager
def _counting() -> Iterator[list[int]]:
    """The rounds of every auction inside."""
    from ..parts.selector import base

    rounds: list[int] = []
    original = base.balanced_assignment

    def counted(*args: Any) -> assignment.Assigned:
        found = original(*args)
        rounds.append(found.rounds)
        return found

    base.balanced_assignment = counted  # type: ignore[assignment]
    try:
        yield rounds
    finally:
        base.balanced_assignment = original


def findings(
    settings: Settings, times: Mapping[str, Samples], counted: Mapping[str, int]
) -> Findings:
    """Times, and how many of the plain layer's, measured in turns with it."""
    kernel, shape = settings.kernels[0], settings.shape
    lines, values = [], []
    summary: dict[str, Any] = {}
    for name, arm in ARMS.items():
        beside = "top-1" if arm.one else "top-k"
        time = Value.milliseconds(name, kernel, times[name], shape=shape)
        slower = ratio(times[name], times[beside])
        once = partial(Value.once, name, kernel, shape=shape)
        values += [
            time,
            once("ratio", f"of {beside}", slower),
            once("iterations", "of what a router repeats", counted[name]),
        ]
        summary[f"ratio {name}"] = slower
        shown = str(counted[name]) if counted[name] else ""
        lines.append((name, spread(time), f"{slower:.3f} of {beside}", shown))
    table = Table(
        title=(
            f"A MoE layer with every router: {settings.ranks} rank(s), {shape.tokens} tokens a "
            f"rank, hidden {shape.hidden} {shape.dtype}, {shape.experts} experts x "
            f"{shape.expert_width} ({kernel}), top-{shape.topk} or top-1"
        ),
        header=("router", "ms p50 (p20-p80)", "ratio", "iterations"),
        lines=lines,
    )
    notes = ["Iterations: of Sinkhorn's, and rounds of bids of the auction of BASE."]
    return Findings(values=values, summary=summary, tables=[table], notes=notes)
