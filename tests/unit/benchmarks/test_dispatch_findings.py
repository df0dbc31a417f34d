"""What is made of counts and times of the dispatchers."""

from dataclasses import replace

from grove_megatron.benchmarks.dispatch_findings import Traffic, findings
from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.shape import PRESETS, Settings

SETTINGS = Settings(
    benchmark="dispatch",
    preset="small",
    shape=PRESETS["dispatch"]["small"],
    ranks=4,
    ranks_per_node=2,
    rounds=1,
    warmup=0,
)
SAMPLES = {name: Samples((t,)) for name, t in (("stock", 4.0), ("grove", 2.0))}
FLAT = {"stock": Traffic((8.0,), None, 800.0, 8.0), "grove": Traffic((3.5,), None, 400.0, 10.0)}


def test_without_nodes_there_is_one_hop() -> None:
    found = findings(replace(SETTINGS, ranks_per_node=None), SAMPLES, FLAT)
    assert found.summary["ratio_vs_plain"] == 0.5
    assert found.summary["rows_ratio"] == 3.5 / 8
    assert found.summary["bytes_ratio"] == 0.5
    assert found.summary["metadata_share"] == 0.025
    assert found.summary["node_rows_per_token"] is None
    assert {value.quantity for value in found.values} == {
        *("time", "rows_per_token", "sent_bytes", "metadata_share")
    }
    (table,) = found.tables
    assert {len(line) for line in table.lines} == {len(table.header)} == {6}


def test_with_nodes_both_hops_are_told_apart() -> None:
    traffic = {
        "stock": replace(FLAT["stock"], leaving_rows_per_token=4.0),
        "grove": replace(FLAT["grove"], leaving_rows_per_token=1.75),
        "hierarchical": Traffic((1.9, 3.5), 0.95, 600.0, 12.0),
    }
    found = findings(SETTINGS, SAMPLES | {"hierarchical": Samples((3.0,))}, traffic)
    expected = {
        "node_rows_per_token": 1.9,
        "inside_rows_per_token": 3.5,
        "leaving_rows_per_token": 1.75,
        "hierarchical_leaving_rows_per_token": 0.95,
        "hierarchical_ratio_vs_plain": 0.75,
        "hierarchical_ratio_vs_grove": 1.5,
    }
    assert {name: found.summary[name] for name in expected} == expected
    (table,) = found.tables
    assert {len(line) for line in table.lines} == {len(table.header)} == {7}
    assert table.lines[2][3:5] == ("1.90 + 3.50", "0.95")
    counts = {(v.variant, v.quantity): v.p50 for v in found.values}
    assert counts["hierarchical", "node_rows_per_token"] == 1.9
    assert counts["grove", "leaving_rows_per_token"] == 1.75
    assert ("grove", "node_rows_per_token") not in counts


def test_one_rank_sends_nothing() -> None:
    nothing = Traffic((), None, 0.0, 0.0)
    settings = replace(SETTINGS, ranks=1, ranks_per_node=None)
    found = findings(settings, SAMPLES, {"stock": nothing, "grove": nothing})
    assert found.summary["rows_per_token"] == 0
    assert found.summary["bytes_ratio"] is None
