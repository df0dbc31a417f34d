"""A cluster's figures replaced by measured ones: results of ``grove bench``, or one real step.

What ``grove bench`` writes (``grove_megatron/benchmarks/records.py``) says of a machine: the rate
of a large product (``tflops`` over ``matmul_share``), of the experts' grouped products, of copies
(``gigabytes``), and of the exchange of rows (``time`` of ``dispatch`` without what moving rows in
memory takes). A measured step says how much longer a step is than the sum of its parts.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...checks.problem import Problem, Refusal
from ..inputs import Sizes
from .cluster import Cluster, Link, Machine
from .machines import names
from .step import step, utilisation, with_slack

Row = dict[str, str]


def calibrated(cluster: Cluster, path: Path, dtype: str = "bf16") -> Cluster:
    """The cluster with what a file of results says of its GPUs.

    Args:
        dtype: of the job, whose copies count: ``bf16``, ``fp16`` or ``fp32``.

    Raises:
        Refusal: a file that has no such rows, rows of several machines, or of another than this.
    """
    rows = _read(path)
    machine = cluster.machine
    _refuse_others(rows, machine, path)
    products = [row for row in rows if row["dtype"] == "bf16"]
    of_large = _rates(products, "tflops", {"kernels", "layer"}, over="matmul_share")
    grouped = _values(products, "tflops", {"kernels"}, {"experts_only", "owner_rows"})
    copied = [row for row in rows if row["dtype"] == dtype]
    copies = _values(copied, "gigabytes", {"kernels"})
    machine = replace(
        machine,
        achieved=max(of_large, default=machine.achieved / 1e12) * 1e12,
        grouped=max(grouped, default=machine.grouped / 1e12) * 1e12,
        bandwidth=max(copies, default=machine.bandwidth / 1e9) * 1e9,
        # Shapes measured elsewhere are not of this machine.
        products=() if of_large or grouped else machine.products,
    )
    exchange = [share for share in _exchanges(rows, machine) if share > 0]
    if exchange:
        machine = replace(machine, near=_with_share(machine.near, max(exchange)))
    if not (of_large or grouped or copies or exchange):
        fix = "give one that `grove bench kernels` or `grove bench dispatch` wrote"
        raise Refusal([Problem("--calibrate", path, f"has no results of either; {fix}")])
    return replace(cluster, machine=machine)


def _refuse_others(rows: list[Row], machine: Machine, path: Path) -> None:
    """Results of what is no GPU, or of a kind that another file is of."""
    device, processor = rows[0]["device"], rows[0]["processor"]
    fix = "measure on the machine that is planned for, or name this one"
    if device != "cuda":
        text = f"has results of a {device} ({processor}), not of {machine.name} GPUs; {fix}"
        raise Refusal([Problem("--calibrate", path, text)])
    # A cluster of a name of its own may be of any GPU.
    is_known = machine.name in names()
    if is_known and not re.search(rf"\b{machine.name}\b", processor, re.IGNORECASE):
        text = f"has results of another GPU ({processor}) than {machine.name}; {fix}"
        raise Refusal([Problem("--calibrate", path, text)])


def taken(before: Cluster, after: Cluster) -> list[str]:
    """What a calibration changed, to be read."""
    old, new = before.machine, after.machine
    rates = {
        "products (TFLOP/s)": (old.achieved / 1e12, new.achieved / 1e12),
        "grouped products (TFLOP/s)": (old.grouped / 1e12, new.grouped / 1e12),
        "copies (GB/s)": (old.bandwidth / 1e9, new.bandwidth / 1e9),
        "exchange of rows (share of the link)": tuple(
            one.near.shares.get("all_to_all", one.near.shares.get("default", 1.0))
            for one in (old, new)
        ),
    }
    return [
        f"--calibrate: {name} {now:.4g}, not {then:.4g}"
        for name, (then, now) in rates.items()
        if now != then
    ]


# Of the sum of its parts, what a step can take; beyond it is a step of another job.
_SLACKS = (0.5, 3.0)


def measured_step(cluster: Cluster, sizes: Sizes, seconds: float) -> Cluster:
    """The cluster on which a step of this job takes so long.

    Raises:
        Refusal: a time that is none, or none of such a job on these GPUs.
    """
    fix = "give the seconds of a step of the job of these flags"
    if not 0 < seconds < float("inf"):
        raise Refusal([Problem("--measured-step", f"{seconds:g}", f"is not above 0; {fix}")])
    planned = step(sizes, with_slack(cluster, 1.0)).total
    slack, used = seconds / planned, utilisation(sizes, cluster, seconds)
    least, most = _SLACKS
    if used > 1:
        text = f"is an MFU of {used:.0%}, above 100%, where {planned:.3g} s are planned; {fix}"
    elif not least <= slack <= most:
        text = (
            f"is {slack:.2g} of the planned {planned:.3g} s, not between {least:g} and {most:g}; "
            f"{fix}"
        )
    else:
        return with_slack(cluster, slack)
    raise Refusal([Problem("--measured-step", f"{seconds:g}", text)])


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal([Problem("--calibrate", path, f"cannot be read: {error}")]) from error
    needed = {"benchmark", "variant", "quantity", "p50", "dtype", "processor", "device", "hidden"}
    if missing := needed - set(rows[0] if rows else ()):
        text = f"lacks the columns {', '.join(sorted(missing))}; give a file of `grove bench`"
        raise Refusal([Problem("--calibrate", path, text)])
    for row in rows:
        try:
            float(row["p50"])
        except (TypeError, ValueError):
            text = f"has a p50 ({row['p50']}) that is not a number; give a file of `grove bench`"
            raise Refusal([Problem("--calibrate", path, text)]) from None
    if len(found := sorted({row["processor"] for row in rows})) > 1:
        text = f"has results of several machines ({', '.join(found)}); keep the rows of one"
        raise Refusal([Problem("--calibrate", path, text)])
    return rows


def _values(
    rows: Iterable[Row], quantity: str, benchmarks: set[str], variants: set[str] | None = None
) -> list[float]:
    return [
        float(row["p50"])
        for row in rows
        if row["quantity"] == quantity
        and row["benchmark"] in benchmarks
        and (variants is None or row["variant"] in variants)
    ]


def _rates(rows: list[Row], quantity: str, benchmarks: set[str], over: str) -> list[float]:
    """Of a quantity over another of the same measurement."""
    found = {name: _by_measurement(rows, name, benchmarks) for name in (quantity, over)}
    both = found[quantity].keys() & found[over].keys()
    return [found[quantity][one] / found[over][one] for one in both if found[over][one] > 0]


def _by_measurement(
    rows: list[Row], quantity: str, benchmarks: set[str]
) -> dict[tuple[str, ...], float]:
    names = ("timestamp", "benchmark", "preset", "tokens", "variant", "kernel", "dtype", "ranks")
    return {
        tuple(row.get(name, "") for name in names): float(row["p50"])
        for row in rows
        if row["quantity"] == quantity and row["benchmark"] in benchmarks
    }


def _exchanges(rows: list[Row], machine: Machine) -> list[float]:
    """Of the fast link's rate, the share that an exchange of rows had."""
    times = _by_measurement(rows, "time", {"dispatch"})
    sent = _by_measurement(rows, "sent_bytes", {"dispatch"})
    shares = []
    for one in times.keys() & sent.keys():
        # Read and written where it leaves and where it arrives.
        moving = 4 * sent[one] / machine.bandwidth
        wire = times[one] / 1e3 - moving
        shares.append(sent[one] / machine.near.rate / wire if wire > 0 else 0.0)
    return shares


def _with_share(link: Link, share: float) -> Link:
    # What was measured has the latency in it.
    return replace(
        link,
        shares=link.shares | {"all_to_all": share},
        fixed=link.fixed | {"all_to_all": 0.0},
        hops=link.hops | {"all_to_all": 0.0},
    )
