"""The page that says how far plans are from what others measured."""

from collections.abc import Sequence
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

Four constants of the model are not measured but chosen, once for all machines, with the rows of
H100 and H800 in view: what deep products reach of the best one (dense and grouped), what lies
between two kernels, and what the host takes to start one (`SUSTAINED`, `GROUPED`, `GAP`, `HOST` in
`grove_megatron/planner/speed/machines.py`). Rows of other machines are held out from that choice.

{summary}
A row that is not counted says why. Its error is shown nevertheless.

"""
_NOT = """
## What these errors come from

- Without CUDA graphs and with small micro-batches a step is what the host needs to start kernels,
  which differs from machine to machine; the largest errors are there.
- Of GB200, GB300 and MI355X nobody has published products by shape: they are scaled from the best
  product that was found. Of the B200 and its attention there are several hundred shapes.
- Memory is what PyTorch had allocated at its peak, a plan is without its margin. Of the 405B the
  gradients of single matrices that TransformerEngine makes are not counted.
- Routing that is not forced to be balanced is slower by 2 to 23 %, and the sources do not say how
  uneven it was; `--imbalance` plans with a number of yours.
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
    return "".join(parts).rstrip("\n") + "\n" + _NOT


def _summary(rows: Sequence[Public], factor: float) -> str:
    head = "| predicted | rows | median error | largest | above 10 % |\n"
    lines = [f"{head}{'| --- ' * 5}|\n"]
    counted = [row for row in rows if not row.not_comparable and row.name != CALIBRATES]
    for name, of_kind in (
        ("bf16, mixtures of experts", ("bf16", "moe")),
        ("bf16, dense models", ("bf16", "dense")),
        ("fp8, mixtures of experts", ("fp8", "moe")),
    ):
        found = [row for row in counted if (row.kind, row.row["kind"]) == of_kind]
        errors = [abs(row.error(factor)) for row in found]
        large = sum(error > _LARGE for error in errors)
        lines.append(
            f"| {name} | {len(errors)} | {median(errors):.1%} | {max(errors):.1%} | {large} |\n"
        )
    memories = [row.memory for row in rows if row.memory is not None]
    errors = [abs(planned / measured - 1) for measured, planned in memories]
    large = sum(error > _LARGE for error in errors)
    shown = f"{median(errors):.1%} | {max(errors):.1%} | {large}"
    lines.append(f"| memory of a rank | {len(errors)} | {shown} |\n")
    return "".join(lines)


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
