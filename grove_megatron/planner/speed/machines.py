"""Machines by name, and clusters by file.

A file of ``machine_files`` has every number with where it was published. What nobody published of
a machine is taken from the shares below, which are the same for all; attention, where another file
(``chip``) has it of the same chip, from there.
"""

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

from ...checks.problem import Problem, Refusal, of_other_flags
from .cluster import GIB, SLACK, Cluster, Link, Machine, Timed, TimedAttention, cluster_problems
from .machine_tables import COLUMNS, table_problems
from .products import depth

SUSTAINED = 0.84
"""Of the best product that was measured of a machine, what large products reach in a job, with all
others at work: the shapes are not the best ones, and the chip is warm."""
GROUPED = 0.74
"""The same of grouped products."""
BANDWIDTH = 0.75
"""Of the memory's bandwidth, what kernels reach."""
WIRE = 0.75
"""Of a link's rate, what collectives reach."""
ATTENTION = (1.30, 1.26)
"""Of the best product, what causal attention reaches forward and backward, counted as if nothing
were masked: cuDNN's of an H100 at 4,096 tokens (arXiv 2407.08608v2, figures 5 and 6)."""
GAP = 8e-6
"""Seconds from a kernel to the next one's start."""
GRAPHED = 1.3e-6
"""The same in a CUDA graph."""
HOST = 38e-6
"""Seconds that Python, autograd and the driver take to start a kernel of a layer."""
NEAR, FAR = 20e-6, 35e-6
"""Seconds that a collective takes beside its bytes, in a domain and beyond."""
OCCUPIED = 24 / 132
"""DeepEP keeps 24 of an H100's 132 processors busy (deepseek-ai/DeepEP@dd758ca docs/legacy.md)."""

NUMBERS = (
    "memory_gib",
    "bf16_tflops",
    "fp8_tflops",
    "bf16_matmul_tflops",
    "bf16_matmul_k",
    "fp8_matmul_tflops",
    "hbm_tb_s",
    "hbm_share",
    "gpus_per_node",
    "scale_up_gpus",
    "scale_up_gb_s",
    "scale_up_measured_gb_s",
    "scale_out_gb_s",
    "scale_out_measured_gb_s",
)
"""What a file may say of a machine."""
NEEDED = (
    "memory_gib",
    "bf16_tflops",
    "hbm_tb_s",
    "gpus_per_node",
    "scale_up_gpus",
    "scale_up_gb_s",
    "scale_out_gb_s",
)
"""What it has to say."""
# Of the specified rate, what the best product of the others has.
_BEST = 0.82
# What a rate that is reached cannot be above: another number, or all of something.
_AT_MOST = {
    "hbm_share": "",
    "bf16_matmul_tflops": "bf16_tflops",
    "fp8_matmul_tflops": "fp8_tflops",
    "scale_up_measured_gb_s": "scale_up_gb_s",
    "scale_out_measured_gb_s": "scale_out_gb_s",
}
_OF_CLUSTER = ("machine", "nodes", "price", "slack")
_WHOLE = ("nodes", "gpus_per_node", "scale_up_gpus")
_PASSES = {"forward": "forward", "dgrad": "input", "wgrad": "weight"}
# The slowest wire, one way; what was received in a domain: both are of the link.
_OF_LINK = {"network", "bottleneck", "received"}


def names() -> list[str]:
    """Machines there is a file of."""
    folder = files(__package__) / "machine_files"
    return sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".toml"))


@cache
def machine(name: str) -> Machine:
    """A machine by its name.

    Raises:
        Refusal: an unknown one.
    """
    if name not in names():
        text = f"is not one of {', '.join(names())}; use one of them, or --cluster FILE"
        raise Refusal([Problem("--machine", name, text)])
    return _Read(_file(name)).machine()


def _file(name: str) -> dict[str, Any]:
    text = (files(__package__) / "machine_files" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def read_cluster(path: Path) -> Cluster:
    """A cluster of a TOML file: what a file of ``machine_files`` may say, and ``nodes``.

    ``machine`` names one to take from what it does not say.

    Raises:
        Refusal: a file that cannot be read, lacks a number, or has one that no cluster has.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Refusal([Problem("--cluster", path, f"cannot be read: {error}")]) from error
    if wrong := [*_of_keys(said), *table_problems(said)]:
        raise Refusal([*wrong, *of_other_flags(_positive(said), wrong)])
    base = _file(said["machine"]) if "machine" in said else {"name": path.stem}
    own = {key: value for key, value in said.items() if key not in _OF_CLUSTER}
    built = _Read(_as_measured(base, own) | own)
    if problems := [*built.problems(path), *_positive(said)]:
        raise Refusal(problems)
    if problems := [*built.impossible()]:
        raise Refusal(problems)
    found = built.machine()
    return checked(
        Cluster(
            machine=found,
            nodes=int(_value(said.get("nodes", 1))),
            per_node=found.per_node,
            memory=found.memory,
            price=_value(said["price"]) if "price" in said else None,
            slack=_value(said.get("slack", SLACK)),
        )
    )


def _as_measured(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """With the same shares of rates that a file replaces, where it has no measured one itself."""
    kept = dict(base)
    for measured, rate in _AT_MOST.items():
        if rate in own and measured in base and measured not in own:
            kept[measured] = _value(base[measured]) * _value(own[rate]) / _value(base[rate])
    return kept


def checked(cluster: Cluster) -> Cluster:
    """The same.

    Raises:
        Refusal: numbers that no cluster has.
    """
    if problems := cluster_problems(cluster):
        raise Refusal(problems)
    return cluster


def _of_keys(said: dict[str, Any]) -> Iterator[Problem]:
    known = {*NUMBERS, *_OF_CLUSTER, "name", "chip", "sources"}
    for key, value in said.items():
        if key not in known | COLUMNS.keys():
            yield Problem(key, value, f"is not known; a cluster has {', '.join(NUMBERS)}")
        elif key in (*NUMBERS, "nodes", "price", "slack") and not _is_number(value):
            yield Problem(key, value, "is not a number; write one, or { value, source }")
    for key in ("machine", "chip"):
        if key in said and said[key] not in names():
            text = f"is not one of {', '.join(names())}; use one of them, or leave it out"
            yield Problem(key, said[key], text)
    if "name" in said and not (isinstance(said["name"], str) and said["name"]):
        yield Problem("name", said["name"], "is not a word; write one, or leave it out")
    if "sources" in said and not isinstance(said["sources"], dict):
        yield Problem(
            "sources", said["sources"], "is not a table; write [sources], or leave it out"
        )


def _positive(said: dict[str, Any]) -> Iterator[Problem]:
    for key in (*NUMBERS, "nodes", "price", "slack"):
        if key not in said or not _is_number(said[key]):
            continue
        if not 0 < _value(said[key]) < float("inf"):
            yield Problem(key, _value(said[key]), "is not above 0; say what the cluster has")
        elif key in _WHOLE and not _value(said[key]).is_integer():
            yield Problem(key, _value(said[key]), "is not a whole number; say how many there are")


def _is_number(value: Any) -> bool:
    found = value.get("value") if isinstance(value, dict) else value
    return isinstance(found, int | float) and not isinstance(found, bool)


def _value(value: Any) -> float:
    return float(value["value"] if isinstance(value, dict) else value)


@dataclass(frozen=True)
class _Read:
    """A file that was read."""

    said: dict[str, Any]

    def number(self, name: str, otherwise: float = 0.0) -> float:
        return _value(self.said[name]) if name in self.said else otherwise

    def problems(self, path: Path) -> Iterator[Problem]:
        for name in NEEDED:
            if name not in self.said:
                text = f"lacks {name}; add it, or `machine = ` one of {', '.join(names())}"
                yield Problem("--cluster", path, text)

    def impossible(self) -> Iterator[Problem]:
        """What was measured above what there is."""
        for name, most in _AT_MOST.items():
            value, limit = self.number(name), self.number(most) if most else 1.0
            if value and limit and value > limit:
                of = f"{most} ({limit:g})" if most else "1"
                text = f"is above {of}, which nothing reaches; correct one of them"
                yield Problem(name, f"{value:g}", text)

    @property
    def best(self) -> float:
        """FLOPs a second of the best product, had it no end of numbers to sum up."""
        specified = self.number("bf16_tflops") * _BEST
        deep = 1 / depth(self.number("bf16_matmul_k", inf))
        return self.number("bf16_matmul_tflops", specified) * deep * 1e12

    def machine(self) -> Machine:
        chip = machine(self.said["chip"]) if "chip" in self.said else None
        attentions = tuple(self._attentions()) or (chip.attentions if chip else ())
        peak = self.number("bf16_tflops") * 1e12
        faster = self.number("fp8_matmul_tflops") * 1e12 / self.best
        return Machine(
            name=self.said["name"],
            memory=self.number("memory_gib") * GIB,
            peak={"bf16": peak, "fp8": self.number("fp8_tflops", 2 * peak / 1e12) * 1e12},
            faster=faster or 1.8,
            achieved=self.best * SUSTAINED,
            grouped=self.best * GROUPED,
            attention=(self.best * ATTENTION[0], self.best * ATTENTION[1]),
            bandwidth=self.number("hbm_tb_s") * self.number("hbm_share", BANDWIDTH) * 1e12,
            launch=GAP,
            graphed=GRAPHED,
            host=HOST,
            occupied=OCCUPIED,
            domain=int(self.number("scale_up_gpus")),
            per_node=int(self.number("gpus_per_node")),
            near=self._link("scale_up", NEAR, inside=True),
            far=self._link("scale_out", FAR, inside=False),
            products=tuple(self._products()),
            attentions=attentions,
            sources={
                key: f"{value['source']}"
                for key, value in self.said.items()
                if isinstance(value, dict) and "source" in value
            },
        )

    def _tables(self, name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Every row of the tables of a name, and what the table says of them all."""
        for table in self.said.get(name, ()):
            for row in table["rows"]:
                yield dict(zip(table["columns"], row, strict=True)), table

    def _products(self) -> Iterator[Timed]:
        for row, table in self._tables("matmul"):
            if table["precision"] != "bf16":
                continue
            for column, pass_ in _PASSES.items():
                if column in row:
                    yield Timed(
                        pass_=pass_,
                        groups=row.get("experts", 1),
                        rows=row["rows"] if "experts" in row else row["tokens"],
                        inner=row["in"],
                        outer=row["out"],
                        flops=row[column] * table["peak_tflops"] * 1e12,
                    )

    def _attentions(self) -> Iterator[TimedAttention]:
        """Rates are of half of the pairs in the files, but where a column says full."""
        for row, table in self._tables("attention"):
            if table["implementation"] not in ("transformer-engine", "cudnn"):
                continue
            for column, backward in (
                ("forward_tflops", False),
                ("backward_tflops", True),
                ("backward_full_tflops", True),
            ):
                if column in row:
                    yield TimedAttention(
                        backward=backward,
                        length=row["seq_length"],
                        heads=row.get("heads", 16),
                        width=row.get("qk_size", 128) + row.get("v_size", 128),
                        flops=2 * row[column] * 1e12,
                    )

    def _link(self, name: str, latency: float, *, inside: bool) -> Link:
        rate = self.number(f"{name}_gb_s") * 1e9
        measured = self.number(f"{name}_measured_gb_s") * 1e9
        shares = {"default": measured / rate if measured else WIRE}
        fixed, hops = {}, {}
        for row, _ in self._tables("collective_fit") if inside else ():
            operation = row["operation"]
            shares[operation] = row["share"]
            fixed[operation] = row["fixed_us"] * 1e-6
            hops[operation] = row["latency_us"] * 1e-6
        for operation, found in self._collectives(inside):
            shares.setdefault(operation, min(1.0, found / rate))
        if exchange := self._exchange(inside):
            shares["fused"] = min(1.0, exchange / rate)
        return Link(rate=rate, latency=latency, shares=shares, fixed=fixed, hops=hops)

    def _collectives(self, inside: bool) -> Iterable[tuple[str, float]]:
        """The best of the large ones, bytes a second."""
        found: dict[str, float] = {}
        for row, _ in self._tables("collective"):
            one = row["nodes"] == 1 and row["ranks"] == self.number("gpus_per_node")
            ring = row["algorithm"] in ("", "ring")
            if ring and (one if inside else row["nodes"] > 1 and row["operation"] == "all_to_all"):
                rate = row["busbw_gb_s"] * 1e9
                found[row["operation"]] = max(rate, found.get(row["operation"], 0.0))
        return found.items()

    def _exchange(self, inside: bool) -> float:
        """Of DeepEP or HybridEP: bytes a second over this link, there and back, or 0."""
        found = [
            (row["dispatch_gb_s"] + row["combine_gb_s"]) / 2 * 1e9
            for row, table in self._tables("dispatch")
            if table["bytes_of"] in _OF_LINK
            and (row["ranks"] <= self.number("scale_up_gpus")) == inside
        ]
        return sum(found) / len(found) if found else 0.0
