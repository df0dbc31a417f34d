"""Those who know the sizes of a layer: a preset, a record, a trace; and where they disagree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checks.flags import flag_of
from ..checks.problem import Problem, Refusal
from ..presets.table import PRESETS
from ..report.trace import Trace, open_trace
from .parse import RECORD, TRACE, Named
from .recorded import Loads, read_loads


@dataclass(frozen=True)
class Source:
    """Somebody who knows some sizes.

    Args:
        name: to be said, with its value.
        sizes: by the names of :class:`.sizes.Sizes`.
        local_tau: see there.
        record, trace: what was read.
    """

    name: str
    sizes: Mapping[str, int]
    local_tau: float = 1.0
    record: Loads | None = None
    trace: Trace | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of those that were read; none of a preset."""
        if self.record is not None:
            return self.record.run.layers
        return () if self.trace is None else self.trace.layers


def of_preset(name: str, bytes_per_value: int) -> Source:
    """The sizes of a released model.

    Raises:
        Refusal: there is none of that name, or it has no experts.
    """
    if name not in PRESETS:
        text = f"is not one of ({', '.join(PRESETS)}); choose one"
        raise Refusal([Problem("--grove-preset", name, text)])
    settings = PRESETS[name].settings
    numbers = {key: value for key, value in settings.items() if isinstance(value, int | float)}
    local = ("grove_zero_experts", "grove_copy_experts", "grove_constant_experts")
    sizes = {
        "experts": int(numbers["num_experts"]),
        "topk": int(numbers["moe_router_topk"]),
        "groups": int(numbers.get("grove_num_groups", 0)),
        "row_bytes": int(numbers["hidden_size"]) * bytes_per_value,
        "local_experts": sum(int(numbers.get(kind, 0)) for kind in local),
    }
    return Source(f"--grove-preset ({name})", sizes, numbers.get("grove_local_tau", 1.0))


def of_file(named: Named) -> Source:
    """The sizes of a record or a trace.

    Raises:
        ValueError: it is none.
    """
    assert named.place is not None
    said = f"--routing ({named.text})"
    if named.kind == RECORD:
        loads = read_loads(named.place)
        run = loads.run
        sizes = {name: getattr(run, name) for name in ("experts", "topk", "groups", "row_bytes")}
        # It need not say what balanced them.
        sizes["local_experts"] = sum(run.local.values())
        tau = run.settings.get("grove-local-tau", 1.0)
        return Source(said, sizes, float(tau), record=loads)
    assert named.kind == TRACE
    trace = open_trace(named.place)
    known = {"experts": trace.experts, "groups": trace.groups, "topk": trace.topk}
    return Source(said, {n: size for n, size in known.items() if size is not None}, trace=trace)


def agreed(given: Mapping[str, int | None], sources: Sequence[Source]) -> dict[str, int]:
    """Sizes as the first says them that knows: the command line, then the sources.

    Raises:
        Refusal: two of them say different things.
    """
    sizes = {name: value for name, value in given.items() if value is not None}
    said_by = dict.fromkeys(sizes, "")
    problems: list[Problem] = []
    for source in sources:
        problems += _contradicted(sizes, said_by, source)
        for name, value in source.sizes.items():
            said_by.setdefault(name, source.name)
            sizes.setdefault(name, value)
    if problems:
        raise Refusal(problems)
    return sizes


def _contradicted(
    sizes: Mapping[str, int], said_by: Mapping[str, str], source: Source
) -> Iterator[Problem]:
    for name, value in source.sizes.items():
        if name not in sizes or sizes[name] == value:
            continue
        if by := said_by[name]:
            text = f"of {by} differs from that of {source.name} ({value}); name one of them"
            yield Problem(name, sizes[name], text)
        else:
            flag = "--hidden-size bytes" if name == "row_bytes" else flag_of(name)
            text = f"differs from that of {source.name} ({value}); leave it out"
            yield Problem(flag, sizes[name], text)
