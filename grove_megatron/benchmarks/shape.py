"""What is measured: the shape of a layer, its presets, and the settings of one invocation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DTYPES = ("fp32", "bf16")
KERNELS = ("sequential", "grouped", "triton", "te")
VARIANTS = ("plain", "naive", "grove-dispatch", "grove")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One MoE layer, or a model of such layers.

    Attributes:
        tokens: on every rank, in one pass.
        hidden: width of a token.
        experts, groups, topk: of the whole layer; experts chosen per token.
        expert_width, adjugate_width: FFN width of one expert; 0 where none is computed.
        layers: of the model, 1 for a layer.
        dtype: of weights and activations.
    """

    tokens: int
    hidden: int
    experts: int
    groups: int
    topk: int = 8
    expert_width: int = 0
    adjugate_width: int = 0
    layers: int = 1
    dtype: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One invocation of ``grove bench``.

    Attributes:
        benchmark, preset: names; the preset is where unspecified sizes came from.
        shape: what is measured.
        group_size: as given on the command line, None if it was not.
        ranks, threads: expert-parallel ranks, and CPU threads of each.
        ranks_per_node: ranks that count as a node, None where nodes are not told apart.
        rounds, warmup: measured and unmeasured repetitions of every variant.
        kernels, variants: which expert implementations and which layers to compare.
        deterministic: also time grove with torch's deterministic algorithms.
        folder: where to put large files, None for the place of temporary files.
        csv: file that rows are appended to, None for none.
        as_json: end with one JSON object on stdout.
        megatron_flags: further flags for Megatron's parser.
    """

    benchmark: str
    preset: str
    shape: Shape
    group_size: int | None = None
    ranks: int
    ranks_per_node: int | None = None
    threads: int = 1
    rounds: int
    warmup: int
    seed: int = 0
    kernels: tuple[str, ...] = ()
    variants: tuple[str, ...] = VARIANTS
    deterministic: bool = False
    folder: Path | None = None
    csv: Path | None = None
    as_json: bool = False
    megatron_flags: tuple[str, ...] = ()


_LAYER = Shape(tokens=2048, hidden=512, experts=64, groups=32, expert_width=256, adjugate_width=64)
# The layer of the released model, GroveMoE-33B.
_LAYER_33B = Shape(
    tokens=4096,
    hidden=2048,
    experts=128,
    groups=64,
    expert_width=768,
    adjugate_width=128,
    dtype="bf16",
)

PRESETS: dict[str, dict[str, Shape]] = {
    "dispatch": {
        "small": Shape(tokens=2048, hidden=1024, experts=64, groups=32),
        "33b": replace(_LAYER_33B, expert_width=0, adjugate_width=0),
    },
    "layer": {"small": _LAYER, "33b": _LAYER_33B},
    "kernels": {"small": _LAYER, "33b": _LAYER_33B},
    "step": {
        "small": replace(_LAYER, tokens=512, expert_width=192, adjugate_width=32, layers=4),
        # 4 of its 48 layers: what fits a GPU of 4 ranks with the optimizer states of all variants.
        "33b": replace(_LAYER_33B, layers=4),
    },
    "convert": {
        "small": Shape(
            tokens=1, hidden=256, experts=16, groups=8, expert_width=64, adjugate_width=16, layers=2
        ),
        # As many of its 48 layers as make 8 GiB with the embeddings.
        "33b": replace(_LAYER_33B, tokens=1, layers=6),
    },
    # Of the layer of MoE++ (arXiv 2410.07348); its numbers of experts are measured in turn.
    "local": {
        "small": Shape(tokens=2048, hidden=256, experts=8, groups=8, topk=2, expert_width=704)
    },
    # Wide tokens and narrow experts: what a router costs shows.
    "routers": {
        "small": Shape(tokens=512, hidden=2048, experts=128, groups=128, topk=8, expert_width=128),
        "33b": replace(_LAYER_33B, groups=128),
    },
    "scaling": {"small": replace(_LAYER, tokens=512, experts=16, groups=8)},
}


def shape_of(benchmark: str, preset: str, options: Mapping[str, Any]) -> Shape:
    """A preset with the options that were given (not None).

    ``group_size`` among them sets the groups. An unknown preset counts as ``small``, so that
    everything else can still be checked.
    """
    presets = PRESETS[benchmark]
    shape = presets.get(preset, presets["small"])
    given = {name: value for name, value in options.items() if value is not None}
    group_size = given.pop("group_size", None)
    if group_size:
        given.setdefault("groups", given.get("experts", shape.experts) // group_size)
    return replace(shape, **given)


def dispatch_shape(shape: Shape) -> Shape:
    """What ``grove bench scaling`` dispatches beside layers of ``shape``: the preset's experts."""
    return replace(
        PRESETS["dispatch"]["small"],
        tokens=shape.tokens,
        hidden=shape.hidden,
        topk=shape.topk,
        dtype=shape.dtype,
    )
