"""Those who know the sizes of a layer: a preset, a record, a trace; and where they disagree."""

from collections.abc import Mapping, Sequence
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


def agreed(
    given: Mapping[str, int | None], sources: Sequence[Source], dtype: str
) -> tuple[dict[str, int | None], list[Problem]]:
    """Sizes as the command line or a source says them, and where two of them differ.

    Args:
        given: on the command line; None where it says nothing.
        sources: the others.
        dtype: of the bytes that are given.

    Returns:
        every size that somebody says, None where two do not say the same; and those problems.
    """
    sizes = {name: value for name, value in given.items() if value is not None}
    said_by = dict.fromkeys(sizes, "")
    differing: dict[str, list[Problem]] = {}
    for source in sources:
        for name, value in source.sizes.items():
            by = said_by.setdefault(name, source.name)
            if sizes.setdefault(name, value) != value:
                problem = _contradicted(name, sizes[name], by, source.name, value, dtype)
                differing.setdefault(name, []).append(problem)
    problems = [problem for of in differing.values() for problem in of]
    return sizes | dict.fromkeys(differing), problems


def _contradicted(
    name: str, size: int, said_by: str, other: str, differs: int, dtype: str
) -> Problem:
    """By another source."""
    if said_by:
        text = f"of {said_by} differs from that of {other} ({differs}); name one of them"
        return Problem(name, size, text)
    if name == "row_bytes":
        text = (
            f"of --dtype ({dtype}) differs from that of {other} ({differs}); give its --dtype, or "
            "leave both out"
        )
        return Problem("--hidden-size bytes", size, text, ("--dtype",))
    return Problem(flag_of(name), size, f"differs from that of {other} ({differs}); leave it out")
