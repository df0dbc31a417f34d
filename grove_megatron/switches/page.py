"""The page of all switches, made from the tables."""

from collections.abc import Iterator
from pathlib import Path

from . import AREAS, OTHER_GROUPS
from .rows import Area, Idle, Ignored, Refused, Shown, Works

PAGE = Path(__file__).with_name("README.md")
TESTS = "tests/integration/test_switches.py"
_NEEDS = {"": "", "cuda": "needs CUDA", "te": "needs CUDA and TransformerEngine"}
_NEEDS["mxfp8"] = "needs TransformerEngine on a GPU of compute capability 10"
_NEEDS["einops"] = "needs the package einops"
_PLAIN = "With `--grove-dispatch`"
_OF = {
    "layer": "refused",
    "groups": "refused: not tried",
    "scoring": "taken: the router is Megatron's",
}

_HEAD = f"""# Megatron's switches beside Grove layers

Every option of Megatron 0.19 that touches MoE, parallelism, precision, recompute, overlap,
optimizers, checkpoints or inference. Made from the tables in this folder by
`python -m grove_megatron.switches --write`; the same tables are what a job is refused by at its
start, and what `{TESTS}` runs.

*Neutral*: losses of five steps and all gradients are those of the same layout without the switch,
within the tolerance. *Losses*: the losses are. *Math*: it computes something else; with the
adjugates' scale at 0, what Megatron's own layer computes with the same switch. *Layout*: from the
same weights, losses and gradient norms are those without the switch. `grove doctor` says all of
this of one command line, and what depends on several options and their values
(`grove_megatron/planner/rules/`, `grove_megatron/training/rules.py`,
`grove_megatron/training/late_rules.py`).

What works is run with groups. Of a plain MoE with `--grove-dispatch` the row in
[Dispatch](#dispatch) names what is run, and the last column of what is refused says whether it is
refused there too.
"""


def page() -> str:
    """The page's text."""
    parts = [_HEAD, *(_section(area) for area in AREAS), "\n".join(_others())]
    return "\n".join(parts)


def _section(area: Area) -> str:
    lines = [f"## {area.title}", ""]
    works = [row for row in area.rows if isinstance(row, Works)]
    shown = [row for row in area.rows if isinstance(row, Shown)]
    refused = [row for row in area.rows if isinstance(row, Refused)]
    ignored = [row for row in area.rows if isinstance(row, Ignored)]
    idle = [row for row in area.rows if isinstance(row, Idle)]
    if works:
        lines += ["| Works | Checked | Notes |", "| --- | --- | --- |"]
        lines += [f"| `{row.flags}` | {_checked(row)} | {_notes(row)} |" for row in works]
        lines.append("")
    if shown:
        lines += ["| Works without a switch | Shown by | Notes |", "| --- | --- | --- |"]
        lines += [f"| {row.what} | {_code([*row.tests])} | {row.note} |" for row in shown]
        lines.append("")
    if refused:
        lines += [f"| Refused | Why, and what instead | {_PLAIN} |", "| --- | --- | --- |"]
        lines += [
            f"| `{row.flags}` | `{row.switch}` {row.reason} | {_OF[row.of]} |" for row in refused
        ]
        lines.append("")
    if idle:
        lines += ["| Does nothing | When, or why |", "| --- | --- |"]
        lines += [f"| {_named(row)} | {row.reason.strip(': ')} |" for row in idle]
        lines.append("")
    if ignored:
        lines += ["| Without effect on the layer | Why |", "| --- | --- |"]
        lines += [f"| {_code(row.switches)} | {row.reason} |" for row in ignored]
        lines.append("")
    return "\n".join(lines)


def _named(row: Idle) -> str:
    return f"all of {row.group}" if row.group else _code(row.switches)


def _code(words: list[str]) -> str:
    return " ".join(f"`{word}`" for word in words)


def _checked(row: Works) -> str:
    tolerance = f", {row.tolerance:g}" if row.compare != "runs" else ""
    return f"{row.compare}{tolerance}: `{row.name}`"


def _notes(row: Works) -> str:
    notes = [row.note, _NEEDS[row.needs]]
    if row.layout:
        notes.append(f"with `{row.layout}`")
    if row.tests:
        notes.append("also " + ", ".join(f"`{test}`" for test in row.tests))
    return "; ".join(note for note in notes if note)


def _others() -> Iterator[str]:
    yield "## Other groups of options"
    yield ""
    yield "| Group of `--help` | What they say |"
    yield "| --- | --- |"
    for title, reason in OTHER_GROUPS.items():
        yield f"| {title} | {reason} |"
    yield ""
