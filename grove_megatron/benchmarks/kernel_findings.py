"""What ``grove bench kernels`` says about its measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from .harness import Samples, ratio
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings
from .single_kernels import Single
from .strategies import STRATEGIES
from .work import Work

FLOOR = {"experts_only": "owner_rows", "experts_only_triton": "triton"}
"""Experts without adjugates, and the strategy whose products compute them."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times of every strategy and floor, why others were left out, and the single kernels.

    ``matmul_flops`` is the speed of a large matrix product, operations a second.
    """

    samples: Mapping[str, Samples]
    skipped: Mapping[str, str]
    singles: Sequence[Single]
    work: Work
    matmul_flops: float


def findings(settings: Settings, m: Measured) -> Findings:
    """Rows, tables and summary."""
    values, lines = [], []
    for name in (*STRATEGIES, *FLOOR):
        if name in m.skipped:
            lines.append((name, "skipped", *[""] * 5))
        elif name in m.samples:
            of_strategy, line = _strategy(settings, m, name)
            values += of_strategy
            lines.append(line)
    singles = [_single(m, single) for single in m.singles]
    strategies = Table(
        title=f"Experts and adjugates, forward and backward: {_words(settings)}",
        header=(
            *("", "ms p50 (p20-p80)", "of owner_rows", "of experts alone"),
            *("operations", "GFLOP/s", "of matmul"),
        ),
        lines=lines,
    )
    alone = Table(
        title="Every kernel alone",
        header=("", "ms p50 (p20-p80)", "GB/s", "of a copy", "GFLOP/s", "of matmul"),
        lines=[line for _, line in singles],
    )
    return Findings(
        values=[*values, *(value for of_single, _ in singles for value in of_single)],
        summary=_summary(settings, m),
        tables=[strategies, alone],
        notes=[
            *(f"{name}: skipped, {reason}" for name, reason in m.skipped.items()),
            "Operations are those of experts alone; a copy is torch's, of as many bytes.",
        ],
    )


def floor(m: Measured) -> Samples:
    """The fastest experts without adjugates."""
    return min((m.samples[name] for name in FLOOR if name in m.samples), key=lambda s: s.median)


def _strategy(settings: Settings, m: Measured, name: str) -> tuple[list[Value], tuple[str, ...]]:
    """Values and table line of one."""
    samples, flops = m.samples[name], _flops(settings, m, name)
    operations = flops / _flops(settings, m, "experts_only")
    speed = flops / samples.median
    time = Value.milliseconds(name, "", samples)
    once = partial(Value.once, name, "")
    values = [
        time,
        once("flop_ratio", "of experts alone", operations),
        once("tflops", "10^12 floating-point operations a second", speed / 1e12),
        once("matmul_share", "of a large matrix product", speed / m.matmul_flops),
    ]
    return values, (
        name,
        spread(time),
        f"{ratio(samples, m.samples['owner_rows']):.3f}",
        f"{ratio(samples, floor(m)):.3f}",
        f"{operations:.3f}",
        f"{speed / 1e9:.1f}",
        f"{speed / m.matmul_flops:.0%}",
    )


def _flops(settings: Settings, m: Measured, name: str) -> float:
    evaluations = 0 if name in FLOOR else m.work.adjugate_pairs
    return m.work.expert_flops(settings.shape, evaluations)


def _single(m: Measured, one: Single) -> tuple[list[Value], tuple[str, ...]]:
    """Values and table line of one kernel: bytes of what moves rows, operations of a product."""
    time = Value.milliseconds(one.kernel, one.implementation, one.samples)
    once = partial(Value.once, one.kernel, one.implementation)
    name, share = (f"{one.kernel}, {one.implementation}", spread(time, digits=2)), _share(m, one)
    if one.copy is None:
        speed = one.flops / one.samples.median
        values = [
            once("tflops", "10^12 floating-point operations a second", speed / 1e12),
            once("matmul_share", "of a large matrix product", share),
        ]
        return [time, *values], (*name, "", "", f"{speed / 1e9:.1f}", f"{share:.0%}")
    speed = one.moved_bytes / one.samples.median
    values = [
        once("gigabytes", "10^9 bytes a second", speed / 1e9),
        once("copy_share", "of a copy of as many bytes", share),
    ]
    return [time, *values], (*name, f"{speed / 1e9:.2f}", f"{share:.0%}", "", "")


def _share(m: Measured, one: Single) -> float:
    """Of the speed of a copy, or of a large matrix product."""
    if one.copy is not None:
        return ratio(one.copy, one.samples)
    return one.flops / one.samples.median / m.matmul_flops


def _summary(settings: Settings, m: Measured) -> dict[str, float | None]:
    """The JSON keys; None for a strategy that was skipped."""
    summary: dict[str, float | None] = {}
    for name in STRATEGIES:
        samples = m.samples.get(name)
        if name != "owner_rows":
            beside = ratio(samples, m.samples["owner_rows"]) if samples else None
            summary[f"{name}_vs_owner_rows"] = beside
        summary[f"{name}_vs_experts_only"] = ratio(samples, floor(m)) if samples else None
    both, alone = (_flops(settings, m, name) for name in ("owner_rows", "experts_only"))
    summary["flop_ratio"] = both / alone
    for one in m.singles:
        of = "matmul" if one.copy is None else "copy"
        summary[f"{one.kernel}_{one.implementation}_{of}_share"] = _share(m, one)
    return summary


def _words(settings: Settings) -> str:
    s = settings.shape
    return (
        f"{s.tokens} tokens, hidden {s.hidden} {s.dtype}, {s.experts} experts x "
        f"{s.expert_width}, {s.groups} adjugates x {s.adjugate_width}, top-{s.topk}"
    )
