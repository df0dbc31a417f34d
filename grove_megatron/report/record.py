"""The record: a text file that a training job appends to, and that is read back as typed values.

One JSON object a line. A process that trains writes a line that describes the run, with format,
version and a name of its own, before the first interval it reports, and again after a line that it
could not write; every interval and every evaluation repeats the name. What a kill leaves of a last
line is ignored.

The history of a run is what was there when it began, up to the iteration it resumed from, and its
own intervals: a run resumed from iteration 50 replaces what an abandoned one had of 51 and later.
That also keeps two jobs apart which write to one file at the same time.

Shape suffixes: L layers, E experts, G groups, U units (groups, or experts where there are none),
R expert-parallel ranks, D = 1 + the most groups that a token can meet.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Added, Array, Encoded, decode, encode

FORMAT = "grove_metrics"
VERSION = 2
_READ = (1, 2)
"""Version 1 has no evaluations."""
FILE = "routing.jsonl"
FOLDER = "grove_metrics"
"""Name of the record's folder inside ``--save``."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process that trained was: the layers counted, their sizes, and its settings.

    Attributes:
        id: a name that no other run of the record has.
        started: seconds since the epoch.
        resumed: the iteration it went on from; 0 for a training from its beginning.
        layers: names of the L layers: their numbers, ``mtp 1`` for the first of MTP.
        experts, groups, topk, ranks: E, G, experts per token, expert-parallel ranks.
        dispatcher: ``--moe-token-dispatcher-type``.
        world_size: ranks of the job.
        row_bytes: of one token's hidden state.
        drops: may routed pairs be dropped (a capacity factor)?
        parameters: of the whole model: dense, routed experts, adjugates.
        settings: to show, by flag without dashes.
        local: local experts of a layer by kind, in the order of the router's columns; C together.
    """

    id: str
    started: float
    resumed: int
    layers: tuple[str, ...]
    experts: int
    groups: int
    topk: int
    ranks: int
    dispatcher: str
    world_size: int
    row_bytes: int
    drops: bool
    parameters: tuple[int, int, int]
    settings: dict[str, Any] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """U: what a placement moves as a whole."""
        return self.groups or self.experts


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Sums over the training microbatches of all ranks in ``iterations`` iterations.

    Attributes:
        run: what was counted.
        iteration: the last one.
        iterations: how many.
        time: seconds since the epoch, when it ended.
        losses: means over the iterations that advanced, by Megatron's names; without those of MTP
            layers.
        sent_tokens: [L] tokens that came to the layer, padding included.
        rerun_tokens: [L] tokens of passes that recompute ran again.
        left_rows: [L] rows that left the rank they were on, also inside a group of expert tensor
            parallelism.
        node_rows: [L] rows sent to nodes; 0 without hierarchical dispatch.
        experts: [L, E] routed pairs, after dropping, without padding.
        groups: [L, G] tokens of every adjugate, without padding.
        sharing: [L, D] tokens by the number of groups they met, without padding.
        rows: [L, R] rows sent to every expert-parallel rank, the own one and padding included;
            summed over the groups of such ranks.
        bias: [L, E] fp32, the expert bias at the end; None where there is none.
        local: [L, C] pairs of local experts, as ``experts``; None where there are none.
        coactivation: [L, U, U] tokens that met both units, after dropping, without padding; on the
            diagonal those that met the one. None without ``--grove-metrics-coactivation``.
    """

    run: Run
    iteration: int
    iterations: int
    time: float
    losses: dict[str, float]
    sent_tokens: Array
    rerun_tokens: Array
    left_rows: Array
    node_rows: Array
    experts: Array
    groups: Array
    sharing: Array
    rows: Array
    bias: Array | None = None
    local: Array | None = None
    coactivation: Array | Encoded | Added | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass over a validation or test set.

    Attributes:
        run: what was evaluated.
        iteration: after which one.
        of: ``validation``, with several sets ``validation-NAME``, or ``test``.
        time: seconds since the epoch, when it ended.
        seconds: how long it took.
        losses: means, by Megatron's names.
    """

    run: Run
    iteration: int
    of: str
    time: float
    seconds: float
    losses: dict[str, float]


ARRAYS = (
    *("sent_tokens", "rerun_tokens", "left_rows", "node_rows"),
    *("experts", "groups", "sharing", "rows"),
)
_LATER = "coactivation"
"""Is as large as all else together, many times, and decoded where it is asked for."""
_WHERE_THERE_ARE_ANY = ("bias", "local", _LATER)


@dataclass(frozen=True)
class Record:
    """The history of one run.

    Attributes:
        runs: all that the file holds, in the order they began.
        intervals: by iteration, of this run and of those it went on from.
        found: what else the file holds, one line each.
        evaluations: of the runs that the intervals are of, in the order they were made.
    """

    runs: tuple[Run, ...]
    intervals: tuple[Interval, ...]
    found: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()


class Writer:
    """Appends to the record in a folder, which is made.

    Only one process may write. Raises OSError where it cannot.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    def run(self, run: Run) -> None:
        """Begin what a new process reports, or go on after a line that could not be written."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._append({"format": FORMAT, "version": VERSION, **asdict(run)})

    def interval(self, interval: Interval) -> None:
        """Add an interval of a run that was begun."""
        line: dict[str, Any] = {"run": interval.run.id}
        line |= {name: getattr(interval, name) for name in ("iteration", "iterations", "time")}
        line["losses"] = _finite(interval.losses)
        line |= {name: encode(getattr(interval, name)) for name in ARRAYS}
        given = {name: getattr(interval, name) for name in _WHERE_THERE_ARE_ANY}
        line |= {
            name: encode(np.asarray(array)) for name, array in given.items() if array is not None
        }
        self._append(line)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Add an evaluation of a run that was begun."""
        names = ("iteration", "of", "time", "seconds")
        line: dict[str, Any] = {"run": evaluation.run.id}
        line |= {name: getattr(evaluation, name) for name in names}
        self._append(line | {"losses": _finite(evaluation.losses)})

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        # One write of the whole line: a kill leaves it, or its beginning, at the end of the file.
        with self.file.open("ab", buffering=0) as file:
            if _is_torn(self.file):
                text = b"\n" + text
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))


def _finite(losses: dict[str, float]) -> dict[str, float | None]:
    """JSON has no numbers that are not finite."""
    return {name: value if isfinite(value) else None for name, value in losses.items()}


def _losses(line: Any) -> dict[str, float]:
    return {k: nan if v is None else float(v) for k, v in line["losses"].items()}


def _is_torn(file: Path) -> bool:
    """Does the file end in the middle of a line?"""
    with file.open("rb") as written:
        if written.seek(0, os.SEEK_END) == 0:
            return False
        written.seek(-1, os.SEEK_END)
        return written.read(1) != b"\n"


def find_record(place: Path, called: str = "RUN_DIR") -> Path:
    """The record's file in a folder given to ``--save`` or ``--grove-metrics-dir``, or itself.

    Args:
        place: of the file.
        called: the argument that named it.

    Raises:
        ValueError: there is none.
    """
    candidates = [place / FILE, place / FOLDER / FILE]
    if place.is_file():
        return place
    for file in candidates:
        if file.is_file():
            return file
    what = "does not exist" if not place.exists() else f"has no {FILE} and no {FOLDER}/{FILE}"
    raise ValueError(
        f"{called} ({place}) {what}; give the folder of --save or --grove-metrics-dir of a job "
        "that trained with --grove-num-groups or --grove-dispatch, and metrics"
    )


def read_record(file: Path, run_id: str | None = None) -> Record:
    """Read a record, of a job that may still be running.

    Args:
        file: see :func:`find_record`.
        run_id: of the run whose history is meant; None: the one that began last.

    Raises:
        ValueError: it is not a record, of another version, damaged, has no such run, or no
            interval of it yet.
    """
    histories: dict[str, _History] = {}
    torn = 0
    *lines, _ = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            # What a kill left; whoever writes after it begins a run, see below.
            torn = torn or number
            continue
        if isinstance(found, dict) and "format" in found:
            run = _run(found, file, number)
            before = next(reversed(histories.values()), None)
            histories.setdefault(run.id, _History(run, before))
            torn = 0
            continue
        history = histories.get(str(found.get("run"))) if isinstance(found, dict) else None
        if torn or history is None:
            raise ValueError(_damaged(file, torn or number, "is not a line of a record"))
        if "of" in found:
            history.evaluations.append(_evaluation(found, history.run, file, number))
            continue
        history.own.append(_interval(found, history.run, file, number))
        # Another run has begun since, so two jobs write to this file.
        history.beside |= history is not next(reversed(histories.values()))
    if not histories and torn:
        raise ValueError(_damaged(file, torn, "is not a line of a record"))
    return _read(file, histories, run_id)


class _History:
    """A run while its file is read.

    ``before`` is what the file held of others when it began: the rest of them is not its past.
    """

    def __init__(self, run: Run, before: "_History | None") -> None:
        self.run = run
        self.own: list[Interval] = []
        self.beside = False
        past = [] if before is None else before.intervals()
        self.past = [i for i in past if i.iteration <= run.resumed]
        # Those of the past first.
        made = [] if before is None else before.evaluations
        self.evaluations: list[Evaluation] = [e for e in made if e.iteration <= run.resumed]

    def intervals(self) -> list[Interval]:
        return [*self.past, *self.own]


def _read(file: Path, histories: dict[str, _History], run_id: str | None) -> Record:
    every = list(histories.values())
    if run_id is not None and run_id not in histories:
        raise ValueError(
            f"--run ({run_id}) is not one of ({', '.join(histories)}) in record ({file}); name one"
        )
    meant = every[::-1] if run_id is None else [histories[run_id]]
    # One that has begun and reported nothing, after nothing, leaves the view to the one before.
    shown = next((history for history in meant if history.intervals()), None)
    if shown is None:
        raise ValueError(f"record ({file}) holds no interval (0); let the job report once")
    intervals = shown.intervals()
    return Record(
        runs=tuple(h.run for h in every),
        intervals=tuple(intervals),
        found=tuple(_found(every, intervals)),
        evaluations=tuple(shown.evaluations),
    )


def _found(histories: Sequence[_History], intervals: Sequence[Interval]) -> list[str]:
    """What a reader should know of the other runs in the file, one line each."""
    shown = {id(interval) for interval in intervals}
    lines = []
    for history in histories:
        run, own = history.run, history.own
        left = sum(id(i) not in shown for i in own)
        begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.started))
        what = f"run {run.id} (begun {begun}, from iteration {run.resumed})"
        if history.beside:
            lines.append(
                f"{what} still wrote after another run had begun here: these are two jobs in one "
                "folder; give each its own --grove-metrics-dir"
            )
        if left:
            lines.append(
                f"{what} has {left} of its {len(own)} intervals left out; see them with "
                f"--run {run.id}"
            )
    return lines


def _run(line: dict[str, Any], file: Path, number: int) -> Run:
    if line["format"] != FORMAT:
        shown = f"has format ({_brief(line['format'])}), not {FORMAT}"
        raise ValueError(_damaged(file, number, shown))
    if line.get("version") not in _READ:
        known = ", ".join(str(version) for version in _READ)
        raise ValueError(
            f"record ({file}) has version ({_brief(line.get('version'))}), this package reads "
            f"({known}); use the version of grove_megatron that wrote it"
        )
    try:
        # Records of before there were local experts say nothing of any.
        given = {f.name: line[f.name] for f in fields(Run) if f.name != "local" or f.name in line}
    except KeyError as error:
        raise ValueError(_damaged(file, number, f"lacks {error}")) from None
    try:
        _check({"local": {}} | given, _OF_A_RUN)
    except ValueError as error:
        raise ValueError(_damaged(file, number, f"is no run: {error}")) from None
    given |= {name: tuple(given[name]) for name in ("layers", "parameters")}
    return Run(**given)


# A record may be somebody else's: what is drawn and printed is what its name says, or refused.


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < _LAST_SECOND  # type: ignore[operator]


def _is_list_of(kind: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


# The year 9999, as far as calendars go.
_LAST_SECOND = 253402300800
_OF_A_RUN: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("id", "dispatcher"), _is_text),
    **dict.fromkeys(("resumed", "experts", "groups", "topk"), _is_count),
    **dict.fromkeys(("ranks", "world_size", "row_bytes"), _is_count),
    "started": _is_time,
    "layers": _is_list_of(_is_text),
    "drops": lambda value: isinstance(value, bool),
    "parameters": _is_list_of(_is_count),
    "settings": _is_table,
    "local": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
}
_OF_AN_INTERVAL: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("iteration", "iterations"), _is_count),
    "time": _is_time,
    "losses": _is_table,
}
_OF_AN_EVALUATION: dict[str, Callable[[object], bool]] = {
    "iteration": _is_count,
    "of": _is_text,
    **dict.fromkeys(("time", "seconds"), _is_time),
    "losses": _is_table,
}


def _check(line: dict[str, Any], kinds: dict[str, Callable[[object], bool]]) -> None:
    for name, fits in kinds.items():
        if not fits(line[name]):
            raise ValueError(f"{name} ({_brief(line[name])}) is not what it should be")


def _brief(value: object) -> str:
    """Of any JSON value the beginning, without what a terminal would act upon."""
    return json.dumps(value).strip('"')[:60]


def _interval(line: Any, run: Run, file: Path, number: int) -> Interval:
    layers = len(run.layers)
    degrees = 1 + min(run.topk, run.groups)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(ARRAYS[:4], (layers,)) | {
        "experts": (layers, run.experts),
        "groups": (layers, run.groups),
        "sharing": (layers, degrees),
        "rows": (layers, run.ranks),
        "bias": (layers, run.experts),
        "local": (layers, sum(run.local.values())),
        "coactivation": (layers, run.units, run.units),
    }
    try:
        _check(line, _OF_AN_INTERVAL)
        arrays: dict[str, Any] = {
            name: decode(line[name])
            for name in shapes
            if name != _LATER and (name not in _WHERE_THERE_ARE_ANY or name in line)
        }
        if _LATER in line:
            arrays[_LATER] = Encoded(line[_LATER], _damaged(file, number, "is not an interval"))
        plain = {name: line[name] for name in ("iteration", "iterations", "time")}
        losses = _losses(line)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_damaged(file, number, f"is not an interval: {error}")) from None
    if arrays["sharing"].shape == (layers, 1 + run.groups):
        # A selector that gives a token any number of experts.
        shapes["sharing"] = (layers, 1 + run.groups)
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            shown = f"has {name} of shape {array.shape}, not {shapes[name]}"
            raise ValueError(_damaged(file, number, shown))
    return Interval(run=run, **plain, losses=losses, **arrays)


def _evaluation(line: Any, run: Run, file: Path, number: int) -> Evaluation:
    try:
        _check(line, _OF_AN_EVALUATION)
        plain = {name: line[name] for name in _OF_AN_EVALUATION if name != "losses"}
        return Evaluation(run=run, **plain, losses=_losses(line))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_damaged(file, number, f"is not an evaluation: {error}")) from None


def _damaged(file: Path, number: int, what: str) -> str:
    return f"record ({file}) line ({number}) {what}; it is damaged, restore or remove it"
