"""What ``examples/compare.py`` makes of the records of its runs."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from grove_megatron.model.parameters import active_parameters, total_parameters
from grove_megatron.parts import registry
from grove_megatron.planner.flops import flops_per_token
from grove_megatron.planner.traffic import groups_per_token
from grove_megatron.training.sizes import sizes_of
from tests.unit.conftest import parser

EXAMPLES = Path(__file__).parents[3] / "examples"
MODULES = ("pretrain_text", "compare_arms", "compare_runs", "compare_flops", "compare_routers")


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    """The modules of the example, by the last word of their names, and ``command``."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        found = {name.split("_")[1]: importlib.import_module(name) for name in MODULES}
        found["command"] = importlib.import_module("compare")
    finally:
        sys.path.remove(str(EXAMPLES))
    return SimpleNamespace(**found)


@pytest.fixture
def moepp(example):
    return example.arms.COMPARISONS["moepp"]


@pytest.fixture
def routers(example):
    return example.arms.COMPARISONS["routers"]


def active(arm) -> float:
    model = arm.model()
    return active_parameters(model, groups_per_token(model) if arm.groups else 0)


def test_a_token_uses_as_many_parameters_of_every_model(moepp):
    counts = [active(arm) for arm in moepp.arms]
    assert all(abs(count - counts[0]) < 0.005 * counts[0] for count in counts), counts


def found_by_megatron(job):
    """The model of its command line."""
    words = job.command[job.command.index("grove_megatron.pretrain") + 1 :]
    return sizes_of(parser().parse_args(words), 1).model


@pytest.mark.parametrize("name", ["moepp", "routers"])
def test_the_models_are_those_of_the_command_lines(example, tmp_path, name):
    of = example.arms.COMPARISONS[name]
    for job in example.runs.jobs(of, tmp_path)[: len(of.arms)]:
        found, ours = found_by_megatron(job), job.arm.model()
        # But for what parts of a router have.
        assert flops_per_token(found, 256) == pytest.approx(
            flops_per_token(replace(ours, part_weights=found.part_weights), 256), rel=1e-12
        )
        assert found.num_groups == ours.num_groups
        assert total_parameters(found).experts == total_parameters(ours).experts
        assert total_parameters(found).adjugates == total_parameters(ours).adjugates


def test_seeds_come_one_after_the_other_and_have_their_own_folders(example, moepp, tmp_path):
    found = example.runs.jobs(moepp, tmp_path)
    assert [job.seed for job in found] == [1] * 4 + [2] * 4 + [3] * 4
    assert len({job.folder for job in found}) == 12
    assert found[3].folder.name == "Grove-x-MoE++-1"


def test_a_finished_run_is_one_of_the_same_command_and_text(example, moepp, tmp_path, monkeypatch):
    job = example.runs.jobs(moepp, tmp_path)[0]
    other = example.runs.jobs(replace(moepp, iterations=30), tmp_path)[0]
    job.folder.mkdir()
    (tmp_path / "data").mkdir()
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text("{}")
    monkeypatch.setattr(example.runs.Job, "view", lambda job: None)
    assert not job.is_done
    job.finish("2026-01-01 00:00:00")
    assert job.is_done
    assert job.call == "2026-01-01 00:00:00"
    assert not other.is_done
    manifest.write_text('{"files": {}}')
    assert not job.is_done
    manifest.write_text("{}")
    (job.folder / "done.json").write_text("[]")
    assert not job.is_done
    job.finish("2026-01-01 00:00:00")
    monkeypatch.undo()
    # Without its record.
    assert not job.is_done
    with pytest.raises(ValueError, match=r"routing\.jsonl"):
        job.finish("2026-01-01 00:00:00")


def test_the_interval_of_a_mean(example):
    # Student's t with 2 degrees of freedom: 4.30 s / sqrt(3).
    half_width = example.runs.half_width
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30 / math.sqrt(3), rel=1e-12)
    assert half_width([1.0, 1.0]) == 0
    assert half_width([1.0]) == math.inf


def curves(example, of):
    """The first spends 1, 2, 3; the others half of it, and learn 0.1 less, give or take."""
    found = {}
    for i, arm in enumerate(of.arms):
        for seed in of.seeds:
            scale, worse = (1.0, 0.0) if i == 0 else (0.5, 0.1 + 0.01 * seed)
            found[arm.name, seed] = example.flops.Curve(
                parameters=10 + i,
                flops=[scale, 2 * scale, 3 * scale],
                losses=[3.0 + worse, 2.0 + worse, 1.5 + worse],
                active=5.0 + seed,
                experts=4.0,
            )
    return found


def test_differences_are_of_the_same_seed_and_of_the_same_operations(example, moepp):
    summary = example.flops.summarize(moepp, curves(example, moepp))
    assert summary["equal_flops"] == 1.5
    plain, other = summary["models"][:2]
    assert (plain["parameters"], plain["active"], plain["flops"]) == (10, 7.0, 3.0)
    assert (plain["difference"], plain["difference_95"]) == (0, 0)
    assert other["difference"] == pytest.approx(0.12)
    assert other["difference_95"] == pytest.approx(4.30 * 0.01 / math.sqrt(3))
    # The first had 2.5 there, between two evaluations; the other its last.
    assert plain["loss_at_equal_flops"] == 2.5
    assert other["difference_at_equal_flops"] == pytest.approx(1.5 + 0.12 - 2.5)
    row = example.flops.table_of(summary, 20)[3]
    assert row.startswith(
        "| Grove | 11 | 7 | 4.00 | 0.00 | 1.6200 (0.0200 between seeds) | +0.1200"
    )


# --------------------------------------------------------------------------- routers


def test_routers_are_compared_at_equal_parameters(example, routers, tmp_path):
    example.arms.refuse_unlike(routers.arms)
    models = [
        found_by_megatron(j) for j in example.runs.jobs(routers, tmp_path)[: len(routers.arms)]
    ]
    counts = [(total_parameters(m).total, active_parameters(m, 0)) for m in models]
    total, used = counts[0]
    for arm, model, (own_total, own_used) in zip(routers.arms, models, counts, strict=True):
        if arm.groups:
            assert 0.9 * total < own_total < total
        else:
            assert total_parameters(model).experts == total_parameters(models[0]).experts
            gates = 0.1 if arm.name == "two-layer gate" else 0.03
            assert abs(own_used - used) < gates * used, arm.name
            assert abs(own_total - total) < 0.03 * total, arm.name
    (top_1,) = (arm for arm in routers.arms if arm.name == "top-1")
    wider = replace(top_1, width=96)
    with pytest.raises(ValueError, match=r"top-1 has 787,328 parameters, .* plain has 1,377,152"):
        example.arms.refuse_unlike([routers.arms[0], wider])
    grove = replace(routers.arms[-2], width=96)
    with pytest.raises(ValueError, match=r"Grove has .* a token uses 368"):
        example.arms.refuse_unlike([routers.arms[0], grove])


def test_every_selector_and_gate_has_a_router(routers):
    known = {f"{part.slot}-{part.name}" for part in registry.parts()}
    named = {part for arm in routers.arms for part in arm.parts}
    assert named <= known
    assert {part for part in known if part.startswith(("selector-", "gate-"))} <= named
    assert len({arm.folder for arm in routers.arms}) == len(routers.arms)


def test_bytes_of_the_text_are_counted(example, tmp_path):
    np.array([3, 3, 7], dtype=np.uint16).tofile(tmp_path / "text.bin")
    example.command.write_counts(tmp_path)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert len(counts) == 257
    assert (counts[3], counts[7], sum(counts)) == (2, 1, 3)
    (arm,) = (a for a in example.arms.COMPARISONS["routers"].arms if a.name == "hash, balanced")
    assert arm.words(tmp_path)[-1] == str(tmp_path / "counts.json")


def few(of):
    """Plain, hash layers and expert choice."""
    names = ("plain", "hash, random", "expert choice")
    return replace(of, arms=tuple(a for n in names for a in of.arms if a.name == n))


def measured(of):
    """The second is worse by 0.1 and by 0.005 more with every seed, and twice as fast."""
    found = {}
    for i, arm in enumerate(of.arms):
        for seed in of.seeds:
            found[arm.name, seed] = {
                "loss": 2.0 + 0.1 * seed + i * (0.1 + 0.005 * seed),
                "max_vio": 0.5 + seed,
                "dead_experts": 4.0 * i,
                "pairs_per_token": 2.0 - i,
                "rows_per_token": 1.0,
                "tokens_per_second": 1000.0 * (i + 1) * seed,
                "parameters": 1000.0 + i,
                "active": 500.0 + seed,
                **({"dropped_share": 0.25} if i == 1 else {}),
            }
    return found


def summary_of(example, of):
    calls = {(arm.name, seed): "2026-01-01 00:00:00" for arm in of.arms for seed in of.seeds}
    # Of a later call: that seed of the others has no plain run beside it.
    calls["hash, random", 3] = calls["expert choice", 3] = "2026-01-02 00:00:00"
    found = example.routers.summarize(of, measured(of), calls)
    return found | {"window": 10, "machine": "a processor, 2 cores"}


def test_routers_are_compared_seed_by_seed(example, routers):
    of = few(routers)
    summary = summary_of(example, of)
    plain, hashed, _ = summary["routers"]
    assert (plain["difference"], plain["difference_95"], plain["speed"]) == (0, 0, 1)
    assert plain["loss_spread"] == pytest.approx(0.2)
    assert hashed["differences"] == pytest.approx([0.105, 0.11, 0.115])
    assert hashed["difference"] == pytest.approx(0.11)
    assert hashed["difference_95"] == pytest.approx(4.30 * 0.005 / math.sqrt(3))
    # 2000 and 4000 of a mean of 2000; the third was made without a plain one.
    assert hashed["speed"] == pytest.approx(1.5)
    assert (hashed["max_vio"], hashed["dead_experts"]) == (2.5, 4.0)
    lines = example.routers.markdown(summary)
    assert lines[2].startswith("| plain | 2.2000 (0.2000) |  | 2.50 | 0.0 | 2.00 | 1.00 | 1.00 |")
    assert lines[3].startswith(
        "| hash, random | 2.3100 (0.2100) | +0.1100 ± 0.0124 | 2.50 | 4.0 | 1.00 25.0% dropped "
        "| 1.00 | 1.50 | 1,001 | 502 |"
    )
    assert lines[4].startswith("| expert choice † |")
    text = "\n".join(example.routers.explained(of, summary))
    assert "† expert choice: its losses are too low" in text
    assert "after 245,760 bytes, mean of 3 seeds" in text
    # One seed has no interval, and nothing is said of it.
    alone = replace(of, seeds=(1,))
    table = example.routers.markdown(summary_of(example, alone))
    assert "| 2.2050 | +0.1050 |" in table[3]
    assert summary_of(example, alone)["routers"][1]["difference_95"] is None
    text = "\n".join(example.routers.explained(alone, summary_of(example, alone)))
    assert "bytes, of one seed.\n" in text


def test_without_a_plain_run_of_the_same_call_there_is_no_speed(example, routers):
    of = few(routers)
    calls = {(a.name, s): "1" if a.name == "plain" else "2" for a in of.arms for s in of.seeds}
    summary = example.routers.summarize(of, measured(of), calls)
    assert [one["speed"] for one in summary["routers"]] == [1, None, None]
    assert "| 1.00 | – |" in example.routers.markdown(summary)[3]


def test_cards_of_parts_get_a_row_for_every_part(example, routers):
    found = example.routers.figures(summary_of(example, few(routers)))
    assert (found["machine"], found["date"]) == ("a processor, 2 cores", "2026-01-02")
    assert [row["part"] for row in found["rows"]] == [
        *("selector-topk", "scoring-softmax", "selector-hash", "selector-expert_choice")
    ]
    assert found["rows"][2] == {
        "part": "selector-hash",
        "name": "hash, random",
        "seeds": 3,
        "loss": 2.31,
        "loss_spread": 0.21,
        "max_vio": 2.5,
        "dead_experts": 4.0,
        "pairs_per_token": 1.0,
        "rows_per_token": 1.0,
        "tokens_per_second": 4000,
    }


def test_the_command_of_the_figures(example):
    def command(**given):
        options = {"what": "routers", "iterations": None, "seeds": None} | given
        return example.command._command(SimpleNamespace(**options))

    assert command() == "make compare"
    assert command(seeds=2) == "examples/compare.py routers --seeds 2"
