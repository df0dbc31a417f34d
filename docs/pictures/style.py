"""How all pictures look, and how they are kept: legible on white and on black, small, repeatable.

Colours are of middle lightness, so that a picture without a background of its own can be read on a
light page and on a dark one. A picture carries what it shows as JSON in its description: a test
compares that with what our functions say now, because the drawing itself differs between versions
of matplotlib.
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
INK = "#7a828c"  # text and lines: about 4:1 on white and on black
IDLE = INK
EXPERT, ADJUGATE, ROW = "#3b7dd8", "#c9702b", "#3a9469"
SERIES = (EXPERT, ADJUGATE, ROW, "#b4559c")

Facts = dict[str, Any]


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure in inches, with axes of that many units and nothing drawn."""
    plt.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text: searched, read aloud, small
            "svg.hashsalt": "grove_megatron",
            "font.family": "sans-serif",
            "font.size": 11,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    drawn, axes = plt.subplots(figsize=(width, height))
    return drawn, axes


def scheme(width: float, height: float) -> tuple[Figure, Axes]:
    """A drawing of boxes and arrows, in units of an inch."""
    drawn, axes = figure(width, height)
    axes.set(xlim=(0, width), ylim=(0, height), position=(0, 0, 1, 1))
    axes.axis("off")
    return drawn, axes


def box(
    axes: Axes, x: float, y: float, w: float, h: float, text: str, colour: str, on: bool
) -> None:
    """A box with its lower left corner at (x, y); filled if it takes part."""
    shape = FancyBboxPatch(
        (x, y),
        w,
        h,
        boxstyle="round,pad=0,rounding_size=0.06",
        linewidth=1.4,
        edgecolor=colour,
        facecolor=colour if on else "none",
    )
    axes.add_patch(shape)
    colour_of_text = "white" if on else colour
    axes.text(x + w / 2, y + h / 2, text, color=colour_of_text, ha="center", va="center")


def frame(axes: Axes, x: float, y: float, w: float, h: float, text: str) -> None:
    """A dashed frame with its name above its upper left corner."""
    shape = FancyBboxPatch(
        (x, y),
        w,
        h,
        boxstyle="round,pad=0,rounding_size=0.08",
        linewidth=1,
        linestyle=(0, (4, 3)),
        edgecolor=INK,
        facecolor="none",
    )
    axes.add_patch(shape)
    axes.text(x + 0.02, y + h + 0.06, text, ha="left", va="bottom")


def arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(
        FancyArrowPatch(
            begin,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=colour,
            linewidth=1.4,
            shrinkA=0,
            shrinkB=2,
        )
    )


def save(drawn: Figure, name: str, facts: Facts) -> None:
    """Write ``name``.svg beside this file, with what it shows."""
    said = json.dumps(facts, sort_keys=True)
    path = HERE / f"{name}.svg"
    drawn.savefig(
        path, transparent=True, metadata={"Date": None, "Creator": None, "Description": said}
    )
    plt.close(drawn)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def facts_in(svg: str) -> Facts:
    """What a picture says that it shows."""
    (said,) = re.findall(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    found: Facts = json.loads(said.replace("&quot;", '"'))
    return found
