"""What ``grove bench step`` says about its measurements."""

from collections.abc import Iterator

from .harness import Samples, ratio
from .metrics_cost import MetricsCost
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings


def findings(
    settings: Settings,
    samples: dict[str, Samples],
    rows: float,
    flops: float | None,
    cost: MetricsCost | None,
    watch: Samples | None = None,
) -> Findings:
    """Rows, table and summary.

    Args:
        samples: seconds of a step, by variant.
        rows: that grove sent, of a token and layer.
        flops: operations of a step of grove, over those of plain; None where not known.
        cost: of grove's metrics, None where they are off.
        watch: seconds in which a step looks at its routers' logits, None where nothing looks.
    """
    kernel = settings.kernels[0]
    times = {n: Value.milliseconds(n, kernel, s) for n, s in samples.items()}
    beside = {n: ratio(samples["grove"], s) for n, s in samples.items()}
    plain = samples.get("plain")
    of_plain = {n: ratio(s, plain) for n, s in samples.items()} if plain else {}
    s = settings.shape
    table = Table(
        title=(
            f"Training step: {settings.ranks} ranks, {s.tokens} tokens a rank, {s.layers} layers, "
            f"hidden {s.hidden} {s.dtype}, {s.experts} experts x {s.expert_width}, "
            f"{s.groups} adjugates x {s.adjugate_width}, top-{s.topk}"
        ),
        header=("", "ms p50 (p20-p80)", "of plain", "grove / this"),
        lines=[
            (n, spread(times[n]), f"{of_plain[n]:.3f}" if plain else "", f"{beside[n]:.3f}")
            for n in samples
        ],
    )
    return Findings(
        values=[
            *times.values(),
            Value.once("grove", kernel, "rows_per_token", "rows", rows),
            *([Value.once("grove", kernel, "flop_ratio", "of plain", flops)] if flops else []),
            *(cost.values(samples["grove"], kernel) if cost else []),
            *(_values_of_watch(watch, samples["grove"], kernel) if watch else []),
        ],
        summary={
            "ratio_vs_plain": beside.get("plain"),
            "ratio_vs_naive": beside.get("naive"),
            "flop_ratio": flops,
            "grove_dispatch_vs_plain": of_plain.get("grove-dispatch"),
            "rows_per_token": rows,
            "metrics_share": cost.share(samples["grove"]) if cost else None,
            "watch_share": ratio(watch, samples["grove"]) if watch else None,
        },
        tables=[table],
        notes=[
            *_notes(of_plain, flops),
            f"grove sent {rows:.2f} rows a token and layer; Megatron's dispatch {s.topk}.",
            *([cost.note(samples["grove"])] if cost else []),
            *([_note_of_watch(watch, samples["grove"])] if watch else []),
        ],
    )


def _values_of_watch(watch: Samples, step: Samples, kernel: str) -> list[Value]:
    return [
        Value.milliseconds("grove", kernel, watch, quantity="watch of logits"),
        Value.once("grove", kernel, "watch_share", "of a step", ratio(watch, step)),
    ]


def _note_of_watch(watch: Samples, step: Samples) -> str:
    return (
        f"Looking for logits that are not finite takes {watch.median * 1000:.2f} ms, "
        f"{ratio(watch, step):.2%} of a step of grove."
    )


def _notes(of_plain: dict[str, float], flops: float | None) -> Iterator[str]:
    if of_plain:
        operations = "" if flops is None else f", {flops:.3f} of the operations"
        yield f"A step of grove beside plain: {of_plain['grove']:.3f} of the time{operations}."
    if (time := of_plain.get("grove-dispatch")) is not None:
        yield f"The plain model on grove's dispatch (--grove-dispatch): {time:.3f} of the time."
