"""``grove place``: records and traces, what it writes and says, and all it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import save_file
from typer.testing import CliRunner

from grove_megatron.cli import app
from grove_megatron.placing import file
from tests.unit.placing.routings import (
    Array,
    a_record,
    a_run,
    an_interval,
    planted,
    scattered,
    uniform,
)

SETS = scattered(16, 4, 2)
RUN = a_run(16, 8, 4, layers=2)


def grove_place(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["place", *map(str, arguments)])


def numbers(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def tokens(seed: int, count: int = 2000) -> list[Array]:
    """Of a layer with sets and of a uniform one."""
    return [planted(count, 16, 4, seed, 4.0, SETS), uniform(count, 16, 4, seed)]


def recorded(folder: Path, run: Any = RUN, number: int = 4, **fields: Any) -> Path:
    made = [an_interval(run, tokens(n), 10 * (n + 1), **fields) for n in range(number)]
    return a_record(folder, run, made)


def traced(path: Path, layers: dict[str, Array], **about: str) -> Path:
    save_file({f"layers.{n}": of.astype(np.int16) for n, of in layers.items()}, path, about)
    return path


def test_a_record_becomes_a_placement(tmp_path: Path) -> None:
    output = tmp_path / "placement.json"
    record = recorded(tmp_path / "run" / "grove_metrics")
    result = grove_place(tmp_path / "run", "--expert-parallel", 4, "--output", output, "--json")
    found, made = numbers(result), file.read(output)
    assert found["moved"] == ["1"]
    assert (made.experts, made.groups, made.ranks) == (16, 8, 4)
    assert made.layers == {"1": tuple(found["layers"]["1"]["order"])}
    sets = np.array(made.order("1")).reshape(4, 2)
    assert {len({int(s) for s in SETS[2 * units]}) for units in sets} == {1}
    # The record's own rows are those of the order in use, at its ranks.
    for layer in found["layers"].values():
        assert layer["counted"] == pytest.approx(layer["before"]["rows"][0], rel=0.03)
    assert "8 groups on 4 expert-parallel ranks, by 4 intervals of" in result.stderr.splitlines()[0]
    said = " ".join(result.stderr.split())
    assert re.search(r"1 of 2 layers moved: [\d.]+% to [\d.]+% fewer rows of all layers", said)
    assert "every partition was looked at" in said
    assert "left: no" in said
    assert "pairs alone tell the rows that the job counted to" in said
    assert record.is_dir()


def test_a_trace_counts_and_does_not_estimate(tmp_path: Path) -> None:
    planted_TK, uniform_TK = tokens(0, 4000)
    trace = traced(
        tmp_path / "trace.safetensors",
        {"10": uniform_TK, "2": planted_TK, "mtp 1": uniform_TK},
        experts="16",
        groups="8",
    )
    found = numbers(grove_place(trace, "--expert-parallel", 4, "--json"))
    assert [*found["layers"]] == ["2", "10", "mtp 1"]
    assert found["moved"] == ["2"]
    for layer in found["layers"].values():
        for state in ("before", "after"):
            assert len({*layer[state]["rows"]}) == 1
    # The judging half, token by token.
    rank_U = np.empty(8, int)
    rank_U[found["layers"]["2"]["order"]] = np.arange(8) // 2
    pieces = np.array_split(planted_TK, 32)[1::2]
    each = [len({int(rank_U[e // 2]) for e in t}) for piece in pieces for t in piece]
    assert found["layers"]["2"]["after"]["rows"][0] == pytest.approx(np.mean(each))
    assert found["output"] is None


def test_a_trace_that_does_not_say_of_what_model_is_told(tmp_path: Path) -> None:
    trace = traced(tmp_path / "t.safetensors", {"1": tokens(0)[0]})
    said = grove_place(trace, "--expert-parallel", 4).stderr
    assert "2 problems, nothing was placed" in said
    assert f"trace ({trace}) does not say how many experts its model has (None); give" in said
    flags = ["--num-experts", 16, "--grove-num-groups", 0]
    found = numbers(grove_place(trace, "--expert-parallel", 4, *flags, "--json"))
    assert found["groups"] == 0
    assert len(found["layers"]["1"]["order"]) == 16


def test_layers_that_are_not_asked_for_keep_their_order(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    found = numbers(grove_place(record, "--expert-parallel", 4, "--layers", "2", "--json"))
    assert [*found["layers"]] == ["2"]
    found = numbers(grove_place(record, "--expert-parallel", 4, "--layers", "1-2", "--json"))
    assert [*found["layers"]] == ["1", "2"]


def test_what_is_in_use_goes_on_where_nothing_better_is_found(tmp_path: Path) -> None:
    record, output = recorded(tmp_path / "run"), tmp_path / "new.json"
    second = (7, 6, 5, 4, 3, 2, 1, 0)
    old = tmp_path / "old.json"
    file.write(old, file.Assignment(16, 8, 4, {"2": second}))
    result = grove_place(
        *(record, "--expert-parallel", 4, "--current", old, "--output", output, "--json")
    )
    found = numbers(result)
    assert found["moved"] == ["1"]
    assert file.read(output).layers["2"] == second
    # The record's rows are those of another order.
    assert found["layers"]["1"]["counted"] is None


def test_uniform_routing_leaves_a_file_that_moves_nothing(tmp_path: Path) -> None:
    made = [
        an_interval(RUN, [uniform(2000, 16, 4, n + 50 * m) for m in (1, 2)], 10 * n) for n in (1, 2)
    ]
    output = tmp_path / "p.json"
    result = grove_place(a_record(tmp_path, RUN, made), "--expert-parallel", 4, "--output", output)
    assert result.exit_code == 0, result.output
    assert "0 of 2 layers moved: no saving is claimed" in result.stdout
    assert "the placement (every layer keeps its order)" in result.stdout
    assert file.read(output).layers == {}


def test_early_intervals_and_such_without_counts_are_left_out(tmp_path: Path) -> None:
    made = [an_interval(RUN, tokens(n), 10 * (n + 1)) for n in range(5)]
    made[0] = replace(made[0], coactivation=None)
    record = a_record(tmp_path, RUN, made)
    for since, number in ((0, 4), (10, 4), (20, 3)):
        found = numbers(grove_place(record, "--expert-parallel", 4, "--since", since, "--json"))
        assert found["source"] == f"{number} intervals of {record}"


def test_records_of_one_model_are_put_together(tmp_path: Path) -> None:
    a, b = recorded(tmp_path / "a"), recorded(tmp_path / "b", replace(RUN, id="b"), 2)
    found = numbers(grove_place(a, b, "--expert-parallel", 4, "--json"))
    assert found["source"] == f"6 intervals of {a}, {b}"


def test_rows_of_padding_and_of_other_ranks_are_not_compared(tmp_path: Path) -> None:
    padded = recorded(tmp_path / "a", sent_tokens=np.array([2001, 2001]))
    moved = replace(RUN, settings={"grove-placement": "p.json"})
    others = replace(RUN, ranks=2)
    for record in (
        padded,
        recorded(tmp_path / "b", moved),
        recorded(tmp_path / "c", others),
        recorded(tmp_path / "d", replace(RUN, dispatcher="allgather")),
    ):
        found = numbers(grove_place(record, "--expert-parallel", 4, "--json"))
        assert {layer["counted"] for layer in found["layers"].values()} == {None}


def test_a_layer_without_tokens_is_named(tmp_path: Path) -> None:
    layers = {"1": tokens(0)[0], "2": np.full((64, 2), -1)}
    trace = traced(tmp_path / "t.safetensors", layers, experts="16", groups="8")
    result = grove_place(trace, "--expert-parallel", 4)
    assert result.exit_code == 0, result.output
    assert "left: no better" in result.stdout
    half = np.concatenate([tokens(0)[0][:100], np.full((100, 4), -1)])
    trace = traced(tmp_path / "half.safetensors", {"1": half[::-1]}, experts="16", groups="8")
    assert grove_place(trace, "--expert-parallel", 4).exit_code == 0
    early = [an_interval(RUN, [tokens(n)[0], np.full((5, 4), -1)], 10 * (n + 1)) for n in range(2)]
    early[1] = replace(early[1], sharing=early[1].sharing * np.array([[1], [0]]))
    result = grove_place(a_record(tmp_path, RUN, early), "--expert-parallel", 4, "--json")
    assert numbers(result)["layers"]["2"] is None
    assert "left alone, for half of what was recorded has no token: 2" in result.stderr


def refusals(*arguments: object) -> str:
    result = grove_place(*arguments)
    assert result.exit_code == 2, result.output
    assert "nothing was placed" in result.stderr
    return result.stderr


def test_options_are_refused_all_at_once(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    said = refusals(
        *(record, "--expert-parallel", 3, "--gpus-per-node", 2, "--over-greedy", 0.5, "--seed", -1),
        *("--output", tmp_path / "no" / "p.json", "--layers", "2-4", "--num-experts", 8),
        *("--grove-num-groups", 4),
    )
    for line in (
        "8 problems, nothing was placed",
        "--gpus-per-node (2) does not divide --expert-parallel (3); give the ranks of a node",
        "--over-greedy (0.5) is not 1 or more, which the greedy balancer itself reaches; give 1.02",
        "--seed (-1) is negative; give 0 or more",
        f"--output ({tmp_path / 'no' / 'p.json'}) is in no folder that exists; make it",
        f"--num-experts (8) is not what 4 intervals of {record} is of (16); give what is of this",
        "--grove-num-groups (4) is not what 4 intervals of",
        f"--expert-parallel (3) does not divide the groups (8) of 4 intervals of {record}; use one "
        "of 1, 2, 4, 8",
        f"--layers (2-4) names layers (3, 4) that 4 intervals of {record} has not; it has 1, 2",
    ):
        assert line in said
    assert "--expert-parallel (0) is not 1 or more" in refusals(record, "--expert-parallel", 0)


def test_records_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    bare = recorded(tmp_path / "bare", coactivation=None)
    assert (
        f"record ({bare}) has no co-activation in any interval (0 of 4); train with "
        "--grove-metrics-coactivation"
    ) in refusals(bare, "--expert-parallel", 4)
    one = recorded(tmp_path / "one", number=1)
    assert f"record ({one}) has co-activation in (1) interval, of which no half" in refusals(
        one, "--expert-parallel", 4
    )
    empty = a_record(tmp_path / "empty", RUN, [])
    assert "holds no interval (0); let the job report once" in refusals(
        empty, "--expert-parallel", 4
    )
    nothing = tmp_path / "nothing"
    assert f"RUN_DIR ({nothing}) does not exist" in refusals(nothing, "--expert-parallel", 4)
    late = recorded(tmp_path / "late")
    assert f"--since (40) is past all but (40) iterations of record ({late}); give less" in (
        refusals(late, "--expert-parallel", 4, "--since", 40)
    )
    assert "--run (zz) is not one of (a)" in refusals(late, "--expert-parallel", 4, "--run", "zz")


def test_records_of_two_models_are_refused(tmp_path: Path) -> None:
    ours = recorded(tmp_path / "ours")
    other = replace(a_run(16, 4, 4, layers=2), id="b")
    theirs = recorded(tmp_path / "theirs", other)
    said = refusals(ours, theirs, "--expert-parallel", 4)
    assert (
        f"record ({theirs}) run (b) has groups (4), run (a) of record ({ours}) has (8): these are "
        "two models; give records of one, or --run and --since"
    ) in said
    # A run that went on with other sizes in one folder.
    resumed = replace(other, resumed=40)
    recorded(tmp_path / "ours", resumed)
    assert "these are two models" in refusals(ours, "--expert-parallel", 4)
    assert numbers(grove_place(ours, "--expert-parallel", 4, "--run", "a", "--json"))


def test_a_placement_of_another_model_is_refused(tmp_path: Path) -> None:
    record, old = recorded(tmp_path), tmp_path / "old.json"
    file.write(old, file.Assignment(32, 8, 2, {}))
    said = refusals(record, "--expert-parallel", 4, "--current", old)
    assert "2 problems" in said
    assert f"placement ({old}) is for experts (32), the model has (16)" in said
    assert f"placement ({old}) is for expert-parallel ranks (2), the job has (4)" in said
    old.write_text("{}")
    said = refusals(record, "--expert-parallel", 4, "--current", old, "--seed", -1)
    assert "2 problems" in said
    assert f"placement ({old}) is no placement" in said


@pytest.mark.parametrize(
    ("layers", "about", "line"),
    [
        ({"1": np.array([[0, 16]] * 9)}, {}, r"has in layer \(1\) expert \(16\), not one of 0 to"),
        ({"1": np.array([[0, -2]] * 9)}, {}, r"has in layer \(1\) expert \(-2\), not one of 0 to"),
        ({"1": np.array([[3, 3]] * 9)}, {}, r"has in layer \(1\) a token with one expert twice"),
        ({"1": np.array([3, 3])}, {}, r"has for layer \(1\) the shape \[2\], not \[tokens, topk"),
        ({"1": np.array([[3, 3]])}, {}, r"has for layer \(1\) the shape \[1, 2\], not"),
        ({}, {}, r"has no tensor \(layers.N\); write one for each layer"),
        ({"1": np.array([[3, 4]] * 9)}, {"groups": "x"}, r"has groups \(x\), no number"),
        ({"1": np.array([[3, 4]] * 9)}, {"groups": "3"}, r"\(3\) does not divide its experts"),
    ],
)
def test_a_trace_of_nothing_is_refused(
    layers: dict[str, Array], about: dict[str, str], line: str, tmp_path: Path
) -> None:
    trace = traced(tmp_path / "t.safetensors", layers, **{"experts": "16", "groups": "8"} | about)
    assert re.search(line, refusals(trace, "--expert-parallel", 1))


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "t.safetensors"
    trace.write_text("no")
    assert f"trace ({trace}) cannot be read" in refusals(trace, "--expert-parallel", 4)
    save_file({"layers.1": np.zeros((4, 2), np.float32)}, trace, {"experts": "8", "groups": "0"})
    assert "has for layer (1) values of type (F32), not integers" in (
        refusals(trace, "--expert-parallel", 4)
    )
    record = recorded(tmp_path / "run")
    assert f"trace ({trace}) is not alone; give one trace, or records" in (
        refusals(record, trace, "--expert-parallel", 4)
    )
