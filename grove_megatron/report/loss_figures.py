"""Figures of losses and of speed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from . import draw
from .series import ends
from .shown import Drawn
from .view import View, tokens_per_second

_MAIN = "lm loss"
_COEFFICIENTS = {
    "z_loss": "moe-z-loss-coeff",
    "group_load_balancing_loss": "grove-group-aux-loss-coeff",
}
# These share a flag, which has as many coefficients as there are types.
_BALANCING = {
    "load_balancing_loss": "aux_loss",
    "seq_load_balancing_loss": "seq_aux_loss",
    "global_load_balancing_loss": "global_aux_loss",
}
_SETS = (draw.ORANGE, draw.GREEN, draw.GRAY)


def loss(view: View) -> Drawn:
    """Every loss that Megatron summed, the language model's first and largest."""
    title, intervals = "Loss", view.intervals
    names = sorted(
        {name for i in intervals for name in i.losses}, key=lambda name: (name != _MAIN, name)
    )
    if not names:
        return Drawn("loss", title, "The record holds no losses.", None)
    main, others = names[0], names[1:]
    fig = draw.figure(3.6 + 2.1 * bool(others))
    heights = [2, 1] if others else [1]
    grid = fig.add_gridspec(len(heights), max(1, len(others)), height_ratios=heights)
    places = [grid[0, :], *(grid[1, i] for i in range(len(others)))]
    for name, place in zip(names, places, strict=True):
        axes = fig.add_subplot(place)
        values = np.array([i.losses.get(name, np.nan) for i in intervals])
        draw.line(axes, intervals, values, draw.BLUE, "training")
        draw.over_iterations(axes, intervals, "nats per token" if name == _MAIN else "")
        if name == main:
            _evaluated(axes, view, main)
        # Of a loss for balance, one per cent is little.
        draw.around(axes, 0.01 if name == _MAIN else 0.1)
        axes.set_title(name + _coefficient(view, name))
    read = (
        "Means over the intervals of the record, of what Megatron prints, losses of MTP layers "
        "excepted; the others than the first as they are before their coefficient. Look for jumps "
        "of the loss here before looking for their reason below. Dotted lines: a process was "
        "started anew. Where a line is broken nothing was recorded."
    )
    return Drawn("loss", title, read, fig)


def _coefficient(view: View, name: str) -> str:
    """What a loss is multiplied by where it is added to the language model's, if that is known."""
    settings = view.last.run.settings
    # A part's loss and its flag go by one name.
    value = settings.get(_COEFFICIENTS.get(name, f"grove-{name.replace('_', '-')}-coeff"))
    if name in _BALANCING:
        types = _listed(settings.get("moe-router-load-balancing-type"))
        each = _listed(settings.get("moe-aux-loss-coeff"))
        value = dict(zip(types, each, strict=False)).get(_BALANCING[name])
    return "" if value is None else f", coefficient {value}"


def _listed(setting: Any) -> list[str]:
    """The values of a flag that has one or several, as they were written: ``['a', 'b']``."""
    if setting is None:
        return []
    return [word.strip(" '\"") for word in str(setting).strip("[]").split(",")]


def _evaluated(axes: Axes, view: View, name: str) -> None:
    """Validation and test sets as points, which few of them are, joined."""
    sets = dict.fromkeys(e.of for e in view.evaluations if name in e.losses)
    for number, of in enumerate(sets):
        made = [e for e in view.evaluations if e.of == of and name in e.losses]
        axes.plot(
            [e.iteration for e in made],
            [e.losses[name] for e in made],
            color=_SETS[number % len(_SETS)],
            marker="o" if of != "test" else "D",
            markersize=4,
            label=of,
        )
    if sets:
        draw.legend(axes)


def speed(view: View) -> Drawn:
    """Tokens a second."""
    title, values = "Speed", tokens_per_second(view)
    if np.isnan(values).all():
        return Drawn(
            "speed", title, "Too few intervals to know how many tokens were trained a second.", None
        )
    fig = draw.figure(2.6)
    axes = fig.subplots()
    draw.line(axes, view.intervals, values, draw.BLUE, "")
    draw.over_iterations(axes, view.intervals, "tokens per second")
    axes.set_xlim(right=float(ends(view.intervals)[-1]))
    draw.from_zero(axes)
    axes.set_title("tokens of all ranks per second")
    read = (
        "From the clock between two reports of one process: evaluations are left out, saving is in "
        "it, so an interval that saved is a dip. What a first report took is not known."
    )
    return Drawn("speed", title, read, fig)
