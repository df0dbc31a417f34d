"""HTML of a report: the frame of a page, sections and tables that break lines between words."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from math import isnan
from typing import Any

import numpy as np

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1240px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; } h2 { margin: 2.5rem 0 .3rem; }
p { max-width: 80ch; margin: .3rem 0 .8rem; } .where { color: #555; }
.whole { white-space: nowrap; }
img { width: 100%; height: auto; }
.table { overflow-x: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-items: start; }
.pair p { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ddd;
         vertical-align: top; }
.number { text-align: right; } td.number, td.name { white-space: nowrap; }
td.value { overflow-wrap: anywhere; min-width: 12ch; }
code { font-size: .92em; }
small { display: block; color: #555; font-size: .8em; }
@media print {
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  h2 { break-after: avoid; } section, img, tr { break-inside: avoid; }
  img { max-height: 23cm; object-fit: contain; }
  .table { overflow: visible; } section.tables { break-inside: auto; }
}
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page, its title as first heading."""
    lines = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{lines}\n</body>\n</html>\n"
    )


def section(title: str, html: str, name: str = "", kind: str = "") -> str:
    """A heading and what belongs to it, which a printer keeps together unless it is ``tables``."""
    anchor = f' id="{name}"' if name else ""
    given = f' class="{kind}"' if kind else ""
    return f"<section{given}>\n<h2{anchor}>{escape(title)}</h2>\n{html}\n</section>"


def origin(text: str, name: str = "") -> str:
    """A paragraph that says what a page is of; no line breaks inside its dates."""
    dated = re.sub(
        r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", r'<span class="whole">\g<0></span>', escape(text)
    )
    return f'<p class="where">{f"<b>{escape(name)}</b>: " if name else ""}{dated}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already, see :func:`cell`; one row at least."""
    every = list(rows)
    # A heading stands where the cells below it do.
    kinds = [' class="number"' if 'class="number"' in of else "" for of in every[0]]
    heads = zip(header, kinds, strict=True)
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in heads)
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in every)
    return f'<div class="table"><table>\n<tr>{head}</tr>\n{lines}\n</table></div>'


def cell(text: object, kind: str = "", *, code: bool = False) -> str:
    """A cell of text; ``kind``: number, name or value, which differ in where lines may break."""
    said = escape(str(text))
    given = f' class="{kind}"' if kind else ""
    return f"<td{given}>{f'<code>{said}</code>' if code else said}</td>"


def spread_cell(text: str, note: str) -> str:
    """A cell of a number, and below it, smaller, what goes with it."""
    below = f"<small>{escape(note)}</small>" if note else ""
    return f'<td class="number">{escape(text)}{below}</td>'


def listed(items: Iterable[str]) -> str:
    """A cell of several texts, with line breaks between them and, if they are short, not inside."""
    spans = [
        f'<span class="whole">{escape(item)}</span>' if len(item) < 60 else escape(item)
        for item in items
    ]
    return f'<td class="value">{", ".join(spans)}</td>'


def shown(number: float | None) -> str:
    """As it is written in a table; nothing for what is no number."""
    if number is None or isnan(number):
        return ""
    if float(number).is_integer() or abs(number) >= 1e4:
        return f"{number:,.0f}"
    return np.format_float_positional(number, precision=4, fractional=False, trim="-")


def shown_setting(value: Any) -> str:
    """The value of a flag."""
    return "(unset)" if value is None else str(value)
