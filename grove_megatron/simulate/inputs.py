"""From options to sizes and routings, or everything that is wrong with them at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from ..checks.problem import Problem, Refusal
from ..checks.rules import Check
from ..placing.file import Assignment, problems, read
from .parse import RECORD, TRACE, Named, every, parse
from .recorded import Loads, Recorded
from .routing import Routing
from .sizes import Sizes, limits, problems_of
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
        whole: micro batches after which the routing begins again.
    """

    text: str
    sizes: Sizes
    routing: Routing
    steps: int
    record: Loads | None = None
    whole: int = 1


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
    texts = every(options.routing)
    for text in texts:
        with _kept(found):
            named.append(parse(text))
            if named[-1].place is not None:
                sources[text] = of_file(named[-1])
    files = {text for text in texts if text.partition(":")[0] in (RECORD, TRACE)}
    # Of a file that cannot be read nobody knows what it would have said.
    all_read = files <= {*sources}
    if options.grove_preset is not None:
        with _kept(found):
            bytes_per_value = BYTES.get(options.dtype, 1)
            sources["--grove-preset"] = of_preset(options.grove_preset, bytes_per_value)
        all_read = all_read and "--grove-preset" in sources
    if options.placement is not None:
        with _kept(found):
            assignment = read(options.placement)
    if options.layers and not files and options.placement is None:
        text = "needs --placement, or a record or trace as --routing; leave it out"
        found.append(Problem("--layers", " ".join(options.layers), text))
    for name in named:
        if source := sources.get(name.text):
            found += _of_source(options, source)
        elif assignment is not None and assignment.layers:
            with _kept(found):
                _chosen(options, tuple(assignment.layers), f"--placement ({options.placement})")
    sizes = _sizes(options, [*sources.values()], all_read, found)
    asked: list[Asked] = []
    if sizes is not None:
        if assignment is not None:
            of_files = [source.layers for source in sources.values() if source.layers]
            for layers in of_files or [None]:
                found += _of_placement(options, assignment, sizes, layers)
        for name in named:
            with _kept(found):
                asked.append(_asked(name, options, sizes, sources.get(name.text), assignment))
    if found:
        raise Refusal(dict.fromkeys(found))
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


def _sizes(
    options: Options, sources: list[Source], all_read: bool, found: list[Problem]
) -> Sizes | None:
    """The sizes that everybody agrees on, or what is wrong with them.

    Args:
        options, sources: who says them.
        all_read: is there no other source, which could not be read?
        found: problems go there.

    Returns:
        None where they are not known, or wrong.
    """
    before = len(found)
    hidden = options.hidden_size
    sound = options.dtype in BYTES and (hidden is None or hidden > 0)
    given = {name: getattr(options, name) for name in ("experts", "topk", "groups")}
    given["row_bytes"] = hidden * BYTES[options.dtype] if sound and hidden is not None else None
    sizes, differing = agreed(given, sources, options.dtype)
    found += differing
    missing = {"experts": "experts", "topk": "topk", "row_bytes": "hidden_size"}
    if all_read:
        check, fix = Check(options), "give it, or --grove-preset"
        lacks = [flag for name, flag in missing.items() if name not in sizes]
        found += [problem for flag in lacks for problem in check.missing(flag, fix)]
    runs = [source.record.run for source in sources if source.record is not None]
    # What is not said, as far as that is all.
    default = {"groups": 0, "ranks": runs[0].ranks if runs else RANKS, "local_experts": 0}
    asked = {"ranks": options.ranks} if options.ranks is not None else {}
    known = dict.fromkeys(missing) | (default if all_read else dict.fromkeys(default))
    known |= sizes | asked | {"gpus_per_node": options.gpus_per_node}
    known["tokens"] = TOKENS if options.tokens is None else options.tokens
    about = SimpleNamespace(**known, hidden_size=hidden, steps=options.steps)
    found += [*problems_of(about), *limits(about)]
    if len(found) > before or None in known.values():
        return None
    local_tau = next((of.local_tau for of in sources if of.local_tau != 1.0), 1.0)
    return Sizes(**known, local_tau=local_tau)


def _of_source(options: Options, source: Source) -> list[Problem]:
    """What of the options is not for that record or trace, whatever the sizes."""
    found: list[Problem] = []
    with _kept(found):
        _chosen(options, source.layers, source.name)
    if source.trace is None:
        return found
    once = {
        "{tokens} excludes a trace, which has its own; leave it out": options.tokens is not None,
        "{steps} excludes a trace, which has its tokens once; leave it out": options.steps
        not in (None, 1),
    }
    return [*found, *Check(options).those(once)]


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
        layers = tuple(options.layers) or placed or drawn.layers
        steps = options.steps or drawn.steps
        return Asked(named.text, sizes, replace(drawn, layers=layers), steps, whole=drawn.steps)
    layers = _chosen(options, source.layers, source.name)
    if source.record is not None:
        recorded = Recorded(sizes, options.seed, source.record, layers)
        return Asked(named.text, sizes, recorded, options.steps or 1, source.record)
    trace = source.trace
    assert trace is not None
    own = replace(sizes, tokens=max(1, max(trace.tokens.values()) // sizes.ranks))
    return Asked(named.text, own, Replayed(own, trace, layers), 1)


def _of_placement(
    options: Options, assignment: Assignment, sizes: Sizes, layers: Sequence[str] | None
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
