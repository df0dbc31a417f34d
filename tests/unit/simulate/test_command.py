import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from grove_megatron.cli import app
from grove_megatron.placing.file import Assignment, write
from grove_megatron.planner.traffic import expected_distinct
from grove_megatron.report.record import Writer
from grove_megatron.report.trace import write_trace
from grove_megatron.simulate.routing import planted_order, uniform
from grove_megatron.simulate.sizes import Sizes
from tests.unit.report.intervals import RUN, interval

SIZES = Sizes(experts=32, groups=16, topk=4, ranks=8, gpus_per_node=4, tokens=256, row_bytes=128)
FLAGS = (
    "--experts 32 --groups 16 --topk 4 --ranks 8 --gpus-per-node 4 --tokens 256 --hidden-size 64"
).split()


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *words])


def found(*words: str) -> list[dict[str, Any]]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    routings: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])["routings"]
    return routings


def problems(*words: str) -> list[str]:
    result = run(*words)
    assert result.exit_code == 2, result.output
    heading, *lines = result.stderr.splitlines()
    assert "nothing was simulated" in heading
    return [line.split(". ", 1)[1] for line in lines]


def test_figures_of_uniform_routing_are_the_expected_ones() -> None:
    (one,) = found(*FLAGS)
    whole = one["all"]
    assert one["layers"] == {"1": whole}
    assert whole["tokens"] == 8 * 256
    for name, sets in (("rows", 8), ("node_rows", 2), ("groups", 16)):
        expected = expected_distinct(32, 4, sets)
        assert whole[f"uniform_{name}"] == pytest.approx(expected)
        assert whole[f"{name}_per_token"] == pytest.approx(expected, rel=0.02)
    # A row is 64 values in bf16, with 8 bytes for each pair on it; 7 of 8 leave their rank.
    flat, stock = whole["flat"], whole["stock"]
    rows = flat["rows_on_node"] + flat["rows_across"]
    pairs = stock["rows_on_node"] + stock["rows_across"]
    assert pairs == pytest.approx(4 * 7 / 8, rel=0.02)
    assert flat["sent"]["mean"] == pytest.approx(256 * (rows * 128 + pairs * 8))
    assert stock["sent"]["mean"] == pytest.approx(256 * pairs * (128 + 4))
    # Everything to everybody: the row, and an entry of the map and a weight for every expert.
    assert whole["all_gather"]["received"]["max"] == 7 * 256 * (128 + 32 * 5)
    assert whole["all_gather"]["node_received"]["mean"] == 4 * 4 * 256 * (128 + 32 * 5)
    assert whole["pairs"]["mean"] == 4 * 256
    assert 1 < whole["pairs"]["imbalance"] < 1.2
    assert whole["two_hops"]["rows_across"] < flat["rows_across"] < stock["rows_across"]


def test_spreads_are_of_all_ranks_and_micro_batches() -> None:
    # The ranks of w4 have 128 to 384 tokens.
    (one,) = found(*FLAGS, "--routing", "w4", "--steps", "2")
    sent = one["all"]["all_gather"]["sent"]
    per_token = 7 * (128 + 32 * 5)
    assert (one["all"]["micro_batches"], sent["mean"] / per_token) == (2, 256)
    assert sent["max"] == 384 * per_token
    assert sent["imbalance"] == 384 / 256
    counts = torch.tensor([round(256 * (0.5 + rank / 7)) for rank in range(8)] * 2).double()
    assert sent["p50"] / per_token == pytest.approx(float(counts.quantile(0.5)))
    assert sent["p99"] / per_token == pytest.approx(float(counts.quantile(0.99)))


def test_a_preset_says_the_sizes_and_several_routings_are_compared() -> None:
    words = ["--grove-preset", "grovemoe-33b", "--ranks", "16", "--tokens", "64"]
    result = run(*words, "--routing", "uniform", "--routing", "w5")
    assert result.exit_code == 0, result.output
    assert "w5: top 8 of 128 experts in 64 groups, 16 ranks on 2 nodes" in result.stdout
    (table,) = result.stdout.split("uniform: top")[-1].split("routing")[-1:]
    assert "w5" in table
    assert found(*words)[0]["sizes"]["row_bytes"] == 4096


def test_workloads_are_all_of_them() -> None:
    assert [one["routing"] for one in found(*FLAGS, "--routing", "workloads")] == [
        f"w{n}" for n in range(8)
    ]


def test_a_placement_is_counted_beside_the_order(tmp_path: Path) -> None:
    order = tuple(planted_order(SIZES, 0).tolist())
    write(tmp_path / "p.json", Assignment(32, 16, 8, {"3": order}))
    words = [*FLAGS, "--routing", "planted:0.9", "--placement", str(tmp_path / "p.json")]
    (one,) = found(*words)
    assert list(one["layers"]) == list(one["placed"]["layers"]) == ["3"]
    before, after = one["all"]["flat"]["rows_across"], one["placed"]["all"]["flat"]["rows_across"]
    assert after < 0.8 * before
    assert one["placed"]["all"]["pairs"]["mean"] == one["all"]["pairs"]["mean"]
    said = run(*words).stdout
    leaving = [
        of["all"]["flat"]["rows_on_node"] + of["all"]["flat"]["rows_across"]
        for of in (one, one["placed"])
    ]
    assert f"{leaving[0]:.3f} -> {leaving[1]:.3f} ({leaving[1] / leaving[0] - 1:+.1%})" in said


def test_a_trace_and_a_record_say_their_sizes(tmp_path: Path) -> None:
    routing = uniform(SIZES, 0)
    tokens = torch.cat([routing.experts("1", 0, rank) for rank in range(8)])
    write_trace(tmp_path / "t", {"1": tokens, "2": tokens.flip(0)}, experts=32, groups=16)
    words = ["--ranks", "8", "--gpus-per-node", "4", "--hidden-size", "64"]
    trace = f"trace:{tmp_path / 't'}"
    (one,) = found(*words, "--routing", trace)
    (drawn,) = found(*FLAGS)
    # The very tokens, so that not one row is another.
    assert one["layers"]["1"] == drawn["all"]
    assert set(one["layers"]) == {"1", "2"}
    assert set(found(*words, "--routing", trace, "--layers", "2")[0]["layers"]) == {"2"}
    writer = Writer(tmp_path / "record")
    writer.run(RUN)
    writer.interval(interval())
    (of_record,) = found("--routing", f"record:{tmp_path / 'record'}", "--tokens", "64")
    sizes = of_record["sizes"]
    assert (sizes["experts"], sizes["groups"], sizes["topk"], sizes["ranks"]) == (8, 4, 2, 2)
    assert sizes["row_bytes"] == 64
    # 6 rows of four tokens in one layer, 5 in the other.
    assert of_record["counted"][0] == pytest.approx(11 / 8)
    said = run("--routing", f"record:{tmp_path / 'record'}", "--tokens", "64").stdout
    assert "the job counted 1.375 rows per token at its own ranks, this routing has" in said


def test_counted_rows_are_compared_in_their_own_order_alone(tmp_path: Path) -> None:
    said = {}
    write(tmp_path / "p.json", Assignment(8, 4, 2, {"1": (2, 0, 1, 3), "mtp 1": (0, 1, 2, 3)}))
    for name, settings in (("order", {}), ("placed", {"grove-placement": "job.json"})):
        writer = Writer(tmp_path / name)
        run_of = replace(RUN, settings=settings)
        writer.run(run_of)
        writer.interval(interval(run=run_of))
        words = ["--routing", f"record:{tmp_path / name}", "--tokens", "64"]
        words += ["--placement", str(tmp_path / "p.json")]
        (one,) = found(*words)
        # Of the placement of the file the job counted nothing.
        assert one["placed"]["counted"] is None
        said[name] = run(*words).stdout
        assert (one["counted"] is None) == (name == "placed")
    assert "the job counted 1.375 rows per token at its own ranks" in said["order"]
    assert "not compared" not in said["order"]
    assert "the job counted 1.375" not in said["placed"]
    assert (
        "the job counted its rows under --grove-placement (job.json); these are of groups in "
        "order, and are not compared with them"
    ) in said["placed"]


def test_sizes_are_refused_together() -> None:
    words = "--experts 100 --groups 64 --topk 200 --ranks 24 --hidden-size 8 --gpus-per-node 16"
    assert problems(*words.split()) == [
        "--topk (200) is above --experts (100); choose the experts of a token",
        "--experts (100) is not a multiple of --groups (64); choose a number of groups that "
        "divides it",
        "--groups (64) is not a multiple of --ranks (24), and a group stays on one rank; use a "
        "number of ranks that divides the groups",
        "--ranks (24) is not a multiple of --gpus-per-node (16), and every node holds as many; "
        "use whole nodes",
    ]
    low = "--experts 0 --topk -1 --ranks 0 --tokens 0 --hidden-size 8 --groups -1"
    assert [line.split(" (")[0] for line in problems(*low.split())] == [
        *("--experts", "--topk", "--ranks", "--tokens", "--groups")
    ]
    plain = problems(*"--experts 10 --topk 2 --ranks 4 --hidden-size 8".split())
    assert plain == [
        "--experts (10) is not a multiple of --ranks (4); use a number of ranks that divides the "
        "experts"
    ]


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    sizes = "--experts 32 --topk 4 --hidden-size 64".split()
    words = "--ranks 3 --gpus-per-node 0 --routing zipf:-1 --routing correlated:3".split()
    assert [line.split(";")[0] for line in problems(*sizes, *words)] == [
        "--routing zipf exponent (-1) is not a number from 0 up",
        "--routing share (3) is not between 0 and 1",
        "--gpus-per-node (0) is below 1",
        "--experts (32) is not a multiple of --ranks (3)",
    ]
    # Of what is no size, no relation is said.
    (low,) = problems(*sizes, "--ranks", "-3")
    assert low == "--ranks (-3) is below 1; use 1 or more"
    # What a file that cannot be read would have said is not asked for, the rest is.
    words = "--routing trace:none --routing limited:2:3 --topk 0 --layers 7 --dtype int8".split()
    assert [line.split(" (")[0] for line in problems(*words)] == [
        *("--dtype", "trace", "--routing limited topk", "--topk")
    ]
    write_trace(tmp_path / "t", {"1": torch.tensor([[0, 1]] * 8)}, experts=8)
    trace = ["--routing", f"trace:{tmp_path / 't'}", "--ranks", "3", "--tokens", "3"]
    assert [
        line.split(" (")[0] for line in problems(*trace, "--layers", "2", "--experts", "9")
    ] == [*("--layers", "--tokens", "--experts", "--hidden-size")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--tokens 99999999999",
            "--tokens (99999999999) of a rank have with --topk (4) more than 134217728 choices, "
            "which are held at once; use fewer tokens",
        ),
        ("--experts 99999999999", "--experts (99999999999) is above 65536; nothing larger is"),
        ("--ranks 99999999999", "--ranks (99999999999) is above 16384; nothing larger is"),
        ("--hidden-size 99999999999", "--hidden-size (99999999999) is above 1048576; nothing"),
        ("--steps 99999999999", "--steps (99999999999) of --ranks (8) are more than 4194304"),
    ],
)
def test_sizes_that_would_not_fit_are_refused_by_name(words: str, said: str) -> None:
    assert any(line.startswith(said) for line in problems(*FLAGS, *words.split()))


def test_layers_of_nothing_are_refused() -> None:
    said = "--layers (1 7) needs --placement, or a record or trace as --routing; leave it out"
    assert problems(*FLAGS, "--layers", "1", "--layers", "7") == [said]


def test_a_part_of_a_workload_is_said_to_be_one() -> None:
    said = (
        "w7 begins again after 4 steps, of which --steps (3) is no multiple: these are not the "
        "figures of the whole"
    )
    for steps in (3, 4, 5):
        result = run(*FLAGS, "--routing", "w7", "--steps", str(steps))
        assert (said in result.stdout) == (steps == 3), result.output
        assert ("begins again" in result.stdout) == (steps != 4)
    assert "begins again" not in run(*FLAGS, "--steps", "3").stdout


def test_what_nothing_says_is_asked_for() -> None:
    assert [line.split(" (")[0] for line in problems("--topk", "2")] == [
        *("--experts", "--hidden-size")
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--routing foo", "--routing (foo) is not one of"),
        ("--routing zipf:-1", "--routing zipf exponent (-1) is not a number from 0 up"),
        ("--grove-preset x", "--grove-preset (x) is not one of"),
        ("--grove-preset grovemoe-33b --experts 64", "--experts (64) differs from that of"),
        ("--dtype int8", "--dtype (int8) is not one of (bf16, fp32)"),
        ("--steps 0", "--steps (0) is below 1"),
        ("--placement none.json", "placement (none.json) cannot be read"),
        ("--routing record:nowhere", "RUN_DIR (nowhere) does not exist"),
        ("--routing trace:nowhere", "trace (nowhere) cannot be read"),
    ],
)
def test_words_that_are_none_are_refused(words: str, said: str) -> None:
    assert problems(*FLAGS, *words.split())[0].startswith(said)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.run(RUN)
    writer.interval(interval())
    record = f"record:{tmp_path}"
    assert problems(*FLAGS, "--routing", record) == [
        f"--experts (32) differs from that of --routing ({record}) (8); leave it out",
        f"--topk (4) differs from that of --routing ({record}) (2); leave it out",
        f"--groups (16) differs from that of --routing ({record}) (4); leave it out",
        f"--hidden-size bytes (128) of --dtype (bf16) differs from that of --routing ({record}) "
        "(64); give its --dtype, or leave both out",
    ]
    write_trace(tmp_path / "t", {"1": torch.tensor([[0, 1]] * 8)}, experts=8)
    trace = f"trace:{tmp_path / 't'}"
    said = problems("--routing", record, "--routing", trace)
    assert said == [
        f"groups (4) of --routing ({record}) differs from that of --routing ({trace}) (0); name "
        "one of them"
    ]
    alone = ["--routing", trace, "--hidden-size", "8", "--ranks", "2"]
    assert problems(*alone, "--tokens", "3", "--steps", "2", "--layers", "7") == [
        f"--layers (7) are not layers of --routing ({trace}) (1); choose of these",
        "--tokens (3) excludes a trace, which has its own; leave it out",
        "--steps (2) excludes a trace, which has its tokens once; leave it out",
    ]
    file = tmp_path / "p.json"
    write(file, Assignment(8, 0, 4, {}))
    placed = problems(*alone, "--placement", str(file))
    assert "is for expert-parallel ranks (4), the job has (2)" in placed[0]
    write(file, Assignment(8, 0, 2, {"3": tuple(range(8))}))
    (of_layers,) = problems(*alone, "--placement", str(file))
    assert "has layers (3) that are no MoE layers of the model (1)" in of_layers
    sizes = "--experts 8 --topk 2 --ranks 2 --hidden-size 8".split()
    assert problems(*sizes, "--layers", "1", "--placement", str(file)) == [
        f"--layers (1) are not layers of --placement ({file}) (3); choose of these"
    ]
