"""One HTML page that needs nothing else: figures inside it, no script, no font from elsewhere."""

import base64
import io
from collections.abc import Sequence
from html import escape
from math import isnan
from pathlib import Path

import numpy as np

from ..planner.traffic import expected_distinct
from .expected import uniform_rows
from .measures import MEANINGS, TOTALS, Idle, mean, per_layer, totals
from .record import Interval
from .series import first_iteration, span
from .shown import Drawn

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1240px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 .3rem; }
p { max-width: 80ch; margin: .3rem 0 .8rem; } .where { color: #555; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
code { font-size: .92em; overflow-wrap: anywhere; }
@media print { h2 { break-after: avoid; } img { break-inside: avoid; } }
"""


def write_report(
    intervals: Sequence[Interval],
    figures: Sequence[Drawn],
    out: Path,
    found: Sequence[str] = (),
) -> list[Path]:
    """Write the page, and beside it every figure as ``<page>-<figure>.png``.

    Args:
        intervals: of one model.
        figures: of them.
        out: the page.
        found: what the record holds beside them, to say on the page.

    Returns:
        the files, the page first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    files, sections = [out], []
    for drawn in figures:
        image = ""
        if drawn.figure is not None:
            png = _png(drawn)
            file = out.with_name(f"{out.stem}-{drawn.name}.png")
            file.write_bytes(png)
            files.append(file)
            data = base64.b64encode(png).decode("ascii")
            alt = escape(f"{drawn.title}. {drawn.read}", quote=True)
            image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        heading = f'<h2 id="{drawn.name}">{escape(drawn.title)}</h2>'
        sections.append(f"{heading}\n<p>{escape(drawn.read)}</p>\n{image}")
    out.write_text(_page(intervals, sections, found), encoding="utf-8")
    return files


def _png(drawn: Drawn) -> bytes:
    from .draw import style

    target = io.BytesIO()
    assert drawn.figure is not None
    with style():
        # No time and no version in it: the same record gives the same file.
        drawn.figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _page(intervals: Sequence[Interval], sections: Sequence[str], found: Sequence[str]) -> str:
    last = intervals[-1]
    run = last.run
    counted = sum(i.iterations for i in intervals)
    where = (
        f"Iterations {first_iteration(intervals[0])} to {last.iteration} ({counted} counted, in "
        f"{len(intervals)} intervals); {len(run.layers)} MoE layers of {run.experts} experts in "
        f"{run.groups} groups, top-{run.topk}; {run.ranks} expert-parallel of {run.world_size} "
        "ranks."
    )
    body = "\n".join(
        [
            "<h1>What the experts do</h1>",
            f'<p class="where">{escape(where)}</p>',
            *(f'<p class="where">Also in this record: {escape(line)}.</p>' for line in found),
            "<h2>At a glance</h2>",
            f"<p>Means over layers, in iterations {span(intervals[0])} (first) and {span(last)} "
            "(last); beside them what uniformly random routing of many tokens would give.</p>",
            _glance(intervals),
            *sections,
            "<h2>Settings</h2>",
            _settings(last),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Grove MoE: what the experts do</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _glance(intervals: Sequence[Interval]) -> str:
    run = intervals[-1].run
    shown = [_numbers(intervals[0]), _numbers(intervals[-1])]
    idle = Idle()
    for interval in intervals:
        longest = float(idle.see(interval).max(initial=0))
    shown[1]["longest_idle"] = longest
    uniform = {
        "max_vio": 0.0,
        "groups_per_token": expected_distinct(run.experts, run.topk, run.groups),
        "rows_per_token": uniform_rows(run),
        "pairs_per_token": float(run.topk),
        "rank_pairs_imbalance": 1.0,
        "rank_rows_imbalance": 1.0,
    }
    rows = []
    for name, meaning in (MEANINGS | TOTALS).items():
        if name not in shown[1]:
            continue
        numbers = [numbers.get(name) for numbers in (*shown, uniform)]
        cells = "".join(f'<td class="number">{_shown(n)}</td>' for n in numbers)
        rows.append(f"<tr><td><code>{name}</code></td>{cells}<td>{escape(meaning)}</td></tr>")
    header = "<tr><th>name</th><th>first</th><th>last</th><th>uniform</th><th>meaning</th></tr>"
    return f"<table>\n{header}\n" + "\n".join(rows) + "\n</table>"


def _numbers(interval: Interval) -> dict[str, float]:
    means = {name: mean(values) for name, values in per_layer(interval).items()}
    return means | totals(interval)


def _shown(number: float | None) -> str:
    if number is None or isnan(number):
        return ""
    if float(number).is_integer() or abs(number) >= 1e4:
        return f"{number:,.0f}"
    return np.format_float_positional(number, precision=4, fractional=False, trim="-")


def _settings(interval: Interval) -> str:
    rows = "\n".join(
        f"<tr><td><code>{escape(name)}</code></td><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in interval.run.settings.items()
    )
    return f"<table>\n<tr><th>flag</th><th>value</th></tr>\n{rows}\n</table>"
