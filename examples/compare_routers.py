"""What routers learn, how they balance and how fast they are: ``compare.py routers``."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from compare_arms import Arm, Comparison
from compare_runs import Job, half_width, write

from grove_megatron.benchmarks.environment import cpu_name
from grove_megatron.report.compared import Compared, Row, compared
from grove_megatron.report.html import cell, document, section, spread_cell, table
from grove_megatron.report.view import tokens_per_second

MEASURED = ("max_vio", "dead_experts", "pairs_per_token", "rows_per_token", "tokens_per_second")
"""Figures of which the mean over seeds is taken; by their names in ``docs/parts/figures.json``."""

TITLES = (
    *("Router", "Loss", "Less plain", "MaxVio", "Dead experts", "Pairs a token", "Rows a token"),
    *("Speed", "Parameters", "Active"),
)


def report(of: Comparison, jobs: Sequence[Job], out: Path) -> list[str]:
    """Write what was learned into ``out``; the table, to be printed, and what was written."""
    found = compared([job.view() for job in jobs])
    rows = {row.view.place: row for row in found.every_row}
    measured = {(job.arm.name, job.seed): figures_of(rows[job.folder]) for job in jobs}
    calls = {(job.arm.name, job.seed): job.call for job in jobs}
    summary = summarize(of, measured, calls) | {"window": found.window, "machine": machine()}
    lines = [*markdown(summary), "", *explained(of, summary)]
    write(out / "results.json", json.dumps(summary, indent=1) + "\n")
    write(out / "table.md", "\n".join(lines) + "\n")
    files = write_page(of, summary, found, out / "comparison.html")
    names = ", ".join(file.name for file in files)
    return [*lines, f"{out}: table.md, results.json, {names}"]


def figures_of(row: Row) -> dict[str, float]:
    """Of one run: of its last iterations, but the speed, which is that of all."""
    of = row.figures
    (loss,) = (name for name in of if name.startswith("validation") and name.endswith("_loss"))
    return {
        "loss": of[loss],
        "dead_experts": of["dead_experts_total"],
        "active": of["active_parameters"],
        "tokens_per_second": float(np.nanmedian(tokens_per_second(row.view))),
        **{name: of[name] for name in ("max_vio", "pairs_per_token", "rows_per_token")},
        **{name: of[name] for name in ("parameters", "dropped_share") if name in of},
    }


Measured = Mapping[tuple[str, int], Mapping[str, float]]
Calls = Mapping[tuple[str, int], str]


def summarize(of: Comparison, measured: Measured, calls: Calls) -> dict[str, Any]:
    """Figures of every router, and its differences to the first.

    Args:
        measured: of every run, by the name of its arm and its seed.
        calls: when the command was given that made it.
    """
    first = of.arms[0].name
    rows = []
    for arm in of.arms:
        own = [measured[arm.name, seed] for seed in of.seeds]
        losses = [one["loss"] for one in own]
        base = [measured[first, seed]["loss"] for seed in of.seeds]
        less = [a - b for a, b in zip(losses, base, strict=True)]
        rows.append(
            {
                "name": arm.name,
                "parts": list(arm.parts),
                "note": arm.note,
                "parameters": own[0]["parameters"],
                "active": statistics.mean(one["active"] for one in own),
                "loss": statistics.mean(losses),
                "losses": losses,
                "loss_spread": max(losses) - min(losses),
                "differences": less,
                "difference": statistics.mean(less),
                "difference_95": _finite(half_width(less)),
                **{name: statistics.mean(one[name] for one in own) for name in MEASURED},
                "dropped_share": statistics.mean(one.get("dropped_share", 0) for one in own),
                "max_vios": [one["max_vio"] for one in own],
                "speed": _speed(arm, of, measured, calls),
            }
        )
    return {"seeds": list(of.seeds), "made": max(calls.values()), "routers": rows}


def _speed(arm: Arm, of: Comparison, measured: Measured, calls: Calls) -> float | None:
    """Tokens a second as a part of those of the first arm, in the same call of the command.

    None where none of its seeds was made in a call that made a run of the first.
    """
    base: dict[str, list[float]] = {}
    for seed in of.seeds:
        key = of.arms[0].name, seed
        base.setdefault(calls[key], []).append(measured[key]["tokens_per_second"])
    own = [(arm.name, seed) for seed in of.seeds if calls[arm.name, seed] in base]
    ratios = [measured[k]["tokens_per_second"] / statistics.mean(base[calls[k]]) for k in own]
    return statistics.mean(ratios) if ratios else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def machine() -> str:
    """Its processor, and how many cores this process has."""
    cores = len(os.sched_getaffinity(0))
    return f"{cpu_name()}, {cores} core{'s' * (cores != 1)}"


# --------------------------------------------------------------------------- how it is shown


def _cells(one: Mapping[str, Any], first: str) -> list[tuple[str, str]]:
    """Of a row: what is there, and what goes with it."""
    interval = "" if one["difference_95"] is None else f"± {one['difference_95']:.4f}"
    spread = f"({one['loss_spread']:.4f})" if len(one["losses"]) > 1 else ""
    less = ("", "") if one["name"] == first else (f"{one['difference']:+.4f}", interval)
    dropped = f"{one['dropped_share']:.1%} dropped" if one["dropped_share"] else ""
    return [
        (f"{one['name']} †" if one["note"] else one["name"], ""),
        (f"{one['loss']:.4f}", spread),
        less,
        (f"{one['max_vio']:.2f}", ""),
        (f"{one['dead_experts']:.1f}", ""),
        (f"{one['pairs_per_token']:.2f}", dropped),
        (f"{one['rows_per_token']:.2f}", ""),
        ("–" if one["speed"] is None else f"{one['speed']:.2f}", ""),
        (f"{one['parameters']:,.0f}", ""),
        (f"{one['active']:,.0f}", ""),
    ]


def markdown(summary: Mapping[str, Any]) -> list[str]:
    """The table."""
    rows = summary["routers"]
    lines = [list(TITLES), ["---", *["---:"] * (len(TITLES) - 1)]]
    for one in rows:
        lines.append([" ".join(filter(None, c)) for c in _cells(one, rows[0]["name"])])
    return [f"| {' | '.join(line)} |" for line in lines]


def explained(of: Comparison, summary: Mapping[str, Any]) -> list[str]:
    """What the numbers can and cannot say, a paragraph each."""
    rows, seeds = summary["routers"], len(summary["seeds"])
    others = len(rows) - 1
    many = (
        ", and in brackets from the best to the worst of them. Differences are of the same seed, "
        "with the 95 % interval of their mean by Student's t: where it reaches over 0, "
        f"{seeds} seeds do not tell the two apart. It is not widened for {others} of them being "
        f"looked at: of {others} routers that are all as good as {rows[0]['name']}, one in twenty "
        "would seem otherwise."
    )
    texts = [
        f"Validation loss in nats per byte after {of.iterations * of.tokens:,} bytes, "
        + ("of one seed." if seeds == 1 else f"mean of {seeds} seeds, which also order the text")
        + (many if seeds > 1 else ""),
        f"MaxVio (mean over layers), dead experts (of all layers), pairs and rows are of the last "
        f"{summary['window']} iterations. Rows are of one rank, so that they are the share of "
        "tokens that have an expert. Speed is tokens a second of training as a part of those of "
        f"{rows[0]['name']}, whose runs were made by the same call of the command; "
        f"{rows[0]['tokens_per_second']:,.0f} there, on {summary['machine']}.",
    ]
    notes: dict[str, list[str]] = {}
    for one in rows:
        if one["note"]:
            notes.setdefault(one["note"], []).append(one["name"])
    texts += [f"† {' and '.join(names)}: {note}." for note, names in notes.items()]
    return [line for text in texts for line in (text, "")][:-1]


def write_page(
    of: Comparison, summary: Mapping[str, Any], found: Compared, out: Path
) -> list[Path]:
    """One page with everything, and its pictures beside it."""
    from grove_megatron.report import draw
    from grove_megatron.report.files import write_files
    from grove_megatron.report.lines import Curve, lines
    from grove_megatron.report.page import picture
    from grove_megatron.report.shown import Drawn, Shown
    from grove_megatron.report.table import explained as explained_all
    from grove_megatron.report.table import html_table

    with draw.style():
        drawn = Drawn("", "Differences to plain", _READ, plot(summary))
        curves = [
            Curve(system.name, [Shown.of(view) for view in system.views])
            for system in found.systems
        ]
        over_time = lines(curves, layers=False)
    image, png = picture(drawn, out)
    image_of_lines, _ = picture(over_time, out)
    rows = summary["routers"]
    body = [[_cell(*one) for one in _cells(row, rows[0]["name"])] for row in rows]
    texts = "\n".join(f"<p>{escape(text)}</p>" for text in explained(of, summary) if text)
    flags = [[cell(arm.name, "name"), cell(_flags(arm), "value", code=True)] for arm in of.arms]
    everything = f"<p>{escape(explained_all(found))}</p>\n{html_table(found)}"
    page = document(
        "Routers beside plain top-k",
        [
            section("At a glance", f"{table(TITLES, body)}\n{texts}", kind="tables"),
            section(drawn.title, f"<p>{escape(drawn.read)}</p>\n{image}"),
            section("What they are", table(["router", "flags"], flags), kind="tables"),
            section("All figures", everything, kind="tables"),
            section(over_time.title, f"<p>{escape(over_time.read)}</p>\n{image_of_lines}"),
        ],
    )
    # One picture is a file of its own; the lines are in the page.
    (content,) = png.values()
    return write_files({out: page.encode(), out.with_name("comparison.png"): content})


_READ = (
    "Left, the validation loss less that of plain: every seed a ring, their mean a dot with its "
    "95 % interval; to the left is better. Right, MaxVio: 0 is balance."
)


def _cell(text: str, note: str) -> str:
    return spread_cell(text, note) if text[:1] in "+-–0123456789" else cell(text, "name")


def _flags(arm: Arm) -> str:
    return " ".join(["--num-experts", str(arm.experts), *arm.words(Path("data"))[2:]])


def plot(summary: Mapping[str, Any]) -> Any:
    """Differences to the first with their intervals, and MaxVio; a line for every router."""
    from grove_megatron.report import draw

    rows = summary["routers"]
    figure = draw.figure(1.2 + 0.32 * len(rows))
    less, balance = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    ring = {"linestyle": "", "marker": "o", "mfc": "none", "ms": 4, "alpha": 0.6}
    for y, one in enumerate(rows):
        colour = draw.COLOURS[1] if one["note"] else draw.COLOURS[0]
        less.plot(one["differences"], [y] * len(one["differences"]), color=colour, **ring)
        width = one["difference_95"] or 0
        less.errorbar(one["difference"], y, xerr=width, color=colour, fmt="o", ms=5, capsize=3)
        balance.plot(one["max_vios"], [y] * len(one["max_vios"]), color=colour, **ring)
        balance.plot(one["max_vio"], y, color=colour, marker="o", ms=5)
    less.axvline(0, color="#888888", linewidth=0.8)
    # Intervals of few seeds are wide: the dots have the room.
    seen = [d for one in rows for d in one["differences"]]
    room = 0.15 * (max(seen) - min(seen)) + 1e-3
    less.set_xlim(min(seen) - room, max(seen) + room)
    less.set_yticks(range(len(rows)), [f"{o['name']} †" if o["note"] else o["name"] for o in rows])
    less.invert_yaxis()
    less.set_xlabel("validation loss less that of plain, nats per byte")
    less.set_title("What they learn")
    balance.set_xlabel("MaxVio at the end")
    # A dot at 0 is whole.
    balance.set_xlim(left=-0.03 * max(v for one in rows for v in one["max_vios"]) - 1e-3)
    balance.set_title("How they balance")
    return figure


# --------------------------------------------------------------------------- for cards of parts


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A row for every part that a router is about."""
    rows = [
        {
            "part": part,
            "name": one["name"],
            "seeds": len(summary["seeds"]),
            "loss": round(one["loss"], 4),
            "loss_spread": round(one["loss_spread"], 4),
            "max_vio": round(one["max_vio"], 3),
            "dead_experts": round(one["dead_experts"], 1),
            "pairs_per_token": round(one["pairs_per_token"], 3),
            "rows_per_token": round(one["rows_per_token"], 3),
            "tokens_per_second": round(one["tokens_per_second"]),
        }
        for one in summary["routers"]
        for part in one["parts"]
    ]
    return {"machine": summary["machine"], "date": summary["made"][:10], "rows": rows}
