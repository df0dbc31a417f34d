"""The page that says how far plans are from what others measured."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from ..cluster import GIB
from .rows import CALIBRATES, Public, public_rows, slack

PAGE = Path(__file__).with_name("README.md")
_LARGE = 0.10

_TOP = """# Plans against public measurements

Made by `python -m grove_megatron.planner.speed.public --write` of `rows.toml`, which has every
measurement with its source, and of the machines' files. One row calibrates:
`{calibrates}` takes {slack:.3f} times the sum of its parts, and so does every other
step. No number is of one row.

What no file of a machine says is taken from constants, the same for all machines. Four were chosen
with the rows of H100 and H800 in view: what deep products reach of the best one, dense and grouped,
the gap between two kernels, and what the host takes to start one (`SUSTAINED`, `GROUPED`, `GAP`,
`HOST` in `grove_megatron/planner/speed/machines.py`). The others are there too, chosen without:
shares of the memory's bandwidth and of a link's, latencies, gaps in CUDA graphs, fp8 over bf16; in
`grove_megatron/planner/speed/products.py` what a tile takes beside its sum, in
`grove_megatron/planner/speed/work.py` kernels of a layer and how often a number of the router is
read.

{summary}
Rows of one model on one machine that differ in microbatches alone are not independent: of B200
twelve are four configurations. A row that is not counted says why; its error is shown all the
same.

"""
_NOT = """
## What these errors come from

- Without CUDA graphs and with small micro-batches a step is what the host needs to start kernels,
  which differs from machine to machine; the largest errors are there.
- Of GB200, GB300 and MI355X nobody has published products by shape: they are scaled from the best
  product that was found. Of the B200 and its attention there are several hundred shapes.
- Memory is what PyTorch had allocated at its peak, a plan is without its margin. Of the 405B the
  gradients of single matrices that TransformerEngine makes are not counted.
- Routing that is not forced to be balanced makes a step {least:.0f} to {most:.0f} % longer, and the
  sources do not say how uneven it was; `--imbalance` plans with a number of yours.
- AWS's EFA moves rows of all-to-all several times slower than the adapters of the machines' files.
"""


def text() -> str:
    """The page as it is now."""
    rows = public_rows()
    factor = slack(rows)
    top = _TOP.format(calibrates=CALIBRATES, slack=factor, summary=_summary(rows, factor))
    parts = [top]
    for title, kind in (("bf16", "bf16"), ("fp8 and MXFP8", "fp8")):
        lines = [_line(row, factor) for row in rows if row.kind == kind]
        head = "| | machine | GPUs | layout | measured s | planned s | error | GiB | most of it |\n"
        parts.append(f"## {title}\n\n{head}{'| --- ' * 9}|\n{''.join(lines)}\n")
    least, *_, most = sorted(_longer(rows))
    return "".join(parts).rstrip("\n") + "\n" + _NOT.format(least=least, most=most)


def _longer(rows: Sequence[Public]) -> Iterator[float]:
    """Percent that a step takes more than one with balanced routing and nothing else changed."""
    measured = {row.name: row.measured for row in rows}
    for name, seconds in measured.items():
        if name.endswith(_UNBALANCED):
            yield 100 * (seconds / measured[name.removesuffix(_UNBALANCED)] - 1)


def _summary(rows: Sequence[Public], factor: float) -> str:
    head = "| predicted | rows | median error | largest | above 10 % |\n"
    lines = [f"{head}{'| --- ' * 5}|\n"]
    counted = [row for row in rows if not row.not_comparable and row.name != CALIBRATES]
    for name, is_one in _KINDS.items():
        lines.append(_errors(name, [row.error(factor) for row in counted if is_one(row)]))
    left = [row.error(factor) for row in rows if row.not_comparable]
    lines.append(_errors("not counted, for the reasons below", left))
    memories = [row.memory for row in rows if row.memory is not None]
    errors = [planned / measured - 1 for measured, planned in memories]
    return "".join([*lines, _errors("memory of a rank", errors)])


_UNBALANCED = "-unbalanced"
_WITH_CONSTANTS = ("h100", "h800")
_KINDS: dict[str, Callable[[Public], bool]] = {
    "bf16, mixtures of experts: all": lambda row: _is(row, "bf16", "moe"),
    "of these H100 and H800, which the constants were chosen with": lambda row: (
        _is(row, "bf16", "moe") and row.row["machine"] in _WITH_CONSTANTS
    ),
    "of these B200, all but one by shapes that their authors measured on it": lambda row: (
        _is(row, "bf16", "moe") and row.row["machine"] == "b200"
    ),
    "of these GB200, GB300, MI355X": lambda row: (
        _is(row, "bf16", "moe") and row.row["machine"] not in (*_WITH_CONSTANTS, "b200")
    ),
    "bf16, dense models, all but one of B200": lambda row: _is(row, "bf16", "dense"),
    "fp8, mixtures of experts": lambda row: _is(row, "fp8", "moe"),
}


def _is(row: Public, precision: str, kind: str) -> bool:
    return (row.kind, row.row["kind"]) == (precision, kind)


def _errors(name: str, errors: Sequence[float]) -> str:
    found = [abs(error) for error in errors]
    large = sum(error > _LARGE for error in found)
    return f"| {name} | {len(found)} | {median(found):.1%} | {max(found):.1%} | {large} |\n"


def _line(row: Public, factor: float) -> str:
    taken = row.step(factor)
    layout, training = row.sizes.layout, row.sizes.training
    sizes = {
        "TP": layout.tensor,
        "PP": layout.pipeline,
        "VPP": layout.virtual,
        "EP": layout.expert,
        "CP": layout.context,
        "MBS": training.micro_batch,
    }
    shown = " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one rank"
    error = f"{taken.total / row.measured - 1:+.1%}"
    if row.name == CALIBRATES:
        error = "calibrates"
    elif row.not_comparable:
        error += f", not counted: {row.not_comparable}"
    return (
        f"| {row.name} | {row.row['machine']} | {row.row['gpus']} | {shown} | {row.measured:.2f} "
        f"| {taken.total:.2f} | {error} | {_memory(row)} | {taken.bottleneck} |\n"
    )


def _memory(row: Public) -> str:
    """Measured, and the plan's error."""
    if (both := row.memory) is None:
        return ""
    measured, planned = both
    return f"{measured / GIB:.1f}, {planned / measured - 1:+.1%}"
