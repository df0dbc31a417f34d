"""What ``grove bench layer`` says about its measurements."""

from dataclasses import dataclass, field
from functools import partial

from .harness import Samples, ratio
from .operator_findings import operator_table, operator_values, operators_ratio
from .operators import Stage
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings
from .work import Work

Key = tuple[str, str]
"""(variant, kernel)."""
DETERMINISTIC = "grove, deterministic"
"""grove with torch's deterministic algorithms."""
_KINDS = {
    "plain": ("experts",),
    "grove-dispatch": ("experts",),
    "grove": ("experts", "adjugates"),
    DETERMINISTIC: ("experts", "adjugates"),
}
"""What a variant has to multiply; naive does more than it has to."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times and peak bytes (weights included) of every key, the largest of all ranks.

    ``matmul_flops`` is the speed of a large matrix product, operations a second; ``products`` the
    times of the products of experts and of adjugates alone; ``operators`` those of every
    stage, of every variant once.
    """

    samples: dict[Key, Samples]
    peak: dict[Key, float]
    work: Work
    matmul_flops: float
    products: dict[str, Samples] = field(default_factory=dict)
    operators: dict[Key, dict[str, Stage]] = field(default_factory=dict)

    def products_share(self, key: Key) -> float | None:
        """The time of the products alone over that of the layer; None where it is not known."""
        kinds = _KINDS.get(key[0], ())
        if not kinds or not self.products:
            return None
        return sum(self.products[kind].median for kind in kinds) / self.samples[key].median


def findings(settings: Settings, m: Measured) -> Findings:
    """Rows, table and summary."""
    values, lines = [], []
    for key in m.samples:
        of_key, line = _line(settings, m, key)
        values += of_key
        lines.append(line)
    summary = summarize(settings, m)
    assert summary["flop_ratio"] is not None
    values.append(Value.once("grove", "", "flop_ratio", "of plain", summary["flop_ratio"]))
    values += operator_values(m.operators)
    table = Table(
        title=f"One MoE layer, forward and backward: {_words(settings)}",
        header=("", "ms p50 (p20-p80)", "of plain", "GFLOP/s", "of matmul", "products", "peak MB"),
        lines=lines,
    )
    return Findings(
        values=values,
        summary=summary,
        tables=[table, *operator_table(m.operators, settings.ranks)],
        notes=_notes(summary),
    )


def _line(settings: Settings, m: Measured, key: Key) -> tuple[list[Value], tuple[str, ...]]:
    """Values and table line of one variant."""
    variant, kernel = key
    samples, peak = m.samples[key], m.peak[key]
    flops = m.work.flops(settings.shape, "grove" if variant == DETERMINISTIC else variant)
    speed = flops / samples.median
    time = Value.milliseconds(variant, kernel, samples)
    once = partial(Value.once, variant, kernel)
    values = [
        time,
        once("peak_bytes", "bytes", peak),
        once("tflops", "10^12 floating-point operations a second", speed / 1e12),
        once("matmul_share", "of a large matrix product", speed / m.matmul_flops),
    ]
    if variant == "grove" and (plain_peak := m.peak.get(("plain", kernel))) is not None:
        allowed = plain_peak + m.work.adjugate_bytes(settings.shape, settings.ranks)
        values.append(once("peak_bytes_allowed", "bytes", allowed))
    share = m.products_share(key)
    if share is not None:
        values.append(once("products_share", "of the layer's time", share))
    plain = m.samples.get(("plain", kernel))
    relative = f"{ratio(samples, plain):.3f}" if plain else ""
    speeds = (f"{speed / 1e9:.1f}", f"{speed / m.matmul_flops:.0%}")
    return values, (
        f"{variant}, {kernel}",
        spread(time),
        relative,
        *speeds,
        "" if share is None else f"{share:.0%}",
        f"{peak / 1e6:.1f}",
    )


def summarize(settings: Settings, m: Measured) -> dict[str, float | None]:
    """The JSON keys: the fastest grove beside the fastest plain, and beside naive of its kernel.

    Peak bytes are compared at the kernel of the fastest grove. A variant that was left out has no
    ratio.
    """
    shape, work = settings.shape, m.work

    def fastest(variant: str) -> Key | None:
        keys = [key for key in m.samples if key[0] == variant]
        return min(keys, key=lambda key: m.samples[key].median, default=None)

    ours = fastest("grove")
    assert ours is not None
    plain, naive = fastest("plain"), m.samples.get(("naive", ours[1]))
    plain_peak = m.peak.get(("plain", ours[1]))
    allowed = work.adjugate_bytes(shape, settings.ranks)
    repeatable = m.samples.get((DETERMINISTIC, ours[1]))
    return {
        "ratio_vs_plain": ratio(m.samples[ours], m.samples[plain]) if plain else None,
        "ratio_vs_naive": ratio(m.samples[ours], naive) if naive else None,
        "flop_ratio": work.flops(shape, "grove") / work.flops(shape, "plain"),
        "adjugate_pairs_per_token": work.adjugate_pairs / work.tokens,
        "peak_bytes_ratio": m.peak[ours] / plain_peak if plain_peak else None,
        "peak_bytes_allowed_ratio": (plain_peak + allowed) / plain_peak if plain_peak else None,
        "deterministic_ratio": ratio(repeatable, m.samples[ours]) if repeatable else None,
        "products_share": m.products_share(ours),
        "plain_products_share": m.products_share(plain) if plain else None,
        "operators_ratio": operators_ratio(m.operators),
    }


def _notes(summary: dict[str, float | None]) -> list[str]:
    notes = []
    flops = f"{summary['flop_ratio']:.3f} of the operations"
    if (time := summary["ratio_vs_plain"]) is not None:
        notes.append(f"The fastest grove beside the fastest plain: {time:.3f} of the time, {flops}")
    if (time := summary["ratio_vs_naive"]) is not None:
        notes.append(f"The same beside naive with its experts: {time:.3f} of the time")
    if (peak := summary["peak_bytes_ratio"]) is not None:
        allowed = f"{summary['peak_bytes_allowed_ratio']:.3f}"
        notes.append(
            f"Peak memory beside plain: {peak:.3f}; with the adjugates' own bytes alone {allowed}"
        )
    if (time := summary["deterministic_ratio"]) is not None:
        notes.append(f"Deterministic beside the fastest grove: {time:.3f} of the time, same bits")
    if (share := summary["products_share"]) is not None:
        plain = summary["plain_products_share"]
        beside = "" if plain is None else f", {plain:.3f} of the fastest plain"
        notes.append(
            f"The products of experts and adjugates alone: {share:.3f} of the fastest grove's time"
            f"{beside}"
        )
    return notes


def _words(settings: Settings) -> str:
    s = settings.shape
    return (
        f"{settings.ranks} rank(s), {s.tokens} tokens a rank, hidden {s.hidden} {s.dtype}, "
        f"{s.experts} experts x {s.expert_width}, {s.groups} adjugates x {s.adjugate_width}, "
        f"top-{s.topk}"
    )
