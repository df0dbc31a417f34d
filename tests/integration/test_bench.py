"""``grove bench`` reports what it counted, and nothing where the variants disagree.

No time is compared with anything here: it is reported, and that is all a test may ask.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grove_megatron.benchmarks.records import COLUMNS, read_rows
from grove_megatron.benchmarks.routers import ARMS
from grove_megatron.benchmarks.shape import VARIANTS
from tests.ranks import Ranks

from .launching import REPOSITORY, launch

SMALL = "--tokens 24 --hidden 64 --experts 16 --groups 8 --topk 3 --rounds 2 --warmup 1".split()
WIDTHS = "--expert-width 24 --adjugate-width 16".split()
EXPERTS, GROUPS, TOPK, TOKENS = 16, 8, 3, 24
STAGES = ("route", "preprocess", "dispatch", "arrive", "leave", "combine", "postprocess")


@dataclass(frozen=True)
class Bench:
    """What one command left behind, rank 0 first."""

    codes: list[int]
    outputs: list[str]
    logs: list[str]
    routings: list[list[list[bool]]]

    @property
    def report(self) -> dict[str, Any]:
        assert self.codes == [0] * len(self.codes), self.logs[0][-6000:]
        report: dict[str, Any] = json.loads(self.outputs[0].splitlines()[-1])
        return report


@pytest.fixture
def bench(ranks: Ranks, tmp_path: Path) -> Any:
    def run(job: str, world_size: int, *arguments: str) -> Bench:
        folder = tmp_path / "job"
        argv = ["bench", *arguments, "--json"]
        target = f"tests.integration.bench_job:{job}"
        done = ranks.run(world_size, target, str(folder), argv, folder=folder)
        every = range(world_size)
        outputs = [(folder / f"rank{r}.stdout").read_text() for r in every]
        files = [folder / f"rank{r}.json" for r in every]
        routings = [json.loads(file.read_text()) for file in files if file.exists()]
        return Bench(done.codes, outputs, [done.log(r) for r in every], routings)

    return run


def distinct(routings: list[list[list[bool]]], parts: int) -> int:
    """(token, part) pairs, a part being an equal slice of the experts."""
    size = EXPERTS // parts
    return sum(
        len({expert // size for expert, chosen in enumerate(token) if chosen})
        for routing in routings
        for token in routing
    )


def test_dispatch_counts_a_row_per_token_and_rank(bench: Any) -> None:
    done = bench("dispatch", 2, "dispatch", *SMALL)
    report = done.report
    assert done.outputs[1] == "", "one rank reports"
    assert len(done.routings) == 2
    assert done.routings[0] != done.routings[1], "every rank routes differently"
    assert all(sum(token) == TOPK for routing in done.routings for token in routing)
    rows = distinct(done.routings, parts=2)
    assert report["rows_per_token"] == rows / (2 * TOKENS)
    assert report["stock_rows_per_token"] == TOPK
    # Four crossings of hidden rows, and what else was sent.
    by_quantity = {(r["variant"], r["quantity"]): r["p50"] for r in report["rows"]}
    for variant, sent in (("grove", rows), ("stock", 2 * TOKENS * TOPK)):
        hidden_bytes = 4 * sent * 64 * 4 / 2
        total = by_quantity[variant, "sent_bytes"]
        share = by_quantity[variant, "metadata_share"]
        assert hidden_bytes < total
        assert share == pytest.approx(1 - hidden_bytes / total, rel=1e-4)
    both = [by_quantity[v, "sent_bytes"] for v in ("grove", "stock")]
    assert report["bytes_ratio"] == pytest.approx(both[0] / both[1], rel=1e-4)
    assert report["ratio_vs_plain"] > 0
    assert {tuple(row) for row in report["rows"]} == {COLUMNS}


def test_dispatch_in_two_hops_counts_a_row_per_token_and_node(bench: Any) -> None:
    done = bench("dispatch", 4, "dispatch", *SMALL, "--ranks-per-node", "2")
    report = done.report
    tokens = 4 * TOKENS
    assert report["rows_per_token"] == distinct(done.routings, parts=4) / tokens
    assert report["inside_rows_per_token"] == report["rows_per_token"]
    assert report["node_rows_per_token"] == distinct(done.routings, parts=2) / tokens
    # Of pairs with experts on the other node; (token, rank); (token, node).
    leaving = {
        name: sum(len(set(other_node(token, rank // 2, size))) for rank, token in tokens_of(done))
        for name, size in (("stock", 1), ("grove", EXPERTS // 4), ("hierarchical", EXPERTS // 2))
    }
    assert report["leaving_rows_per_token"] == leaving["grove"] / tokens
    assert report["hierarchical_leaving_rows_per_token"] == leaving["hierarchical"] / tokens
    counts = {(r["variant"], r["quantity"]): r["p50"] for r in report["rows"]}
    for variant, rows in leaving.items():
        assert counts[variant, "leaving_rows_per_token"] == pytest.approx(rows / tokens, rel=1e-4)
    times = {row["variant"] for row in report["rows"] if row["quantity"] == "time"}
    assert times == {"stock", "grove", "hierarchical"}
    assert {(row["ranks"], row["ranks_per_node"]) for row in report["rows"]} == {(4, 2)}


def tokens_of(done: Bench) -> list[tuple[int, list[bool]]]:
    """(rank, the experts of one of its tokens)."""
    return [(rank, token) for rank, routing in enumerate(done.routings) for token in routing]


def other_node(token: list[bool], node: int, size: int) -> list[int]:
    """Slices of ``size`` experts that hold chosen ones, those of one of the two nodes left out."""
    chosen = [e for e, is_chosen in enumerate(token) if is_chosen and e // (EXPERTS // 2) != node]
    return [e // size for e in chosen]


def test_dispatch_reports_nothing_where_two_hops_lose_a_row(bench: Any) -> None:
    done = bench("dispatch_with_a_lost_row", 4, "dispatch", *SMALL, "--ranks-per-node", "2")
    assert done.codes == [1] * 4
    assert "hierarchical beside stock" in done.logs[0]


def test_dispatch_reports_nothing_where_a_gradient_differs_on_one_rank(bench: Any) -> None:
    done = bench("dispatch_with_a_wrong_gradient", 2, "dispatch", *SMALL)
    assert done.codes == [1, 1]
    assert done.outputs == ["", ""]
    assert "is above tolerance" in done.logs[0]


def test_layer_counts_the_work_that_was_routed(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "layer.csv"
    done = bench("layer", 1, "layer", *SMALL, *WIDTHS, "--csv", str(file))
    report = done.report
    pairs = distinct(done.routings, GROUPS)
    router = TOKENS * 64 * EXPERTS
    plain = router + TOKENS * TOPK * 3 * 64 * 24
    assert report["flop_ratio"] == pytest.approx((plain + pairs * 3 * 64 * 16) / plain)
    assert report["peak_bytes_ratio"] > 1
    assert report["peak_bytes_allowed_ratio"] > 1
    assert report["ratio_vs_plain"] > 0
    assert report["ratio_vs_naive"] > 0
    rows = read_rows(file)
    timed = {(r.variant, r.kernel): r.iterations for r in rows if r.quantity == "time"}
    kernels = ("sequential", "grouped")
    assert timed == {(v, k): 2 for k in kernels for v in VARIANTS}
    shares = {(r.variant, r.kernel) for r in rows if r.quantity == "products_share" and r.p50 > 0}
    assert shares == {(v, k) for k in kernels for v in VARIANTS if v != "naive"}
    assert report["products_share"] > 0
    assert report["plain_products_share"] > 0
    operators = {(r.variant, r.quantity): r.p50 for r in rows if r.unit == "operators"}
    for variant in VARIANTS:
        for way in ("forward", "backward"):
            beside = [operators[variant, f"{way} operators of {stage}"] for stage in STAGES]
            assert operators[variant, f"{way} operators of beside the experts"] == sum(beside)
            assert operators[variant, f"{way} operators of experts"] > 0
    assert report["operators_ratio"] > 0


def test_layer_runs_expert_parallel_and_without_a_variant(bench: Any) -> None:
    only = "--variant plain --variant grove --kernel sequential --dtype bf16".split()
    report = bench("layer", 2, "layer", *SMALL, *WIDTHS, *only).report
    assert report["ratio_vs_naive"] is None
    assert report["ratio_vs_plain"] > 0


@pytest.mark.parametrize("wrong", ["naive", "plain"])
def test_layer_reports_nothing_where_variants_differ(wrong: str, bench: Any) -> None:
    done = bench(f"layer_with_a_wrong_{wrong}", 1, "layer", *SMALL, *WIDTHS)
    assert (done.codes, done.outputs) == ([1], [""])
    assert "is above tolerance" in done.logs[0]
    assert f"beside {wrong}" in done.logs[0]


def test_layer_times_deterministic_algorithms_too(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "layer.csv"
    arguments = [*SMALL, *WIDTHS, "--deterministic", "--csv", str(file)]
    report = bench("layer", 1, "layer", *arguments).report
    assert report["deterministic_ratio"] > 0
    timed = {(r.variant, r.kernel) for r in read_rows(file) if r.quantity == "time"}
    assert len(timed) == 10
    assert {("grove, deterministic", k) for k in ("sequential", "grouped")} <= timed


def test_layer_reports_nothing_where_deterministic_passes_differ(bench: Any) -> None:
    arguments = [*SMALL, *WIDTHS, "--deterministic"]
    done = bench("layer_with_passes_that_differ", 1, "layer", *arguments)
    assert (done.codes, done.outputs) == ([1], [""])
    assert "grove, deterministic, sequential: two passes differ in (output)" in done.logs[0]


def test_kernels_are_compared_and_timed_alone(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "kernels.csv"
    done = bench("kernels", 1, "kernels", *SMALL, *WIDTHS, "--csv", str(file))
    report = done.report
    pairs = distinct(done.routings, GROUPS)
    plain = TOKENS * TOPK * 24
    assert report["flop_ratio"] == pytest.approx((plain + pairs * 16) / plain)
    for name in ("separate", "concatenated"):
        assert report[f"{name}_vs_owner_rows"] > 0
        assert report[f"{name}_vs_experts_only"] > 0
    for name in ("two_streams", "triton"):
        assert report[f"{name}_vs_owner_rows"] is None
        assert f"{name}: skipped, no CUDA device" in done.logs[0]
    timed = {(r.variant, r.kernel): r.iterations for r in read_rows(file) if r.quantity == "time"}
    singles = ("take_rows", "sum_rows", "weighted_swiglu", "weighted_swiglu_grad")
    products = ("fan_out", "fan_in", "fan_weights")
    together = ("owner_rows", "separate", "concatenated", "experts_only")
    expected = [(n, "") for n in together] + [(n, "torch") for n in (*singles, *products)]
    assert timed == dict.fromkeys(expected, 2)
    assert all(report[f"{name}_torch_copy_share"] > 0 for name in singles)
    assert all(report[f"{name}_torch_matmul_share"] > 0 for name in products)


def test_kernels_report_nothing_where_a_strategy_differs(bench: Any) -> None:
    done = bench("kernels_with_a_wrong_gradient", 1, "kernels", *SMALL, *WIDTHS)
    assert (done.codes, done.outputs) == ([1], [""])
    assert "concatenated beside owner_rows" in done.logs[0]


def test_ranks_that_torchrun_did_not_start_are_refused(bench: Any) -> None:
    done = bench("dispatch", 2, "dispatch", *SMALL, "--ranks", "4")
    assert done.codes == [2, 2]
    assert "--ranks (4) is not the number of ranks that torchrun started (2)" in done.logs[0]


def command(*arguments: str) -> dict[str, Any]:
    """``grove bench`` as a user types it, ranks started by itself."""
    import sys

    done = launch(
        [sys.executable, "-m", "grove_megatron", "bench", *arguments, "--json"],
        GROVE_RUNTIME="cpu",
        PYTHONWARNINGS="ignore",
    )
    assert done.code == 0, done.output[-6000:]
    lines = [line for line in done.output.splitlines() if line.startswith('{"')]
    report: dict[str, Any] = json.loads(lines[-1])
    return report


@pytest.mark.long
def test_step_trains_every_variant() -> None:
    report = command("step", "--ranks", "2", "--layers", "2", *SMALL, *WIDTHS)
    assert report["ratio_vs_plain"] > 0
    assert report["ratio_vs_naive"] > 0
    assert 1 <= report["rows_per_token"] <= 2
    assert 1 < report["flop_ratio"] < 2
    times = {row["variant"]: row["p50"] for row in report["rows"] if row["quantity"] == "time"}
    assert set(times) == set(VARIANTS)
    ratio = times["grove-dispatch"] / times["plain"]
    assert report["grove_dispatch_vs_plain"] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.long
def test_scaling_has_a_slope_for_every_sweep(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "scaling.csv"
    report = bench("scaling_to_two_ranks", 1, "scaling", *SMALL, *WIDTHS, "--csv", str(file)).report
    assert {"slope_tokens", "slope_experts", "slope_ranks"} <= set(report)
    over = {name: set() for name in ("tokens", "experts", "ranks")}
    for row in read_rows(file):
        sweep = row.quantity.removeprefix("time over ")
        if sweep in over:
            over[sweep].add(getattr(row, sweep))
    assert over == {
        "tokens": {TOKENS * f for f in (1, 2, 4, 8)},
        "experts": {EXPERTS * f for f in (1, 2, 4, 8)},
        "ranks": {1, 2},
    }


def test_local_experts_beside_none(bench: Any) -> None:
    report = bench("local_experts", 2, "local", "--tokens", "64", "--rounds", "2").report
    sent = {r["variant"]: r["p50"] for r in report["rows"] if r["quantity"] == "pairs_per_token"}
    assert sent["8+4"] == sent["16+4"] == sent["32+8"] == 2
    assert sent["8+4, tau 0.75"] == pytest.approx(1.2, abs=1 / 64)
    assert len(report["rows"]) == 4 * 18


@pytest.mark.long
def test_every_router_beside_plain_topk(bench: Any) -> None:
    small = "--tokens 32 --hidden 64 --experts 8 --expert-width 16 --topk 2 --rounds 2".split()
    report = bench("routers", 2, "routers", *small).report
    found = {(r["variant"], r["quantity"]): r["p50"] for r in report["rows"]}
    assert {name for name, _ in found} == {*ARMS}
    assert all(found[name, "ratio"] > 0 for name in ARMS)
    assert found["top-k", "ratio"] == found["top-1", "ratio"] == 1
    # Rounds of bids that were counted, iterations that were asked for, and nothing.
    assert found["base", "iterations"] > 1
    assert found["sinkhorn", "iterations"] == 20
    assert found["hash", "iterations"] == 0


def test_the_documents_name_every_benchmark() -> None:
    text = (REPOSITORY / "grove_megatron" / "benchmarks" / "README.md").read_text()
    for name in ("dispatch", "layer", "kernels", "step", "scaling", "convert", "local", "routers"):
        assert f"grove bench {name} --" in text
