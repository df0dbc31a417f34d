"""From options to sizes and routings, or everything that is wrong with them at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..checks.problem import Problem, Refusal
from ..checks.rules import Check
from ..placing.file import Assignment, problems, read
from .parse import Named, every, parse
from .recorded import Loads, Recorded
from .routing import Routing
from .sizes import Sizes
from .sources import Source, agreed, of_file, of_preset
from .trace import Replayed

BYTES = {"bf16": 2, "fp32": 4}
"""Of a value, by ``--dtype``."""
TOKENS, RANKS = 4096, 8
"""Where nothing says how many."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked, named as flags; None where nothing was said.

    Attributes:
        routing: texts of ``--routing``.
        layers: of a record, a trace or a placement; empty for all.
    """

    routing: Sequence[str] = ("uniform",)
    experts: int | None = None
    topk: int | None = None
    groups: int | None = None
    hidden_size: int | None = None
    dtype: str = "bf16"
    grove_preset: str | None = None
    ranks: int | None = None
    gpus_per_node: int = 8
    tokens: int | None = None
    placement: Path | None = None
    layers: Sequence[str] = ()
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """One routing, ready to be counted.

    Args:
        text: of ``--routing``.
        sizes: of the layer; of a trace with its own tokens.
        routing: see there.
        steps: how many of its micro batches.
        record: where the routing is that of one, what it counted.
    """

    text: str
    sizes: Sizes
    routing: Routing
    steps: int
    record: Loads | None = None


def prepare(options: Options) -> tuple[list[Asked], Assignment | None]:
    """Read what is named, and make the routings.

    Raises:
        Refusal: all that is wrong with what is named, or with the sizes, or with the routings.
    """
    check = Check(options)
    found = [*check.one_of("dtype", [*BYTES], "choose one")]
    if options.steps is not None:
        found += check.at_least("steps", 1)
    if options.hidden_size is not None:
        found += check.at_least("hidden_size", 1)
    named: list[Named] = []
    sources: dict[str, Source] = {}
    assignment = None
    for text in every(options.routing):
        with _kept(found):
            named.append(parse(text))
            if named[-1].place is not None:
                sources[text] = of_file(named[-1])
    if options.grove_preset is not None:
        with _kept(found):
            bytes_per_value = BYTES.get(options.dtype, 1)
            sources["--grove-preset"] = of_preset(options.grove_preset, bytes_per_value)
    if options.placement is not None:
        with _kept(found):
            assignment = read(options.placement)
    _refuse(found)
    sizes = _sizes(options, list(sources.values()), assignment)
    asked = []
    for name in named:
        with _kept(found):
            asked.append(_asked(name, options, sizes, sources.get(name.text), assignment))
    _refuse(found)
    return asked, assignment


@contextmanager
def _kept(found: list[Problem]) -> Iterator[None]:
    """What is refused inside is one of several things that are wrong."""
    try:
        yield
    except Refusal as refusal:
        found += refusal.problems
    except ValueError as error:
        found.append(Problem.of_text(str(error)))


def _refuse(found: list[Problem]) -> None:
    if found:
        raise Refusal(dict.fromkeys(found))


def _sizes(options: Options, sources: list[Source], assignment: Assignment | None) -> Sizes:
    """The sizes that everybody agrees on."""
    hidden = options.hidden_size
    given = {name: getattr(options, name) for name in ("experts", "topk", "groups")}
    given["row_bytes"] = None if hidden is None else hidden * BYTES[options.dtype]
    sizes = agreed(given, sources)
    missing = {"experts": "experts", "topk": "topk", "row_bytes": "hidden_size"}
    check = Check(options)
    fix = "give it, or --grove-preset"
    lacks = [flag for name, flag in missing.items() if name not in sizes]
    _refuse([problem for flag in lacks for problem in check.missing(flag, fix)])
    runs = [source.record.run for source in sources if source.record is not None]
    known = Sizes(
        **sizes,
        ranks=options.ranks if options.ranks is not None else runs[0].ranks if runs else RANKS,
        gpus_per_node=options.gpus_per_node,
        tokens=TOKENS if options.tokens is None else options.tokens,
        local_tau=next((of.local_tau for of in sources if of.local_tau != 1.0), 1.0),
    )
    if assignment is not None:
        _refuse(_of_placement(options, assignment, known))
    return known


def _asked(
    named: Named,
    options: Options,
    sizes: Sizes,
    source: Source | None,
    assignment: Assignment | None,
) -> Asked:
    if source is None:
        drawn = named.draw(sizes, options.seed)
        # A placement is of layers, each of which meets tokens of its own.
        placed = () if assignment is None else tuple(assignment.layers)
        known = placed or tuple(options.layers) or drawn.layers
        drawn = replace(drawn, layers=_chosen(options, known, f"--placement ({options.placement})"))
        return Asked(named.text, sizes, drawn, options.steps or drawn.steps)
    found: list[Problem] = []
    if assignment is not None:
        found += _of_placement(options, assignment, sizes, source.layers)
    layers: tuple[str, ...] = ()
    with _kept(found):
        layers = _chosen(options, source.layers, source.name)
    if source.record is not None:
        _refuse(found)
        recorded = Recorded(sizes, options.seed, source.record, layers)
        return Asked(named.text, sizes, recorded, options.steps or 1, source.record)
    trace = source.trace
    assert trace is not None
    once = {
        "{tokens} excludes a trace, which has its own; leave it out": options.tokens is not None,
        "{steps} excludes a trace, which has its tokens once; leave it out": options.steps
        not in (None, 1),
    }
    _refuse([*found, *Check(options).those(once)])
    own = replace(sizes, tokens=max(1, max(trace.tokens.values()) // sizes.ranks))
    return Asked(named.text, own, Replayed(own, trace, layers), 1)


def _of_placement(
    options: Options, assignment: Assignment, sizes: Sizes, layers: Sequence[str] | None = None
) -> list[Problem]:
    """Why a placement is not one of these sizes and layers."""
    about = {"experts": sizes.experts, "groups": sizes.groups, "ranks": sizes.ranks}
    return problems(assignment, options.placement or "", **about, layers=layers)


def _chosen(options: Options, layers: Sequence[str], of: str) -> tuple[str, ...]:
    """Those of ``--layers``, or all."""
    if unknown := [name for name in options.layers if name not in layers]:
        text = f"are not layers of {of} ({', '.join(layers)}); choose of these"
        raise Refusal([Problem("--layers", " ".join(unknown), text)])
    return tuple(options.layers) or tuple(layers)
