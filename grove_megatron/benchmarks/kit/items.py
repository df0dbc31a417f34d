"""What the kit runs, in order of value: what tells most if only the first minutes are there.

Standard library only, like all that ``--plan`` needs.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["environment", "tests", "bench"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to run, in a process of its own.

    Attributes:
        name: in results and in the plan.
        kind: what runs it, see :mod:`.perform`.
        words: a test file, or what follows ``grove bench``.
        small: the same for a machine without CUDA; empty if it is the same there.
        expected: seconds on one H100; an estimate, replaced by what a run of the kit took.
        least: with fewer seconds left it is not begun.
        limit: seconds after which it is ended.
        needs: a module without which it would only skip.
    """

    name: str
    kind: Kind
    words: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    expected: float
    least: float
    limit: float
    needs: str | None = None


def _tests(
    name: str,
    expected: float,
    least: float,
    limit: float,
    needs: str | None = None,
    *,
    beside: str = "",
    only: str = "",
) -> Item:
    """A file of tests, or those that ``only`` selects, with a name ``beside`` that of the file."""
    return Item(
        name=f"test_{name}{beside}",
        kind="tests",
        words=(f"tests/gpu/test_{name}.py", *(("-k", only) if only else ())),
        expected=expected,
        least=least,
        limit=limit,
        needs=needs,
    )


def _bench(name: str, words: str, small: str, expected: float, least: float, limit: float) -> Item:
    return Item(
        name=f"bench_{name}",
        kind="bench",
        words=tuple(words.split()),
        small=tuple(small.split()),
        expected=expected,
        least=least,
        limit=limit,
    )


# Without CUDA: that it runs, and no more.
_TINY = "--tokens 64 --hidden 64 --experts 16 --groups 8 --topk 3 --rounds 3 --warmup 1"
_WIDTHS = "--expert-width 32 --adjugate-width 16"
# The kernels at the shapes of the released model come before their odd shapes, each of which has
# kernels of its own to compile.
_33B = "_33b"
# Of another shape than the layer above: the variables of determinism slow down all of it.
_DETERMINISTIC = "--kernel grouped --variant plain --variant grove --deterministic"
# What the local implementation needs where neither Apex nor TransformerEngine is installed. Both
# sides of every comparison have the same.
_LOCAL = (
    "--attention-backend unfused --no-gradient-accumulation-fusion --no-masked-softmax-fusion"
    " --no-bias-swiglu-fusion --no-rope-fusion --no-persist-layer-norm --no-bias-gelu-fusion"
    " --no-bias-dropout-fusion"
)
# A layer of the released model has 0.65e9 weights, and each takes 18 bytes of a job in bf16 (the
# weight, a gradient in fp32, three values of Adam's in fp32): four models of one layer fit 80 GB.
STEP_LAYERS = 1

ITEMS = (
    Item(name="environment", kind="environment", expected=4, least=2, limit=60),
    _tests("kernels", 40, 12, 120, beside=_33B, only="released"),
    _tests("layer", 60, 15, 150),
    _bench(
        "layer",
        "layer --preset 33b --kernel grouped --kernel triton",
        f"layer {_TINY} {_WIDTHS}",
        25,
        12,
        90,
    ),
    _bench("kernels", "kernels --preset 33b", f"kernels {_TINY} {_WIDTHS}", 25, 12, 90),
    _bench(
        "step",
        f"step --preset 33b --layers {STEP_LAYERS} --ranks 1 --kernel grouped {_LOCAL}",
        f"step {_TINY} {_WIDTHS} --layers 1 --ranks 1",
        60,
        20,
        150,
    ),
    _tests("one_gpu", 100, 30, 180),
    _tests("kernels", 90, 15, 150, only="not released"),
    _tests("transformer_engine", 20, 12, 60, "transformer_engine"),
    _tests("parity", 60, 25, 120, "transformer_engine"),
    _tests("routers", 8, 6, 40),
    _bench("dispatch", "dispatch --preset 33b --ranks 1", f"dispatch {_TINY} --ranks 1", 12, 8, 60),
    _tests("bridge", 25, 15, 60, "megatron.bridge"),
    _tests("deterministic", 90, 30, 150),
    _bench(
        "routers",
        "routers --preset 33b",
        "routers --tokens 64 --hidden 64 --experts 16 --topk 3 --expert-width 32 --rounds 3",
        40,
        15,
        120,
    ),
    _bench(
        "layer_deterministic",
        f"layer --preset 33b --tokens 2048 {_DETERMINISTIC}",
        f"layer {_TINY} {_WIDTHS} --tokens 48 {_DETERMINISTIC}",
        20,
        12,
        60,
    ),
    _tests("switches", 240, 40, 400),
)
