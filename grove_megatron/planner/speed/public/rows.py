"""The measurements of ``rows.toml``, as jobs on a cluster, and what is planned of each."""

import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from ...flags import parse
from ...flops import flops_per_token
from ...inputs import Sizes
from ...memory import largest, stage_memory
from ...parts import router_parts
from ...sizes import sizes_of
from ..cluster import GIB, Cluster
from ..machines import machine
from ..step import Step, step, with_slack

CALIBRATES = "qwen3-30b-16xh100-hybridep"
"""The one row whose step is taken as it is: all others are predicted with its slack."""
_FLAGS = ("layout", "recompute", "dispatcher", "overlap", "graphs", "optimizer")
# Rows that say too little of what was run, or where.
_TRUST = {
    "short": "a handful of steps",
    "efa": "another network than the machine file's",
    "assumed": "its settings are a recipe's, not the run's",
}


@dataclass(frozen=True)
class Public:
    """One measurement.

    Attributes:
        row: as the file has it.
        sizes: of the job.
        cluster: it ran on, without slack.
    """

    row: dict[str, Any]
    sizes: Sizes
    cluster: Cluster

    @property
    def name(self) -> str:
        return str(self.row["name"])

    @property
    def kind(self) -> str:
        """``bf16`` or ``fp8``."""
        return "bf16" if self.row["precision"] == "bf16" else "fp8"

    @property
    def not_comparable(self) -> str:
        """Why a plan cannot be held to it, or nothing."""
        # A capacity of 1 is balance enough: what is over the average is dropped.
        if (
            self.row.get("balanced") is False
            and "--moe-expert-capacity" not in self.row["dispatcher"]
        ):
            return "its routing is not balanced, and nobody says how uneven it was"
        return _TRUST.get(self.row.get("trust", ""), "")

    @property
    def measured(self) -> float:
        """Seconds of a step."""
        if "step_seconds" in self.row:
            return float(self.row["step_seconds"])
        training = self.sizes.training
        samples = training.micro_batch * training.microbatches * self.sizes.layout.data
        tokens = samples * training.sequence_length / self.row["gpus"]
        if "tokens_per_second_per_gpu" in self.row:
            return float(tokens / self.row["tokens_per_second_per_gpu"])
        flops = flops_per_token(self.sizes.model, training.sequence_length)
        return float(tokens * flops / (self.row["tflops_per_gpu"] * 1e12))

    @property
    def memory(self) -> tuple[float, float] | None:
        """Of a rank, measured and planned without margin; bytes. None where nobody says it."""
        if "memory_gib" not in self.row:
            return None
        memories = stage_memory(self.sizes)
        return self.row["memory_gib"] * GIB, memories[largest(memories)].total

    def step(self, slack: float = 1.0) -> Step:
        """As planned."""
        return step(self.sizes, with_slack(self.cluster, slack))

    def error(self, slack: float = 1.0) -> float:
        """Of the planned seconds, as a share of the measured ones."""
        return self.step(slack).total / self.measured - 1


def slack(rows: Iterable[Public]) -> float:
    """Of the row that calibrates."""
    (row,) = [one for one in rows if one.name == CALIBRATES]
    return row.measured / row.step().total


@cache
def public_rows() -> tuple[Public, ...]:
    """All that the planner can say."""
    said = tomllib.loads((files(__package__) / "rows.toml").read_text(encoding="utf-8"))
    return tuple(_public(row, said["models"]) for row in said["row"])


def _public(row: dict[str, Any], models: dict[str, str]) -> Public:
    args = parse(_words(row, models))
    # A preset has our dispatch, and these runs had Megatron's.
    args.grove_dispatch = False
    sizes = sizes_of(args, router_parts(args), row["gpus"], args.vocab_size)
    sizes = replace(sizes, training=replace(sizes.training, fp8=row["precision"] != "bf16"))
    found = machine(row["machine"])
    per_node = row["gpus_per_node"]
    nodes = max(1, row["gpus"] // per_node)
    cluster = Cluster(machine=found, nodes=nodes, per_node=per_node, memory=found.memory)
    return Public(row, sizes, cluster)


def _words(row: dict[str, Any], models: dict[str, str]) -> list[str]:
    model = f"--grove-preset {row['preset']}" if "preset" in row else models[row["model"]]
    words = shlex.split(model)
    for name in _FLAGS:
        words += shlex.split(row[name])
    for name in ("micro_batch_size", "global_batch_size", "seq_length"):
        words += [f"--{name.replace('_', '-')}", str(row[name])]
    return [*words, "--bf16"]
