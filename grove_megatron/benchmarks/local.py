"""``grove bench local``: what a token saves that selects experts without an FFN, as in MoE++.

The forward pass of the experts, dispatch and combine, of 8, 16 and 32 experts with an FFN and those
without beside them (arXiv 2410.07348), beside the same layer whose tokens all have experts
with an FFN. Routing is drawn in the shares that a balanced model of a tau has, and is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from ..model.selection import chances
from . import ranks
from .harness import Samples, Subject, cuda_clock, interleave, ratio, wall_clock
from .layer import tokens
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings, Shape
from .variants import layer_with_local_experts

# Experts with an FFN, and constant, copy and zero experts beside them.
PAPERS = {8: (2, 1, 1), 16: (2, 1, 1), 32: (6, 1, 1)}
TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Case:
    """One layer and one routing; tau None: no local experts."""

    experts: int
    local: int
    tau: float | None

    @property
    def name(self) -> str:
        return f"{self.experts}+{self.local}" + ("" if self.tau is None else f", tau {self.tau:g}")

    @property
    def theory(self) -> float:
        """Speed-up if a token cost what its experts with an FFN cost."""
        if self.tau is None:
            return 1.0
        return (self.tau * self.experts + self.local) / (self.tau * self.experts)


def measure(settings: Settings) -> Findings:
    """Every setting and tau, in turns."""
    with ranks.process_groups(settings.ranks, settings.seed):
        x, _ = tokens(settings.shape, settings.seed + dist.get_rank())
        subjects, rows = {}, {}
        for case in cases():
            layer, sent = _layer(settings, case, x)
            subjects[case] = Subject(name=case.name, run=partial(_forward, layer, x))
            rows[case] = sent
        times = interleave(
            [*subjects.values()],
            rounds=settings.rounds,
            warmup=settings.warmup,
            clock=cuda_clock if ranks.cuda_is_used() else wall_clock,
        )
    return findings(settings, {case: times[case.name] for case in subjects}, rows)


def cases() -> list[Case]:
    """Each setting without local experts, then with every tau."""
    return [
        Case(experts, sum(kinds), tau) for experts, kinds in PAPERS.items() for tau in (None, *TAUS)
    ]


def _layer(settings: Settings, case: Case, x: Tensor) -> tuple[MoELayer, float]:
    """With its routing, and the pairs of a token and an expert with an FFN."""
    shape = replace(settings.shape, experts=case.experts)
    kinds = (0, 0, 0) if case.tau is None else PAPERS[case.experts]
    layer = layer_with_local_experts(shape, settings.ranks, settings.kernels[0], kinds)
    seed = settings.seed + dist.get_rank()
    probs_TE, map_TE = routing(shape, case, seed)
    routed = (probs_TE.to(x.device), map_TE.to(x.device))
    layer.router.forward = lambda *_: routed
    pairs = map_TE[:, : case.experts].sum() / shape.tokens
    return layer, float(pairs)


def routing(shape: Shape, case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Weights [T, E + C] fp32, and the map: as many experts with an FFN as tau lets tokens have.

    Which of either kind is uniform; the numbers of tokens are as near to their expectations as
    whole numbers are.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = case.experts + (0 if case.tau is None else case.local)
    order_TE = torch.rand(shape.tokens, columns, generator=generator).argsort(1)
    is_ffn_TE = order_TE < case.experts
    wanted_T = torch.full((shape.tokens,), shape.topk)
    if case.tau is not None:
        of_count = chances(case.experts, case.local, shape.topk, case.tau)
        ends = (torch.tensor([*of_count.values()]).cumsum(0) * shape.tokens).round().long()
        wanted_T = torch.empty(shape.tokens, dtype=torch.long)
        begin = 0
        for count, end in zip(of_count, [*ends[:-1].tolist(), shape.tokens], strict=True):
            wanted_T[begin:end] = count
            begin = end
        wanted_T = wanted_T[torch.randperm(shape.tokens, generator=generator)]
    taken_TE = torch.where(
        is_ffn_TE,
        is_ffn_TE.cumsum(1) <= wanted_T[:, None],
        (~is_ffn_TE).cumsum(1) <= shape.topk - wanted_T[:, None],
    )
    map_TE = torch.zeros_like(taken_TE).scatter(1, order_TE, taken_TE)
    return map_TE / shape.topk, map_TE


def _forward(layer: MoELayer, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def findings(
    settings: Settings, samples: Mapping[Case, Samples], pairs: Mapping[Case, float]
) -> Findings:
    """Times, and how much faster than without local experts, beside what the saved work allows."""
    kernel, lines, values = settings.kernels[0], [], []
    summary: dict[str, Any] = {}
    for case, times in samples.items():
        shape = replace(settings.shape, experts=case.experts)
        time = Value.milliseconds(case.name, kernel, times, shape=shape)
        faster = ratio(samples[Case(case.experts, case.local, None)], times)
        once = partial(Value.once, case.name, kernel, shape=shape)
        values += [
            time,
            once("speed_up", "of no local experts", faster),
            once("theory", "of no local experts", case.theory),
            once("pairs_per_token", "experts with an FFN", pairs[case]),
        ]
        expected = settings.shape.topk / case.theory
        shown = f"{pairs[case]:.3f} of {expected:.3f}"
        lines.append((case.name, spread(time), f"{faster:.3f}", f"{case.theory:.3f}", shown))
        if case.tau is not None:
            summary[f"speed_up {case.name}"] = faster
    s = settings.shape
    table = Table(
        title=(
            f"Forward of a MoE layer: {settings.ranks} rank(s), {s.tokens} tokens a rank, hidden "
            f"{s.hidden} {s.dtype}, experts x {s.expert_width} ({kernel}), top-{s.topk}"
        ),
        header=("FFN + others", "ms p50 (p20-p80)", "speed-up", "at most", "FFN experts a token"),
        lines=lines,
    )
    notes = ["A token sends no row for an expert without an FFN, and for none at all sends none."]
    return Findings(values=values, summary=summary, tables=[table], notes=notes)
