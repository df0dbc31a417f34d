"""``grove bench scaling``: how the cost grows with tokens, with experts and with ranks.

Layer time for 1, 2, 4 and 8 times the tokens and the experts at fixed top-k, on one rank; dispatch
time for 1, 2 and 4 expert-parallel ranks. A slope is that of log(time) over log(size): 1 is linear.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import ranks
from .harness import Samples, cuda_clock, interleave, wall_clock
from .records import Value
from .report import Findings, Table, spread
from .shape import Settings, Shape, dispatch_shape

FACTORS = (1, 2, 4, 8)
RANKS = (1, 2, 4)
SWEPT = ("plain", "grove")


def slope(points: Mapping[float, float]) -> float:
    """Least squares slope of log(value) over log(key), for two keys or more."""
    xs, ys = [math.log(k) for k in points], [math.log(v) for v in points.values()]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - x_mean) ** 2 for x in xs)


def measure(settings: Settings) -> Findings:
    """Both sweeps of the layer in this process, then dispatch in jobs of their own."""
    base = settings.shape
    with ranks.process_groups(1, settings.seed):
        swept = {
            "tokens": _layer_times(
                settings, [replace(base, tokens=base.tokens * f) for f in FACTORS]
            ),
            "experts": _layer_times(
                settings,
                [replace(base, experts=base.experts * f, groups=base.groups * f) for f in FACTORS],
            ),
        }
    sweeps = {name: _values(settings, name, times) for name, times in swept.items()}
    sweeps["ranks"] = [value for r in RANKS for value in _dispatch_times(settings, r)]
    return _findings(settings, sweeps)


def _layer_times(settings: Settings, shapes: Sequence[Shape]) -> dict[tuple[str, Shape], Samples]:
    """Forward and backward of plain and grove at every shape, interleaved."""
    from .layer import subject, tokens
    from .variants import layers

    subjects, keys = [], []
    for shape in shapes:
        built = layers(shape, 1, settings.kernels[0])
        x, grad = tokens(shape, settings.seed)
        for name in SWEPT:
            keys.append((name, shape))
            subjects.append(subject(f"{name} {len(keys)}", built[name], x, grad))
    by_name = interleave(
        subjects,
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=cuda_clock if ranks.cuda_is_used() else wall_clock,
    )
    return {key: by_name[s.name] for key, s in zip(keys, subjects, strict=True)}


def _values(
    settings: Settings, sweep: str, times: Mapping[tuple[str, Shape], Samples]
) -> list[Value]:
    return [
        Value.milliseconds(
            name, settings.kernels[0], samples, shape=shape, ranks=1, quantity=f"time over {sweep}"
        )
        for (name, shape), samples in times.items()
    ]


def _dispatch_times(settings: Settings, num_ranks: int) -> list[Value]:
    """What ``grove bench dispatch`` says on that many ranks."""
    shape = dispatch_shape(settings.shape)
    options = {
        "ranks": num_ranks,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "warmup": settings.warmup,
        "seed": settings.seed,
        **{name: getattr(shape, name) for name in ("tokens", "hidden", "experts", "groups")},
        **{name: getattr(shape, name) for name in ("topk", "dtype")},
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    done = ranks.start(
        num_ranks, settings.threads, ["bench", "dispatch", *arguments, "--json"], capture=True
    )
    if done.returncode:
        raise RuntimeError(f"grove bench dispatch {' '.join(arguments)} exited {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])["rows"]
    return [
        Value(
            variant={"stock": "plain"}.get(row["variant"], row["variant"]),
            kernel="",
            quantity="time over ranks",
            unit=row["unit"],
            **{name: row[name] for name in ("p20", "p50", "p80", "iterations", "ranks")},
            shape=shape,
        )
        for row in found
        if row["quantity"] == "time"
    ]


def size_of(sweep: str, value: Value) -> int:
    """The quantity that a sweep grows."""
    assert value.shape is not None
    return int(value.ranks or 1) if sweep == "ranks" else int(getattr(value.shape, sweep))


def _findings(settings: Settings, sweeps: Mapping[str, list[Value]]) -> Findings:
    lines, values, summary = [], [], {}
    for sweep, measured in sweeps.items():
        by_variant = {
            name: {size_of(sweep, v): v for v in measured if v.variant == name} for name in SWEPT
        }
        for size in by_variant["grove"]:
            cells = [spread(by_variant[name][size]) for name in SWEPT]
            lines.append((f"{size} {sweep}", *cells))
        slopes = {
            name: slope({size: v.p50 for size, v in points.items()})
            for name, points in by_variant.items()
        }
        lines.append(("slope", *(f"{slopes[name]:.2f}" for name in SWEPT)))
        values += measured
        values += [
            Value.once(name, "", f"slope over {sweep}", "log ms / log size", number)
            for name, number in slopes.items()
        ]
        summary[f"slope_{sweep}"] = slopes["grove"]
    s = settings.shape
    table = Table(
        title=(
            f"Growth of the layer from {s.tokens} tokens and {s.experts} experts, and of dispatch "
            "with ranks"
        ),
        header=("", *(f"{name}, ms p50 (p20-p80)" for name in SWEPT)),
        lines=lines,
    )
    return Findings(
        values=values,
        summary=summary,
        tables=[table],
        notes=[
            "Slopes: 1 is linear. Experts grow at fixed top-k: the same work in smaller pieces.",
            f"Ranks share {len(os.sched_getaffinity(0))} cores, and each brings its own tokens.",
        ],
    )
