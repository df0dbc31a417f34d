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
from grove_megatron.placing import file, traces
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
    others = replace(RUN, ranks=2)
    # Whose placement is for other ranks, and cannot be given.
    moved = replace(RUN, ranks=2, settings={"grove-placement": "p.json"})
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
    assert "left alone, for half of what was recorded has no token: 2" in result.stdout
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
    assert f"RECORD ({nothing}) does not exist" in refusals(nothing, "--expert-parallel", 4)
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
        ({"1": np.array([[3, 3]])}, {}, r"has for layer \(1\) \(1\) token, of which no half"),
        ({}, {}, r"has no tensor \(layers.N\); write it with write_trace"),
        ({"1": np.array([[3, 4]] * 9)}, {"groups": "x"}, r"has groups \(x\), which is no number"),
        (
            {"1": np.array([[3, 4]] * 9)},
            {"groups": "3"},
            r"has experts \(16\), not a multiple of its",
        ),
        ({"0": np.array([[3, 4]] * 9)}, {}, r"names a layer \(0\), where names are as \(3\)"),
        ({"decoder.3": np.array([[3, 4]] * 9)}, {}, r"names a layer \(decoder.3\), where"),
        ({"1": np.array([[3, 4]] * 9)}, {"format": "pt"}, r"has format \(pt\), not"),
    ],
)
def test_a_trace_of_nothing_is_refused(
    layers: dict[str, Array], about: dict[str, str], line: str, tmp_path: Path
) -> None:
    trace = traced(tmp_path / "t.safetensors", layers, **{"experts": "16", "groups": "8"} | about)
    assert re.search(line, refusals(trace, "--expert-parallel", 1))


def test_a_refusal_of_many_experts_names_few_numbers_of_ranks(tmp_path: Path) -> None:
    layers = {"1": np.array([[3, 4]] * 9)}
    trace = traced(tmp_path / "t.safetensors", layers, experts="999999999", groups="0")
    said = refusals(trace, "--expert-parallel", 2)
    assert "does not divide the experts (999999999)" in said
    assert said.rstrip().endswith("use one of 1, 3, 9, 27, 37, 81, 111, 333, 999, 2997")


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


def test_one_record_given_twice_is_refused(tmp_path: Path) -> None:
    """What chooses would judge: each half has the other's intervals."""
    record = recorded(tmp_path / "run" / "grove_metrics")
    said = refusals(tmp_path / "run", record, "--expert-parallel", 4)
    assert (
        f"record ({record}) has (4) intervals of run (a), the first to iteration (10), that record "
        f"({tmp_path / 'run'}) has too: what chooses must not judge; give each once"
    ) in said
    assert "1 problem," in said
    assert "1 problem," in refusals(record, record, "--expert-parallel", 4)


def test_no_saving_is_claimed_that_the_jobs_own_rows_contradict(tmp_path: Path) -> None:
    """Rows that were counted are fewer than the estimate of the order in use."""

    def found(share: float, name: str) -> dict[str, Any]:
        made = [an_interval(RUN, tokens(n), 10 * (n + 1)) for n in range(4)]
        made = [replace(one, rows=(one.rows * share).astype(int)) for one in made]
        record = a_record(tmp_path / name, RUN, made)
        layers = numbers(grove_place(record, "--expert-parallel", 4, "--json"))["layers"]
        layer: dict[str, Any] = layers["1"]
        return layer

    right, off, less = found(1, "right"), found(0.8, "off"), found(0.3, "less")
    assert (right["verdict"], off["verdict"], less["verdict"]) == ("saves", "off", "noise")
    assert right["now"] <= right["counted"]
    assert off["now"] == off["counted"] < off["before"]["rows"][1]
    for one in (right, off):
        assert one["saved_at_least"] == pytest.approx(one["now"] - one["after"]["rows"][2])
    assert off["order"] is None


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    record = recorded(tmp_path / "run" / "grove_metrics") / "routing.jsonl"
    trace = traced(tmp_path / "t.safetensors", {"1": tokens(0)[0]}, experts="16", groups="8")
    current, link = tmp_path / "p.json", tmp_path / "link"
    file.write(current, file.Assignment(16, 8, 4, {}))
    link.symlink_to(trace)
    for given, output, what in (
        ((tmp_path / "run",), record, f"record ({record})"),
        ((trace,), trace, f"trace ({trace})"),
        ((trace,), link, f"trace ({trace})"),
        ((trace, "--current", current), current, f"--current ({current})"),
    ):
        before = output.read_bytes()
        said = refusals(*given, "--expert-parallel", 4, "--output", output)
        assert f"--output ({output}) is {what}, which would be replaced; name another" in said
        assert output.read_bytes() == before


def test_a_record_of_another_order_asks_for_it(tmp_path: Path) -> None:
    used = tmp_path / "p.json"
    file.write(used, file.Assignment(16, 8, 4, {"1": (1, 0, 3, 2, 7, 5, 6, 4)}))
    record = recorded(tmp_path / "run", replace(RUN, settings={"grove-placement": str(used)}))
    assert (
        f"record ({record}) has run (a) under --grove-placement ({used}), and is not to be "
        f"compared with the order of the experts; give that file as --current {used}"
    ) in refusals(record, "--expert-parallel", 4)
    assert numbers(grove_place(record, "--expert-parallel", 4, "--current", used, "--json"))
    # At other ranks that placement is none.
    assert numbers(grove_place(record, "--expert-parallel", 2, "--json"))


def test_routing_within_blocks_is_doubted_where_it_is_estimated(tmp_path: Path) -> None:
    limited = replace(RUN, settings={"moe-router-group-topk": 2})
    result = grove_place(recorded(tmp_path / "a", limited), "--expert-parallel", 4, "--json")
    assert "--moe-router-group-topk (2) of the record limits a token to blocks" in result.stderr
    assert len(numbers(result)["doubts"]) == 1
    plain = numbers(grove_place(recorded(tmp_path / "b"), "--expert-parallel", 4, "--json"))
    assert plain["doubts"] == []


def test_what_nodes_cost_is_read_of_a_machine(tmp_path: Path) -> None:
    record = recorded(tmp_path / "run")
    nodes = (record, "--expert-parallel", 4, "--gpus-per-node", 2)
    for more, cost in (((), "9"), (("--machine", "gb200"), "18"), (("--node-cost", 3.5), "3.5")):
        result = grove_place(*nodes, *more)
        assert f"a row to a node counts as {cost} inside one" in result.stdout, result.output
    assert "--machine (abacus) is not one of" in refusals(*nodes, "--machine", "abacus")
    for wrong in ("0", "nan", "inf"):
        assert f"--node-cost ({float(wrong)}) is not above 0" in refusals(
            *nodes, "--node-cost", wrong
        )


def test_sizes_and_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    trace = traced(tmp_path / "t.safetensors", {"1": tokens(0)[0]})
    said = refusals(
        *(trace, "--expert-parallel", 4, "--num-experts", -16, "--grove-num-groups", -1),
        *("--run", "a", "--since", 5),
    )
    for line in (
        "--num-experts (-16) is not 1 or more",
        "--grove-num-groups (-1) is not 0 or more",
        f"--run (a) is of records, and trace ({trace}) has no intervals; leave it out",
        f"--since (5) is of records, and trace ({trace}) has no intervals; leave it out",
    ):
        assert line in said
    assert "--since (-1) is not 0 or more" in (
        refusals(recorded(tmp_path / "run"), "--expert-parallel", 4, "--since", -1)
    )
    some = traced(tmp_path / "s.safetensors", {"1": tokens(0)[0]}, groups="3")
    said = refusals(some, "--expert-parallel", 1, "--num-experts", 16)
    assert f"--num-experts (16) is no multiple of the groups (3) of the tokens of {some}" in said


def test_what_cannot_be_read_is_not_blamed_on_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = traced(tmp_path / "t.safetensors", {"1": tokens(0)[0]}, experts="16", groups="8")
    given = (trace, "--expert-parallel", 4, "--output")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert f"--output ({folder}) cannot be written: Is a directory; name another file" in (
        refusals(*given, folder)
    )
    look = traces.open_trace

    def vanishing(path: Path) -> Any:
        found = look(path)
        path.unlink()
        return found

    monkeypatch.setattr(traces, "open_trace", vanishing)
    said = refusals(*given, tmp_path / "p.json")
    assert f"trace ({trace}) cannot be read: No such file" in said
    assert "--output" not in said


def test_the_best_of_an_estimate_is_said_to_be_that(tmp_path: Path) -> None:
    trace = traced(tmp_path / "t.safetensors", {"1": tokens(0)[0]}, experts="16", groups="8")
    of_record = grove_place(recorded(tmp_path / "run"), "--expert-parallel", 4).stdout
    of_trace = grove_place(trace, "--expert-parallel", 4).stdout
    assert "every partition was looked at, by estimated rows\n" in of_record
    assert "every partition was looked at\n" in of_trace


def test_a_damaged_matrix_is_refused_by_name(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "routing.jsonl").read_text().splitlines()]
    lines[2]["coactivation"][2] = "AAAA"
    (folder / "routing.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    said = refusals(folder, "--expert-parallel", 4)
    assert f"record ({folder / 'routing.jsonl'}) line (3) is not an interval" in said
