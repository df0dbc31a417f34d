"""What of an interval goes into the log line, and what to TensorBoard and W&B."""

from typing import Any

import numpy as np

from ..report.arrays import Array
from ..report.measures import mean, per_layer, totals
from ..report.record import Interval


def log_line(interval: Interval) -> str:
    """What the reader of a log should see at once, in the form of Megatron's line."""
    layers = per_layer(interval)
    met = layers.get("groups_per_token")
    shown = {
        "load max/mean": f"{1 + mean(layers['max_vio']):.2f}",
        "dead experts": f"{totals(interval)['dead_experts_total']:.0f}",
        **({"groups per token": f"{mean(met):.2f}"} if met is not None else {}),
        "rows per token": f"{mean(layers['rows_per_token']):.2f}",
        **({"without FFN": f"{mean(layers['skipped_share']):.1%}"} if interval.run.local else {}),
        **({"dropped": f"{mean(layers['dropped_share']):.1%}"} if interval.run.drops else {}),
        "rank max/mean": f"{mean(layers['rank_pairs_imbalance']):.2f}",
    }
    return "".join(f" {name}: {value} |" for name, value in shown.items())


def scalars(interval: Interval, idle_LE: Array, every_layer: bool) -> dict[str, float]:
    """Everything for TensorBoard and W&B, by tag; what is not a number is left out.

    Args:
        interval: all ranks' sums.
        idle_LE: [L, E] iterations an expert has been without tokens.
        every_layer: also each layer's own (``--moe-per-layer-logging``), not means alone.
    """
    layers = per_layer(interval)
    values = {f"grove/{name}": mean(of_layers) for name, of_layers in layers.items()}
    values |= {f"grove/{name}": value for name, value in totals(interval).items()}
    values["grove/longest_idle"] = float(idle_LE.max(initial=0))
    if interval.run.groups:
        met = interval.sharing.sum(0) / max(1, interval.sharing.sum())
        values |= {f"grove/tokens_that_meet_groups/{n}": float(x) for n, x in enumerate(met)}
    if every_layer:
        for name, of_layers in layers.items():
            for layer, value in zip(interval.run.layers, of_layers, strict=True):
                values[f"grove/{name}/layer_{layer.replace(' ', '_')}"] = float(value)
    return {tag: value for tag, value in values.items() if np.isfinite(value)}


def write(values: dict[str, float], iteration: int, writer: Any, wandb_writer: Any) -> None:
    """To Megatron's writers, either of which may be None."""
    if writer is not None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, iteration)
    if wandb_writer is not None:
        wandb_writer.log(values, iteration)
