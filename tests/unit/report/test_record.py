"""What is written is read back, also after a kill, a resumption and damage."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from grove_megatron.report.arrays import Encoded, decode, encode
from grove_megatron.report.record import (
    FILE,
    Evaluation,
    Interval,
    Run,
    Writer,
    find_record,
    read_record,
)
from tests.unit.report.intervals import RUN, interval

# A megabyte of zeros.
BOMB = encode(np.zeros(2**20, np.int64))[2]
AGAIN = replace(RUN, id="b", resumed=10)


def same(a: Interval, b: Interval) -> bool:
    for field in fields(Interval):
        x, y = (
            np.asarray(v) if isinstance(v, Encoded) else v
            for v in (getattr(a, field.name), getattr(b, field.name))
        )
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            if not (np.array_equal(x, y) and x.dtype == y.dtype):
                return False
        elif x != y:
            return False
    return True


def written(folder: Path, *intervals: Interval, run: Run = RUN) -> Path:
    writer = Writer(folder)
    writer.run(run)
    for one in intervals:
        writer.interval(replace(one, run=run))
    return writer.file


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[0, 255]]), "u1"),
        (np.array([256, 65535]), "u2"),
        (np.array([65536, 2**32 - 1]), "u4"),
        (np.array([2**32]), "u8"),
        (np.zeros((0, 4), np.int64), "u1"),
        (np.array([1.5, -2.0], np.float32), "f4"),
    ],
)
def test_an_array_comes_back_from_the_narrowest_type(array: np.ndarray, dtype: str) -> None:
    encoded = json.loads(json.dumps(encode(array)))
    assert encoded[0] == dtype
    back = decode(encoded)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    assert back.shape == array.shape


@pytest.mark.parametrize(
    "encoded",
    [
        *(None, ["u1", [-1], BOMB], ["u1", [2**40], BOMB], ["u1", [9], BOMB], [[1], [1], BOMB]),
        *(["u1", [1]], ["u1", [1], "?"], ["u1", [1], "AAAA"], ["u3", [1], encode(np.ones(1))[2]]),
    ],
)
def test_what_is_no_array_is_refused(encoded: object) -> None:
    with pytest.raises(ValueError, match="array"):
        decode(encoded)


def test_tokens_may_meet_more_groups_than_experts_were_asked_for(tmp_path: Path) -> None:
    """By a selector that gives a token any number of experts."""
    wide = np.zeros((2, 1 + RUN.groups), np.int64)
    wide[:, -1] = 3
    assert RUN.groups > RUN.topk
    record = read_record(written(tmp_path, interval(sharing=wide)))
    assert np.array_equal(record.intervals[0].sharing, wide)
    with pytest.raises(ValueError, match="sharing of shape"):
        read_record(written(tmp_path / "b", interval(sharing=np.zeros((2, 9), np.int64))))


def test_a_record_comes_back(tmp_path: Path) -> None:
    bias = np.array([[0.1] * 8, [-0.2] * 8], np.float32)
    first = interval(iteration=1, iterations=1)
    second = interval(iteration=10, iterations=9, bias=bias, losses={"lm loss": 2.5, "z_loss": 1.0})
    record = read_record(written(tmp_path, first, second))
    assert record.runs == (RUN,)
    assert [same(a, b) for a, b in zip(record.intervals, (first, second), strict=True)] == [
        True
    ] * 2


def test_coactivation_is_where_it_was_counted(tmp_path: Path) -> None:
    """Records of before, and of jobs that do not count it, have none."""
    without = interval(coactivation=None)
    record = read_record(written(tmp_path, interval(), without))
    assert [i.coactivation is None for i in record.intervals] == [False, True]
    assert same(record.intervals[0], interval())
    assert "coactivation" not in (tmp_path / FILE).read_text().splitlines()[-1]
    plain = replace(RUN, groups=0)
    record = read_record(written(tmp_path / "plain", interval(run=plain), run=plain))
    assert record.intervals[0].coactivation is not None
    assert record.intervals[0].coactivation.shape == (2, 8, 8)
    wrong = interval(coactivation=np.zeros((2, 8, 8), np.int64))
    with pytest.raises(ValueError, match=r"has coactivation of shape \(2, 8, 8\), not \(2, 4, 4"):
        read_record(written(tmp_path / "b", wrong))


def test_a_loss_that_is_not_a_number_is_kept_as_one(tmp_path: Path) -> None:
    file = written(tmp_path, interval(losses={"lm loss": math.nan}))
    assert "NaN" not in file.read_text()
    assert math.isnan(read_record(file).intervals[0].losses["lm loss"])


MARKUP = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, MARKUP) for name in ("resumed", "experts", "groups", "started", "settings")),
        *((name, 1.5) for name in ("topk", "ranks", "layers", "parameters", "drops", "id")),
        *((name, True) for name in ("experts", "started", "dispatcher")),
        ("id", "a\x1b]0;title\x07"),
        ("layers", ["a\nb"]),
        ("layers", MARKUP),
        ("started", 1e300),
        ("parameters", [1, 2, MARKUP]),
    ],
)
def test_a_run_that_is_none_is_refused(name: str, value: object, tmp_path: Path) -> None:
    file = written(tmp_path, interval())
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | {name: value}), *rest, ""]))
    with pytest.raises(ValueError, match=rf"line \(1\) is no run: {name} \(") as refused:
        read_record(file)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iteration", MARKUP),
        ("iterations", -1),
        ("time", "now"),
        ("losses", [1]),
        ("losses", {"a\x1b[31m": 1.0}),
        ("losses", {"lm loss": MARKUP}),
    ],
)
def test_an_interval_that_is_none_is_refused(name: str, value: object, tmp_path: Path) -> None:
    file = written(tmp_path, interval())
    first, second = file.read_text().splitlines()
    changed = json.dumps(json.loads(second) | {name: value})
    file.write_text("\n".join([first, changed, ""]))
    with pytest.raises(ValueError, match=r"line \(2\) is not an interval: ") as refused:
        read_record(file)
    assert str(refused.value).isprintable()


def test_the_first_line_says_what_the_file_is(tmp_path: Path) -> None:
    first = json.loads(written(tmp_path, interval()).read_text().splitlines()[0])
    assert (first["format"], first["version"]) == ("grove_metrics", 2)


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_ignored(left: int, tmp_path: Path) -> None:
    file = written(tmp_path, interval(iteration=10), interval(iteration=20))
    *whole, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole) + last[:left])
    assert [i.iteration for i in read_record(file).intervals] == [10]


def test_a_run_after_a_kill_goes_on_in_a_new_line(tmp_path: Path) -> None:
    file = written(tmp_path, interval(iteration=10))
    with file.open("ab") as torn:
        torn.write(b'{"iteration":20,"itera')
    written(tmp_path, interval(iteration=20), run=AGAIN)
    record = read_record(file)
    assert [i.iteration for i in record.intervals] == [10, 20]
    assert len(record.runs) == 2


def test_a_resumed_run_supersedes_what_came_after(tmp_path: Path) -> None:
    abandoned = [interval(iteration=n) for n in (10, 20, 30, 40)]
    written(tmp_path, *abandoned)
    # From iteration 25: the interval that ended at 30 had seen what is trained again.
    run = replace(AGAIN, resumed=25)
    file = written(tmp_path, interval(iteration=30, iterations=5), interval(iteration=40), run=run)
    record = read_record(file)
    assert [(i.iteration, i.iterations) for i in record.intervals] == [
        *((10, 10), (20, 10)),
        *((30, 5), (40, 10)),
    ]
    assert [record.runs.index(i.run) for i in record.intervals] == [0, 0, 1, 1]
    # What it went on from is not lost.
    assert [i.iteration for i in read_record(file, "a").intervals] == [10, 20, 30, 40]
    assert record.found == (
        "run a (begun 1970-01-01 00:00 UTC, from iteration 0) has 2 of its 4 intervals left out; "
        "see them with --run a",
    )


def test_a_run_that_skips_iterations_supersedes_them_too(tmp_path: Path) -> None:
    written(tmp_path, *(interval(iteration=n) for n in (10, 20, 30, 40)))
    # Resumed from 10, told to skip 11 to 30: its first interval is of what came after them.
    run = replace(AGAIN, resumed=10)
    record = read_record(written(tmp_path, interval(iteration=35, iterations=5), run=run))
    assert [i.iteration for i in record.intervals] == [10, 35]


@pytest.mark.parametrize("experts", [8, 16])
def test_two_jobs_in_one_folder_are_told_apart(experts: int, tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    other = replace(RUN, id="b", started=60.0, experts=experts)
    one = [interval(iteration=n) for n in (10, 20, 30)]
    two = [interval(run=other, iteration=n, iterations=5) for n in (5, 10)]
    writer.run(RUN)
    writer.interval(one[0])
    writer.run(other)
    for each in (two[0], one[1], two[1], one[2]):
        writer.interval(each)
    record = read_record(writer.file)
    assert [(i.run.id, i.iteration) for i in record.intervals] == [("b", 5), ("b", 10)]
    first = "run a (begun 1970-01-01 00:00 UTC, from iteration 0)"
    assert record.found == (
        f"{first} still wrote after another run had begun here: these are two jobs in one folder; "
        "give each its own --grove-metrics-dir",
        f"{first} has 3 of its 3 intervals left out; see them with --run a",
    )
    record = read_record(writer.file, "a")
    assert all(same(a, b) for a, b in zip(record.intervals, one, strict=True))
    with pytest.raises(ValueError, match=r"--run \(c\) is not one of \(a, b\) in record"):
        read_record(writer.file, "c")


def test_a_run_that_began_again_after_a_line_it_could_not_write_is_one(tmp_path: Path) -> None:
    file = written(tmp_path, interval(iteration=10))
    with file.open("ab") as torn:
        torn.write(b'{"run":"a","itera')
    record = read_record(written(tmp_path, interval(iteration=30)))
    assert [i.iteration for i in record.intervals] == [10, 30]
    assert record.runs == (RUN,)
    assert record.found == ()


def test_a_run_without_intervals_leaves_the_view_to_what_was_before(tmp_path: Path) -> None:
    written(tmp_path, interval(iteration=10))
    assert len(read_record(written(tmp_path, run=AGAIN)).intervals) == 1
    fresh = replace(AGAIN, id="c", resumed=0)
    assert len(read_record(written(tmp_path, run=fresh)).intervals) == 1


def test_runs_of_other_layouts_stand_beside_each_other(tmp_path: Path) -> None:
    written(tmp_path, interval(iteration=10))
    writer = Writer(tmp_path)
    other = replace(AGAIN, ranks=4)
    writer.run(other)
    writer.interval(interval(run=other, iteration=20))
    record = read_record(writer.file)
    assert [i.rows.shape for i in record.intervals] == [(2, 2), (2, 4)]


def test_damage_is_named_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path, interval(iteration=10), interval(iteration=20))
    head, first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(head + first[:50] + b"\n" + second)
    with pytest.raises(ValueError, match=r"line \(2\) is not a line of a record; it is damaged"):
        read_record(file)
    line = json.loads(first)
    line["experts"] = encode(np.zeros((2, 7), np.int64))
    file.write_bytes(head + json.dumps(line).encode() + b"\n")
    with pytest.raises(ValueError, match=r"line \(2\) has experts of shape \(2, 7\), not \(2, 8\)"):
        read_record(file)
    del line["experts"]
    file.write_bytes(head + json.dumps(line).encode() + b"\n")
    with pytest.raises(ValueError, match=r"line \(2\) is not an interval: 'experts'"):
        read_record(file)


def test_another_format_or_version_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, interval())
    text = file.read_text()
    file.write_text(text.replace('"version":2', '"version":3'))
    with pytest.raises(ValueError, match=r"has version \(3\), this package reads \(1, 2\)"):
        read_record(file)
    file.write_text(text.replace("grove_metrics", "else"))
    with pytest.raises(ValueError, match=r"line \(1\) has format \(else\), not grove_metrics"):
        read_record(file)
    file.write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"line \(1\) is not a line of a record"):
        read_record(file)


def test_a_record_of_the_first_version_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, interval(), interval(iteration=20))
    file.write_text(file.read_text().replace('"version":2', '"version":1'))
    # A newer package went on with it.
    record = read_record(written(tmp_path, interval(iteration=30), run=replace(AGAIN, resumed=20)))
    assert [i.iteration for i in record.intervals] == [10, 20, 30]
    assert record.evaluations == ()


def test_evaluations_come_back_with_the_history_they_are_of(tmp_path: Path) -> None:
    def evaluation(run: Run, iteration: int, loss: float) -> Evaluation:
        made = {"of": "validation", "time": 2.0, "seconds": 0.5, "losses": {"lm loss": loss}}
        return Evaluation(run=run, iteration=iteration, **made)

    writer = Writer(tmp_path)
    writer.run(RUN)
    for iteration in (10, 20):
        writer.interval(interval(iteration=iteration))
        writer.evaluation(evaluation(RUN, iteration, math.nan if iteration == 10 else 2.0))
    writer.run(AGAIN)
    writer.interval(interval(iteration=20, run=AGAIN))
    writer.evaluation(evaluation(AGAIN, 20, 1.0))
    assert "NaN" not in writer.file.read_text()
    found = read_record(writer.file).evaluations
    assert [(e.run.id, e.iteration, e.of, e.seconds) for e in found] == [
        ("a", 10, "validation", 0.5),
        ("b", 20, "validation", 0.5),
    ]
    assert math.isnan(found[0].losses["lm loss"])
    assert [e.losses["lm loss"] for e in read_record(writer.file, "a").evaluations][1:] == [2.0]
    text = writer.file.read_text().replace('"seconds":0.5', '"seconds":"long"', 1)
    writer.file.write_text(text)
    with pytest.raises(ValueError, match=r"line \(3\) is not an evaluation: seconds \(long\)"):
        read_record(writer.file)


def test_a_record_without_intervals_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no interval \(0\); let the job report once"):
        read_record(written(tmp_path))
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ValueError, match=r"holds no interval \(0\)"):
        read_record(empty)


def test_a_record_is_found_by_folder_or_file(tmp_path: Path) -> None:
    file = written(tmp_path / "ckpt" / "grove_metrics", interval())
    assert find_record(tmp_path / "ckpt") == find_record(file.parent) == find_record(file) == file
    with pytest.raises(ValueError, match=f"has no {FILE} and no grove_metrics/{FILE}"):
        find_record(tmp_path)
    with pytest.raises(ValueError, match=r"none\) does not exist"):
        find_record(tmp_path / "none")


def test_coactivation_is_decoded_where_it_is_asked_for(tmp_path: Path) -> None:
    made = interval()
    file = written(tmp_path, made)
    (read,) = read_record(file).intervals
    assert isinstance(read.coactivation, Encoded)
    counted = np.asarray(made.coactivation)
    assert np.array_equal(np.asarray(read.coactivation), counted)
    # Layer by layer, and then whole again.
    assert len(read.coactivation) == len(counted)
    for index, of_layer in enumerate(counted):
        assert np.array_equal(read.coactivation[index], of_layer)
        assert read.coactivation[index].dtype == np.int64
    assert np.array_equal(np.asarray(read.coactivation), counted)
    # Who does not ask does not decode.
    run, line = map(json.loads, file.read_text().splitlines())
    line["coactivation"][2] = "AAAA"
    file.write_text("".join(json.dumps(one) + "\n" for one in (run, line)))
    (damaged,) = read_record(file).intervals
    assert damaged.experts.shape == made.experts.shape
    for ask in (np.asarray, lambda of: of[0]):
        with pytest.raises(ValueError, match=r"line \(2\) is not an interval; it is damaged"):
            ask(damaged.coactivation)
    line["coactivation"][0] = "f16"
    file.write_text("".join(json.dumps(one) + "\n" for one in (run, line)))
    with pytest.raises(ValueError, match="its dtype is not one of"):
        read_record(file)
