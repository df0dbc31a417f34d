"""What records of metrics know of a model's layers, for a placement."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..checks.problem import Problem, Refusal
from ..report.record import Interval, Run, find_record, read_record
from .counts import Array, Counts, Evidence
from .model import Asked, Source

_PLACEMENT, _LIMITED = "grove-placement", "moe-router-group-topk"
_MODEL = ("layers", "experts", "groups", "topk")


def of_records(places: Sequence[Path], asked: Asked) -> Source | list[Problem]:
    """The layers of one model's records, or why they are none.

    Args:
        places: see ``report.record.find_record``.
        asked: which intervals.
    """
    intervals: list[tuple[Path, Interval]] = []
    problems, files = [], []
    for place in places:
        try:
            file = find_record(place, "RECORD")
            record = read_record(file, asked.run)
        except (ValueError, OSError) as error:
            problems.append(Problem.of_text(str(error)))
            continue
        files.append(file)
        late = [i for i in record.intervals if i.iteration - i.iterations >= asked.since]
        if not late:
            last = record.intervals[-1].iteration
            text = f"is past all but ({last}) iterations of record ({place}); give less"
            problems.append(Problem("--since", asked.since, text))
        elif all(i.coactivation is None for i in late):
            text = (
                "has no co-activation in any interval (0 of "
                f"{len(late)}); train with --grove-metrics-coactivation"
            )
            problems.append(Problem("record", str(place), text))
        intervals += [(place, i) for i in late if i.coactivation is not None]
    problems += _repeated(intervals)
    problems += _differences(intervals)
    problems += _placed(intervals, asked)
    if problems:
        return problems
    kept = [interval for _, interval in intervals]
    run = kept[-1].run
    if len(kept) < 2:
        text = (
            f"has co-activation in ({len(kept)}) interval, of which no half could judge what the "
            "other chose; train for two, or give a smaller --grove-metrics-interval"
        )
        return [Problem("record", str(places[0]), text)]
    said = f"{len(kept)} intervals of {', '.join(map(str, places))}"
    return Source(
        said=said,
        layers=run.layers,
        experts=run.experts,
        groups=run.groups,
        evidence=lambda name: _layer(kept, name, asked),
        files=tuple(files),
        estimated=True,
        doubts=tuple(_doubts(i.run for i in kept)),
    )


def _repeated(intervals: Sequence[tuple[Path, Interval]]) -> Iterator[Problem]:
    """Intervals that are given twice: one would judge what it has chosen itself."""
    first: dict[tuple[str, int], Path] = {}
    again: dict[tuple[Path, Path, str], list[int]] = {}
    for place, interval in intervals:
        key = (interval.run.id, interval.iteration)
        if key in first:
            again.setdefault((place, first[key], interval.run.id), []).append(interval.iteration)
        first.setdefault(key, place)
    for (place, before, run), ends in again.items():
        yield Problem(
            "record",
            str(place),
            f"has ({len(ends)}) intervals of run ({run}), the first to iteration ({ends[0]}), that "
            f"record ({before}) has too: what chooses must not judge; give each once",
        )


def _placed(intervals: Sequence[tuple[Path, Interval]], asked: Asked) -> Iterator[Problem]:
    """Records of a job that had another order than that of the experts, where none is given."""
    told = set()
    for place, interval in intervals:
        run = interval.run
        used = run.settings.get(_PLACEMENT)
        # Of another number of ranks no placement can go on.
        if used is None or asked.moved or run.ranks != asked.ranks or (place, used) in told:
            continue
        told.add((place, used))
        text = (
            f"has run ({run.id}) under --grove-placement ({used}), and is not to be compared with "
            f"the order of the experts; give that file as --current {used}"
        )
        yield Problem("record", str(place), text)


def _doubts(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if chosen := run.settings.get(_LIMITED):
            yield (
                f"--{_LIMITED} ({chosen}) of the record limits a token to blocks of experts: of an "
                "order that keeps blocks together, the estimate is of up to half as many ranks "
                "again as there are; a trace counts them"
            )
            return


def _differences(intervals: Sequence[tuple[Path, Interval]]) -> Iterator[Problem]:
    """Of the models they are of, each said once."""
    if not intervals:
        return
    first_place, first = intervals[0]
    told = set()
    for place, interval in intervals:
        ours, theirs = (_model(i.run) for i in (first, interval))
        if ours == theirs or (place, interval.run.id) in told:
            continue
        told.add((place, interval.run.id))
        name = next(name for name in _MODEL if ours[name] != theirs[name])
        yield Problem(
            "record",
            str(place),
            f"run ({interval.run.id}) has {name} ({_said(theirs[name])}), run ({first.run.id}) of "
            f"record ({first_place}) has ({_said(ours[name])}): these are two models; give records "
            "of one, or --run and --since",
        )


def _model(run: Run) -> dict[str, object]:
    return {name: getattr(run, name) for name in _MODEL}


def _said(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _layer(intervals: Sequence[Interval], name: str, asked: Asked) -> Evidence:
    index = intervals[0].run.layers.index(name)
    parts = [_counts(interval, index) for interval in intervals]
    judging = intervals[1::2]
    sent = sum(int(i.sent_tokens[index]) for i in judging)
    # Padding is sent, too, and is no token of a part.
    is_all_real = sent > 0 and sent == sum(part.tokens for part in parts[1::2])
    if not is_all_real or not all(_sent_as_asked(i.run, asked) for i in judging):
        return Evidence(parts)
    return Evidence(parts, sum(int(i.rows[index].sum()) for i in judging) / sent)


def _sent_as_asked(run: Run, asked: Asked) -> bool:
    """To as many ranks, in the order asked about, by a dispatch that sends what is needed."""
    in_order = not asked.moved and _PLACEMENT not in run.settings
    return in_order and run.ranks == asked.ranks and run.dispatcher == "alltoall"


def _counts(interval: Interval, index: int) -> Counts:
    run = interval.run
    assert interval.coactivation is not None
    try:
        together = interval.coactivation[index]
    except ValueError as error:
        raise Refusal([Problem.of_text(str(error))]) from None
    load = interval.experts[index].reshape(run.units, -1).sum(1)
    sharing = interval.sharing[index].astype(float)
    return Counts(together, load, sharing if run.groups else _degrees(sharing.sum(), load.sum()))


def _degrees(tokens: float, pairs: float) -> Array:
    """Tokens by their experts, where only the mean is known: as alike as it allows."""
    mean = pairs / max(1.0, tokens)
    most = max(1, int(np.ceil(mean)))
    degrees = np.zeros(1 + most)
    degrees[most] = tokens * (mean - (most - 1))
    degrees[most - 1] = tokens - degrees[most]
    return degrees
