"""What models of different sizes learn of the same operations: ``compare.py moepp``."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compare_arms import Comparison
from compare_runs import Job, half_width, write
from pretrain_text import SEQUENCE_LENGTH

from grove_megatron.planner.flops import flops_per_token
from grove_megatron.report.measures import active_parameters, mean, per_layer
from grove_megatron.report.view import validations


@dataclass(frozen=True)
class Curve:
    """What a run spent and learned.

    Attributes:
        parameters: of the model.
        flops: spent until each of its evaluations.
        losses: of the validation set there, nats per token.
        active: parameters that an average token used.
        experts: experts with an FFN of an average token and layer.
    """

    parameters: int
    flops: list[float]
    losses: list[float]
    active: float
    experts: float


Curves = Mapping[tuple[str, int], Curve]
"""By the name of the model and the seed."""


def report(of: Comparison, jobs: Sequence[Job], out: Path) -> list[str]:
    """Write what was learned into ``out``; the table, to be printed, and what was written."""
    curves = {(job.arm.name, job.seed): curve(job, of.batch) for job in jobs}
    summary = summarize(of, curves)
    table = table_of(summary, of.iterations * of.tokens)
    results = summary | {
        "curves": [{"model": n, "seed": s, **asdict(c)} for (n, s), c in curves.items()]
    }
    write(out / "results.json", json.dumps(results, indent=1) + "\n")
    write(out / "table.md", "\n".join(table) + "\n")
    plot(of, curves, out / "comparison.new.png")
    (out / "comparison.new.png").replace(out / "comparison.png")
    return [*table, f"{out}: table.md, results.json, comparison.png"]


def curve(job: Job, batch: int) -> Curve:
    """From the record of a run of ``batch`` sequences a step; every number was counted in it."""
    view, model = job.view(), job.arm.model()
    spent, at = 0.0, {0: 0.0}
    met, active, weights = [], [], []
    for interval in view.intervals:
        layers = per_layer(interval)
        experts = mean(layers["pairs_per_token"])
        groups = mean(layers["groups_per_token"]) if job.arm.groups else 0.0
        tokens = interval.iterations * batch * SEQUENCE_LENGTH
        spent += tokens * flops_per_token(model, SEQUENCE_LENGTH, groups, experts)
        at[interval.iteration] = spent
        met.append(experts)
        active.append(active_parameters(interval))
        weights.append(tokens)
    made = {e.iteration: e.losses["lm loss"] for e in validations(view)}
    iterations = sorted(made)
    steps, flops = [*at], [*at.values()]
    return Curve(
        parameters=sum(view.last.run.parameters),
        flops=[float(np.interp(i, steps, flops)) for i in iterations],
        losses=[made[i] for i in iterations],
        active=float(np.average(active, weights=weights)),
        experts=float(np.average(met, weights=weights)),
    )


def at_flops(one: Curve, flops: float) -> float:
    """Loss when that much was spent, between two evaluations."""
    return float(np.interp(flops, one.flops, one.losses))


def summarize(of: Comparison, curves: Curves) -> dict[str, Any]:
    """Figures of every model, and its differences to the first, seed by seed."""
    arms, seeds = of.arms, of.seeds
    first = arms[0].name
    everyone = [[curves[arm.name, seed] for seed in seeds] for arm in arms]
    # All have spent it.
    common = min(one.flops[-1] for own in everyone for one in own)
    rows = []
    for arm, own in zip(arms, everyone, strict=True):
        last = [one.losses[-1] for one in own]
        equal = [at_flops(one, common) for one in own]
        base = [curves[first, seed] for seed in seeds]
        by_tokens = [a - b.losses[-1] for a, b in zip(last, base, strict=True)]
        by_flops = [a - at_flops(b, common) for a, b in zip(equal, base, strict=True)]
        rows.append(
            {
                "name": arm.name,
                "parameters": own[0].parameters,
                "active": statistics.mean(one.active for one in own),
                "experts_per_token": statistics.mean(one.experts for one in own),
                "flops": statistics.mean(one.flops[-1] for one in own),
                "loss": statistics.mean(last),
                "losses": last,
                "difference": statistics.mean(by_tokens),
                "difference_95": half_width(by_tokens),
                "loss_at_equal_flops": statistics.mean(equal),
                "difference_at_equal_flops": statistics.mean(by_flops),
                "difference_at_equal_flops_95": half_width(by_flops),
            }
        )
    return {"equal_flops": common, "seeds": list(seeds), "models": rows}


def table_of(summary: Mapping[str, Any], tokens: int) -> list[str]:
    """Markdown, of runs of ``tokens``, with what the numbers can and cannot say."""
    models, flops = summary["models"], summary["equal_flops"]
    first, seeds = models[0]["name"], len(summary["seeds"])
    lines = [
        f"| Model | Parameters | Active | FFNs a token | TFLOP | Loss | Less {first} | "
        f"Less {first} at {flops / 1e12:.2f} TFLOP |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in models:
        spread = max(one["losses"]) - min(one["losses"])
        cells = [
            one["name"],
            f"{one['parameters']:,}",
            f"{one['active']:,.0f}",
            f"{one['experts_per_token']:.2f}",
            f"{one['flops'] / 1e12:.2f}",
            f"{one['loss']:.4f} ({spread:.4f} between seeds)",
            _difference(one, "difference"),
            _difference(one, "difference_at_equal_flops"),
        ]
        if one["name"] == first:
            cells[-2:] = ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"Validation loss in nats per byte after {tokens:,} bytes; means of {seeds} seeds, which "
        f"also order the text. Differences are of the same seed, with the 95 % interval of their "
        f"mean by Student's t: where it reaches over 0, {seeds} seeds do not tell the two apart. "
        f"It is not widened for {2 * (len(models) - 1)} of them being looked at.",
    ]


def _difference(one: Mapping[str, Any], name: str) -> str:
    return f"{one[name]:+.4f} ± {one[f'{name}_95']:.4f}"


def plot(of: Comparison, curves: Curves, file: Path) -> None:
    """Loss against operations: a line for the mean, a band from the best to the worst seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from grove_megatron.report import draw

    with draw.style():
        figure, (whole, end) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
        for arm, colour in zip(
            of.arms, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False
        ):
            own = [curves[arm.name, seed] for seed in of.seeds]
            flops = np.mean([one.flops for one in own], axis=0) / 1e12
            losses = np.array([one.losses for one in own])
            for axes in (whole, end):
                axes.plot(flops, losses.mean(0), color=colour, marker="o", ms=4, label=arm.name)
                axes.fill_between(flops, losses.min(0), losses.max(0), color=colour, alpha=0.2)
        for axes in (whole, end):
            axes.set_xlabel("operations of training, TFLOP")
            axes.set_ylabel("validation loss, nats per byte")
        finals = [curves[arm.name, seed] for arm in of.arms for seed in of.seeds]
        later = [loss for one in finals for loss in one.losses[len(one.losses) // 2 :]]
        whole.set_title("The whole training")
        end.set_title("Its second half")
        end.set_xlim(left=min(one.flops[len(one.flops) // 2] for one in finals) / 1e12)
        end.set_ylim(min(later) - 0.01, max(later) + 0.01)
        whole.legend()
        figure.savefig(file)
        plt.close(figure)
