"""The public measurements and the machine files: whole, sourced, and in agreement with themselves.

Most sources say a figure twice, as time and as TFLOPS. With the planner's FLOPs the two have to be
one figure: a row whose model, batch, length or number of GPUs is not the source's gives another.
"""

import copy
import re
import tomllib
from pathlib import Path

import pytest

import grove_megatron
from grove_megatron.planner.flops import flops_per_token
from grove_megatron.presets.table import PRESETS
from grove_megatron.training.sizes import sizes_of

from ...conftest import parser

PLANNER = Path(grove_megatron.__file__).parent / "planner" / "speed"
PUBLIC = tomllib.loads((PLANNER / "public" / "rows.toml").read_text(encoding="utf-8"))
MACHINES = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8"))
    for path in sorted((PLANNER / "machine_files").glob("*.toml"))
}
ROWS = {row["name"]: row for row in PUBLIC["row"]}
FLAGS = {"layout", "recompute", "dispatcher", "overlap", "graphs", "optimizer"}
MEASURES = {"step_seconds", "tokens_per_second_per_gpu", "tflops_per_gpu", "memory_gib"}
SIZES = {"gpus", "gpus_per_node", "micro_batch_size", "global_batch_size", "seq_length"}
ALWAYS = {"name", "kind", "source", "machine", "precision"} | FLAGS | SIZES
SOMETIMES = {"recipe", "date", "preset", "model", "balanced", "trust", "note", "assumed"} | MEASURES
SOURCE = re.compile(
    r"[\w.-]+/[\w.-]+(@[0-9a-f]{40} [\w.][\w./-]+|\.? (issue|pull) \d+ \(20\d\d-\d\d-\d\d\))"
)
# What every machine file has; the rest where somebody has published it.
SCALARS = {"memory_gib", "bf16_tflops", "fp8_tflops", "hbm_tb_s"} | {
    "gpus_per_node",
    "scale_up_gpus",
    "scale_up_gb_s",
}
TABLES = {"matmul", "attention", "memory_bound", "collective", "collective_fit", "dispatch"}


def parsed(row):
    """A row's command line as Megatron parses it."""
    model = PRESETS[row["preset"]].flags() if "preset" in row else PUBLIC["models"][row["model"]]
    words = model.split() if isinstance(model, str) else [*model]
    words = [word for word in words if word != "--grove-dispatch"]
    for flags in sorted(FLAGS):
        words += row[flags].split()
    for size in ("micro_batch_size", "global_batch_size", "seq_length"):
        words += [f"--{size.replace('_', '-')}", str(row[size])]
    args = copy.deepcopy(parser().parse_args([*words, "--bf16"]))
    args.rank, args.world_size = 0, row["gpus"]
    return args


def test_names_are_given_once():
    rows = PUBLIC["row"] + PUBLIC["out_of_reach"]
    assert len({row["name"] for row in rows}) == len(rows)


def test_there_is_enough_to_prove_a_planner_with():
    mixtures = [row for row in ROWS.values() if row["kind"] == "moe" and row["precision"] == "bf16"]
    firm = [row for row in mixtures if "trust" not in row]
    assert len(firm) >= 20
    assert len({row["machine"] for row in firm}) >= 3
    assert len({row["source"].split("@")[0].split(" ")[0] for row in firm}) >= 3


def test_what_is_no_row_says_why_and_where_it_stands():
    for beyond in PUBLIC["out_of_reach"]:
        assert beyond["reason"]
        assert SOURCE.match(beyond["source"])
        assert beyond["machine"] in MACHINES
        assert MEASURES & set(beyond)
    for hint in PUBLIC["hint"]:
        assert set(hint) == {"says", "source"}
        assert SOURCE.match(hint["source"])


def test_predictions_of_peers_are_pairs():
    for peer in PUBLIC["peers"].values():
        for case in peer:
            keys = set(case) - {"measured_gib", "predicted_gib"}
            assert keys == {"case", "measured", "predicted"}
            assert ("measured_gib" in case) == ("predicted_gib" in case)
            # No published planner misses by a half: a slip of the pen does.
            for unit in {"", "_gib"} & {key.removeprefix("measured") for key in case}:
                assert 1 / 1.5 < case[f"predicted{unit}"] / case[f"measured{unit}"] < 1.5


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_whole(name):
    row = ROWS[name]
    assert set(row) >= ALWAYS
    assert set(row) <= ALWAYS | SOMETIMES
    assert MEASURES & set(row)
    assert all(row[measure] > 0 for measure in MEASURES & set(row))
    assert ("preset" in row) != ("model" in row)
    assert row["kind"] in ("moe", "dense")
    assert ("balanced" in row) == (row["kind"] == "moe")
    assert row["machine"] in MACHINES
    assert SOURCE.match(row["source"])
    assert row["gpus_per_node"] == MACHINES[row["machine"]]["gpus_per_node"]["value"]


@pytest.mark.parametrize("name", ROWS)
def test_a_name_says_what_its_row_says(name):
    row = ROWS[name]
    assert f"-{row['gpus']}x{row['machine']}" in name
    length = re.search(r"-(\d+)k\b", name)
    assert length is None or int(length[1]) * 1024 == row["seq_length"]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_a_job_of_megatron_that_fills_its_gpus(name):
    row = ROWS[name]
    sizes = sizes_of(parsed(row))
    layout = sizes.layout
    assert layout.world == row["gpus"]
    assert row["global_batch_size"] % (row["micro_batch_size"] * layout.data) == 0
    assert bool(sizes.model.num_experts) == (row["kind"] == "moe")
    assert (layout.expert > 1) <= (row["kind"] == "moe")
    if layout.custom is None and layout.first_layers is None:
        counted = layout.count_embedding + layout.count_loss
        assert (sizes.model.num_layers + counted) % (layout.pipeline * layout.virtual) == 0


@pytest.mark.parametrize("name", ROWS)
def test_time_rate_and_flops_of_a_row_are_one_figure(name):
    row = ROWS[name]
    flops = flops_per_token(sizes_of(parsed(row)).model, row["seq_length"])
    tokens = row["global_batch_size"] * row["seq_length"] / row["gpus"]
    rates = []
    if "step_seconds" in row:
        rates.append(tokens / row["step_seconds"])
    if "tokens_per_second_per_gpu" in row:
        rates.append(row["tokens_per_second_per_gpu"])
    if "tflops_per_gpu" in row:
        rates.append(row["tflops_per_gpu"] * 1e12 / flops)
    # Rounding: 89 TFLOPS are known to half a percent, 10.5 seconds likewise.
    assert max(rates) <= 1.015 * min(rates)


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_of_a_machine_has_a_source(name):
    machine = MACHINES[name]
    assert machine["name"] == name
    assert set(machine) >= SCALARS | {"name", "sources"}
    named = set()
    for key, entry in machine.items():
        if key in ("name", "chip", "sources"):
            continue
        assert (key in TABLES) == isinstance(entry, list)
        for one in entry if isinstance(entry, list) else [entry]:
            named.add(one["source"].split(" ")[0])
            if key in TABLES:
                assert one["rows"]
                assert {len(row) for row in one["rows"]} == {len(one["columns"])}
            else:
                assert set(one) == {"value", "source"}
                assert one["value"] > 0
    assert named == set(machine["sources"])


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_measured_is_above_the_peak(name):
    machine = {
        key: entry["value"]
        for key, entry in MACHINES[name].items()
        if isinstance(entry, dict) and "value" in entry
    }
    for measured, peak in (
        ("bf16_matmul_tflops", "bf16_tflops"),
        ("fp8_matmul_tflops", "fp8_tflops"),
        ("scale_up_measured_gb_s", "scale_up_gb_s"),
        ("scale_out_measured_gb_s", "scale_out_gb_s"),
    ):
        assert measured not in machine or machine[measured] < machine[peak]
    assert machine.get("hbm_share", 0) < 1
    for table in MACHINES[name].get("matmul", ()):
        first = table["columns"].index("forward")
        assert all(0 < share < 1 for row in table["rows"] for share in row[first:])
    for table in MACHINES[name].get("attention", ()):
        assert table["peak_tflops"] == machine["bf16_tflops"]
        first = table["columns"].index("forward_tflops")
        assert all(0 < rate < table["peak_tflops"] for row in table["rows"] for rate in row[first:])
