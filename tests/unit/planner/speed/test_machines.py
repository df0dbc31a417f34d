"""Machines of files, and clusters that a user writes."""

import tomllib
from pathlib import Path

import pytest

import grove_megatron
from grove_megatron.checks.problem import Refusal
from grove_megatron.planner.speed.cluster import GIB
from grove_megatron.planner.speed.machines import NEEDED, machine, names, read_cluster

FOLDER = Path(grove_megatron.__file__).parent / "planner" / "speed" / "machine_files"
FILES = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.toml")
}

WHOLE = """
memory_gib = 80
bf16_tflops = 1000
hbm_tb_s = 3.0
gpus_per_node = 4
scale_up_gpus = 4
scale_up_gb_s = { value = 400, source = "a data sheet" }
scale_out_gb_s = 50
"""


def test_the_machines_of_the_field_are_there():
    assert {"h100", "h200", "b200", "gb200", "mi300x"} <= set(names()) == set(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_machine_is_what_its_file_says(name):
    said, found = FILES[name], machine(name)
    assert found.memory == said["memory_gib"]["value"] * GIB
    assert found.peak["bf16"] == said["bf16_tflops"]["value"] * 1e12
    assert found.near.rate == said["scale_up_gb_s"]["value"] * 1e9
    assert (found.domain, found.per_node) == (
        said["scale_up_gpus"]["value"],
        said["gpus_per_node"]["value"],
    )
    assert set(found.sources) == {key for key, value in said.items() if isinstance(value, dict)} - {
        "sources"
    }
    # Nothing is faster than specified, and nothing takes no time.
    for rate in (found.achieved, found.grouped):
        assert 0 < rate < found.peak["bf16"]
    for link in (found.near, found.far):
        assert all(0 < share <= 1 for share in link.shares.values()), link.shares


def test_measured_products_are_in_the_planners_terms():
    (table,) = [
        one
        for one in FILES["b200"]["matmul"]
        if one["kind"] == "grouped" and one["precision"] == "bf16"
    ]
    first = dict(zip(table["columns"], table["rows"][0], strict=True))
    found = [
        one
        for one in machine("b200").products
        if (one.groups, one.rows, one.inner, one.outer)
        == (first["experts"], first["rows"], first["in"], first["out"])
    ]
    rates = {one.pass_: one.flops / 2250e12 for one in found}
    assert rates == pytest.approx(
        {"forward": first["forward"], "input": first["dgrad"], "weight": first["wgrad"]}
    )


def test_attention_is_counted_as_if_nothing_were_masked():
    table = next(
        one for one in FILES["b200"]["attention"] if one["implementation"] == "transformer-engine"
    )
    first = dict(zip(table["columns"], table["rows"][0], strict=True))
    found = next(
        one
        for one in machine("b200").attentions
        if not one.backward and (one.length, one.heads) == (first["seq_length"], first["heads"])
    )
    # Of half of the pairs in the file.
    assert found.flops == pytest.approx(2e12 * first["forward_tflops"])


def test_attention_of_a_chip_is_taken_from_its_file():
    assert machine("h800").attentions == machine("h100").attentions
    assert machine("gb300").attentions == machine("b200").attentions


def test_an_unknown_machine_is_refused_by_name():
    with pytest.raises(Refusal, match=r"--machine \(h300\) is not one of b200, .*h100"):
        machine("h300")


def refused(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refusal) as error:
        read_cluster(path)
    return [str(problem) for problem in error.value.problems]


def test_a_users_cluster(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE + "nodes = 3\nprice = 2.5\n", encoding="utf-8")
    found = read_cluster(path)
    assert (found.gpus, found.price, found.machine.name) == (12, 2.5, "mine")
    assert found.machine.near.rate == 400e9


def test_a_cluster_takes_from_a_machine_what_it_does_not_say(tmp_path):
    path = tmp_path / "slow.toml"
    path.write_text('machine = "h100"\nnodes = 2\nscale_out_gb_s = 12.5\n', encoding="utf-8")
    found = read_cluster(path)
    assert found.machine.far.rate == 12.5e9
    assert found.machine.near.rate == machine("h100").near.rate
    # What was measured is a share of the rate.
    assert found.machine.far.shares["default"] == machine("h100").far.shares["default"]
    assert (found.nodes, found.per_node) == (2, 8)


def test_numbers_that_lack_are_said_all_at_once(tmp_path):
    lines = refused(tmp_path, "nodes = 2\nmemory_gib = 80\n")
    for name in set(NEEDED) - {"memory_gib"}:
        assert any(f"lacks {name}; add it" in line for line in lines), name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scale_out_gb_s = 0", "scale_out_gb_s (0.0) is not above 0"),
        ("scale_up_gb_s = -1", "scale_up_gb_s (-1.0) is not above 0"),
        ("nodes = 0", "nodes (0.0) is not above 0"),
        ("hbm_tb_s = nan", "hbm_tb_s (nan) is not above 0"),
        ('memory_gib = "80"', "memory_gib (80) is not a number"),
        ("bandwidth = 3", "bandwidth (3) is not known; a cluster has memory_gib"),
        ('machine = "v100"', "machine (v100) is not one of"),
        ("gpus_per_node = 0.5", "gpus_per_node (0.5) is not a whole number"),
        ("price = -2", "price (-2.0) is not above 0"),
        ("name = [1]", "name (1) is not a word"),
        ("chip = [1]", "chip (1) is not one of"),
        ('chip = "zz"', "chip (zz) is not one of"),
        ("matmul = 5", "matmul (5) is not a table"),
        ("[[matmul]]\npeak_tflops = 1", "[[matmul]] lacks precision"),
        ("[[matmul]]\npeak_tflops = 1", "[[matmul]] lacks columns"),
        (
            '[[collective_fit]]\ncolumns = ["operation"]\nrows = []',
            "[[collective_fit]] lacks the c",
        ),
        ('[[memory_bound]]\ncolumns = ["share"]\nrows = [[1, 2]]', "[[memory_bound]] row (1 2) is"),
        ('[[memory_bound]]\ncolumns = ["share"]\nrows = [["x"]]', "[[memory_bound]] share (x) is"),
        ("hbm_share = 7", "hbm_share (7) is above 1"),
        ("bf16_matmul_tflops = 1e6", "bf16_matmul_tflops (1e+06) is above bf16_tflops"),
        ("scale_up_measured_gb_s = 1e6", "scale_up_measured_gb_s (1e+06) is above scale_up_gb_s"),
        ("scale_out_measured_gb_s = 51", "scale_out_measured_gb_s (51) is above scale_out_gb_s"),
    ],
)
def test_a_number_that_no_cluster_has_is_refused_by_name(tmp_path, line, said):
    name = line.partition(" ")[0]
    kept = [one for one in WHOLE.splitlines() if not one.startswith(f"{name} ")]
    assert any(one.startswith(said) for one in refused(tmp_path, "\n".join([*kept, line])))


def test_two_such_numbers_are_said_at_once(tmp_path):
    text = WHOLE.replace("= 50", "= 0").replace("= 1000", "= -1000")
    assert len(refused(tmp_path, text)) == 2
    # With what is no number at all, and what is not known.
    assert len(refused(tmp_path, f"bandwidth = 3\nprice = []\n{text}")) == 4


@pytest.mark.parametrize("text", ["nodes =", "\x00"])
def test_what_is_no_toml_is_refused(tmp_path, text):
    (line,) = refused(tmp_path, text)
    assert line.startswith("--cluster (")
    assert "cannot be read" in line


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        read_cluster(tmp_path / "none.toml")
