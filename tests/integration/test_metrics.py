"""What a training job counts, records and reports, beside the routing it really did."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.report.measures import active_parameters
from grove_megatron.report.record import ARRAYS, Interval, Record, read_record
from grove_megatron.report.series import summed
from grove_megatron.report.trace import open_trace, write_trace
from grove_megatron.simulate.inputs import Asked, Options, prepare
from grove_megatron.simulate.replay import replay
from grove_megatron.simulate.run import simulate
from tests.integration.flags import MODEL
from tests.integration.test_training import FULL, MTP, PP2, SELECTIVE, TP2
from tests.ranks import Job, Ranks

E, G, K = 8, 4, 2
MTP_TWICE = ["--mtp-num-layers", "2", "--mtp-use-repeated-layer"]
EP2 = ["--expert-model-parallel-size", "2"]
SIX = ["--train-iters", "6", "--log-interval", "3"]
EVERY_TWO = ["--grove-metrics-interval", "2", "--grove-metrics-coactivation"]

Run = Callable[..., tuple[Record, list[dict[str, Any]], Job]]


@pytest.fixture(scope="module")
def train(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train once per set of flags; the record, what every rank did, and the job."""
    done: dict[tuple[int, tuple[str, ...]], Any] = {}

    def run(world_size: int, flags: list[str], ranks_per_node: int | None = None) -> Any:
        key = (world_size, tuple(flags))
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            argv = [*MODEL, *SIX, "--grove-metrics-dir", str(folder / "metrics"), *flags]
            target = "tests.integration.metrics_job:train_and_keep_routing"
            nodes = {} if ranks_per_node is None else {"LOCAL_WORLD_SIZE": str(ranks_per_node)}
            job = ranks.run(world_size, target, str(folder), argv, folder=folder, env=nodes).check()
            record = read_record(folder / "metrics" / "routing.jsonl")
            done[key] = (record, job.results(), job)
        return done[key]

    return run


def leaving(sent_to: set[int], own: int, tensor_ranks: int, ranks_per_node: int | None) -> int:
    """Rows of a token that leave a rank: of the dispatch, then to all of expert tensor parallelism.

    Args:
        sent_to: expert-parallel ranks it needs.
        own: its own one.
        tensor_ranks: ranks of expert tensor parallelism.
        ranks_per_node: of a dispatch in two hops.
    """
    if ranks_per_node is None:
        left = len(sent_to - {own})
    else:
        # To the rank in the own place on every node, from there on inside the node.
        nodes = {r // ranks_per_node for r in sent_to}
        place = own % ranks_per_node
        left = len(nodes - {own // ranks_per_node})
        left += sum(r % ranks_per_node != place for r in sent_to)
    return left + (tensor_ranks - 1) * len(sent_to)


def by_hand(
    results: list[dict[str, Any]],
    interval: Interval,
    num_ranks: int,
    tensor_ranks: int = 1,
    ranks_per_node: int | None = None,
) -> dict[str, dict[str, Any]]:
    """{layer: what the interval should hold}, token by token from the routing of all ranks."""
    found: dict[str, dict[str, Any]] = {
        layer: {"experts": [0] * E, "groups": [0] * G, "sharing": [0] * (K + 1)}
        | {"rows": [0] * num_ranks, "sent_tokens": 0, "left_rows": 0, "node_rows": 0}
        | {"coactivation": [[0] * G for _ in range(G)]}
        for layer in interval.run.layers
    }
    steps = slice(interval.iteration - interval.iterations, interval.iteration)
    for result in results:
        for step in result["steps"][steps]:
            for layer, tokens in step.items():
                counts = found[layer]
                for experts in tokens:
                    groups = {e * G // E for e in experts}
                    sent_to = {e * num_ranks // E for e in experts}
                    counts["sent_tokens"] += 1
                    counts["sharing"][len(groups)] += 1
                    counts["left_rows"] += leaving(
                        sent_to, result["ep_rank"], tensor_ranks, ranks_per_node
                    )
                    if ranks_per_node is not None:
                        counts["node_rows"] += len({r // ranks_per_node for r in sent_to})
                    for name, members in (("experts", experts), ("groups", groups)):
                        for member in members:
                            counts[name][member] += 1
                    for a, b in product(groups, groups):
                        counts["coactivation"][a][b] += 1
                    for rank in sent_to:
                        counts["rows"][rank] += 1
    return found


def assert_is_what_was_routed(
    record: Record, results: list[dict[str, Any]], num_ranks: int = 2, **layout: Any
) -> None:
    """Every count of every interval, exactly."""
    for interval in record.intervals:
        expected = by_hand(results, interval, num_ranks, **layout)
        for index, layer in enumerate(interval.run.layers):
            for name, value in expected[layer].items():
                assert getattr(interval, name)[index].tolist() == value, (layer, name)


def same_counts(a: Record, b: Record) -> bool:
    return len(a.intervals) == len(b.intervals) and all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a.intervals, b.intervals, strict=True)
        for name in ARRAYS
        if name != "rerun_tokens"
    )


EVALUATING = [*EP2, *EVERY_TWO, "--eval-interval", "3", "--eval-iters", "1"]


def test_counts_are_those_of_the_routing(train: Run) -> None:
    record, results, _ = train(2, EVALUATING)
    # After the first iteration, then at multiples of the interval: none is lost, none twice.
    spans = [(i.iteration, i.iterations) for i in record.intervals]
    assert spans == [(1, 1), (2, 1), (4, 2), (6, 2)]
    assert_is_what_was_routed(record, results)


def test_counts_add_up_and_evaluation_is_left_out(train: Run) -> None:
    record, results, _ = train(2, EVALUATING)
    per_iteration = 4 * 32
    for interval in record.intervals:
        tokens = per_iteration * interval.iterations
        assert interval.sent_tokens.tolist() == [tokens] * 2
        assert interval.experts.sum(1).tolist() == [K * tokens] * 2
        assert interval.sharing.sum(1).tolist() == [tokens] * 2
        assert (interval.sharing @ np.arange(K + 1)).tolist() == interval.groups.sum(1).tolist()
        assert not interval.rerun_tokens.any()
    # The dispatcher's own counters go on in the two evaluations, which the record must not have.
    sent = sum(t["tokens"] for result in results for t in result["traffic"].values())
    counted = sum(int(i.sent_tokens.sum()) for i in record.intervals)
    assert counted == 2 * 6 * per_iteration < sent


@pytest.mark.long
def test_rows_are_those_of_the_dispatcher(train: Run) -> None:
    record, results, job = train(2, [*EP2, *EVERY_TWO])
    whole = summed(record.intervals)
    for index, layer in enumerate(record.runs[0].layers):
        assert whole.rows[index].sum() == sum(r["traffic"][layer]["rows"] for r in results)
    # The line after training counts for itself, from the same passes.
    (line,) = [line for line in job.log(0).splitlines() if "summary: " in line]
    summary = json.loads(line.split("summary: ")[1])
    assert round(active_parameters(whole)) == summary["params_active"]
    assert sum(whole.run.parameters) == summary["params_total"]


def test_losses_are_the_means_of_the_iterations(train: Run) -> None:
    record, _, job = train(2, EVALUATING)
    printed = [
        float(line.split("lm loss: ")[1].split(" |")[0])
        for line in job.log(1).splitlines()
        if "lm loss: " in line and " iteration " in line
    ]
    one, two, middle, last = (i.losses["lm loss"] for i in record.intervals)
    # Megatron prints means of iterations 1, 1-3 and 4-6, with 7 digits; ours are of other spans.
    assert printed[0] == pytest.approx(one, rel=1e-6)
    total = one + two + 2 * middle + 2 * last
    assert 3 * (printed[1] + printed[2]) == pytest.approx(total, rel=1e-6)


def test_evaluations_are_those_that_are_printed(train: Run) -> None:
    record, _, job = train(2, EVALUATING)
    printed = [
        float(line.split("value: ")[1].split()[0])
        for line in job.log(1).splitlines()
        if "validation loss at iteration" in line
    ]
    # While it trains, and both sets at its end.
    assert [(e.iteration, e.of) for e in record.evaluations] == [
        *((3, "validation"), (6, "validation")),
        *((6, "validation"), (6, "test")),
    ]
    made = [e.losses["lm loss"] for e in record.evaluations]
    assert made == pytest.approx(printed, rel=1e-6)
    assert all(e.seconds > 0 for e in record.evaluations)


def test_tensorboard_gets_what_the_record_has(train: Run) -> None:
    record, (other, last), _ = train(2, EVALUATING)
    assert other["board"] == {}
    for interval in record.intervals:
        rows = interval.rows.sum(1) / interval.sent_tokens
        written = last["board"]["grove/rows_per_token"]
        assert written[str(interval.iteration)] == pytest.approx(rows.mean())
        written = last["board"]["grove/dead_experts_total"]
        assert written[str(interval.iteration)] == (interval.experts == 0).sum()
    assert len(last["board"]["grove/max_vio"]) == len(record.intervals)
    assert "grove/max_vio/layer_1" not in last["board"]


def test_every_rank_counts_flops_by_the_measured_groups(train: Run) -> None:
    record, results, _ = train(2, EVALUATING)
    last = record.intervals[-1]
    measured = last.groups.sum() / last.sharing.sum()
    assert measured != pytest.approx(expected_distinct(E, K, G))
    assert [r["flops_count"] for r in results] == pytest.approx([measured] * 2)


def test_the_last_rank_alone_writes_and_the_log_line_shows_it(train: Run) -> None:
    record, _, job = train(2, EVALUATING)
    assert len(record.runs) == 1
    shown = " rows per token: "
    assert shown not in job.log(0)
    lines = [line for line in job.log(1).splitlines() if shown in line]
    # Megatron's lines of iterations 1 and 6; at 3 no report was due.
    assert len(lines) == 2
    rows = (record.intervals[-1].rows.sum(1) / record.intervals[-1].sent_tokens).mean()
    assert f"{shown}{rows:.2f} |" in lines[-1]


def test_off_counts_nothing_and_a_report_is_one_all_reduce(
    train: Run, ranks: Ranks, tmp_path: Path
) -> None:
    argv = [*MODEL, *SIX, *EP2, "--train-iters", "3", "--grove-metrics-interval", "0"]
    argv += ["--save", str(tmp_path / "ckpt"), "--save-interval", "100", "--no-save-optim"]
    target = "tests.integration.metrics_job:train_and_keep_routing"
    job = ranks.run(2, target, str(tmp_path), argv, folder=tmp_path).check()
    for result in job.results():
        assert result["counting"] == {"1": False, "2": False}
        assert result["tracker"] == "MoEMetricsTracker"
    assert "rows per token" not in job.log(1)
    assert not (tmp_path / "ckpt" / "grove_metrics").exists()
    _, counted, _ = train(2, EVALUATING)
    extra = np.subtract(counted[0]["all_reduces"][:3], job.results()[0]["all_reduces"])
    # The first report also counts the parameters; the third iteration has none.
    assert extra.tolist() == [2, 1, 0]


def test_a_report_is_drawn_from_a_run(train: Run, tmp_path: Path) -> None:
    from grove_megatron.cli import app

    _, _, job = train(2, EVALUATING)
    page = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(app, ["report", str(job.folder / "metrics"), "--out", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert Counter(text.split())["<img"] == len(list(page.parent.glob("*.png"))) == 9
    assert '<code>grove-num-groups</code></td><td class="value"><code>4</code></td>' in text


@pytest.mark.long
def test_the_loss_over_groups_is_reported_also_without_metrics(
    ranks: Ranks, tmp_path: Path
) -> None:
    argv = [*MODEL, *EP2, "--train-iters", "2", "--grove-metrics-interval", "0"]
    argv += ["--grove-group-aux-loss-coeff", "0.01", "--moe-per-layer-logging"]
    target = "tests.integration.metrics_job:train_and_keep_routing"
    job = ranks.run(2, target, str(tmp_path), argv, folder=tmp_path).check()
    last = job.results()[-1]
    assert last["counting"] == {"1": False, "2": False}
    assert "group_load_balancing_loss: " in job.log(1)
    assert len(last["board"]["group_load_balancing_loss"]) == 2
    assert not [tag for tag in last["board"] if tag.startswith("grove/")]


@pytest.mark.long
@pytest.mark.parametrize("recompute", [FULL, SELECTIVE], ids=["full", "moe"])
def test_recompute_counts_every_token_once(recompute: list[str], train: Run) -> None:
    base, _, _ = train(2, [*EP2, *EVERY_TWO])
    record, results, _ = train(2, [*EP2, *EVERY_TWO, *recompute])
    assert same_counts(record, base)
    assert_is_what_was_routed(record, results)
    for interval in record.intervals:
        assert interval.rerun_tokens.tolist() == interval.sent_tokens.tolist()


# Flags, ranks, expert-parallel ranks, layers.
LAYOUTS: dict[str, tuple[list[str], int, int, tuple[str, ...]]] = {
    "pp2-ep2": ([*PP2, *EP2], 4, 2, ("1", "2")),
    "vpp-mtp": (
        [*PP2, *MTP, "--num-layers", "4", "--num-layers-per-virtual-pipeline-stage", "1"],
        2,
        1,
        ("1", "2", "3", "4", "mtp 1"),
    ),
    "tp2-sp-ep2": ([*TP2, *EP2, "--expert-tensor-parallel-size", "1"], 2, 2, ("1", "2")),
    "one-dense-layer-bias": (
        [*EP2, "--moe-layer-freq", "[0,1]", "--moe-router-enable-expert-bias"],
        2,
        2,
        ("2",),
    ),
    "overlap-moe-expert-parallel-comm": (
        [*EP2, "--overlap-moe-expert-parallel-comm", "--bf16"],
        2,
        2,
        ("1", "2"),
    ),
    "tp2-sp-etp2-ep2": (
        [*TP2, *EP2, "--expert-tensor-parallel-size", "2"],
        4,
        2,
        ("1", "2"),
    ),
    "hierarchical": (
        ["--expert-model-parallel-size", "4", "--grove-hierarchical-dispatch"],
        4,
        4,
        ("1", "2"),
    ),
    # The first stage has none, the last a layer that counts at both depths.
    "a-stage-without-moe": (
        [*PP2, "--moe-layer-freq", "[0,1]", *MTP_TWICE],
        2,
        1,
        ("2", "mtp 1"),
    ),
    "capacity": ([*EP2, "--moe-expert-capacity-factor", "0.75"], 2, 2, ("1", "2")),
}


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_are_those_of_the_routing_at(layout: str, train: Run) -> None:
    flags, world_size, num_ranks, layers = LAYOUTS[layout]
    ranks_per_node = 2 if layout == "hierarchical" else None
    record, results, _ = train(world_size, [*flags, *EVERY_TWO], ranks_per_node=ranks_per_node)
    assert record.runs[0].layers == layers
    tensor_ranks = 2 if "etp2" in layout else 1
    assert_is_what_was_routed(
        record, results, num_ranks, tensor_ranks=tensor_ranks, ranks_per_node=ranks_per_node
    )
    last = record.intervals[-1]
    tokens = 2 * 4 * 32
    depths = [2 if "without-moe" in layout and name == "mtp 1" else 1 for name in layers]
    assert last.sent_tokens.tolist() == [tokens * depth for depth in depths]
    assert (last.bias is not None) == ("bias" in layout)
    assert record.runs[0].drops == (layout == "capacity")
    if layout == "capacity":
        assert (last.experts.sum(1) < K * last.sent_tokens).all()


@pytest.mark.long
def test_a_resumed_run_appends_and_supersedes(ranks: Ranks, tmp_path: Path) -> None:
    save = ["--save", str(tmp_path / "ckpt"), "--save-interval", "2", "--log-interval", "1"]
    target = "tests.integration.recorded_run:train"

    def go(folder: str, *flags: str) -> None:
        argv = [*MODEL, *EP2, "--train-iters", "5", *save, *flags]
        ranks.run(2, target, str(tmp_path / folder), argv, folder=tmp_path / folder).check()

    go("first")
    file = tmp_path / "ckpt" / "grove_metrics" / "routing.jsonl"
    first = read_record(file)
    # What a kill in the middle of a line leaves.
    whole = file.read_bytes()
    file.write_bytes(whole + whole.splitlines(keepends=True)[-1][:100])
    (tmp_path / "ckpt" / "latest_checkpointed_iteration.txt").write_text("2")
    go("second", "--load", str(tmp_path / "ckpt"), "--exit-interval", "4")
    second = read_record(file)
    assert [i.iteration for i in first.intervals] == [1, 2, 3, 4, 5]
    assert [i.iteration for i in second.intervals] == [1, 2, 3, 4]
    assert [second.runs.index(i.run) for i in second.intervals] == [0, 0, 1, 1]
    assert [run.resumed for run in second.runs] == [0, 2]
    assert "3 of its 5 intervals left out" in second.found[0]
    # Training resumes exactly, so what superseded is what was there.
    assert same_counts(Record(first.runs, first.intervals[:4]), second)
    assert [json.loads(line).get("iteration") for line in file.read_bytes().splitlines()[1:6]] == [
        *range(1, 6)
    ]

    # What it is told to skip is not what the abandoned run had of it.
    (tmp_path / "ckpt" / "latest_checkpointed_iteration.txt").write_text("2")
    skip = ["--exit-interval", "4", "--iterations-to-skip", "3"]
    go("third", "--load", str(tmp_path / "ckpt"), *skip)
    third = read_record(file)
    assert [i.iteration for i in third.intervals] == [1, 2, 4]
    assert [third.runs.index(i.run) for i in third.intervals] == [0, 0, 2]


@pytest.mark.long
def test_the_last_iterations_of_a_run_by_samples_are_recorded(ranks: Ranks, tmp_path: Path) -> None:
    argv = [*MODEL, "--log-interval", "3", "--grove-metrics-dir", str(tmp_path / "metrics")]
    place = argv.index("--train-iters")
    argv[place : place + 2] = ["--train-samples", "20"]
    target = "tests.integration.recorded_run:train"
    ranks.run(1, target, str(tmp_path), argv, folder=tmp_path).check()
    record = read_record(tmp_path / "metrics" / "routing.jsonl")
    spans = [(i.iteration, i.iterations) for i in record.intervals]
    assert spans == [(1, 1), (3, 2), (5, 2)]


def traced(results: list[dict[str, Any]], file: Path) -> Path:
    """The routing of all steps of a job, as a trace: rank after rank, each with its steps."""
    tokens: dict[str, list[list[int]]] = {}
    for result in sorted(results, key=lambda result: result["ep_rank"]):
        for step in result["steps"]:
            for layer, chosen in step.items():
                tokens.setdefault(layer, []).extend(chosen)
    layers = {layer: torch.tensor(chosen) for layer, chosen in tokens.items()}
    write_trace(file, layers, experts=E, groups=G)
    return file


def simulated(place: Path, kind: str, **options: Any) -> Asked:
    (asked,), _ = prepare(Options(routing=[f"{kind}:{place}"], **options))
    return asked


def assert_simulated(record: Record, asked: Asked, *, two_hops: bool) -> None:
    """The very rows that the job counted, of every layer."""
    whole = summed(record.intervals)
    for index, layer in enumerate(whole.run.layers):
        found = replay(asked.routing, asked.sizes, layer, 0)
        assert found.flat.received_rows.sum(1).tolist() == whole.rows[index].tolist()
        assert found.pairs.sum() == whole.experts[index].sum()
        assert found.adjugate_pairs.sum() == whole.groups[index].sum()
        flow = found.two_hops if two_hops else found.flat
        assert flow is not None
        assert flow.sent_rows[:, 1:].sum() == whole.left_rows[index]
        if two_hops:
            assert found.node_rows == whole.node_rows[index]


def assert_drawn(record: Record, asked: Asked) -> None:
    """Of loads alone the rows are an estimate: what the job counted, but for its few tokens."""
    counted = simulate(asked).counted
    assert counted is not None
    whole = summed(record.intervals)
    tokens = whole.sent_tokens.sum()
    mean = whole.rows.sum() / tokens
    assert counted[0] == pytest.approx(mean)
    # A token has one row or two.
    noise = ((mean - 1) * (2 - mean) / tokens) ** 0.5
    assert counted[1] == pytest.approx(mean, abs=4 * noise)


def assert_traced(job: Job, seen: Path) -> None:
    """What the job recorded of its routers is what its dispatchers were given, token by token."""
    recorded, given = open_trace(job.folder / "trace.safetensors"), open_trace(seen)
    assert (recorded.layers, recorded.experts, recorded.groups) == (given.layers, E, G)
    for layer in given.layers:
        both = [np.sort(trace.of(layer), axis=1) for trace in (recorded, given)]
        assert np.array_equal(*both)


def test_a_simulation_sends_what_the_job_sent(train: Run, tmp_path: Path) -> None:
    record, results, job = train(2, EVALUATING)
    trace = simulated(traced(results, tmp_path / "trace"), "trace", ranks=2, hidden_size=32)
    assert_simulated(record, trace, two_hops=False)
    assert_traced(job, tmp_path / "trace")
    assert_drawn(record, simulated(job.folder / "metrics", "record"))


@pytest.mark.long
def test_a_simulation_of_four_ranks_sends_what_the_job_sent(train: Run, tmp_path: Path) -> None:
    flags, world_size, num_ranks, _ = LAYOUTS["hierarchical"]
    record, results, job = train(world_size, [*flags, *EVERY_TWO], ranks_per_node=2)
    sizes = {"ranks": num_ranks, "gpus_per_node": 2, "hidden_size": 32}
    trace = simulated(traced(results, tmp_path / "trace"), "trace", **sizes)
    assert_simulated(record, trace, two_hops=True)
    assert_traced(job, tmp_path / "trace")
    assert_drawn(record, simulated(job.folder / "metrics", "record"))
