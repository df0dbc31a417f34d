"""``SUMMARY.md``: one page of what the journal and the rows say."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..layouts import LAYOUTS
from ..records import Row, read_rows
from ..report import spread
from ..tables import table
from .items import ITEMS
from .journal import notes
from .perform import ROWS

SUMMARY = "SUMMARY.md"
_FAILURES, _LINES = 12, 6
_KINDS = {item.name: item.kind for item in ITEMS}


def write_summary(results: Path) -> None:
    """Write it anew from what is there; a kill leaves the one from before."""
    path = results / SUMMARY
    beside = path.with_suffix(".new")
    beside.write_text(summary(results), encoding="utf-8")
    beside.replace(path)


def summary(results: Path) -> str:
    """The page."""
    found = list(notes(results))
    rows = read_rows(results / ROWS) if (results / ROWS).is_file() else []
    sections = [
        _head(found),
        "## Items\n\n" + "\n".join(_items(found)),
        *(["## Failures\n\n" + "\n\n".join(failed)] if (failed := [*_failures(found)]) else []),
        *(["## Skipped\n\n" + "\n".join(skipped)] if (skipped := [*_skipped(found)]) else []),
        *(["## Figures\n\n" + "\n".join(_figures(rows))] if rows else []),
        "## Left out\n\n" + "\n".join([*_left_out(found)] or ["Nothing."]),
    ]
    return "\n\n".join(sections) + "\n"


def _of(found: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in found if one["kind"] == kind]


def _head(found: Sequence[dict[str, Any]]) -> str:
    lines = ["# What the kit found", ""]
    for start in _of(found, "start"):
        versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        lines += [f"{start['at']}, {start['seconds']:.0f} s given. {versions}. {start['triton']}."]
    for imported in _of(found, "imported"):
        how = "forked from one process" if imported["forks"] else "fresh processes"
        lines += [f"Megatron imported in {imported['seconds']} s; items are {how}."]
        if imported["failed"]:
            lines += [f"**Importing failed:** {imported['failed']}"]
        lines += [f"Later {one['to']}: {one['why']}." for one in _of(found, "changed")]
        if not imported["cuda"]:
            lines += [
                "**No CUDA device: gpu tests only skip, and benchmarks ran tiny shapes on the CPU. "
                "No time below says anything of a GPU.**"
            ]
    for environment in _of(found, "environment"):
        said = {k: v for k, v in environment.items() if k != "kind" and "\n" not in str(v)}
        lines += ["", "; ".join(f"{name}: {value}" for name, value in said.items()) + "."]
    lines += ["", *(f"    {line}" for line in _smi(found))]
    lines += [f"Ended: {one['why']}, {one['left']} s left." for one in _of(found, "end")]
    if not _of(found, "end"):
        lines += ["Not ended: it runs, or was killed."]
    return "\n".join(lines).rstrip()


def _smi(found: Sequence[dict[str, Any]]) -> list[str]:
    at_work = [one.get("nvidia-smi, at work", "") for one in _of(found, "environment")]
    idle = [one["card"] for one in _of(found, "start")]
    return [line for text in [*idle, *at_work] for line in text.splitlines()]


def _items(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| Item | Seconds | Result |"
    yield "| --- | --- | --- |"
    ended = {one["item"]: one for one in _of(found, "ended")}
    for begun in _of(found, "begun"):
        name = begun["item"]
        end = ended.get(name)
        seconds = f"{end['seconds']:.1f}" if end else ""
        small = ", tiny shapes on the CPU" if begun["small"] else ""
        yield f"| {name} | {seconds} | {_result(name, end, found)}{small} |"


def _result(name: str, end: dict[str, Any] | None, found: Sequence[dict[str, Any]]) -> str:
    if _KINDS.get(name) == "tests":
        outcomes = Counter(one["outcome"] for one in _of(found, "test") if one["item"] == name)
        counted = sum(one["count"] for one in _of(found, "collected") if one["item"] == name)
        said = [f"{outcomes[key]} {key}" for key in sorted(outcomes)]
        if (missing := counted - sum(outcomes.values())) > 0:
            said.append(f"{missing} not run")
        result = ", ".join(said) or "no test"
    else:
        result = f"{end['rows']} rows" if end and end["rows"] else "done"
    if end is None:
        return f"{result}; not ended"
    if end["cut_off"] is not None:
        return f"{result}; **cut off** after {end['cut_off']:.0f} s"
    if end["code"] and _KINDS.get(name) != "tests":
        return f"**failed** (exit code {end['code']})"
    if end["code"] not in (0, 1, 5):
        return f"{result}; **exit code {end['code']}**"
    return result


def _failures(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The first of them with their last lines, the others by name."""
    failed = [
        (one["test"], one["text"])
        for one in _of(found, "test")
        if one["outcome"] in ("failed", "error")
    ]
    failed += [
        (one["item"], one["last"])
        for one in _of(found, "ended")
        if one["code"] and (_KINDS.get(one["item"]) != "tests" or one["code"] not in (1, 5))
    ]
    for name, text in failed[:_FAILURES]:
        last = "\n".join(line[:200] for line in text.strip().splitlines()[-_LINES:])
        yield f"**{name}**\n\n```text\n{last}\n```"
    if more := failed[_FAILURES:]:
        yield "And " + ", ".join(name for name, _ in more) + "."


def _skipped(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    reasons = Counter(
        (one["item"], one["text"].splitlines()[-1] if one["text"] else "no reason")
        for one in _of(found, "test")
        if one["outcome"] == "skipped"
    )
    for (item, reason), count in reasons.items():
        yield f"- {item}: {count}, {reason}"


def _figures(rows: Sequence[Row]) -> Iterator[str]:
    benchmarks = dict.fromkeys(row.benchmark for row in rows)
    for benchmark in benchmarks:
        own = [row for row in rows if row.benchmark == benchmark]
        yield f"### {benchmark}\n"
        if benchmark in LAYOUTS:
            yield table(own)
        cost = [row for row in own if row.quantity.startswith(("metrics", "watch"))]
        for row in cost:
            yield f"- {row.quantity}: {spread(row, 3)} {row.unit}"
        yield ""


def _left_out(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    for one in _of(found, "left out"):
        yield f"- {one['item']}: {one['why']}"
    looked_at = {one["item"] for kind in ("left out", "begun") for one in _of(found, kind)}
    for start in _of(found, "start"):
        yield from (f"- {name}: not reached" for name in start["items"] if name not in looked_at)
