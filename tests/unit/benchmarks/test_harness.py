"""Interleaved timing: whose time is counted, in which order, and what is made of it."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grove_megatron.benchmarks.harness import (
    UNTIL,
    Samples,
    Subject,
    interleave,
    ratio,
    turn,
    wall_clock,
)


def test_percentiles_are_interpolated() -> None:
    samples = Samples((40.0, 10.0, 30.0, 20.0, 50.0))
    assert [samples.at(p) for p in (0, 20, 50, 80, 100)] == pytest.approx([10, 18, 30, 42, 50])
    assert samples.median == 30
    assert Samples((1.0, 2.0)).median == 1.5
    assert Samples((7.0,)).at(80) == 7


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.floats(0, 100))
def test_a_percentile_lies_between_the_measurements(values: list[float], percent: float) -> None:
    samples = Samples(tuple(values))
    assert min(values) <= samples.at(percent) <= max(values) + 1e-9
    assert sum(v < samples.at(percent) - 1e-9 for v in values) <= len(values) * percent / 100 + 1


def test_a_ratio_is_that_of_medians_not_of_means() -> None:
    # Means are 4 and 4.
    assert ratio(Samples((1.0, 1.0, 10.0)), Samples((2.0, 2.0, 8.0))) == 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_subject_has_every_place_and_both_neighbours_equally_often(count: int) -> None:
    turns = [turn(count, n) for n in range(2 * count)]
    assert all(sorted(t) == list(range(count)) for t in turns)
    for place in range(count):
        assert set(Counter(t[place] for t in turns).values()) == {2}
    followed = Counter(pair for t in turns for pair in itertools.pairwise(t))
    assert all(followed[a, b] == followed[b, a] for a, b in followed)


class Clock:
    """Time that passes only when a subject says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def subject(self, name: str, seconds: float, preparation: float = 0.0) -> Subject:
        def run() -> None:
            self.log.append(name)
            self.now += seconds

        def prepare() -> None:
            self.log.append(f"prepare {name}")
            self.now += preparation

        return Subject(name=name, run=run, prepare=prepare)

    def __call__(self, run: object) -> float:
        before = self.now
        run()  # type: ignore[operator]
        return self.now - before


def test_each_subject_is_charged_its_own_runs_without_preparation_or_warmup() -> None:
    clock = Clock()
    subjects = [clock.subject("a", 1.0, preparation=100.0), clock.subject("b", 2.0)]
    found = interleave(subjects, rounds=4, warmup=3, clock=clock)
    assert found == {"a": Samples((1.0,) * 4), "b": Samples((2.0,) * 4)}
    assert Counter(clock.log) == {"a": 7, "b": 7, "prepare a": 7, "prepare b": 7}


def test_subjects_take_turns() -> None:
    clock = Clock()
    interleave([clock.subject(n, 1.0) for n in "abc"], rounds=6, warmup=0, clock=clock)
    ran = [entry for entry in clock.log if not entry.startswith("prepare")]
    rounds = [ran[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert {r[0] for r in rounds} == {"a", "b", "c"}


def test_the_slowest_rank_counts_in_every_round() -> None:
    clock = Clock()
    others = [[5.0, 0.5], [0.5, 6.0]]

    def slowest(mine: list[list[float]]) -> list[list[float]]:
        return [
            [max(a, b) for a, b in zip(*rows, strict=True)]
            for rows in zip(mine, others, strict=True)
        ]

    subjects = [clock.subject("a", 1.0), clock.subject("b", 2.0)]
    found = interleave(subjects, rounds=2, warmup=0, clock=clock, slowest=slowest)
    assert found == {"a": Samples((5.0, 1.0)), "b": Samples((2.0, 6.0))}


def test_ranks_wait_for_each_other_before_every_run() -> None:
    clock = Clock()
    interleave(
        [clock.subject("a", 1.0), clock.subject("b", 1.0)],
        rounds=2,
        warmup=1,
        clock=clock,
        together=lambda: clock.log.append("together"),
    )
    runs = [i for i, entry in enumerate(clock.log) if entry in "ab"]
    assert len(runs) == 6
    assert all(clock.log[i - 1] == "together" for i in runs)


def test_the_wall_clock_times_what_it_runs() -> None:
    import time

    assert wall_clock(lambda: time.sleep(0.01)) >= 0.01


def test_rounds_end_with_the_time_and_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setenv(UNTIL, "0")
    found = interleave([clock.subject("a", 1), clock.subject("b", 2)], rounds=9, warmup=1)
    assert {name: len(samples.values) for name, samples in found.items()} == {"a": 1, "b": 1}
    monkeypatch.setenv(UNTIL, "inf")
    found = interleave([clock.subject("a", 1)], rounds=9, warmup=1)
    assert len(found["a"].values) == 9
